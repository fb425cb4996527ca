//! `posthaste run`: the relay.

use std::fmt;
use std::future::Future;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use posthaste_core::{Error, ErrorKind, OutboxRepository, Reminder, Shard};
use posthaste_processor::{OutboxProcessor, RelayState, StopReport};
use tokio::sync::Notify;

use super::signals::StopSignals;
use crate::arguments::RunArgs;
use crate::config::units::format_duration;
use crate::config::{Config, Listen};
use crate::destinations::{self, OpenDestination};
use crate::exit::{self, Hint, WrongSetUp};
use crate::logs;
use crate::ops::{self, Ops};
use crate::store::{self, Missing, Store};

/// Between two attempts to reach a database that is down at start.
const RECONNECT_DELAY: Duration = Duration::from_secs(2);
/// Between two looks at what other relays do.
const OTHERS_DELAY: Duration = Duration::from_millis(250);

/// Runs the relay until it is stopped, or until its work is done.
pub(crate) async fn run(args: &RunArgs, config: Config) -> anyhow::Result<ExitCode> {
    let mut stop = StopSignals::new()?;
    let output_closed = Arc::new(Notify::new());
    announce(&config);
    let ops = start_ops(args, &config).await?;
    let destinations = destinations::open(&config.destinations, &output_closed).await?;
    let store = tokio::select! {
        started = start_store(&config, args.patience()) => started?,
        signal = stop.next() => {
            tracing::info!(signal, "stopped before the database answered");
            return Ok(ExitCode::SUCCESS);
        }
    };
    let repository: Arc<dyn OutboxRepository> = Arc::clone(&store) as _;
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
    let result = if let Some(patience) = args.patience() {
        let run = Foreground { args, config: &config, processor: &processor, store: &*store };
        run.to_the_end(patience, &mut stop, &output_closed).await
    } else {
        background(&processor, stop, &output_closed).await
    };
    checks.abort();
    for destination in &destinations {
        if let Err(error) = destination.bus.close().await {
            tracing::warn!(destination = destination.name, error = error.report(), "close failed");
        }
    }
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
        .map(|destination| format!("{} ({})", destination.name, destination.kind_name()))
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
    if (args.once || args.drain) && !config.listen_was_given {
        return Ok(None);
    }
    let ops = Ops::new(ops::install_metrics()?, config.ops.stall_after);
    ops.spawn_upkeep();
    let bound = ops::listen(address, ops.clone()).await?;
    tracing::info!("health and metrics at http://{bound}/");
    Ok(Some(ops))
}

/// Opens the outbox and brings its schema up to date. An outage is waited for, as it is later; what
/// waiting does not mend is an error.
///
/// # Errors
/// Also an outage, where it lasts longer than `patience`.
async fn start_store(
    config: &Config,
    patience: Option<Duration>,
) -> anyhow::Result<Arc<dyn Store>> {
    let (since, reminder) = (Instant::now(), Reminder::default());
    loop {
        match try_start_store(config).await {
            Err(error) if is_outage(&error) => {
                let left = patience.map(|patience| patience.saturating_sub(since.elapsed()));
                if left.is_some_and(|left| left.is_zero()) {
                    return Err(error.context(given_up(since.elapsed())));
                }
                let (hint, error) = (exit::hint_of(&error), exit::text_of(&error));
                if reminder.is_due(&error, Instant::now()) {
                    tracing::warn!(error, hint, "the database cannot be used yet; trying again");
                }
                tokio::time::sleep(left.unwrap_or(RECONNECT_DELAY).min(RECONNECT_DELAY)).await;
            }
            Err(error) if is_wrong_set_up(&error) => {
                return Err(error.context(WrongSetUp("cannot start")));
            }
            started => return started,
        }
    }
}

/// Whether it is an operator's to mend, and will be the same at the next start.
fn is_wrong_set_up(error: &anyhow::Error) -> bool {
    let kind = error.downcast_ref::<Error>().map(Error::kind);
    error.is::<Hint>() || matches!(kind, Some(ErrorKind::Schema | ErrorKind::Unauthorized))
}

fn given_up(after: Duration) -> String {
    format!("the database could not be reached for {} (--give-up-after)", format_duration(after))
}

async fn try_start_store(config: &Config) -> anyhow::Result<Arc<dyn Store>> {
    let store = store::open(config, Missing::Create).await?;
    // The processor takes it for good. Asked here as well, so that a second relay changes nothing
    // before it is refused, the schema for one.
    drop(store.claim().await.map_err(held)?);
    let status = store.migration_status().await?;
    // A mistyped address must not begin a second outbox, which nobody writes to.
    let may_migrate = status.elsewhere.is_empty() && !status.is_newer_than_program();
    if config.migrate && may_migrate {
        for migration in store.migrate().await? {
            tracing::info!(version = migration.version, name = migration.name, "schema migrated");
        }
    } else if let Err(mut refused) = store::require_schema_of(&*store, &status, config).await {
        if config.migrate && !status.elsewhere.is_empty() {
            refused.hint += "; or, for one more outbox here, run `posthaste migrate up`";
        }
        return Err(refused.into());
    }
    store.check().await?;
    Ok(store)
}

fn held(error: Error) -> anyhow::Error {
    match error.kind() {
        ErrorKind::Conflict => anyhow::Error::from(error).context(Held),
        _ => error.into(),
    }
}

/// Another relay has the outbox, and only one can.
#[derive(Debug)]
struct Held;

impl fmt::Display for Held {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the outbox is in use")
    }
}

/// Whether waiting may mend it: all but what an operator has to. A lock that another relay holds is
/// not waited for.
fn is_outage(error: &anyhow::Error) -> bool {
    let may_end = |error: &Error| {
        matches!(
            error.kind(),
            ErrorKind::Unreachable
                | ErrorKind::Timeout
                | ErrorKind::Throttled
                | ErrorKind::DestinationMissing
                | ErrorKind::Conflict
        )
    };
    !error.is::<Held>() && error.downcast_ref::<Error>().is_some_and(may_end)
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
                let (report, hint) = (error.report(), exit::hint_of(&error.into()));
                tracing::warn!(destination, error = report, hint, "destination not ready");
            }
        }
    })
}

/// A run that ends by itself.
struct Foreground<'a> {
    args: &'a RunArgs,
    config: &'a Config,
    processor: &'a OutboxProcessor,
    store: &'a dyn Store,
}

impl Foreground<'_> {
    /// One pass, or until nothing is due.
    ///
    /// # Errors
    /// The database's, also where it is away for longer than `patience`.
    async fn to_the_end(
        &self,
        patience: Duration,
        stop: &mut StopSignals,
        output_closed: &Notify,
    ) -> anyhow::Result<ExitCode> {
        let work = async {
            tokio::select! {
                work = self.work() => work,
                () = self.database_away_for(patience) => {
                    let met = self.processor.statistics().database_error;
                    self.processor.stop().await;
                    let given_up = given_up(patience);
                    Err(match met {
                        Some(error) => anyhow::Error::from(error).context(given_up),
                        None => anyhow::anyhow!(given_up),
                    })
                }
            }
        };
        let (done, interrupted) = until_stopped(work, self.processor, stop, output_closed).await;
        let Done { delivered, left } = done.map_err(|error| {
            let is_wrong = is_wrong_set_up(&error);
            if is_wrong { error.context(WrongSetUp("cannot go on")) } else { error }
        })?;
        let statistics = self.processor.statistics();
        let left = if interrupted { 0 } else { left };
        tracing::info!(
            delivered,
            retried = statistics.retried,
            dead_lettered = statistics.dead_lettered,
            "{}",
            match (interrupted, left) {
                (true, _) => "stopped early; the rest stays pending",
                (false, 0) => "done",
                (false, _) => "ended, and events are left",
            }
        );
        if left == 0 {
            return Ok(ExitCode::SUCCESS);
        }
        Err(Hint {
            message: match left {
                1 => "1 event is due and was not delivered".to_owned(),
                left => format!("{left} events are due and were not delivered"),
            },
            hint:
                "another relay shares the outbox and has them, or they wait behind a dead letter: \
                   look with `posthaste status` and `posthaste keys list`"
                    .into(),
        }
        .into())
    }

    async fn work(&self) -> anyhow::Result<Done> {
        if self.args.once {
            return Ok(Done { delivered: self.processor.process_events().await?, left: 0 });
        }
        // A retry is waited for; what its writer delayed for longer is not due.
        let patience = self.config.relay.retry_policy.max_delay;
        // A relay that died keeps its keys until its lease ends, which another may have prolonged
        // just before it died, too.
        let until = Instant::now() + self.config.relay.lease_ttl * 3;
        let mut delivered = 0;
        loop {
            delivered += self.processor.drain(patience).await?;
            let shares = self.store.capabilities().leases;
            if !shares || self.processor.statistics().shards == Shard::COUNT {
                return Ok(Done { delivered, left: 0 });
            }
            let left = self.store.backlog(0).await?.ready;
            if left == 0 || Instant::now() > until {
                return Ok(Done { delivered, left });
            }
            tokio::time::sleep(OTHERS_DELAY).await;
        }
    }

    /// Completes when the database was away for so long without a break.
    async fn database_away_for(&self, limit: Duration) {
        let mut since = None;
        loop {
            tokio::time::sleep(OTHERS_DELAY).await;
            if self.processor.statistics().state != RelayState::DatabaseUnavailable {
                since = None;
            } else if since.get_or_insert_with(Instant::now).elapsed() >= limit {
                return;
            }
        }
    }
}

/// What a run that ended by itself did.
struct Done {
    delivered: u64,
    /// Events that are due and that this relay did not get.
    left: u64,
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
    logs::flush();
    std::process::exit(1)
}
