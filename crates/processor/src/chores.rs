//! What a running processor does beside delivering: gauges, upkeep, cleanup.

use std::sync::Arc;
use std::time::Duration;

use posthaste_core::{OpenWriter, OutboxRepository};
use rustc_hash::FxHashMap;
use tokio::time::Instant;

use crate::shared::Shared;
use crate::telemetry::Telemetry;
use crate::{ProcessorStatistics, RelayState};

/// Between two looks at the counts of the database.
const BACKLOG_INTERVAL: Duration = Duration::from_secs(5);
/// Between two updates of the gauges that ask no database.
const GAUGE_INTERVAL: Duration = Duration::from_secs(1);
/// Between two looks at whether there is something new to tell operators.
const TELL_INTERVAL: Duration = Duration::from_secs(2);
/// Counts and texts that change are told no more often: each time is a write to the relay's row.
const TELL_DETAILS_INTERVAL: Duration = Duration::from_secs(10);
/// It is told again although nothing changed: the row may have been made anew.
const TELL_INTERVAL_MAX: Duration = Duration::from_secs(60);
/// Between two rounds of upkeep and cleanup.
const UPKEEP_INTERVAL: Duration = Duration::from_secs(600);

/// Keeps gauges fresh and the tables tidy, until it is dropped.
pub(crate) async fn run(
    repository: Arc<dyn OutboxRepository>,
    shared: Arc<Shared>,
    telemetry: Telemetry,
    retention: Option<Duration>,
) {
    let backlog = keep_backlog_fresh(&*repository, &shared, &telemetry);
    let upkeep = keep_tidy(&*repository, &telemetry, retention);
    let gauges = async {
        loop {
            shared.sample();
            let statistics = shared.statistics();
            let never = statistics.running_for;
            telemetry.backlog_age(statistics.backlog.map_or(never, |(_, age)| age));
            telemetry.statistics(&statistics);
            tokio::time::sleep(GAUGE_INTERVAL).await;
        }
    };
    let telling = tell_operators(&*repository, &shared, &telemetry);
    tokio::join!(backlog, upkeep, gauges, telling);
}

/// Says in the database what this relay does, for operators that cannot ask it: when it changes, and now
/// and then. Only what runs until it is stopped says so: a single pass or a drain is over before anybody
/// could ask, and whoever called it has its report.
async fn tell_operators(repository: &dyn OutboxRepository, shared: &Shared, telemetry: &Telemetry) {
    let mut told = None;
    loop {
        if let Some(relay) = shared.identity() {
            let told_now = Told::of(&shared.statistics(), Instant::now());
            if told_now.is_worth_telling(told.as_ref()) {
                let telling = repository.tell(relay.id, &relay.name, &told_now.report);
                match telemetry.storage("tell", telling).await {
                    Ok(()) => told = Some(told_now),
                    Err(error) => {
                        tracing::debug!(error = error.report(), "cannot tell what this relay does");
                    }
                }
            }
        }
        tokio::time::sleep(TELL_INTERVAL).await;
    }
}

/// What is told of a relay.
#[derive(Debug)]
struct Told {
    report: String,
    state: RelayState,
    database_fails: bool,
    /// Which destinations are paused.
    paused: Vec<bool>,
    unknown_destinations: usize,
    at: Instant,
}

impl Told {
    fn of(statistics: &ProcessorStatistics, at: Instant) -> Self {
        Self {
            report: statistics.as_report(),
            state: statistics.state,
            database_fails: statistics.database_error.is_some(),
            paused: statistics.destinations.iter().map(|to| to.paused_for.is_some()).collect(),
            unknown_destinations: statistics.unknown_destinations.len(),
            at,
        }
    }

    fn is_worth_telling(&self, before: Option<&Self>) -> bool {
        let Some(before) = before else { return true };
        let since = self.at.duration_since(before.at);
        let turned = self.state != before.state
            || self.database_fails != before.database_fails
            || self.paused != before.paused
            || self.unknown_destinations != before.unknown_destinations;
        let details = self.report != before.report && since >= TELL_DETAILS_INTERVAL;
        turned || details || since > TELL_INTERVAL_MAX
    }
}

async fn keep_backlog_fresh(
    repository: &dyn OutboxRepository,
    shared: &Shared,
    telemetry: &Telemetry,
) {
    let late_commits = repository.capabilities().late_commits;
    let mut writers = OpenWriters::default();
    telemetry.oldest_open_writer(Duration::ZERO);
    loop {
        let started = Instant::now();
        if late_commits
            && let Ok(watermark) = telemetry.storage("watermark", repository.watermark()).await
        {
            telemetry.oldest_open_writer(writers.observe(watermark.writers, Instant::now()));
        }
        match telemetry.storage("backlog", repository.backlog(0)).await {
            Ok(backlog) => {
                telemetry.backlog(&backlog);
                shared.backlog(backlog);
            }
            // The delivering loop logs an outage of the database; here it would only repeat.
            Err(error) => tracing::debug!(error = error.report(), "cannot read the backlog"),
        }
        // However slow the database is, its counts take a small share of its time.
        tokio::time::sleep(BACKLOG_INTERVAL.max(started.elapsed() * 20)).await;
    }
}

/// Since when each open writer is known. Their own ages only the database knows, and it need not
/// tell us.
#[derive(Debug, Default)]
struct OpenWriters(FxHashMap<OpenWriter, Instant>);

impl OpenWriters {
    /// Takes those that are open now; returns how long the oldest of them is known.
    fn observe(&mut self, open: Vec<OpenWriter>, now: Instant) -> Duration {
        self.0 = open
            .into_iter()
            .map(|writer| {
                let since = self.0.get(&writer).copied().unwrap_or(now);
                (writer, since)
            })
            .collect();
        let oldest = self.0.values().min();
        oldest.map_or(Duration::ZERO, |since| now.duration_since(*since))
    }
}

async fn keep_tidy(
    repository: &dyn OutboxRepository,
    telemetry: &Telemetry,
    retention: Option<Duration>,
) {
    loop {
        if let Err(error) = telemetry.storage("maintain", repository.maintain()).await {
            tracing::warn!(error = error.report(), "upkeep failed; it is tried again");
        }
        if let Some(retention) = retention {
            match telemetry.storage("cleanup", repository.cleanup_processed(retention)).await {
                Ok(0) => {}
                Ok(events) => {
                    telemetry.pruned(events);
                    tracing::info!(events, "removed delivered events past their retention");
                }
                Err(error) => {
                    tracing::warn!(error = error.report(), "cleanup failed; it is tried again");
                }
            }
        }
        tokio::time::sleep(UPKEEP_INTERVAL).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::DestinationState;

    #[test]
    fn what_turns_is_told_at_once_and_a_count_that_goes_up_and_down_every_ten_seconds() {
        let begin = Instant::now();
        let of = |paused: bool, failing_keys, seconds| {
            let destination = DestinationState {
                name: "orders".into(),
                paused_for: paused.then(|| format!("{failing_keys} keys failed")),
                failing_keys,
                ..DestinationState::default()
            };
            let statistics = ProcessorStatistics {
                destinations: vec![destination],
                ..ProcessorStatistics::default()
            };
            Told::of(&statistics, begin + Duration::from_secs(seconds))
        };
        assert!(of(false, 0, 0).is_worth_telling(None));
        let told = of(false, 0, 0);
        let worth = |paused, failing_keys, seconds| {
            of(paused, failing_keys, seconds).is_worth_telling(Some(&told))
        };
        assert!(!worth(false, 0, 60) && worth(false, 0, 61), "nothing changes");
        assert!(!worth(false, 5, 8) && worth(false, 5, 10));
        assert!(worth(true, 8, 2), "a pause begins");
        let told = of(true, 8, 0);
        assert!(!of(true, 9, 8).is_worth_telling(Some(&told)));
        assert!(of(false, 8, 2).is_worth_telling(Some(&told)), "a pause ends");
    }

    #[test]
    fn the_oldest_writer_is_the_one_that_is_known_longest_and_still_open() {
        let writer = |token: &str| OpenWriter { token: token.into() };
        let mut writers = OpenWriters::default();
        let begin = Instant::now();
        let at = |seconds| begin + Duration::from_secs(seconds);
        let mut observe = |open: &[&str], seconds| {
            let open = open.iter().map(|token| writer(token)).collect();
            writers.observe(open, at(seconds)).as_secs()
        };
        assert_eq!(observe(&["a"], 0), 0);
        assert_eq!(observe(&["a", "b"], 5), 5);
        assert_eq!(observe(&["b", "c"], 15), 10, "a has ended");
        assert_eq!(observe(&[], 20), 0);
        assert_eq!(observe(&["b"], 25), 0, "a name is forgotten with its transaction");
    }
}
