//! `posthaste run`: the relay.

use std::any::Any;
use std::future::Future;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use posthaste_core::{Error, ErrorKind, OutboxRepository};
use posthaste_processor::{OutboxProcessor, StopReport};
use tokio::sync::Notify;

use super::signals::StopSignals;
use crate::arguments::RunArgs;
use crate::config::{Config, Listen, Problems};
use crate::destinations::{self, OpenDestination};
use crate::ops::{self, Ops};
use crate::store::{self, Missing, Store};

/// Between two attempts to reach a database that is down at start.
const RECONNECT_DELAY: Duration = Duration::from_secs(2);

/// Runs the relay until it is stopped, or until its work is done.
pub(crate) async fn run(args: &RunArgs, config: Config) -> anyhow::Result<ExitCode> {
    let problems = destinations::problems(&config.destinations);
    if !problems.is_empty() {
        return Err(Problems(problems).into());
    }
    let mut stop = StopSignals::new()?;
    let output_closed = Arc::new(Notify::new());
    announce(&config);
    let ops = start_ops(args, &config).await?;
    let destinations = destinations::open(&config.destinations, &output_closed).await?;
    let (store, lock) = tokio::select! {
        started = start_store(&config) => started?,
        signal = stop.next() => {
            tracing::info!(signal, "stopped before the database answered");
            return Ok(ExitCode::SUCCESS);
        }
    };
    let repository: Arc<dyn OutboxRepository> = store;
    let mut builder = OutboxProcessor::builder_shared(repository).settings(config.relay.clone());
    for destination in &destinations {
        builder = builder.destination(destination.destination());
    }
    for route in &config.routes {
        builder = builder.route(route.clone());
    }
    let processor = builder.build()?;
    if let Some(ops) = &ops {
        ops.started(processor.clone());
    }
    let checks = spawn_checks(&destinations);
    let result = if args.once || args.drain {
        foreground(args, &config, &processor, &mut stop, &output_closed).await
    } else {
        background(&processor, stop, &output_closed).await
    };
    checks.abort();
    for destination in &destinations {
        if let Err(error) = destination.bus.close().await {
            tracing::warn!(destination = destination.name, error = error.report(), "close failed");
        }
    }
    drop(lock);
    result
}

/// Says what is read and where it goes.
fn announce(config: &Config) {
    let file = match &config.file {
        Some(file) => format!("configuration {}", file.display()),
        None => "no configuration file".to_owned(),
    };
    let destinations: Vec<String> = config
        .destinations
        .iter()
        .map(|destination| format!("{} ({})", destination.name, destination.kind))
        .collect();
    tracing::info!(
        version = env!("CARGO_PKG_VERSION"),
        "reads {}, sends to {}; {file}",
        config.database.address(),
        destinations.join(", ")
    );
}

/// Starts the listener where one is wanted. A run that ends by itself listens only when told to.
async fn start_ops(args: &RunArgs, config: &Config) -> anyhow::Result<Option<Ops>> {
    let Listen::At(address) = &config.ops.listen else { return Ok(None) };
    if (args.once || args.drain) && !config.ops.listen_was_given {
        return Ok(None);
    }
    let ops = Ops::new(ops::install_metrics()?, config.ops.stall_after);
    ops.spawn_upkeep();
    let bound = ops::listen(address, ops.clone()).await?;
    tracing::info!("health and metrics at http://{bound}/");
    Ok(Some(ops))
}

/// What keeps other relays away, until it is dropped.
type RelayLock = Box<dyn Any + Send>;

/// Opens the outbox and brings its schema up to date. An outage is waited for; what waiting does
/// not mend is an error.
async fn start_store(config: &Config) -> anyhow::Result<(Arc<dyn Store>, RelayLock)> {
    loop {
        match try_start_store(config).await {
            Err(error) if is_outage(&error) => {
                let error = error.downcast_ref::<Error>().map(Error::report).unwrap_or_default();
                tracing::warn!(error, "the database cannot be reached; trying again");
                tokio::time::sleep(RECONNECT_DELAY).await;
            }
            started => return started,
        }
    }
}

async fn try_start_store(config: &Config) -> anyhow::Result<(Arc<dyn Store>, RelayLock)> {
    let store = store::open(config, Missing::Create).await?;
    let lock = store.lock_relay()?;
    let status = store.migration_status().await?;
    if config.migrate && !status.is_newer_than_program() {
        for migration in store.migrate().await? {
            tracing::info!(version = migration.version, name = migration.name, "schema migrated");
        }
    } else {
        store::require_schema(&status)?;
    }
    store.check().await?;
    Ok((store, lock))
}

/// Whether waiting may mend it. A lock that another relay holds is not waited for.
fn is_outage(error: &anyhow::Error) -> bool {
    error.downcast_ref::<Error>().is_some_and(|error| {
        matches!(error.kind(), ErrorKind::Unreachable | ErrorKind::Timeout | ErrorKind::Throttled)
    })
}

/// Tells early what a destination lacks. Only a warning: it may come to be, and then works.
fn spawn_checks(destinations: &[OpenDestination]) -> tokio::task::JoinHandle<()> {
    let buses: Vec<_> = destinations
        .iter()
        .map(|destination| (destination.name.clone(), Arc::clone(&destination.bus)))
        .collect();
    tokio::spawn(async move {
        for (destination, bus) in buses {
            if let Err(error) = bus.check().await {
                let hint = error.kind().hint();
                tracing::warn!(destination, error = error.report(), hint, "destination not ready");
            }
        }
    })
}

/// One pass, or until nothing is due.
async fn foreground(
    args: &RunArgs,
    config: &Config,
    processor: &OutboxProcessor,
    stop: &mut StopSignals,
    output_closed: &Notify,
) -> anyhow::Result<ExitCode> {
    let work = async {
        if args.once {
            processor.process_events().await
        } else {
            // A retry is waited for; what its writer delayed for longer is not due.
            processor.drain(config.relay.retry_policy.max_delay).await
        }
    };
    let (delivered, interrupted) = until_stopped(work, processor, stop, output_closed).await;
    let delivered = delivered?;
    let statistics = processor.statistics();
    tracing::info!(
        delivered,
        retried = statistics.retried,
        dead_lettered = statistics.dead_lettered,
        "{}",
        if interrupted { "stopped early; the rest stays pending" } else { "done" }
    );
    Ok(ExitCode::SUCCESS)
}

/// Does `work`; asks the processor to stop at the first signal and exits at the second. The flag
/// says whether it was asked.
async fn until_stopped<T>(
    work: impl Future<Output = T>,
    processor: &OutboxProcessor,
    stop: &mut StopSignals,
    output_closed: &Notify,
) -> (T, bool) {
    let mut work = std::pin::pin!(work);
    tokio::select! {
        done = &mut work => return (done, false),
        signal = stop.next() => tracing::info!(signal, "stopping; a second signal exits at once"),
        () = output_closed.notified() => tracing::info!("standard output was closed; stopping"),
    }
    // The run ends by itself once it has settled what is in flight.
    processor.stop().await;
    tokio::select! {
        done = work => (done, true),
        signal = stop.next() => exit_at_once(signal),
    }
}

/// Until a signal comes.
async fn background(
    processor: &OutboxProcessor,
    mut stop: StopSignals,
    output_closed: &Notify,
) -> anyhow::Result<ExitCode> {
    processor.start().await?;
    tokio::select! {
        signal = stop.next() => tracing::info!(signal, "stopping; a second signal exits at once"),
        () = output_closed.notified() => tracing::info!("standard output was closed; stopping"),
        // It has said why.
        _ = processor.ended() => return Ok(ExitCode::FAILURE),
    }
    let report = tokio::select! {
        report = processor.stop() => report,
        signal = stop.next() => exit_at_once(signal),
    };
    let StopReport { unacknowledged, unsettled, returned, .. } = report;
    let delivered = processor.statistics().delivered;
    if unacknowledged + unsettled > 0 {
        tracing::warn!(
            delivered,
            unacknowledged,
            unsettled,
            returned,
            "stopped at the deadline; events without an answer are sent again at the next start"
        );
    } else {
        tracing::info!(delivered, returned, "stopped");
    }
    Ok(ExitCode::SUCCESS)
}

/// Nothing is lost: what was not settled is still pending.
fn exit_at_once(signal: &str) -> ! {
    tracing::warn!(signal, "stopped at once; events without an answer are sent again");
    std::process::exit(1)
}
