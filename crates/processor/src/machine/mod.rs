//! The state machine of a processor: answers go in, commands come out.
//!
//! No clock, I/O or randomness inside: the time is an argument, random numbers come from a seed.
//! Equal inputs give equal commands, so a seed replays any run.

mod alone;
mod database;
mod dead_letters;
mod dispatch;
mod gaps;
mod in_flight;
mod intake;
mod key;
mod keys;
mod leases;
mod looks;
mod outage;
mod outcomes;
mod progress;
mod reader;
mod recording;
mod settling;
#[cfg(test)]
mod simulation;
mod suspicion;
mod unknown_names;
mod window;

use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use governor::clock::{Clock, FakeRelativeClock};
use governor::middleware::NoOpMiddleware;
use governor::state::{InMemoryState, NotKeyed};
use governor::{Quota, RateLimiter};
use posthaste_core::{
    DeadHead, Error, Head, HeadSelection, Lease, OutboxEvent, PendingPage, PendingQuery,
    PublishResult, Result, Seq, Settlement, ShardLease, Unsettled, Watermark,
};
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};

use self::database::{Database, Work};
pub(crate) use self::in_flight::CallId;
use self::in_flight::InFlight;
use self::intake::ids_of;
use self::key::KeyId;
use self::keys::Keys;
use self::leases::Leases;
use self::looks::Looks;
use self::outage::Outage;
pub(crate) use self::outcomes::storable;
use self::reader::{Purpose, Reader};
use self::settling::Settling;
use self::unknown_names::UnknownNames;
use crate::ProcessorSettings;
use crate::routes::Routes;

/// How many calls the events in flight are spread over, so that answers overlap with sending.
const CALLS_IN_FLIGHT: usize = 4;

/// What the shell is to do.
#[derive(Debug)]
pub(crate) enum Command {
    /// Renew the lease, and give back these shards; answer with [`Input::Leased`].
    Lease { release: Vec<ShardLease>, leaving: bool },
    /// Read the watermark; answer with [`Input::Watermark`].
    ReadWatermark,
    /// Read dead letters; answer with [`Input::DeadHeads`].
    ReadDeadHeads { after: Seq, limit: usize },
    /// Fetch; answer with [`Input::Fetched`].
    Fetch { query: PendingQuery, ticket: FetchTicket },
    /// Publish to the call's destination; answer with [`Input::Published`] as outcomes become known, and
    /// with [`Input::CallEnded`]. From `not_after` on nothing may be sent: then give it up.
    Publish { call: CallId, events: Arc<Vec<OutboxEvent>>, not_after: Duration },
    /// Look at what is undelivered; answer with [`Input::Looked`].
    Look { selection: HeadSelection, limit: usize },
    /// Settle; answer with [`Input::Settled`].
    Settle(Vec<Settlement>),
    /// Tell operators.
    Report(Report),
}

/// What has happened.
#[derive(Debug)]
pub(crate) enum Input {
    /// There may be new events.
    Wake,
    Leased(Result<Lease>),
    Watermark(Result<Watermark>),
    DeadHeads(Result<Vec<DeadHead>>),
    Fetched {
        ticket: FetchTicket,
        page: Result<PendingPage>,
    },
    /// Outcomes are known, each with the position of its event in the call.
    Published {
        call: CallId,
        outcomes: Vec<(usize, PublishResult)>,
        /// Which of them the broker dropped, since it holds an event of this id.
        repeated: Vec<usize>,
    },
    /// No more outcomes of this call come. `given_up`: its lease was over, and what is unanswered may
    /// not have been sent.
    CallEnded {
        call: CallId,
        given_up: bool,
    },
    /// A destination's client is connected again.
    Recovered {
        destination: usize,
    },
    Looked(Result<Vec<Head>>),
    /// With what changed nothing though it should have.
    Settled {
        settlements: Vec<Settlement>,
        result: Result<Vec<Unsettled>>,
    },
    /// No more fetching and sending; what is under way is waited for.
    Stop,
}

/// Tells the machine what a fetch was for.
#[derive(Debug)]
pub(crate) struct FetchTicket(Purpose);

/// Something operators want to know.
#[derive(Debug)]
pub(crate) enum Report {
    /// An attempt failed; the event waits for `delay`.
    RetryScheduled { destination: usize, event: Summary, delay: Duration, error: String },
    /// An event failed, and nothing tells whose fault it is; it is tried again after `pause` and counts
    /// no attempt.
    TriedAgain { destination: usize, event: Summary, pause: Duration, error: String },
    /// The broker dropped an event that nobody can have sent before: another had its id.
    LostAsRepeat { destination: usize, event: Summary },
    /// Events name a destination that is not configured; they wait in the store.
    UnknownDestination { name: Box<str> },
    /// No event waits any more that names it.
    UnknownDestinationGone { name: Box<str> },
    /// An event is a dead letter now.
    DeadLettered { event: Summary, reason: &'static str, error: String, blocks_key: bool },
    /// The store made rows that it cannot read dead letters, and has logged each.
    Buried { rows: usize },
    /// The outcome of an event cannot be recorded: its row is locked, or refuses the change. It is tried
    /// again after `pause`, and nothing else waits for it.
    NotRecorded { seq: Seq, id: uuid::Uuid, pause: Duration, error: Box<str> },
    /// A destination does not answer; nothing is sent there for a while.
    Paused { destination: usize, error: String },
    /// A destination answers again.
    Resumed { destination: usize },
    /// This relay delivers another set of shards now.
    ShardsChanged { shards: usize, relays: usize },
    /// The lease was not renewed in time: nothing is sent.
    LeaseLapsed,
    /// It is renewed.
    LeaseRenewed,
    /// The database failed.
    DatabaseFailed { error: Error },
    /// The database answers again.
    DatabaseAnswered,
}

/// What a log line says of an event: never its payload.
#[derive(Debug)]
pub(crate) struct Summary {
    pub(crate) id: uuid::Uuid,
    pub(crate) event_type: Box<str>,
    pub(crate) key: String,
}

/// Counts since start.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Counts {
    pub(crate) delivered: u64,
    pub(crate) retried: u64,
    pub(crate) dead_lettered: u64,
    pub(crate) interrupted: u64,
    /// Events that the broker dropped as repeats of others with their ids.
    pub(crate) lost_as_repeat: u64,
}

type Limiter = RateLimiter<
    NotKeyed,
    InMemoryState,
    FakeRelativeClock,
    NoOpMiddleware<<FakeRelativeClock as Clock>::Instant>,
>;

/// See the module's documentation.
pub(crate) struct Machine {
    routes: Arc<Routes>,
    settings: ProcessorSettings,
    keys: Keys,
    reader: Reader,
    leases: Leases,
    outages: Vec<Outage>,
    looks: Looks,
    settling: Settling,
    database: Database,
    limiter: Option<(Limiter, FakeRelativeClock, Duration)>,
    limited_until: Option<Duration>,
    random: SmallRng,
    in_flight: InFlight,
    /// How long a failure that nothing proves to be the event's own counts nothing. None in a run that
    /// ends by itself: it cannot wait for others to tell.
    patience: Duration,
    /// Nobody can have sent an event above this place, unless it is in flight: this relay has not, and
    /// those before it had nothing of it to read.
    unsent_above: Option<Seq>,
    /// Destinations that events name and nobody configured.
    unknown_names: UnknownNames,
    stopping: bool,
    /// Each event is offered once, however soon its retry is due.
    one_pass: bool,
    /// Mean payload size of what was fetched, in bytes: keeps a page of large events small.
    payload_bytes_mean: usize,
    reports: Vec<Report>,
    counts: Counts,
}

impl Machine {
    /// `shared` says whether other relays may deliver the same outbox, each its shards.
    pub(crate) fn new(
        routes: Arc<Routes>,
        settings: ProcessorSettings,
        shared: bool,
        seed: u64,
    ) -> Self {
        let destinations = routes.destinations().len();
        let limiter = settings.rate_limit_events_per_second.map(|rate| {
            let clock = FakeRelativeClock::default();
            // A tenth of a second's worth at once: smooth, and still in batches.
            let burst = NonZeroU32::new(rate.get().div_ceil(10)).unwrap_or(NonZeroU32::MIN);
            let quota = Quota::per_second(rate).allow_burst(burst);
            (RateLimiter::direct_with_clock(quota, clock.clone()), clock, Duration::ZERO)
        });
        Self {
            // One more for events whose destination is not configured.
            keys: Keys::new(destinations + 1),
            reader: Reader::new(settings.poll_interval),
            leases: Leases::new(shared.then_some(settings.lease_ttl)),
            outages: (0..destinations).map(|_| Outage::default()).collect(),
            looks: Looks::default(),
            settling: Settling::default(),
            database: Database::default(),
            limiter,
            limited_until: None,
            random: SmallRng::seed_from_u64(seed),
            in_flight: InFlight::new(destinations),
            patience: settings.outage_patience,
            unsent_above: None,
            unknown_names: UnknownNames::default(),
            stopping: false,
            one_pass: false,
            payload_bytes_mean: 0,
            reports: Vec::new(),
            counts: Counts::default(),
            routes,
            settings,
        }
    }

    /// Offers what is due once, and no retry of it.
    pub(crate) const fn offer_once(&mut self) {
        self.one_pass = true;
    }

    /// Takes in what has happened.
    pub(crate) fn handle(&mut self, input: Input, now: Duration) {
        match input {
            Input::Wake => self.reader.wake(now),
            Input::Stop => {
                self.stopping = true;
                self.leases.hurry(now);
                self.settling.try_alone_again();
                self.decide_undecided(now);
            }
            Input::Leased(Ok(lease)) => {
                self.database_answered(Work::Leasing);
                self.leased(&lease);
            }
            Input::Leased(Err(error)) => {
                self.leases.failed();
                self.database_failed(Work::Leasing, &error, now);
            }
            Input::Watermark(Ok(watermark)) => {
                self.database_answered(Work::Watermarks);
                self.unsent_above.get_or_insert(watermark.high);
                if self.reader.watermark_read(&watermark, now) {
                    self.looks.hurry(now);
                    self.unknown_names.round_is_cut();
                }
            }
            Input::DeadHeads(Ok(heads)) => {
                self.database_answered(Work::DeadLetters);
                self.dead_heads_read(&heads, now);
            }
            Input::Fetched { ticket, page: Ok(page) } => {
                self.database_answered(Work::Fetching);
                self.fetched(ticket, page, now);
            }
            Input::Watermark(Err(error)) => {
                self.reader.failed();
                self.database_failed(Work::Watermarks, &error, now);
            }
            Input::DeadHeads(Err(error)) => {
                self.reader.failed();
                self.database_failed(Work::DeadLetters, &error, now);
            }
            Input::Looked(Ok(heads)) => {
                self.database.answered(Work::Looking);
                self.looked(heads, now);
            }
            // Whatever it is, the others meet it too. Nothing hangs on this one.
            Input::Looked(Err(_)) => {
                let random = self.random();
                self.database.failed(Work::Looking, now, random);
                self.look_failed();
            }
            Input::Fetched { ticket, page: Err(error) } => {
                self.reader.failed();
                if let Purpose::CatchUp(catch_up) = ticket.0 {
                    self.keys.catch_up_ended(ids_of(&catch_up), now);
                }
                self.database_failed(Work::Fetching, &error, now);
            }
            Input::Published { call, outcomes, repeated } => {
                self.repeats_seen(call, &repeated);
                self.published(call, outcomes, now);
            }
            Input::CallEnded { call, given_up } => self.call_ended(call, given_up, now),
            Input::Recovered { destination } => self.outages[destination].recovered(now),
            Input::Settled { settlements, result: Ok(left) } => {
                self.recorded(settlements, left, now);
            }
            Input::Settled { settlements, result: Err(error) } => {
                self.not_recorded(settlements, &error, now);
            }
        }
    }

    /// What is to be done now.
    pub(crate) fn commands(&mut self, now: Duration) -> Vec<Command> {
        self.decide_undecided(now);
        if !self.one_pass {
            self.keys.wake(now);
        }
        let mut commands = Vec::new();
        if self.database.may(Work::Leasing, now) {
            let request = self.leases.next_request(now, || self.settling.unrecorded_shards());
            let leaving = self.stopping;
            commands.extend(request.map(|release| Command::Lease { release, leaving }));
        }
        if self.database.may(Work::Recording, now) {
            commands
                .extend(std::iter::from_fn(|| self.settling.next_batch(now)).map(Command::Settle));
        }
        if !self.stopping {
            // While the database fails, outcomes cannot be recorded: sending more would only
            // widen what is sent twice after a crash.
            if self.may_send(now) && !self.database.is_away() {
                self.dispatch(now, &mut commands);
            }
            for seq in self.keys.take_dropped() {
                self.reader.forget(seq);
            }
            if !self.leases.active().is_empty() {
                commands.extend(self.read(now));
                if self.database.may(Work::Looking, now) && !self.database.is_away() {
                    commands.extend(self.look(now));
                }
            }
        }
        commands.extend(self.reports.drain(..).map(Command::Report));
        commands
    }

    /// When [`commands`](Self::commands) must be asked again, if nothing happens before.
    ///
    /// What was due already and did not lead to a command waits for an answer, not for a time.
    pub(crate) fn next_deadline(&mut self, now: Duration) -> Option<Duration> {
        let mut times: Vec<Duration> = self.database.pauses_end().collect();
        times.extend(self.leases.due());
        times.extend(self.settling.alone.due());
        times.extend(Some(self.leases.send_until()).filter(|at| *at < Duration::MAX));
        if !self.stopping {
            times.extend([self.keys.next_wake(), self.limited_until].into_iter().flatten());
            times.extend(self.reader.due().into_iter().flatten());
            times.extend(self.reader.dead_letters_due());
            times.extend(self.looks.due());
            times.extend(self.outages.iter().filter_map(Outage::pause_ends));
            times.extend(self.outages.iter().filter_map(Outage::early_from));
            times.extend(self.verdicts_due());
        }
        times.into_iter().filter(|at| *at > now).min()
    }

    /// When the outbox is looked at again: what a waiting event's latency hangs on. The other deadlines
    /// do not come so often that they would gather in the meantime what is then done together.
    pub(crate) fn next_look(&self, now: Duration) -> Option<Duration> {
        let [_, look] = self.reader.due();
        look.filter(|at| *at > now && !self.stopping)
    }

    /// For a run that ends by itself: a failure that nothing tells about is decided at once.
    pub(crate) const fn without_patience(mut self) -> Self {
        self.patience = Duration::ZERO;
        self
    }

    fn random(&mut self) -> f64 {
        self.random.random()
    }

    fn block(&mut self, id: KeyId, dead: Seq) {
        for seq in self.keys.block(id, dead) {
            self.reader.forget(seq);
        }
    }

    fn database_failed(&mut self, work: Work, error: &Error, now: Duration) {
        let random = self.random();
        // Each row that is refused is told of by itself.
        let is_told = work == Work::RefusedRows && self.database.refuses_rows();
        self.database.failed(work, now, random);
        if self.database.is_away() {
            self.leases.doubt(now);
        }
        if !is_told {
            self.reports.push(Report::DatabaseFailed { error: error.clone() });
        }
    }

    fn database_answered(&mut self, work: Work) {
        if self.database.answered(work) {
            self.reports.push(Report::DatabaseAnswered);
        }
    }
}
