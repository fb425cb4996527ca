//! What a processor has done and how it is doing.

use std::time::Duration;

use jiff::Timestamp;
use posthaste_core::{Backlog, Error};
use posthaste_engine::{NotRecorded, storable};
use serde_json::Value;

use crate::DestinationState;
use crate::run::passes;

/// A busy machine lets a process wait for seconds.
const STANDSTILL_MIN: Duration = Duration::from_secs(10);
/// What is older says nothing of now. A busy database is asked seldom.
const COUNTS_STALE_MIN: Duration = Duration::from_secs(900);

/// Rows that are named in a report.
const REPORTED_ROWS_MAX: usize = 5;

/// A moment's view of a processor.
#[derive(Debug, Clone, Default)]
pub struct ProcessorStatistics {
    /// What it is doing.
    pub state: RelayState,
    /// Events acknowledged since start.
    pub delivered: u64,
    /// Failed attempts that led to a retry, since start.
    pub retried: u64,
    /// Events dead-lettered since start.
    pub dead_lettered: u64,
    /// Attempts that counted nothing, since start: an outage, or nothing told whose fault it was.
    pub interrupted: u64,
    /// Events that a broker dropped, since it held another of their id: recorded as delivered, and lost.
    pub lost_as_repeat: u64,
    /// Published and not yet acknowledged.
    pub in_flight: usize,
    /// Fetched and waiting in memory, those in flight not counted.
    pub buffered: usize,
    /// Acknowledged and not yet recorded in the database.
    pub unsettled: usize,
    /// Failed, and nothing tells yet whose fault that is: taken still, and no attempt is counted.
    pub undecided: usize,
    /// Rows of the outbox that were met and are no event: of those since start, the store made dead
    /// letters. One of which it cannot counts each time it is met.
    pub unreadable_rows: u64,
    /// Of the unsettled, some that the database refuses to record, each by itself, with what is in the
    /// way: the session that holds a lock on the row, for one. They are tried again and again.
    pub not_recorded: Vec<NotRecorded>,
    /// Keys that wait for a retry, a delay or an operator.
    pub parked_keys: usize,
    /// Shards of the outbox that this relay delivers; all 64 when it is alone.
    pub shards: usize,
    /// Relays that share the outbox, this one included.
    pub relays: usize,
    /// The latest counts from the database, and how old they are.
    pub backlog: Option<(Backlog, Duration)>,
    /// Since the last acknowledgement; `None` before the first.
    pub last_acknowledged: Option<Duration>,
    /// Events acknowledged a second, over the last ten seconds; `None` before that is known, and in a
    /// run in the foreground.
    pub delivered_per_second: Option<f64>,
    /// How much more waits each second, over the last quarter of a minute: below zero where it becomes less. `None`
    /// as above.
    pub backlog_change_per_second: Option<f64>,
    /// When the processor started, by this machine's clock.
    pub started_at: Option<Timestamp>,
    /// Since the processor started.
    pub running_for: Duration,
    /// How long ago the relay meant to go on and did not: zero unless something holds the whole
    /// process, or a defect of ours the loop that decides.
    pub overdue: Duration,
    /// The last error of the database, while it lasts.
    pub database_error: Option<Error>,
    /// What the relay died of, until it is started again.
    pub failure: Option<String>,
    /// Names that events gave as their destination and that are not configured: they wait.
    pub unknown_destinations: Vec<String>,
    /// One entry per destination.
    pub destinations: Vec<DestinationState>,
}

/// What a processor is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum RelayState {
    /// Not started, or stopped.
    #[default]
    Stopped,
    /// Delivering, or idle with nothing to deliver.
    Running,
    /// The database cannot be reached or refuses.
    DatabaseUnavailable,
    /// Stopping: no more fetching, waiting for acknowledgements.
    Draining,
    /// Ended without being asked to, by a panic for one. Nothing is delivered until it is started
    /// again.
    Failed,
}

impl RelayState {
    /// All states.
    pub const ALL: [Self; 5] =
        [Self::Stopped, Self::Running, Self::DatabaseUnavailable, Self::Draining, Self::Failed];

    /// A lower-case name, fit for a metric label.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Stopped => "stopped",
            Self::Running => "running",
            Self::DatabaseUnavailable => "database_unavailable",
            Self::Draining => "draining",
            Self::Failed => "failed",
        }
    }
}

/// To a tenth, or to the whole where that says enough.
fn rounded(rate: f64) -> f64 {
    if rate.abs() >= 10.0 { rate.round() } else { (rate * 10.0).round() / 10.0 }
}

impl ProcessorStatistics {
    /// What operators read of a relay in the database, as JSON. It is written when it changes, so figures
    /// that always move are rounded: a relay that is idle writes nothing.
    pub(crate) fn as_report(&self) -> String {
        let destinations: Vec<_> =
            self.destinations.iter().map(DestinationState::as_report).collect();
        let not_recorded: Vec<_> = self
            .not_recorded
            .iter()
            .take(REPORTED_ROWS_MAX)
            .map(|row| serde_json::json!({ "seq": row.seq, "id": row.id, "why": row.why }))
            .collect();
        let report = serde_json::json!({
            "version": env!("CARGO_PKG_VERSION"),
            "state": self.state.as_str(),
            "started_at": self.started_at.map(|at| at.to_string()),
            "database_error": self.database_error.as_ref().map(Error::report),
            "database_error_kind": self.database_error.as_ref().map(|error| error.kind().as_str()),
            "delivered_per_second": self.delivered_per_second.map(rounded),
            "backlog_change_per_second": self.backlog_change_per_second.map(rounded),
            "undecided": self.undecided,
            "unreadable_rows": self.unreadable_rows,
            "not_recorded": not_recorded,
            "lost_as_repeat": self.lost_as_repeat,
            "unknown_destinations": self.unknown_destinations,
            "destinations": destinations,
        });
        with_storable_texts(report).to_string()
    }

    /// Why the outbox is not healthy, or `None`.
    ///
    /// Healthy means that events get delivered, not that the process lives: with events due and
    /// none acknowledged for `stall_after`, the answer is a reason. A processor that is stopped or
    /// died and an unreachable database are reasons too.
    #[must_use]
    pub fn unhealthy_because(&self, stall_after: Duration) -> Option<String> {
        match self.state {
            RelayState::Stopped => return Some("the relay is stopped".into()),
            RelayState::Draining => return Some("the relay is shutting down".into()),
            RelayState::Failed => {
                let why = self.failure.as_deref().unwrap_or("for an unknown reason");
                return Some(format!("the relay died: {why}"));
            }
            RelayState::DatabaseUnavailable => {
                return Some(match &self.database_error {
                    Some(error) if !passes(error) => format!(
                        "the database refuses what a relay needs: {}; {}",
                        error.report(),
                        error.kind().hint()
                    ),
                    Some(error) => format!("the database is unavailable: {}", error.report()),
                    None => "the database is unavailable: no answer".into(),
                });
            }
            RelayState::Running => {}
        }
        let Some((backlog, age)) = &self.backlog else {
            return Some("the database has not answered yet".into());
        };
        if self.overdue >= stall_after.max(STANDSTILL_MIN) {
            return Some(format!("the relay stands still for {} s", self.overdue.as_secs()));
        }
        if *age >= stall_after.max(COUNTS_STALE_MIN) {
            return Some(format!("what waits is not known: counted last {} s ago", age.as_secs()));
        }
        if self.shards == 0 && self.relays > 1 {
            // Others have it all, and answer for it, unless nobody delivers what is due.
            let waits = backlog.ready > 0 && backlog.oldest_pending_age >= stall_after;
            return (waits && self.running_for >= stall_after).then(|| {
                format!(
                    "{} events wait, the oldest for {} s, and this relay has no share of the keys: \
                     the other {} have them all and do not deliver these",
                    backlog.ready,
                    backlog.oldest_pending_age.as_secs(),
                    self.relays - 1
                )
            });
        }
        let idle = self.last_acknowledged.unwrap_or(self.running_for).min(self.running_for);
        if backlog.ready > 0 && backlog.oldest_pending_age >= stall_after && idle >= stall_after {
            let stuck = match self.parked_keys {
                0 => String::new(),
                keys => format!(
                    "; {keys} keys wait for a retry, a delay or, behind a dead letter, an operator"
                ),
            };
            return Some(format!(
                "{} events wait and none was acknowledged for {} s{}{stuck}",
                backlog.ready,
                idle.as_secs(),
                self.troubles()
            ));
        }
        // What fails waits for its next try most of the time, and is not due meanwhile.
        let takes_nothing =
            |to: &DestinationState| to.failing_for.is_some_and(|time| time >= stall_after);
        if backlog.ready + backlog.retrying > 0
            && idle >= stall_after
            && self.destinations.iter().any(takes_nothing)
        {
            return Some(format!(
                "events fail and none was acknowledged for {} s{}",
                idle.as_secs(),
                self.troubles()
            ));
        }
        None
    }

    /// What is wrong with each destination, as the end of a sentence.
    fn troubles(&self) -> String {
        let troubles = self.destinations.iter().filter_map(DestinationState::trouble);
        troubles.map(|trouble| format!("; {trouble}")).collect()
    }
}

/// How a run ended and what it left behind.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct StopReport {
    /// Sent, but no acknowledgement came before the deadline: they are sent again at next start.
    pub unacknowledged: usize,
    /// Acknowledged, but not recorded before the deadline: they are sent again at next start.
    pub unsettled: usize,
    /// Fetched and never sent; still pending.
    pub returned: usize,
    /// What it died of; `None` where it ended because it was asked to.
    pub failure: Option<String>,
}

/// Brokers and receivers write some of the texts: a database refuses a report for one odd letter.
fn with_storable_texts(value: Value) -> Value {
    match value {
        Value::String(text) => storable(&text).into(),
        Value::Array(values) => values.into_iter().map(with_storable_texts).collect(),
        Value::Object(fields) => {
            fields.into_iter().map(|(name, value)| (name, with_storable_texts(value))).collect()
        }
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use posthaste_core::ErrorKind;

    use super::*;

    #[test]
    fn a_database_that_refuses_is_not_said_to_be_away() {
        let why = |kind| {
            let error = Error::new(kind, "settle events", "no");
            let refused = ProcessorStatistics {
                state: RelayState::DatabaseUnavailable,
                database_error: Some(error),
                ..ProcessorStatistics::default()
            };
            refused.unhealthy_because(Duration::MAX).unwrap_or_default()
        };
        let refused = why(ErrorKind::Unauthorized);
        assert!(refused.contains("refuses") && refused.contains("rights"), "{refused}");
        for kind in [ErrorKind::Unreachable, ErrorKind::Timeout, ErrorKind::Conflict] {
            assert!(why(kind).contains("the database is unavailable"), "{}", why(kind));
        }
    }

    #[test]
    fn no_text_of_a_broker_keeps_a_report_from_being_stored() {
        let destination = DestinationState {
            paused_for: Some("\0".repeat(5_000)),
            ..DestinationState::default()
        };
        let statistics = ProcessorStatistics {
            destinations: vec![destination],
            ..ProcessorStatistics::default()
        };
        let report = statistics.as_report();
        assert!(!report.contains("u0000") && report.len() < 20_000, "{report}");
    }

    #[test]
    fn a_view_that_is_too_old_is_no_sign_of_health() {
        let second = Duration::from_secs(1);
        let backlog = Backlog::default();
        let healthy = ProcessorStatistics {
            state: RelayState::Running,
            backlog: Some((backlog, second)),
            shards: 64,
            relays: 1,
            ..ProcessorStatistics::default()
        };
        assert_eq!(healthy.unhealthy_because(5 * second), None);
        let stalled = ProcessorStatistics { overdue: 11 * second, ..healthy.clone() };
        assert!(
            stalled.unhealthy_because(5 * second).is_some_and(|why| why.contains("stands still"))
        );
        assert_eq!(stalled.unhealthy_because(60 * second), None, "a longer patience was asked for");
        let blind = ProcessorStatistics { backlog: Some((backlog, 901 * second)), ..healthy };
        assert!(blind.unhealthy_because(5 * second).is_some_and(|why| why.contains("not known")));
    }

    /// A relay that died may own all shards, for as long as its lease says.
    #[test]
    fn a_relay_without_a_share_tells_of_what_the_others_leave() {
        let second = Duration::from_secs(1);
        let view = |waits: Duration, running_for: Duration| {
            let ready = Backlog { ready: 3, oldest_pending_age: waits, ..Backlog::default() };
            ProcessorStatistics {
                state: RelayState::Running,
                backlog: Some((ready, second)),
                relays: 2,
                running_for,
                ..ProcessorStatistics::default()
            }
        };
        let why = view(61 * second, 61 * second).unhealthy_because(60 * second).unwrap_or_default();
        assert!(why.contains("3 events wait") && why.contains("no share of the keys"), "{why}");
        assert_eq!(view(59 * second, 600 * second).unhealthy_because(60 * second), None);
        assert_eq!(view(600 * second, 59 * second).unhealthy_because(60 * second), None);
    }
}
