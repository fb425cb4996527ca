//! Keys that wait: what an operator is shown of them.

use jiff::Timestamp;
use uuid::Uuid;

use crate::{EventRecord, OrderKey, Seq};

/// Why a key waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum StuckBy {
    /// One of its events is a dead letter. Whether that holds the key back is for the relay's
    /// routes to say: the database does not know them.
    DeadLetter,
    /// One of its events failed, and the time of its next attempt has not come.
    Retry,
}

/// Which keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StuckKeyQuery {
    /// Those that wait for this.
    pub by: StuckBy,
    /// Those whose head is after this place: 0 for the first page, then
    /// [`StuckKeyPage::next`].
    pub after: Seq,
    /// At most so many.
    pub limit: usize,
}

/// Some keys, by the place of their heads.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct StuckKeyPage {
    /// The keys, each once.
    pub keys: Vec<StuckKey>,
    /// Where the next page begins; `None` where there is none. A page can be short, even empty,
    /// and still have a next one: a store looks at a bounded number of events for each.
    pub next: Option<Seq>,
}

/// A key and the event that it waits for: its first dead letter, or its first event that waits for
/// a retry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StuckKey {
    /// The key.
    pub key: OrderKey,
    /// The event's place.
    pub seq: Seq,
    /// Its identity.
    pub id: Uuid,
    /// What happened.
    pub event_type: Box<str>,
    /// The configured destination its writer chose.
    pub destination: Option<Box<str>>,
    /// Failed attempts so far.
    pub retry_count: u32,
    /// The last error.
    pub error_message: Option<Box<str>>,
    /// When it became a dead letter.
    pub dead_at: Option<Timestamp>,
    /// Why it became one.
    pub dead_reason: Option<Box<str>>,
    /// When it is tried again, where it is no dead letter.
    pub next_attempt_at: Option<Timestamp>,
    /// Pending events of the key behind it.
    pub waiting: u64,
    /// Whether there may be more of them than `waiting`: counting is bounded.
    pub waiting_is_minimum: bool,
}

impl StuckKey {
    /// The key of an event, with nothing counted yet. For stores.
    #[must_use]
    pub fn new(seq: Seq, head: EventRecord) -> Self {
        Self {
            key: head.order_key,
            seq,
            id: head.id,
            event_type: head.event_type,
            destination: head.destination,
            retry_count: head.retry_count,
            error_message: head.error_message,
            dead_at: head.dead_at,
            dead_reason: head.dead_reason,
            next_attempt_at: if head.dead_at.is_some() { None } else { head.available_at },
            waiting: 0,
            waiting_is_minimum: false,
        }
    }
}
