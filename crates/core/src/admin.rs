//! What an operator does with stored events.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use async_trait::async_trait;
use jiff::Timestamp;
use uuid::Uuid;

use crate::{
    Error, ErrorKind, Finding, OpenTransaction, OutboxEvent, Pattern, Result, Seq, Shard,
    StuckKeyPage, StuckKeyQuery,
};

/// Finds, revives and discards events. Every adapter of
/// [`OutboxRepository`](crate::OutboxRepository) keeps this too.
#[async_trait]
pub trait OutboxAdmin: Send + Sync {
    /// One event, wherever it is.
    async fn find_event(&self, id: Uuid) -> Result<Option<OutboxEvent>>;

    /// Events that match, at most `limit`: pending and dead by place, delivered ones latest first.
    async fn list_events(&self, filter: &EventFilter, limit: usize) -> Result<Vec<OutboxEvent>>;

    /// Where an event stands in the lists of [`list_events`](Self::list_events), for the next page; `None`
    /// where it is gone.
    async fn event_place(&self, id: Uuid) -> Result<Option<EventPlace>>;

    /// How many match, counting no further than `limit`.
    async fn count_events(&self, filter: &EventFilter, limit: u64) -> Result<u64>;

    /// Gives matching dead letters a fresh set of retries at their old place, and makes waiting
    /// retries due at once. Running relays notice by themselves. Returns how many changed.
    async fn retry_events(&self, filter: &EventFilter) -> Result<u64>;

    /// Makes matching pending events due at once, whatever they wait for: a delay their writer asked
    /// for, or the next attempt. Their attempts stay counted. Running relays notice by themselves.
    /// Returns how many changed.
    async fn release_events(&self, filter: &EventFilter) -> Result<u64>;

    /// Sends matching pending and dead events to the configured destination of this name, whatever
    /// their writers or the routes chose; `None` leaves it to the routes again. They stay what they
    /// are, at their places. Running relays notice by themselves; what is in flight arrives where it
    /// was sent. Returns how many changed.
    ///
    /// # Errors
    /// `Malformed` for a name that no destination can have.
    async fn reroute_events(&self, filter: &EventFilter, to: Option<&str>) -> Result<u64>;

    /// Deletes matching pending and dead events, undelivered. Delivered events are left to
    /// cleanup. Returns how many.
    async fn discard_events(&self, filter: &EventFilter) -> Result<u64>;

    /// Keys that wait for an operator or for a retry, by the place of the event they wait for.
    ///
    /// Each is listed once, under its first dead letter or its first event that waits for a retry;
    /// a key that has both is listed under either question. What a page costs does not grow with
    /// the backlog: a store looks at so many events only and says where to go on.
    async fn stuck_keys(&self, query: &StuckKeyQuery) -> Result<StuckKeyPage>;

    /// The relays that share the outbox, and what each says of itself.
    ///
    /// Default: none, for stores that know none.
    async fn relays(&self) -> Result<Vec<RelayView>> {
        Ok(Vec::new())
    }

    /// Looks for what keeps events from being delivered though the database answers: rights, settings,
    /// locks, odd rows. Each look is by itself, reads only, and is a finding whatever comes of it. Where
    /// there is no outbox, one says so, and where one is.
    ///
    /// Default: nothing is looked at.
    async fn diagnose(&self) -> Vec<Finding> {
        Vec::new()
    }

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

/// A relay as the database knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct RelayView {
    /// Host and process id.
    pub name: Box<str>,
    /// How long its lease runs still, by the database's clock; zero for one that is taken for dead. In a
    /// store without leases: how long it may be silent still.
    pub lease_left: Duration,
    /// Shards it holds, of 64.
    pub shards: usize,
    /// What it said of itself last, as JSON; `None` before it said anything.
    pub report: Option<Box<str>>,
    /// How long ago that was, in a store without leases: there a relay is alive as long as it says
    /// something, which it does every minute at least.
    pub said_ago: Option<Duration>,
    /// How long ago it joined those that share the outbox, where the store knows.
    pub joined_ago: Option<Duration>,
}

impl RelayView {
    /// A relay.
    #[must_use]
    pub fn new(name: &str, lease_left: Duration, shards: usize, report: Option<&str>) -> Self {
        let report = report.map(Into::into);
        Self { name: name.into(), lease_left, shards, report, said_ago: None, joined_ago: None }
    }

    /// The same relay, with how long ago it joined.
    #[must_use]
    pub fn that_joined(self, joined_ago: Duration) -> Self {
        Self { joined_ago: Some(joined_ago), ..self }
    }

    /// A relay of a store without leases, that said so long ago what it does.
    #[must_use]
    pub fn that_said(name: &str, said_ago: Duration, report: &str) -> Self {
        /// Twice as long as a relay is silent at most, and a little.
        const SILENT_MAX: Duration = Duration::from_secs(130);
        let left = SILENT_MAX.saturating_sub(said_ago);
        Self { said_ago: Some(said_ago), ..Self::new(name, left, Shard::COUNT, Some(report)) }
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
    /// Whether an attempt failed since it was stored or revived, be it that none was counted.
    #[must_use]
    pub fn has_failed(&self) -> bool {
        self.retry_count() > 0 || self.error_message().is_some()
    }

    /// Where the event is in its life.
    #[must_use]
    pub fn state(&self) -> EventState {
        if self.processed_at().is_some() {
            EventState::Delivered
        } else if self.dead_at().is_some() {
            EventState::Dead
        } else if self.has_failed() {
            EventState::Retrying
        } else {
            EventState::Pending
        }
    }
}

/// Where an event stands in a list: undelivered ones by the place where they were stored, delivered ones
/// by when they were.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EventPlace {
    /// The place where it was stored.
    pub seq: Seq,
    /// When it was delivered.
    pub delivered_at: Option<Timestamp>,
}

impl EventPlace {
    /// The place of an event that is not delivered.
    #[must_use]
    pub const fn undelivered(seq: Seq) -> Self {
        Self { seq, delivered_at: None }
    }
}

/// As it is given to the next call: `17`, or `17@2026-01-31T12:00:00Z`.
impl fmt::Display for EventPlace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.delivered_at {
            None => write!(f, "{}", self.seq),
            Some(at) => write!(f, "{}@{at}", self.seq),
        }
    }
}

impl FromStr for EventPlace {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let (seq, at) = text.split_once('@').map_or((text, None), |(seq, at)| (seq, Some(at)));
        let read = || Some((seq.parse().ok()?, at.map(str::parse).transpose().ok()?));
        let (seq, delivered_at) = read().ok_or_else(|| {
            Error::new(ErrorKind::Config, "read place", "not one that a list has given")
        })?;
        Ok(Self { seq, delivered_at })
    }
}

/// Which events. Every part that is given must match.
///
/// There is no default: every event is asked for by [`all`](Self::all), by that name, and a list
/// of ids that turned out empty selects nothing.
///
/// ```
/// # use posthaste_core::EventFilter;
/// # use posthaste_core::Pattern;
/// let of_type = EventFilter { event_type: Some(Pattern::new("order.*")), ..EventFilter::all() };
/// let none = EventFilter::with_ids([]);
/// # assert_eq!((of_type.ids, none.ids), (None, Some(vec![])));
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EventFilter {
    /// In this state. `Pending` includes `Retrying`.
    pub state: Option<EventState>,
    /// One of these ids: none of them, and nothing matches. `None` means any.
    pub ids: Option<Vec<Uuid>>,
    /// One of these ids, from the first to the last; for an id of which only the beginning is known.
    pub ids_between: Option<(Uuid, Uuid)>,
    /// Of these event types.
    pub event_type: Option<Pattern>,
    /// Of this order key, or of this aggregate where it has no key of its own.
    pub order_key: Option<String>,
    /// Stored at or after.
    pub created_from: Option<Timestamp>,
    /// Stored before.
    pub created_before: Option<Timestamp>,
    /// Behind this place in the order of a list: the next page.
    pub after: Option<EventPlace>,
}

impl EventFilter {
    /// Every event.
    #[must_use]
    pub const fn all() -> Self {
        Self {
            state: None,
            ids: None,
            ids_between: None,
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
