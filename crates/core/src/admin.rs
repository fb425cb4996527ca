//! What an operator does with stored events.

use std::time::Duration;

use async_trait::async_trait;
use jiff::Timestamp;
use uuid::Uuid;

use crate::{OpenTransaction, OutboxEvent, Result, Seq, StuckKeyPage, StuckKeyQuery};

/// Finds, revives and discards events. Every adapter of
/// [`OutboxRepository`](crate::OutboxRepository) keeps this too.
#[async_trait]
pub trait OutboxAdmin: Send + Sync {
    /// One event, wherever it is.
    async fn find_event(&self, id: Uuid) -> Result<Option<OutboxEvent>>;

    /// Events that match, at most `limit`: pending and dead by place, delivered ones latest first.
    async fn list_events(&self, filter: &EventFilter, limit: usize) -> Result<Vec<OutboxEvent>>;

    /// How many match, counting no further than `limit`.
    async fn count_events(&self, filter: &EventFilter, limit: u64) -> Result<u64>;

    /// Gives matching dead letters a fresh set of retries at their old place, and makes waiting
    /// retries due at once. Running relays notice by themselves. Returns how many changed.
    async fn retry_events(&self, filter: &EventFilter) -> Result<u64>;

    /// Deletes matching pending and dead events, undelivered. Delivered events are left to
    /// cleanup. Returns how many.
    async fn discard_events(&self, filter: &EventFilter) -> Result<u64>;

    /// Keys that wait for an operator or for a retry, by the place of the event they wait for.
    ///
    /// Each is listed once, under its first dead letter or its first event that waits for a retry;
    /// a key that has both is listed under either question. What a page costs does not grow with
    /// the backlog: a store looks at so many events only and says where to go on.
    async fn stuck_keys(&self, query: &StuckKeyQuery) -> Result<StuckKeyPage>;

    /// Transactions that are open for `older_than` or longer and have stored events, or may have:
    /// the oldest first, at most `limit`. One whose age we may not see is among them, at the end.
    ///
    /// Default: none, for stores whose writers hold nothing back.
    async fn open_transactions(
        &self,
        _older_than: Duration,
        _limit: usize,
    ) -> Result<Vec<OpenTransaction>> {
        Ok(Vec::new())
    }
}

/// Where an event is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum EventState {
    /// Neither delivered nor dead.
    Pending,
    /// Pending, and failed at least once.
    Retrying,
    /// A dead letter.
    Dead,
    /// Delivered.
    Delivered,
}

impl EventState {
    /// All states.
    pub const ALL: [Self; 4] = [Self::Pending, Self::Retrying, Self::Dead, Self::Delivered];

    /// Its lower-case name.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Retrying => "retrying",
            Self::Dead => "dead",
            Self::Delivered => "delivered",
        }
    }
}

impl OutboxEvent {
    /// Where the event is in its life.
    #[must_use]
    pub const fn state(&self) -> EventState {
        if self.processed_at().is_some() {
            EventState::Delivered
        } else if self.dead_at().is_some() {
            EventState::Dead
        } else if self.retry_count() > 0 {
            EventState::Retrying
        } else {
            EventState::Pending
        }
    }
}

/// Which events. Every part that is given must match.
///
/// There is no default: every event is asked for by [`all`](Self::all), by that name, and a list
/// of ids that turned out empty selects nothing.
///
/// ```
/// # use posthaste_core::EventFilter;
/// let of_type = EventFilter { event_type: Some("order.placed".into()), ..EventFilter::all() };
/// let none = EventFilter::with_ids([]);
/// # assert_eq!((of_type.ids, none.ids), (None, Some(vec![])));
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EventFilter {
    /// In this state. `Pending` includes `Retrying`.
    pub state: Option<EventState>,
    /// One of these ids: none of them, and nothing matches. `None` means any.
    pub ids: Option<Vec<Uuid>>,
    /// Of exactly this event type.
    pub event_type: Option<String>,
    /// Of this order key, or of this aggregate where it has no key of its own.
    pub order_key: Option<String>,
    /// Stored at or after.
    pub created_from: Option<Timestamp>,
    /// Stored before.
    pub created_before: Option<Timestamp>,
    /// After this place (for paging).
    pub after: Option<Seq>,
}

impl EventFilter {
    /// Every event.
    #[must_use]
    pub const fn all() -> Self {
        Self {
            state: None,
            ids: None,
            event_type: None,
            order_key: None,
            created_from: None,
            created_before: None,
            after: None,
        }
    }

    /// The events with these ids. Of no ids: no events.
    #[must_use]
    pub fn with_ids(ids: impl IntoIterator<Item = Uuid>) -> Self {
        Self { ids: Some(ids.into_iter().collect()), ..Self::all() }
    }

    /// The events in `state`.
    #[must_use]
    pub fn in_state(state: EventState) -> Self {
        Self { state: Some(state), ..Self::all() }
    }
}
