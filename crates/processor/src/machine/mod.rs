//! The state machine of a processor: answers go in, commands come out.
//!
//! No clock, I/O or randomness inside: the time is an argument, random numbers come from a seed.
//! Equal inputs give equal commands, so a seed replays any run.

mod gaps;
mod keys;
mod outage;
mod reader;
mod settling;
#[cfg(test)]
mod simulation;

use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use governor::clock::{Clock, FakeRelativeClock};
use governor::middleware::NoOpMiddleware;
use governor::state::{InMemoryState, NotKeyed};
use governor::{Quota, RateLimiter};
use posthaste_core::{
    DeadHead, Error, ErrorKind, ErrorStatus, KeyPipelining, OutboxEvent, PendingPage, PendingQuery,
    PublishResult, Result, RetryDecision, Seq, Settlement, SettlementOutcome, Watermark,
};
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};
use rustc_hash::FxHashSet;

use self::keys::{Admission, CatchUp, Held, KeyId, Keys};
use self::outage::{Outage, Permit};
use self::reader::{Operation, Purpose, Reader};
use self::settling::{DatabasePause, Settling, stays_in_memory};
use crate::routes::Routes;
use crate::{DeadHeadPolicy, ProcessorSettings};

/// The longest error text that is stored with an event.
const ERROR_CHARS_MAX: usize = 2_000;
/// How many calls the events in flight are spread over, so that answers overlap with sending.
const CALLS_IN_FLIGHT: usize = 4;

/// What the shell is to do.
#[derive(Debug)]
pub(crate) enum Command {
    /// Read the watermark; answer with [`Input::Watermark`].
    ReadWatermark,
    /// Read dead letters; answer with [`Input::DeadHeads`].
    ReadDeadHeads { after: Seq, limit: usize },
    /// Fetch; answer with [`Input::Fetched`].
    Fetch { query: PendingQuery, ticket: FetchTicket },
    /// Publish to a destination; answer with [`Input::Published`].
    Publish { destination: usize, batch: Batch },
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
    Watermark(Result<Watermark>),
    DeadHeads(Result<Vec<DeadHead>>),
    Fetched {
        ticket: FetchTicket,
        page: Result<PendingPage>,
    },
    Published {
        destination: usize,
        batch: Batch,
        results: Vec<PublishResult>,
    },
    Settled {
        settlements: Vec<Settlement>,
        result: Result<u64>,
    },
    /// No more fetching and sending; what is under way is waited for.
    Stop,
}

/// Tells the machine what a fetch was for.
#[derive(Debug)]
pub(crate) struct FetchTicket(Purpose);

/// Events that are published in one call, and what the machine needs to take them back.
#[derive(Debug)]
pub(crate) struct Batch {
    pub(crate) events: Vec<OutboxEvent>,
    places: Vec<(Seq, KeyId)>,
}

/// Something operators want to know.
#[derive(Debug)]
pub(crate) enum Report {
    /// An attempt failed; the event waits for `delay`.
    RetryScheduled { destination: usize, event: Summary, delay: Duration, error: String },
    /// An event is a dead letter now.
    DeadLettered { event: Summary, reason: &'static str, error: String, blocks_key: bool },
    /// A destination does not answer; nothing is sent there for a while.
    Paused { destination: usize, error: String },
    /// A destination answers again.
    Resumed { destination: usize },
    /// The database failed.
    DatabaseFailed { error: String },
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
    outages: Vec<Outage>,
    settling: Settling,
    database: DatabasePause,
    limiter: Option<(Limiter, FakeRelativeClock, Duration)>,
    limited_until: Option<Duration>,
    random: SmallRng,
    in_flight: usize,
    stopping: bool,
    /// Mean payload size of what was fetched, in bytes: keeps a page of large events small.
    payload_bytes_mean: usize,
    reports: Vec<Report>,
    counts: Counts,
}

impl Machine {
    pub(crate) fn new(routes: Arc<Routes>, settings: ProcessorSettings, seed: u64) -> Self {
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
            outages: (0..destinations).map(|_| Outage::default()).collect(),
            settling: Settling::default(),
            database: DatabasePause::default(),
            limiter,
            limited_until: None,
            random: SmallRng::seed_from_u64(seed),
            in_flight: 0,
            stopping: false,
            payload_bytes_mean: 0,
            reports: Vec::new(),
            counts: Counts::default(),
            routes,
            settings,
        }
    }

    /// Takes in what has happened.
    pub(crate) fn handle(&mut self, input: Input, now: Duration) {
        match input {
            Input::Wake => self.reader.wake(now),
            Input::Stop => self.stopping = true,
            Input::Watermark(Ok(watermark)) => {
                self.database_answered();
                self.reader.watermark_read(&watermark, now);
            }
            Input::DeadHeads(Ok(heads)) => {
                self.database_answered();
                self.dead_heads_read(&heads, now);
            }
            Input::Fetched { ticket, page: Ok(page) } => {
                self.database_answered();
                self.fetched(ticket, page, now);
            }
            Input::Watermark(Err(error)) | Input::DeadHeads(Err(error)) => {
                self.reader.failed();
                self.database_failed(&error, now);
            }
            Input::Fetched { ticket, page: Err(error) } => {
                self.reader.failed();
                if let Purpose::CatchUp(catch_up) = ticket.0 {
                    self.keys.catch_up_ended(ids_of(&catch_up), now);
                }
                self.database_failed(&error, now);
            }
            Input::Published { destination, batch, results } => {
                self.published(destination, batch, results, now);
            }
            Input::Settled { settlements, result: Ok(_) } => {
                self.database_answered();
                self.settling.recorded(&settlements);
                for settlement in &settlements {
                    self.reader.settled(settlement.seq, stays_in_memory(settlement));
                }
            }
            Input::Settled { settlements, result: Err(error) } => {
                self.settling.failed(settlements);
                self.database_failed(&error, now);
            }
        }
    }

    /// What is to be done now.
    pub(crate) fn commands(&mut self, now: Duration) -> Vec<Command> {
        self.keys.wake(now);
        let mut commands = Vec::new();
        if self.database.is_over(now) {
            commands.extend(self.settling.next_batch().map(Command::Settle));
        }
        if !self.stopping {
            // While the database fails, outcomes cannot be recorded: sending more would only
            // widen what is sent twice after a crash.
            if !self.database.is_failing() {
                self.dispatch(now, &mut commands);
            }
            if self.database.is_over(now) {
                commands.extend(self.read(now));
            }
        }
        commands.extend(self.reports.drain(..).map(Command::Report));
        commands
    }

    /// When [`commands`](Self::commands) must be asked again, if nothing happens before.
    ///
    /// What was due already and did not lead to a command waits for an answer, not for a time.
    pub(crate) fn next_deadline(&mut self, now: Duration) -> Option<Duration> {
        let database = self.database.until();
        let others = if self.stopping || database.is_some() {
            [None; 4]
        } else {
            let pauses = self.outages.iter().filter_map(Outage::pause_ends).filter(|at| *at > now);
            [self.keys.next_wake(), pauses.min(), self.reader.next_due(), self.limited_until]
        };
        others.into_iter().chain([database]).flatten().filter(|at| *at > now).min()
    }

    /// Nothing is under way that a stop has to wait for.
    pub(crate) fn is_settled(&self) -> bool {
        self.in_flight == 0 && self.settling.unrecorded() == 0
    }

    /// Every event that is due now was offered once: the end of one pass.
    pub(crate) fn pass_is_done(&self) -> bool {
        let sendable = (0..self.outages.len())
            .any(|index| self.keys.ready_count(index) > 0 && self.outages[index].error().is_none());
        let outage_fills_memory = self.room().0 == 0 && !sendable;
        (self.reader.end_reached() || outage_fills_memory)
            && !sendable
            && self.keys.catch_up_count() == 0
            && self.is_settled()
    }

    /// Nothing is left to deliver but dead letters, what waits behind them, and what is delayed
    /// beyond `patience`.
    pub(crate) fn is_drained(&mut self, now: Duration, patience: Duration) -> bool {
        let waits =
            self.keys.next_wake().is_some_and(|until| until <= now.saturating_add(patience));
        let ready = (0..=self.outages.len()).any(|index| self.keys.ready_count(index) > 0);
        if waits || ready || self.keys.catch_up_count() > 0 || !self.is_settled() {
            return false;
        }
        if self.reader.is_quiet() {
            return true;
        }
        if self.reader.end_reached() {
            self.reader.confirm_quiet(now);
        }
        false
    }

    pub(crate) const fn in_flight(&self) -> usize {
        self.in_flight
    }

    pub(crate) const fn buffered(&self) -> usize {
        self.keys.held_events()
    }

    pub(crate) fn unsettled(&self) -> usize {
        self.settling.unrecorded()
    }

    pub(crate) const fn stuck_keys(&self) -> usize {
        self.keys.stuck()
    }

    pub(crate) const fn counts(&self) -> Counts {
        self.counts
    }

    /// What a destination is paused for.
    pub(crate) fn outage(&self, destination: usize) -> Option<&str> {
        self.outages[destination].error()
    }

    pub(crate) fn hint(&self) -> Seq {
        self.reader.hint()
    }

    fn random(&mut self) -> f64 {
        self.random.random()
    }

    /// Events and payload bytes that may be taken in.
    fn room(&self) -> (usize, usize) {
        let capacity = 2 * self.settings.batch_size + 2 * self.settings.max_concurrent_events;
        let used = self.keys.held_events() + self.in_flight + self.settling.unrecorded();
        let bytes = self.settings.buffer_bytes_max.saturating_sub(self.keys.held_bytes());
        let fitting = bytes / self.payload_bytes_mean.max(1);
        let events = capacity.saturating_sub(used).min(self.settings.batch_size);
        (if bytes == 0 { 0 } else { events.min(fitting.max(1)) }, bytes)
    }

    fn read(&mut self, now: Duration) -> Option<Command> {
        let (events, bytes) = self.room();
        // A fetch costs a round trip whatever it brings: not for a handful of events while many
        // are under way.
        let worthwhile = self.settings.batch_size.div_ceil(4).min(self.settings.batch_size);
        let events = if events < worthwhile && self.in_flight > worthwhile { 0 } else { events };
        match self.reader.next_operation(now, (events, bytes), &mut self.keys)? {
            Operation::Watermark => Some(Command::ReadWatermark),
            Operation::DeadHeads { after, limit } => Some(Command::ReadDeadHeads { after, limit }),
            Operation::Fetch { query, purpose } => {
                Some(Command::Fetch { query, ticket: FetchTicket(purpose) })
            }
        }
    }

    fn fetched(&mut self, FetchTicket(purpose): FetchTicket, page: PendingPage, now: Duration) {
        let last = page.events.last().map(|pending| pending.seq);
        let places: Vec<Seq> = page.events.iter().map(|pending| pending.seq).collect();
        let bytes: usize =
            page.events.iter().map(|pending| pending.event.payload().body().len()).sum();
        if !page.events.is_empty() {
            self.payload_bytes_mean = bytes / page.events.len();
        }
        if let Purpose::CatchUp(catch_up) = &purpose {
            self.caught_up(catch_up, last.filter(|_| page.more));
        }
        let mut any_new = false;
        for pending in page.events {
            let seq = pending.seq;
            let id = KeyId::of(pending.event.order_key());
            let due = now.saturating_add(pending.wait);
            // An operator may have made a waiting head due. A row read before its own settlement
            // says nothing of that.
            if self.reader.is_rechecked(seq)
                && !self.reader.settled_meanwhile(seq)
                && !self.settling.is_unrecorded_retry(seq)
            {
                self.keys.wake_head(id, seq, due, now);
            }
            if !self.reader.is_new(seq) {
                continue;
            }
            any_new = true;
            let destination = self.routes.resolve(&pending.event).unwrap_or(self.outages.len());
            let held = Held { seq, due, destination, event: pending.event };
            let admission = match &purpose {
                Purpose::Forward => self.keys.admit(id, held, now),
                Purpose::CatchUp(_) => self.keys.hold(id, held, now),
            };
            if admission == Admission::Held {
                self.reader.remember(seq);
            }
        }
        match purpose {
            Purpose::Forward => self.reader.forward_read(&places, page.more, any_new, now),
            Purpose::CatchUp(catch_up) => {
                self.keys.catch_up_ended(ids_of(&catch_up), now);
                self.reader.catch_up_read();
            }
        }
    }

    fn caught_up(&mut self, catch_up: &CatchUp, more_after: Option<Seq>) {
        match catch_up {
            CatchUp::Key { id, range, .. } => {
                self.keys.caught_up(*id, range, more_after.map(|last| last + 1));
            }
            CatchUp::At(places) => {
                for (id, seq) in places {
                    let cut = more_after.is_some_and(|last| *seq > last);
                    let range = keys::Unheld { first: *seq, last: *seq };
                    self.keys.caught_up(*id, &range, cut.then_some(*seq));
                }
            }
        }
    }

    fn dead_heads_read(&mut self, heads: &[DeadHead], now: Duration) {
        for head in heads {
            if self.dead_head_policy(head.destination.as_deref(), &head.event_type)
                == DeadHeadPolicy::Block
            {
                let id = KeyId::of(&head.key);
                self.reader.blocks(head.seq, id, head.key.clone(), true);
                self.block(id, head.seq);
            }
        }
        let gone = self.reader.dead_heads_read(heads);
        let ids: FxHashSet<KeyId> = gone.iter().map(|blocked| blocked.id).collect();
        let remaining = self.reader.still_blocking(&ids);
        for blocked in gone {
            let still = remaining.get(&blocked.id).copied();
            self.keys.unblock(blocked.id, &blocked.name, still, now);
        }
    }

    fn dead_head_policy(&self, destination: Option<&str>, event_type: &str) -> DeadHeadPolicy {
        self.routes
            .resolve_names(destination, event_type)
            .map_or(DeadHeadPolicy::Block, |index| self.routes.destinations()[index].dead_head)
    }

    fn block(&mut self, id: KeyId, dead: Seq) {
        for seq in self.keys.block(id, dead) {
            self.reader.forget(seq);
        }
    }

    fn dispatch(&mut self, now: Duration, commands: &mut Vec<Command>) {
        self.limited_until = None;
        self.dead_letter_unroutable(now);
        for destination in 0..self.outages.len() {
            while let Some(batch) = self.next_batch(destination, now) {
                commands.push(Command::Publish { destination, batch });
            }
        }
    }

    /// The next events for a destination, unless it is paused or enough is in flight.
    fn next_batch(&mut self, destination: usize, now: Duration) -> Option<Batch> {
        let ready = self.keys.ready_count(destination);
        if ready == 0 {
            return None;
        }
        let (batch_events_max, key_pipelining) = {
            let capabilities = self.routes.capabilities(destination);
            (capabilities.batch_events_max, capabilities.key_pipelining)
        };
        let in_flight_max = self.settings.max_concurrent_events;
        let free = in_flight_max.saturating_sub(self.in_flight);
        let permit = self.outages[destination].permit(now);
        let wanted = match permit {
            Permit::Nothing => return None,
            Permit::Probe => 1,
            Permit::All => in_flight_max.div_ceil(CALLS_IN_FLIGHT).min(batch_events_max),
        };
        // Wait for room for a decent batch rather than send single events as answers trickle in.
        if free == 0 || free < wanted.min(ready) {
            return None;
        }
        let wanted = self.limit_rate(wanted.min(free), ready, now)?;
        let per_key = match (permit, key_pipelining) {
            (Permit::All, KeyPipelining::SuffixFails) => wanted,
            _ => 1,
        };
        let taken = self.keys.take(destination, wanted, per_key, now);
        if taken.is_empty() {
            return None;
        }
        self.outages[destination].sent();
        self.in_flight += taken.len();
        let mut batch = Batch {
            events: Vec::with_capacity(taken.len()),
            places: Vec::with_capacity(taken.len()),
        };
        for (id, held) in taken {
            batch.places.push((held.seq, id));
            batch.events.push(held.event);
        }
        Some(batch)
    }

    /// How many of `wanted` events the rate limit lets through; `None` for none. Asks for no more
    /// than is `ready`, since what is granted and not used is lost.
    fn limit_rate(&mut self, wanted: usize, ready: usize, now: Duration) -> Option<usize> {
        let Some((limiter, clock, clock_at)) = &mut self.limiter else { return Some(wanted) };
        clock.advance(now.saturating_sub(*clock_at));
        *clock_at = now;
        let wanted = wanted.min(ready);
        for permitted in 0..wanted {
            if let Err(not_until) = limiter.check() {
                self.limited_until = Some(now + not_until.wait_time_from(clock.now()));
                return (permitted > 0).then_some(permitted);
            }
        }
        Some(wanted)
    }

    fn dead_letter_unroutable(&mut self, now: Duration) {
        let unroutable = self.outages.len();
        while self.keys.ready_count(unroutable) > 0 {
            for (id, held) in self.keys.take(unroutable, usize::MAX, 1, now) {
                let name = held.event.destination().unwrap_or_default().to_owned();
                let error = Error::new(
                    ErrorKind::DestinationMissing,
                    "route event",
                    "no destination of this name is configured",
                )
                .with_context("destination", name);
                self.dead_letter(id, held, ErrorKind::DestinationMissing.as_str(), 0, &error);
                self.keys.release(id, now);
            }
        }
    }

    fn published(
        &mut self,
        destination: usize,
        batch: Batch,
        mut results: Vec<PublishResult>,
        now: Duration,
    ) {
        // A bus that breaks its contract must not make events vanish.
        results.resize_with(batch.events.len(), || {
            Err(Error::new(ErrorKind::Internal, "publish", "the bus gave no result for this event"))
        });
        self.in_flight -= batch.events.len();
        let was_paused = self.outages[destination].error().is_some();
        let mut failed_keys: FxHashSet<KeyId> = FxHashSet::default();
        let mut keys_of_batch = Vec::with_capacity(batch.places.len());
        for ((event, (seq, id)), result) in batch.events.into_iter().zip(batch.places).zip(results)
        {
            keys_of_batch.push(id);
            let held = Held { seq, due: Duration::ZERO, destination, event };
            match result {
                Ok(()) => {
                    self.outages[destination].answered();
                    self.delivered(&held);
                }
                // Behind a failed event of its key: goes again, and counts nothing.
                Err(_) if failed_keys.contains(&id) => self.put_back(id, held, now),
                Err(error) => {
                    failed_keys.insert(id);
                    self.attempt_failed(id, held, &error, now);
                }
            }
        }
        for id in keys_of_batch {
            self.keys.release(id, now);
        }
        match (was_paused, self.outages[destination].error()) {
            (false, Some(error)) => {
                let error = error.to_owned();
                self.reports.push(Report::Paused { destination, error });
            }
            (true, None) => self.reports.push(Report::Resumed { destination }),
            _ => {}
        }
    }

    fn delivered(&mut self, held: &Held) {
        self.counts.delivered += 1;
        let settlement = Settlement {
            seq: held.seq,
            id: held.event.id(),
            outcome: SettlementOutcome::Delivered,
        };
        self.settling.add(settlement, held.event.retry_count() > 0);
    }

    fn put_back(&mut self, id: KeyId, held: Held, now: Duration) {
        let seq = held.seq;
        if self.keys.hold(id, held, now) == Admission::Unheld {
            self.reader.forget(seq);
        }
    }

    fn attempt_failed(&mut self, id: KeyId, held: Held, error: &Error, now: Duration) {
        match error.status() {
            ErrorStatus::Unavailable => {
                let random = self.random();
                self.outages[held.destination].unavailable(error, now, random);
                self.counts.interrupted += 1;
                self.put_back(id, held, now);
            }
            ErrorStatus::Permanent => {
                self.outages[held.destination].answered();
                let retry_count = held.event.retry_count();
                self.dead_letter(id, held, error.kind().as_str(), retry_count, error);
            }
            ErrorStatus::Transient => {
                self.outages[held.destination].answered();
                let random = self.random();
                match held.event.decide_retry(&self.settings.retry_policy, random) {
                    RetryDecision::Exhausted { retry_count } => {
                        self.dead_letter(
                            id,
                            held,
                            RetryDecision::EXHAUSTED_REASON,
                            retry_count,
                            error,
                        );
                    }
                    RetryDecision::Retry { retry_count, delay } => {
                        self.retry_later(id, held, retry_count, delay, error, now);
                    }
                }
            }
        }
    }

    fn retry_later(
        &mut self,
        id: KeyId,
        held: Held,
        retry_count: u32,
        delay: Duration,
        error: &Error,
        now: Duration,
    ) {
        let text = storable(&error.report());
        self.counts.retried += 1;
        self.reports.push(Report::RetryScheduled {
            destination: held.destination,
            event: summary(&held.event),
            delay,
            error: text.clone(),
        });
        let outcome = SettlementOutcome::Retry { retry_count, delay, error: text.into() };
        self.settling
            .add(Settlement { seq: held.seq, id: held.event.id(), outcome }, retry_count > 1);
        let event = held.event.with_retry_count(retry_count);
        let head = Held { event, ..held };
        for seq in self.keys.park_behind(id, head, now.saturating_add(delay), now) {
            self.reader.forget(seq);
        }
    }

    fn dead_letter(
        &mut self,
        id: KeyId,
        held: Held,
        reason: &'static str,
        retry_count: u32,
        error: &Error,
    ) {
        let text = storable(&error.report());
        let policy = self.dead_head_policy(held.event.destination(), held.event.event_type());
        let blocks_key = policy == DeadHeadPolicy::Block;
        self.counts.dead_lettered += 1;
        self.reports.push(Report::DeadLettered {
            event: summary(&held.event),
            reason,
            error: text.clone(),
            blocks_key,
        });
        let outcome = SettlementOutcome::Dead { retry_count, reason, error: text.into() };
        self.settling
            .add(Settlement { seq: held.seq, id: held.event.id(), outcome }, retry_count > 0);
        if blocks_key {
            self.reader.blocks(held.seq, id, held.event.order_key().clone(), false);
            self.block(id, held.seq);
        }
    }

    fn database_failed(&mut self, error: &Error, now: Duration) {
        let random = self.random();
        self.database.failed(now, random);
        self.reports.push(Report::DatabaseFailed { error: error.report() });
    }

    fn database_answered(&mut self) {
        if self.database.is_failing() {
            self.database.answered();
            self.reports.push(Report::DatabaseAnswered);
        }
    }
}

fn ids_of(catch_up: &CatchUp) -> Vec<KeyId> {
    match catch_up {
        CatchUp::Key { id, .. } => vec![*id],
        CatchUp::At(places) => places.iter().map(|(id, _)| *id).collect(),
    }
}

fn summary(event: &OutboxEvent) -> Summary {
    Summary {
        id: event.id(),
        event_type: event.event_type().into(),
        key: event.order_key().to_string(),
    }
}

/// An error text that every database takes: bounded, and without the NUL that some refuse.
fn storable(text: &str) -> String {
    text.chars().map(|c| if c == '\0' { '\u{fffd}' } else { c }).take(ERROR_CHARS_MAX).collect()
}
