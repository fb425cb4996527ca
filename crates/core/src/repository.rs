//! The persistence contract: what the processor asks of a store.

use std::time::Duration;

use async_trait::async_trait;
use jiff::Timestamp;
use uuid::Uuid;

use crate::{
    Claim, Lease, LeaseRequest, OrderKey, OutboxEvent, Result, Shard, ShardLease, ShardSet,
};

/// An event's place in the outbox: greater means later within its key. Positive.
///
/// Sequence numbers are drawn before commit, so an event with a smaller number may become visible
/// after one with a greater number. No reader may treat a number as "everything below is seen"
/// without the proof that [`Watermark`] gives.
pub type Seq = i64;

/// Stores events, finds pending ones, settles them, cleans up.
///
/// **Concurrency.** Every method may be called at any time from any task. The processor keeps at
/// most one `settle` under way, and may run fetches beside it.
///
/// **Errors.** An error of status `Unavailable` means that nothing is known about the effect; each
/// method is safe to repeat unchanged.
#[async_trait]
pub trait OutboxRepository: Send + Sync + 'static {
    /// What this store can do.
    fn capabilities(&self) -> RepositoryCapabilities;

    /// Confirms that the database is reachable, is one that may be read from (no standby), and
    /// holds a schema this version understands.
    async fn check(&self) -> Result<()>;

    /// Takes the right to deliver from this outbox, where only one relay at a time may. A processor
    /// asks for it after [`check`](Self::check), before its first fetch, and keeps it until it ends.
    ///
    /// Default: nothing to take.
    ///
    /// # Errors
    /// `Conflict` where another relay has it, also one of the same process. What was taken away later
    /// is told by [`fetch_pending`](Self::fetch_pending) and [`watermark`](Self::watermark).
    async fn claim(&self) -> Result<Claim> {
        Ok(Claim::default())
    }

    /// Stores all events or none, in a transaction of its own. Inside the caller's transaction use
    /// a [`UnitOfWork`](crate::UnitOfWork).
    async fn store(&self, events: &[OutboxEvent]) -> Result<()>;

    /// The pending events (neither delivered nor dead) that `query` selects, ordered by `seq`, as
    /// of one snapshot taken after the call began. Events whose time has not come are included,
    /// with the wait that is left. A row that cannot be read as an event is made a dead letter and
    /// reported apart, so that it is seen and stops nobody else. Where that cannot be recorded just
    /// now, it is reported all the same.
    async fn fetch_pending(&self, query: &PendingQuery) -> Result<PendingPage>;

    /// Which events may still turn up late. See [`Watermark`].
    async fn watermark(&self) -> Result<Watermark>;

    /// Records outcomes in one statement, durably: when it returns `Ok`, a crash loses none.
    ///
    /// Idempotent: a settlement of an event that is no longer pending changes nothing, nor does one
    /// whose lease is over; the lease is checked in the transaction that records. Returns how many
    /// events changed. Of fewer than were given, [`unsettled`](Self::unsettled) tells the reason.
    ///
    /// What another session holds a lock on is left out, after a short wait at most: one locked row
    /// must not keep the others from being recorded.
    async fn settle(&self, settlements: &[Settlement]) -> Result<u64>;

    /// Which of these settlements, just given to [`settle`](Self::settle), changed nothing though
    /// their events are pending still and their leases last, and why.
    ///
    /// Default: none, for stores in which nobody else's lock or trigger can be in the way.
    async fn unsettled(&self, _settlements: &[Settlement]) -> Result<Vec<Unsettled>> {
        Ok(Vec::new())
    }

    /// What is undelivered at these places, pending and dead, by place and at most `limit`: without
    /// bodies, changing nothing, and at a cost that does not grow with the backlog. The processor
    /// asks again and again whether what it knows of waiting events is so still.
    ///
    /// Default: by [`fetch_pending`](Self::fetch_pending), for a store without leases. It tells of
    /// pending events only.
    async fn heads(&self, selection: &HeadSelection, limit: usize) -> Result<Vec<Head>> {
        let (selection, up_to) = match selection {
            HeadSelection::At(places) => (PendingSelection::At(places.clone()), Seq::MAX),
            HeadSelection::Between { after, up_to } => {
                (PendingSelection::Forward { gaps: Vec::new(), after: *after }, *up_to)
            }
        };
        let query =
            PendingQuery { selection, leases: None, events_max: limit, bytes_max: HEADS_BYTES_MAX };
        let page = self.fetch_pending(&query).await?;
        Ok(page.events.into_iter().map(Head::of).filter(|head| head.seq <= up_to).collect())
    }

    /// Dead letters after `after`, ordered by `seq`, at most `limit`: no payloads.
    async fn dead_heads(&self, after: Seq, limit: usize) -> Result<Vec<DeadHead>>;

    /// Dead letters, oldest first, at most `limit`.
    async fn failed_events(&self, limit: usize) -> Result<Vec<OutboxEvent>>;

    /// Counts for operators. Bounded in time whatever the backlog; `from` is a place below which
    /// the caller knows of no pending event (0 where it knows nothing).
    async fn backlog(&self, from: Seq) -> Result<Backlog>;

    /// Removes delivered events that were processed longer ago than `older_than`; never a pending
    /// or dead one. Returns how many (an estimate where whole partitions are dropped).
    async fn cleanup_processed(&self, older_than: Duration) -> Result<u64>;

    /// Regular upkeep: creating partitions ahead, for one. Cheap when nothing is to be done; the
    /// processor calls it at start and every few minutes.
    async fn maintain(&self) -> Result<()>;

    /// Keeps a relay among the living, gives back what it releases, and takes free shards up to its
    /// fair share. See [`LeaseRequest`]. All or nothing, and safe to repeat.
    ///
    /// Only asked where [`RepositoryCapabilities::leases`] says so. A store that one relay has to
    /// itself need not keep it.
    async fn lease(&self, _request: &LeaseRequest) -> Result<Lease> {
        let shards =
            ShardSet::ALL.iter().map(|shard| ShardLease { shard, generation: 0 }).collect();
        Ok(Lease { shards, fair_share: Shard::COUNT, relays: 1 })
    }

    /// A relay that stops gives back all its shards, so that others need not wait for the end of
    /// its lease.
    async fn leave(&self, _relay: Uuid) -> Result<()> {
        Ok(())
    }

    /// A relay tells what it is doing, for operators that ask the database
    /// ([`OutboxAdmin::relays`](crate::OutboxAdmin::relays)): when it changes, and every minute at least.
    /// `name` is its host and process id, `report` JSON. Forgotten when it leaves.
    ///
    /// Default: nobody asks.
    async fn tell(&self, _relay: Uuid, _name: &str, _report: &str) -> Result<()> {
        Ok(())
    }

    /// Completes when there may be new events. A hint: it may come late, twice or never. Pends for
    /// ever where the store has no such signal. Must be safe to drop at any time.
    async fn wait_for_events(&self);
}

/// What a store can do: data that the conformance suite and start-up checks read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RepositoryCapabilities {
    /// `postgres`, `sqlite`: names the store in logs and metrics.
    pub name: &'static str,
    /// Whether events survive the process.
    pub durable: bool,
    /// Whether events can become visible out of `seq` order (see [`Watermark`]).
    pub late_commits: bool,
    /// Whether [`OutboxRepository::wait_for_events`] ever completes.
    pub wakes: bool,
    /// Whether several relays may share the work by [`OutboxRepository::lease`].
    pub leases: bool,
}

/// Which pending events to fetch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PendingQuery {
    /// Which of them.
    pub selection: PendingSelection,
    /// The shards whose events a forward read brings; the other selections name what they want. A row
    /// that cannot be read becomes a dead letter only while its lease lasts. `None` for all, on a
    /// store without leases.
    pub leases: Option<Vec<ShardLease>>,
    /// At most so many events.
    pub events_max: usize,
    /// Stop after the event that takes the sum of the payloads to this many bytes. At least one
    /// event is returned where there is one.
    pub bytes_max: usize,
}

/// Which pending events a [`PendingQuery`] selects.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PendingSelection {
    /// What the fast path asks, again and again: the events in `gaps` and those above `after`, all
    /// of **one snapshot** (one statement), ordered by `seq`, so that a page is a prefix of what
    /// was visible. Two statements would break order: a transaction that commits between them can
    /// show its later event without its earlier one.
    Forward {
        /// Inclusive ranges of places that were passed without an event being seen there, where
        /// one may still turn up. Disjoint, ascending, all at or below `after`; mostly empty or
        /// few, mostly less than a thousand.
        gaps: Vec<(Seq, Seq)>,
        /// Exclusive lower end of what was not passed yet.
        after: Seq,
    },
    /// The events at these places.
    At(Vec<Seq>),
    /// The events of one key in `after < seq <= up_to`.
    Key {
        /// The key.
        key: OrderKey,
        /// Exclusive lower end.
        after: Seq,
        /// Inclusive upper end.
        up_to: Seq,
    },
}

/// A pending event and its place.
#[derive(Debug, Clone, PartialEq)]
pub struct PendingEvent {
    /// Its place.
    pub seq: Seq,
    /// How long until it may be delivered, by the database's clock; zero for now.
    pub wait: Duration,
    /// The shard of its key.
    pub shard: Shard,
    /// The event.
    pub event: OutboxEvent,
}

/// What a fetch found.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct PendingPage {
    /// The events, ordered by `seq`.
    pub events: Vec<PendingEvent>,
    /// Whether a limit cut the page short, so that more may follow after the last one.
    pub more: bool,
    /// Rows among these that cannot be read as events, ordered by `seq`: the store has made each a
    /// dead letter (`corrupt`, or `too_large`), or tried to. What comes after one in its key is the
    /// caller's to hold back.
    pub buried: Vec<DeadHead>,
}

/// What a store knows of events that may turn up late.
///
/// A number is drawn before its transaction commits. So an event with `seq <= high` can become
/// visible later, but only from a transaction in `writers`. The guarantees a store gives:
///
/// 1. Every number at or below `high` was drawn before the call returned, and `high` was read
///    before `writers`.
/// 2. A transaction that drew a number `<= high` and is not in `writers` had ended when `writers`
///    was read: its events are visible to every later fetch.
/// 3. A transaction keeps its token from before it draws its first number until it ends, and no
///    token is used again, within one incarnation of the database.
///
/// What was proven of one incarnation says nothing of the next: a transaction that was prepared
/// outlives a restart under another token, and numbers can be handed out again.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Watermark {
    /// The greatest number drawn so far; 0 for none.
    pub high: Seq,
    /// Transactions that may hold events not yet visible.
    pub writers: Vec<OpenWriter>,
    /// Changes whenever events already passed may be pending again, or a key that a dead letter
    /// blocked is free: an operator retried or discarded events. The processor then reads from the
    /// start.
    pub revision: i64,
    /// Tells one incarnation of the database from the next: it changes with a restart of a server
    /// whose transactions can outlive one, with a failover, with a restored copy, with an outbox that
    /// was made anew.
    pub incarnation: i64,
}

/// A transaction that may hold events not yet visible.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct OpenWriter {
    /// The store's name for the transaction.
    pub token: Box<str>,
}

/// The outcome of an attempt, to be recorded.
#[derive(Debug, Clone, PartialEq)]
pub struct Settlement {
    /// Place of the event.
    pub seq: Seq,
    /// Its identity, which guards against a place that was used anew (a restored database).
    pub id: Uuid,
    /// The lease under which the event was sent: once its shard is another relay's, the settlement
    /// changes nothing. `None` on a store without leases.
    pub lease: Option<ShardLease>,
    /// What came of it.
    pub outcome: SettlementOutcome,
}

/// What came of an attempt.
#[derive(Debug, Clone, PartialEq)]
pub enum SettlementOutcome {
    /// Acknowledged durably by the broker: set `processed_at` (the database's clock).
    Delivered,
    /// The same, of an event that nobody wants to look at again: delete it. A store that cannot may
    /// keep it as [`Delivered`](Self::Delivered); the processor's next cleanup then removes it.
    DeliveredAndRemoved,
    /// Try again after `delay`, counted by the database's clock from now.
    Retry {
        /// The new count of failed attempts (absolute, so that repeating is harmless).
        retry_count: u32,
        /// From now to the next attempt.
        delay: Duration,
        /// What the attempt met.
        error: Box<str>,
    },
    /// A dead letter: set `dead_at`.
    Dead {
        /// The new count of failed attempts.
        retry_count: u32,
        /// An [`ErrorKind`](crate::ErrorKind)'s name or `retries_exhausted`.
        reason: &'static str,
        /// What the attempt met.
        error: Box<str>,
    },
}

/// Bytes of one page of [`OutboxRepository::heads`] where a store has nothing better for it than
/// reading whole events.
const HEADS_BYTES_MAX: usize = 4 * 1024 * 1024;

/// A settlement that changed nothing though it should have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unsettled {
    /// The event's place.
    pub seq: Seq,
    /// What is in the way, for an operator: the session that holds a lock on the row, for one.
    pub why: Box<str>,
}

/// Which undelivered events [`OutboxRepository::heads`] tells of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HeadSelection {
    /// Those at these places.
    At(Vec<Seq>),
    /// Those in `after < seq <= up_to`.
    Between {
        /// Exclusive lower end.
        after: Seq,
        /// Inclusive upper end.
        up_to: Seq,
    },
}

/// An undelivered event without its body: what decides when it may go, and where to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Head {
    /// Its place.
    pub seq: Seq,
    /// Its identity.
    pub id: Uuid,
    /// Its key.
    pub key: OrderKey,
    /// The shard of its key.
    pub shard: Shard,
    /// What happened.
    pub event_type: Box<str>,
    /// The configured destination its writer chose.
    pub destination: Option<Box<str>>,
    /// How long until it may be delivered, by the database's clock; zero for now.
    pub wait: Duration,
    /// Whether it has failed, so that what it waits for is the next attempt. A relay sets that time, and
    /// the clock it was set by can have been wrong.
    pub has_failed: bool,
    /// Whether it is a dead letter.
    pub dead: bool,
}

impl Head {
    fn of(PendingEvent { seq, wait, shard, event }: PendingEvent) -> Self {
        Self {
            seq,
            id: event.id(),
            key: event.order_key().clone(),
            shard,
            event_type: event.event_type().into(),
            destination: event.destination().map(Into::into),
            wait,
            has_failed: event.has_failed(),
            dead: event.is_dead(),
        }
    }
}

/// A dead letter's place and key, and what decides its destination.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeadHead {
    /// Its place.
    pub seq: Seq,
    /// Its key.
    pub key: OrderKey,
    /// The shard of its key.
    pub shard: Shard,
    /// What happened.
    pub event_type: Box<str>,
    /// The configured destination its writer chose.
    pub destination: Option<Box<str>>,
}

/// Counts for operators. Each is exact up to a store's limit (10,000 or more) and an estimate
/// beyond it, so that a gauge costs the same whatever the backlog.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Backlog {
    /// Never tried, and due.
    pub ready: u64,
    /// Failed at least once and waiting for a retry.
    pub retrying: u64,
    /// Delayed by their writer, and not yet due.
    pub scheduled: u64,
    /// Dead letters.
    pub dead: u64,
    /// When the oldest pending event that is due was stored.
    pub oldest_pending_at: Option<Timestamp>,
    /// Age of that event by the database's clock.
    pub oldest_pending_age: Duration,
    /// Whether what is pending is an estimate: it moves with what is delivered and stored, and is right
    /// within a tenth where numbers are not drawn in vain.
    pub is_estimated: bool,
}

impl Backlog {
    /// All that is neither delivered nor dead.
    #[must_use]
    pub const fn pending(&self) -> u64 {
        self.ready + self.retrying + self.scheduled
    }
}
