//! What a running processor does beside delivering: gauges, upkeep, cleanup.

use std::sync::Arc;
use std::time::Duration;

use posthaste_core::OutboxRepository;
use tokio::time::Instant;

use crate::shared::Shared;
use crate::telemetry;

/// Between two looks at the counts of the database.
const BACKLOG_INTERVAL: Duration = Duration::from_secs(5);
/// Between two updates of the gauges that ask no database.
const GAUGE_INTERVAL: Duration = Duration::from_secs(1);
/// Between two rounds of upkeep and cleanup.
const UPKEEP_INTERVAL: Duration = Duration::from_secs(600);

/// Keeps gauges fresh and the tables tidy, until it is dropped.
pub(crate) async fn run(
    repository: Arc<dyn OutboxRepository>,
    shared: Arc<Shared>,
    retention: Option<Duration>,
) {
    let backlog = keep_backlog_fresh(&*repository, &shared);
    let upkeep = keep_tidy(&*repository, retention);
    let gauges = async {
        loop {
            telemetry::statistics(&shared.statistics());
            tokio::time::sleep(GAUGE_INTERVAL).await;
        }
    };
    tokio::join!(backlog, upkeep, gauges);
}

async fn keep_backlog_fresh(repository: &dyn OutboxRepository, shared: &Shared) {
    loop {
        let started = Instant::now();
        match telemetry::storage("backlog", repository.backlog(0)).await {
            Ok(backlog) => {
                telemetry::backlog(&backlog);
                shared.backlog(backlog);
            }
            // The delivering loop logs an outage of the database; here it would only repeat.
            Err(error) => tracing::debug!(error = error.report(), "cannot read the backlog"),
        }
        // However slow the database is, its counts take a small share of its time.
        tokio::time::sleep(BACKLOG_INTERVAL.max(started.elapsed() * 20)).await;
    }
}

async fn keep_tidy(repository: &dyn OutboxRepository, retention: Option<Duration>) {
    loop {
        if let Err(error) = telemetry::storage("maintain", repository.maintain()).await {
            tracing::warn!(error = error.report(), "upkeep failed; it is tried again");
        }
        if let Some(retention) = retention {
            match telemetry::storage("cleanup", repository.cleanup_processed(retention)).await {
                Ok(0) => {}
                Ok(events) => {
                    telemetry::pruned(events);
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
