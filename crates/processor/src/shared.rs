//! What the running loop tells everyone who asks.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use posthaste_core::{Backlog, Error, Seq};
use posthaste_engine::{Counts, Machine, storable};
use tokio::time::Instant;
use uuid::Uuid;

use crate::rates::Rate;
use crate::{DestinationState, NotRecorded, ProcessorStatistics, RelayState, StopReport};

/// Events that are named, of those whose outcome cannot be recorded.
const NOT_RECORDED_MAX: usize = 20;
/// Keys that are named, of those that fail and count no attempt.
const UNCOUNTED_NAMED_MAX: usize = 5;
/// Between two looks at the keys that fail.
const FAILURES_EVERY: Duration = Duration::from_secs(1);
/// Deliveries come in bursts: over so long they tell how fast it goes.
const DELIVERED_WINDOW: Duration = Duration::from_secs(10);
/// What waits is counted every five seconds, or less often. A burst that was stored before does not count
/// against those who deliver it.
const BACKLOG_WINDOW: Duration = Duration::from_secs(15);

/// The last known state of a processor.
#[derive(Debug, Default)]
pub(crate) struct Shared {
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    relay: RelayState,
    identity: Option<Identity>,
    started: Option<Instant>,
    started_at: Option<Timestamp>,
    /// When the loop goes on at the latest, by its own word. `None` while it waits for something
    /// that has no time, and where there is no loop.
    due: Option<Instant>,
    counts: Counts,
    /// Counts of earlier runs of the same processor.
    earlier: Counts,
    in_flight: usize,
    buffered: usize,
    unsettled: usize,
    undecided: usize,
    unreadable_rows: u64,
    not_recorded: Vec<NotRecorded>,
    parked_keys: usize,
    shards: usize,
    relays: usize,
    hint: Seq,
    last_acknowledged: Option<Instant>,
    backlog: Option<(Backlog, Instant)>,
    backlog_change: Rate,
    delivered: Rate,
    database_error: Option<Error>,
    failure: Option<String>,
    unknown_destinations: Vec<String>,
    destinations: Vec<DestinationState>,
    /// When the pause of each destination ends, by the run's clock.
    pauses_end: Vec<Option<Duration>>,
    /// Since when each destination takes nothing, by the run's clock and by the one that is read here.
    failing_since: Vec<Option<(Duration, Instant)>>,
    /// When the keys that fail are looked at again.
    failures_due: Duration,
}

/// As what a run goes in the database.
#[derive(Debug, Clone)]
pub(crate) struct Identity {
    pub(crate) id: Uuid,
    /// Host and process id.
    pub(crate) name: Box<str>,
}

impl Default for State {
    fn default() -> Self {
        Self {
            relay: RelayState::default(),
            identity: None,
            started: None,
            started_at: None,
            due: None,
            counts: Counts::default(),
            earlier: Counts::default(),
            in_flight: 0,
            buffered: 0,
            unsettled: 0,
            undecided: 0,
            unreadable_rows: 0,
            not_recorded: Vec::new(),
            parked_keys: 0,
            shards: 0,
            relays: 0,
            hint: 0,
            last_acknowledged: None,
            backlog: None,
            backlog_change: Rate::over(BACKLOG_WINDOW),
            delivered: Rate::over(DELIVERED_WINDOW),
            database_error: None,
            failure: None,
            unknown_destinations: Vec::new(),
            destinations: Vec::new(),
            pauses_end: Vec::new(),
            failing_since: Vec::new(),
            failures_due: Duration::ZERO,
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        // No holder leaves it half written.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn started(&self, destinations: impl Iterator<Item = String>) {
        let mut state = self.lock();
        state.relay = RelayState::Running;
        state.started = Some(Instant::now());
        state.started_at = Some(whole_second(Timestamp::now()));
        state.delivered.clear();
        state.backlog_change.clear();
        state.earlier = sum(state.earlier, state.counts);
        state.counts = Counts::default();
        state.database_error = None;
        state.unknown_destinations.clear();
        state.failure = None;
        state.destinations = destinations
            .map(|name| DestinationState { name, ..DestinationState::default() })
            .collect();
        state.pauses_end.clear();
        state.failing_since.clear();
        state.failures_due = Duration::ZERO;
    }

    /// What the machine is at, at the moment `now` of its clock.
    pub(crate) fn observe(&self, machine: &Machine, now: Duration) {
        let mut state = self.lock();
        let counts = machine.counts();
        state.pauses_end(machine.pauses_end(), now);
        state.failures(machine, now);
        if counts.delivered > state.counts.delivered {
            state.last_acknowledged = Some(Instant::now());
        }
        state.counts = counts;
        state.in_flight = machine.in_flight();
        state.buffered = machine.buffered();
        state.unsettled = machine.unsettled();
        state.undecided = machine.undecided_events();
        state.not_recorded = machine.rows_not_recorded(NOT_RECORDED_MAX);
        state.parked_keys = machine.stuck_keys();
        (state.shards, state.relays) = machine.shards_and_relays();
        state.hint = machine.hint();
    }

    /// The loop rests from now on, for so long at most; without a limit, until something comes.
    pub(crate) fn rests_for(&self, at_most: Option<Duration>) {
        self.lock().due = at_most.and_then(|rest| Instant::now().checked_add(rest));
    }

    /// A run goes by this name in the database.
    pub(crate) fn identified(&self, relay: Identity) {
        self.lock().identity = Some(relay);
    }

    pub(crate) fn identity(&self) -> Option<Identity> {
        self.lock().identity.clone()
    }

    /// Takes the figures of this moment, for how fast it goes. To be called every second or so.
    pub(crate) fn sample(&self) {
        let mut state = self.lock();
        let delivered = sum(state.earlier, state.counts).delivered;
        state.delivered.sample(Instant::now(), delivered);
    }

    /// The store met rows that it cannot read as events.
    pub(crate) fn unreadable(&self, rows: u64) {
        self.lock().unreadable_rows += rows;
    }

    pub(crate) fn relay_state(&self, relay: RelayState) {
        self.lock().relay = relay;
    }

    /// The run is over.
    pub(crate) fn ended(&self, failure: Option<&str>) {
        let mut state = self.lock();
        state.relay = if failure.is_some() { RelayState::Failed } else { RelayState::Stopped };
        state.failure = failure.map(Into::into);
    }

    /// What a run leaves that ends now, as far as is known from outside.
    pub(crate) fn left_behind(&self) -> StopReport {
        let state = self.lock();
        StopReport {
            unacknowledged: state.in_flight,
            unsettled: state.unsettled,
            returned: state.buffered,
            failure: state.failure.clone(),
        }
    }

    pub(crate) fn paused(&self, destination: usize, error: Option<String>) {
        if let Some(destination) = self.lock().destinations.get_mut(destination) {
            destination.paused_since = match (&error, destination.paused_since) {
                (None, _) => None,
                (Some(_), since) => Some(since.unwrap_or_else(|| whole_second(Timestamp::now()))),
            };
            destination.paused_for = error;
        }
    }

    pub(crate) fn unknown_destination(&self, name: &str) {
        self.lock().unknown_destinations.push(name.to_owned());
    }

    /// No event names it any more.
    pub(crate) fn unknown_destination_gone(&self, name: &str) {
        self.lock().unknown_destinations.retain(|other| other != name);
    }

    pub(crate) fn database(&self, error: Option<Error>) {
        let mut state = self.lock();
        match (&error, state.relay) {
            (Some(_), RelayState::Running) => state.relay = RelayState::DatabaseUnavailable,
            (None, RelayState::DatabaseUnavailable) => state.relay = RelayState::Running,
            _ => {}
        }
        state.database_error = error;
    }

    pub(crate) fn backlog(&self, backlog: Backlog) {
        let mut state = self.lock();
        let now = Instant::now();
        state.backlog_change.sample(now, backlog.pending());
        state.backlog = Some((backlog, now));
    }

    pub(crate) fn statistics(&self) -> ProcessorStatistics {
        let state = self.lock();
        let counts = sum(state.earlier, state.counts);
        ProcessorStatistics {
            state: state.relay,
            delivered: counts.delivered,
            retried: counts.retried,
            dead_lettered: counts.dead_lettered,
            interrupted: counts.interrupted,
            lost_as_repeat: counts.lost_as_repeat,
            in_flight: state.in_flight,
            buffered: state.buffered,
            unsettled: state.unsettled,
            undecided: state.undecided,
            unreadable_rows: state.unreadable_rows,
            not_recorded: state.not_recorded.clone(),
            parked_keys: state.parked_keys,
            shards: state.shards,
            relays: state.relays,
            backlog: state.backlog.map(|(backlog, at)| (backlog, at.elapsed())),
            last_acknowledged: state.last_acknowledged.map(|at| at.elapsed()),
            delivered_per_second: state.delivered.per_second(),
            backlog_change_per_second: state.backlog_change.per_second(),
            started_at: state.started_at,
            running_for: state.started.map_or(Duration::ZERO, |at| at.elapsed()),
            overdue: state.due.map_or(Duration::ZERO, |due| due.elapsed()),
            database_error: state.database_error.clone(),
            failure: state.failure.clone(),
            unknown_destinations: state.unknown_destinations.clone(),
            destinations: state.destinations(),
        }
    }
}

impl State {
    fn destinations(&self) -> Vec<DestinationState> {
        let mut destinations = self.destinations.clone();
        for (to, since) in destinations.iter_mut().zip(&self.failing_since) {
            to.failing_for = since.map(|(_, at)| at.elapsed());
        }
        destinations
    }

    /// How destinations fail: that they do at once, with what and which keys once a second, for these may
    /// be many.
    fn failures(&mut self, machine: &Machine, now: Duration) {
        let is_due = now >= self.failures_due;
        if is_due {
            self.failures_due = now.saturating_add(FAILURES_EVERY);
        }
        self.failing_since.resize(self.destinations.len(), None);
        let known = self.destinations.iter_mut().zip(&mut self.failing_since);
        for (index, ((to, since), keys)) in known.zip(machine.failing_keys()).enumerate() {
            let turned = (keys == 0) != (to.failing_keys == 0);
            to.failing_keys = keys;
            if !is_due && !turned {
                continue;
            }
            let failing = machine.failing(index, UNCOUNTED_NAMED_MAX);
            let began = failing.as_ref().and_then(|failing| failing.since);
            if since.map(|(began, _)| began) != began {
                let ago = began.map(|began| now.saturating_sub(began));
                *since = began.zip(ago.and_then(|ago| Instant::now().checked_sub(ago)));
                to.failing_since =
                    ago.and_then(|ago| Timestamp::now().checked_sub(ago).ok()).map(whole_second);
            }
            to.last_error = failing.as_ref().map(|failing| storable(&failing.last_error.report()));
            to.last_error_kind = failing.as_ref().map(|failing| failing.last_error.kind());
            (to.uncounted_keys, to.uncounted) = failing
                .map(|failing| (failing.uncounted_keys, failing.uncounted))
                .unwrap_or_default();
        }
    }

    /// The pauses of destinations end then. Told once for each: two clocks never agree to the second.
    fn pauses_end(&mut self, ends: impl Iterator<Item = Option<Duration>>, now: Duration) {
        self.pauses_end.resize(self.destinations.len(), None);
        let known = self.destinations.iter_mut().zip(&mut self.pauses_end);
        for ((destination, known), end) in known.zip(ends) {
            if *known != end {
                *known = end;
                destination.retry_at = end.and_then(|end| {
                    Timestamp::now().checked_add(end.saturating_sub(now)).ok().map(whole_second)
                });
            }
        }
    }
}

/// For people, who read seconds.
fn whole_second(time: Timestamp) -> Timestamp {
    Timestamp::from_second(time.as_second()).unwrap_or(time)
}

const fn sum(a: Counts, b: Counts) -> Counts {
    Counts {
        delivered: a.delivered + b.delivered,
        retried: a.retried + b.retried,
        dead_lettered: a.dead_lettered + b.dead_lettered,
        interrupted: a.interrupted + b.interrupted,
        lost_as_repeat: a.lost_as_repeat + b.lost_as_repeat,
    }
}
