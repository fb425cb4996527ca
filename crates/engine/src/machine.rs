//! The state machine of a processor: answers go in, commands come out.
//!
//! No clock, I/O or randomness inside: the time is an argument, random numbers come from a seed.
//! Equal inputs give equal commands, so a seed replays any run.

use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use governor::clock::{Clock, FakeRelativeClock};
use governor::middleware::NoOpMiddleware;
use governor::state::{InMemoryState, NotKeyed};
use governor::{Quota, RateLimiter};
use posthaste_core::{BusCapabilities, Error, RETRY_AFTER_MAX, Seq};
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};

use crate::database::{Database, Work};
use crate::keys::Keys;
use crate::protocol::{Command, Input, Report};
use crate::read::intake::ids_of;
use crate::read::looks::Looks;
use crate::read::reader::{Purpose, Reader};
use crate::read::unknown_names::UnknownNames;
use crate::record::settling::Settling;
use crate::routes::RouteTable;
use crate::send::in_flight::InFlight;
use crate::settings::ProcessorSettings;
use crate::share::leases::Leases;
use crate::verdict::outage::Outage;

/// How many calls the events in flight are spread over, so that answers overlap with sending.
pub(crate) const CALLS_IN_FLIGHT: usize = 4;

/// Counts since start.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Counts {
    /// Events that a destination took.
    pub delivered: u64,
    /// Attempts that failed and left others.
    pub retried: u64,
    /// Events that became dead letters.
    pub dead_lettered: u64,
    /// Attempts that failed and counted nothing.
    pub interrupted: u64,
    /// Events that the broker dropped as repeats of others with their ids.
    pub lost_as_repeat: u64,
}

type Limiter = RateLimiter<
    NotKeyed,
    InMemoryState,
    FakeRelativeClock,
    NoOpMiddleware<<FakeRelativeClock as Clock>::Instant>,
>;

/// See the module's documentation.
pub struct Machine {
    pub(crate) routes: Arc<RouteTable>,
    pub(crate) settings: ProcessorSettings,
    pub(crate) keys: Keys,
    pub(crate) reader: Reader,
    pub(crate) leases: Leases,
    pub(crate) outages: Vec<Outage>,
    pub(crate) looks: Looks,
    pub(crate) settling: Settling,
    pub(crate) database: Database,
    pub(crate) limiter: Option<(Limiter, FakeRelativeClock, Duration)>,
    pub(crate) limited_until: Option<Duration>,
    pub(crate) random: SmallRng,
    pub(crate) in_flight: InFlight,
    /// How long a failure that nothing proves to be the event's own counts nothing. None in a run that
    /// ends by itself: it cannot wait for others to tell.
    pub(crate) patience: Duration,
    /// No failed event is to wait longer: the longest delay that is set anywhere.
    pub(crate) longest_wait: Duration,
    /// Nobody can have sent an event above this place, unless it is in flight: this relay has not, and
    /// those before it had nothing of it to read.
    pub(crate) unsent_above: Option<Seq>,
    /// Destinations that events name and nobody configured.
    pub(crate) unknown_names: UnknownNames,
    pub(crate) stopping: bool,
    /// Each event is offered once, however soon its retry is due.
    pub(crate) one_pass: bool,
    /// Mean payload size of what was fetched, in bytes: keeps a page of large events small.
    pub(crate) payload_bytes_mean: usize,
    pub(crate) reports: Vec<Report>,
    pub(crate) counts: Counts,
}

impl Machine {
    /// `shared` says whether other relays may deliver the same outbox, each its shards.
    pub fn new(
        routes: Arc<RouteTable>,
        settings: ProcessorSettings,
        shared: bool,
        seed: u64,
    ) -> Self {
        let destinations = routes.len();
        let limiter = settings.rate_limit_events_per_second.map(|rate| {
            let clock = FakeRelativeClock::default();
            // A tenth of a second's worth at once: smooth, and still in batches.
            let burst = NonZeroU32::new(rate.get().div_ceil(10)).unwrap_or(NonZeroU32::MIN);
            let quota = Quota::per_second(rate).allow_burst(burst);
            (RateLimiter::direct_with_clock(quota, clock.clone()), clock, Duration::ZERO)
        });
        let longest_wait = [settings.retry_policy.max_delay, RETRY_AFTER_MAX]
            .into_iter()
            .chain(routes.longest_delay())
            .fold(Duration::ZERO, Duration::max);
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
            longest_wait,
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
    pub const fn offer_once(&mut self) {
        self.one_pass = true;
    }

    /// Takes in what has happened.
    pub fn handle(&mut self, input: Input, now: Duration) {
        let ends_read =
            matches!(input, Input::Watermark(_) | Input::DeadHeads(_) | Input::Fetched { .. });
        self.take_in(input, now);
        if ends_read {
            self.keys.known.read_ended();
        }
    }

    fn take_in(&mut self, input: Input, now: Duration) {
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

    /// What is to be done now. `capabilities` says what the bus of a destination, given by its index, can do
    /// at this moment.
    pub fn commands(
        &mut self,
        now: Duration,
        capabilities: impl Fn(usize) -> BusCapabilities,
    ) -> Vec<Command> {
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
                self.dispatch(now, &capabilities, &mut commands);
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
    pub fn next_deadline(&mut self, now: Duration) -> Option<Duration> {
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
    pub fn next_look(&self, now: Duration) -> Option<Duration> {
        let [_, look] = self.reader.due();
        look.filter(|at| *at > now && !self.stopping)
    }

    /// For a run that ends by itself: a failure that nothing tells about is decided at once.
    pub const fn without_patience(mut self) -> Self {
        self.patience = Duration::ZERO;
        self
    }

    /// Panics where what the parts say of each other does not agree.
    #[cfg(test)]
    pub(crate) fn check(&self) {
        self.keys.check();
        let undecided = self.undecided().0;
        let known_max = self.keys.held_events() + self.in_flight() + undecided + self.unsettled();
        assert!(self.keys.known.len() <= known_max, "what is known is somewhere");
        assert_eq!(self.leases.in_flight(), self.in_flight(), "one ledger of what is on its way");
    }

    pub(crate) fn random(&mut self) -> f64 {
        self.random.random()
    }

    pub(crate) fn database_failed(&mut self, work: Work, error: &Error, now: Duration) {
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

    pub(crate) fn database_answered(&mut self, work: Work) {
        if self.database.answered(work) {
            self.reports.push(Report::DatabaseAnswered);
        }
    }
}
