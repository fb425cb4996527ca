//! What a machine is told and what it asks for: the whole of what passes between it and its shell.

use std::sync::Arc;
use std::time::Duration;

use posthaste_core::{
    DeadHead, Error, Head, HeadSelection, Lease, OutboxEvent, PendingPage, PendingQuery,
    PublishResult, Result, Seq, Settlement, ShardLease, Unsettled, Watermark,
};

use crate::read::reader::Purpose;
use crate::send::in_flight::CallId;

/// What the shell is to do.
#[derive(Debug)]
pub enum Command {
    /// Renew the lease; answer with [`Input::Leased`].
    Lease {
        /// Shards to give back.
        release: Vec<ShardLease>,
        /// The relay ends: it wants no others for them.
        leaving: bool,
    },
    /// Read the watermark; answer with [`Input::Watermark`].
    ReadWatermark,
    /// Read dead letters in the order of their places; answer with [`Input::DeadHeads`].
    ReadDeadHeads {
        /// Above this place.
        after: Seq,
        /// So many at most.
        limit: usize,
    },
    /// Fetch; answer with [`Input::Fetched`].
    Fetch {
        /// What is asked for.
        query: PendingQuery,
        /// Comes back with the answer.
        ticket: FetchTicket,
    },
    /// Publish; answer with [`Input::Published`] as outcomes become known, and with
    /// [`Input::CallEnded`].
    Publish {
        /// To whose destination.
        call: CallId,
        /// What, in this order.
        events: Arc<Vec<OutboxEvent>>,
        /// From then on nothing may be sent: then the call is given up.
        not_after: Duration,
    },
    /// Look at what is undelivered; answer with [`Input::Looked`].
    Look {
        /// Which events.
        selection: HeadSelection,
        /// So many at most.
        limit: usize,
    },
    /// Record outcomes; answer with [`Input::Settled`].
    Settle(Vec<Settlement>),
    /// Tell operators.
    Report(Report),
}

/// What has happened.
#[derive(Debug)]
pub enum Input {
    /// There may be new events.
    Wake,
    /// The store's answer to [`Command::Lease`].
    Leased(Result<Lease>),
    /// The store's answer to [`Command::ReadWatermark`].
    Watermark(Result<Watermark>),
    /// The store's answer to [`Command::ReadDeadHeads`].
    DeadHeads(Result<Vec<DeadHead>>),
    /// The store's answer to [`Command::Fetch`].
    Fetched {
        /// That of the command.
        ticket: FetchTicket,
        /// What was found.
        page: Result<PendingPage>,
    },
    /// Outcomes of a call are known.
    Published {
        /// Of which call.
        call: CallId,
        /// Each with the position of its event in the call.
        outcomes: Vec<(usize, PublishResult)>,
        /// Which of them the broker dropped, since it holds an event of this id.
        repeated: Vec<usize>,
    },
    /// No more outcomes of a call come.
    CallEnded {
        /// Which call.
        call: CallId,
        /// Its lease was over, and what is unanswered may not have been sent.
        given_up: bool,
    },
    /// A destination's client is connected again.
    Recovered {
        /// The index of the destination.
        destination: usize,
    },
    /// The store's answer to [`Command::Look`].
    Looked(Result<Vec<Head>>),
    /// The store's answer to [`Command::Settle`].
    Settled {
        /// Those of the command.
        settlements: Vec<Settlement>,
        /// What changed nothing though it should have.
        result: Result<Vec<Unsettled>>,
    },
    /// No more fetching and sending; what is under way is waited for.
    Stop,
}

/// Tells the machine what a fetch was for.
#[derive(Debug)]
pub struct FetchTicket(pub(crate) Purpose);

/// Something operators want to know. A destination is given by its index.
#[derive(Debug)]
pub enum Report {
    /// An attempt failed and counts; the event waits.
    RetryScheduled {
        /// Where it failed.
        destination: usize,
        /// What failed.
        event: Summary,
        /// For so long.
        delay: Duration,
        /// Why.
        error: String,
    },
    /// An event failed, and nothing tells whose fault it is; it counts no attempt.
    TriedAgain {
        /// Where it failed.
        destination: usize,
        /// What failed.
        event: Summary,
        /// It is tried again after this time.
        pause: Duration,
        /// Why.
        error: String,
    },
    /// The broker dropped an event that nobody can have sent before: another had its id.
    LostAsRepeat {
        /// Where.
        destination: usize,
        /// What is lost there.
        event: Summary,
    },
    /// Events name a destination that is not configured; they wait in the store.
    UnknownDestination {
        /// What they name.
        name: Box<str>,
    },
    /// No event waits any more that names it.
    UnknownDestinationGone {
        /// What they named.
        name: Box<str>,
    },
    /// An event is a dead letter now.
    DeadLettered {
        /// Which.
        event: Summary,
        /// A kind of error, or that its attempts are used up.
        reason: &'static str,
        /// The last error.
        error: String,
        /// Whether later events of its key wait for an operator.
        blocks_key: bool,
    },
    /// The store made rows that it cannot read dead letters, and has logged each.
    Buried {
        /// How many.
        rows: usize,
    },
    /// The outcome of an event cannot be recorded: its row is locked, or refuses the change. Nothing
    /// else waits for it.
    NotRecorded {
        /// Its place.
        seq: Seq,
        /// Its identity.
        id: uuid::Uuid,
        /// It is tried again after this time.
        pause: Duration,
        /// What is in the way.
        error: Box<str>,
    },
    /// A destination does not answer; nothing is sent there for a while.
    Paused {
        /// Which.
        destination: usize,
        /// Why.
        error: String,
    },
    /// A destination answers again.
    Resumed {
        /// Which.
        destination: usize,
    },
    /// This relay delivers another set of shards now.
    ShardsChanged {
        /// How many.
        shards: usize,
        /// Relays that share the outbox, this one counted.
        relays: usize,
    },
    /// The lease was not renewed in time: nothing is sent.
    LeaseLapsed,
    /// The lease is renewed.
    LeaseRenewed,
    /// The database failed.
    DatabaseFailed {
        /// With what.
        error: Error,
    },
    /// The database answers again.
    DatabaseAnswered,
}

/// What a log line says of an event: never its payload.
#[derive(Debug)]
pub struct Summary {
    /// Its identity.
    pub id: uuid::Uuid,
    /// Its type.
    pub event_type: Box<str>,
    /// Its order key, as text.
    pub key: String,
}
