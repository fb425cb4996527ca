//! What the running loop tells everyone who asks.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use posthaste_core::{Backlog, Seq};
use tokio::time::Instant;
use uuid::Uuid;

use crate::machine::{Counts, Machine};
use crate::{DestinationState, NotRecorded, ProcessorStatistics, RelayState, StopReport};

/// Events that are named, of those whose outcome cannot be recorded.
const NOT_RECORDED_MAX: usize = 20;

/// The last known state of a processor.
#[derive(Debug, Default)]
pub(crate) struct Shared {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    relay: RelayState,
    id: Option<Uuid>,
    started: Option<Instant>,
    /// When the loop goes on at the latest, by its own word. `None` while it waits for something
    /// that has no time, and where there is no loop.
    due: Option<Instant>,
    counts: Counts,
    /// Counts of earlier runs of the same processor.
    earlier: Counts,
    in_flight: usize,
    buffered: usize,
    unsettled: usize,
    not_recorded: Vec<NotRecorded>,
    parked_keys: usize,
    shards: usize,
    relays: usize,
    hint: Seq,
    last_acknowledged: Option<Instant>,
    backlog: Option<(Backlog, Instant)>,
    database_error: Option<String>,
    failure: Option<String>,
    unknown_destinations: Vec<String>,
    destinations: Vec<DestinationState>,
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
        state.earlier = sum(state.earlier, state.counts);
        state.counts = Counts::default();
        state.database_error = None;
        state.unknown_destinations.clear();
        state.failure = None;
        state.destinations = destinations
            .map(|name| DestinationState { name, paused_for: None, failing_keys: 0 })
            .collect();
    }

    pub(crate) fn observe(&self, machine: &Machine) {
        let mut state = self.lock();
        let counts = machine.counts();
        for (destination, keys) in state.destinations.iter_mut().zip(machine.failing_keys()) {
            destination.failing_keys = keys;
        }
        if counts.delivered > state.counts.delivered {
            state.last_acknowledged = Some(Instant::now());
        }
        state.counts = counts;
        state.in_flight = machine.in_flight();
        state.buffered = machine.buffered();
        state.unsettled = machine.unsettled();
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
    pub(crate) fn identified(&self, relay: Uuid) {
        self.lock().id = Some(relay);
    }

    pub(crate) fn id(&self) -> Option<Uuid> {
        self.lock().id
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
            destination.paused_for = error;
        }
    }

    pub(crate) fn unknown_destination(&self, name: &str) {
        self.lock().unknown_destinations.push(name.to_owned());
    }

    pub(crate) fn database(&self, error: Option<String>) {
        let mut state = self.lock();
        match (&error, state.relay) {
            (Some(_), RelayState::Running) => state.relay = RelayState::DatabaseUnavailable,
            (None, RelayState::DatabaseUnavailable) => state.relay = RelayState::Running,
            _ => {}
        }
        state.database_error = error;
    }

    pub(crate) fn backlog(&self, backlog: Backlog) {
        self.lock().backlog = Some((backlog, Instant::now()));
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
            not_recorded: state.not_recorded.clone(),
            parked_keys: state.parked_keys,
            shards: state.shards,
            relays: state.relays,
            backlog: state.backlog.map(|(backlog, at)| (backlog, at.elapsed())),
            last_acknowledged: state.last_acknowledged.map(|at| at.elapsed()),
            running_for: state.started.map_or(Duration::ZERO, |at| at.elapsed()),
            overdue: state.due.map_or(Duration::ZERO, |due| due.elapsed()),
            database_error: state.database_error.clone(),
            failure: state.failure.clone(),
            unknown_destinations: state.unknown_destinations.clone(),
            destinations: state.destinations.clone(),
        }
    }
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
