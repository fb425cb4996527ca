use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::future::join_all;
use posthaste_core::{Claim, Error, ErrorKind, OutboxEvent, OutboxRepository, Result};
use tokio::sync::{OnceCell, watch};
use tracing::Instrument;

use crate::destinations::{Destination, Destinations};
use crate::run::{self, EndOfRun, Run};
use crate::shared::Shared;
use crate::shell::{Shell, Until};
use crate::telemetry::Telemetry;
use crate::{OutboxProcessorBuilder, ProcessorSettings, ProcessorStatistics, StopReport};
use posthaste_engine::RouteTable;

/// The longest wait for a bus to close.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(10);

/// Delivers the events of one outbox until it is stopped.
///
/// Cheap to clone; clones are the same processor. When the last clone is dropped, it stops.
///
/// A relay in the background ends when it is [stopped](Self::stop), or when it dies: by a panic, or
/// with its runtime. [`ended`](Self::ended) is for a service to notice, beside whatever else it
/// waits for. A panic of a bus or a repository kills no relay: it is an error of that call.
///
/// ```
/// # use posthaste_core::{OutboxEvent, OutboxRepository, memory::{MemoryBus, MemoryRepository}};
/// # use posthaste_processor::OutboxProcessor;
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> posthaste_core::Result<()> {
/// let (outbox, bus) = (MemoryRepository::new(), MemoryBus::new());
/// outbox.store(&[OutboxEvent::new(uuid::Uuid::now_v7(), "order.placed", &42)?]).await?;
///
/// let processor = OutboxProcessor::builder(outbox).bus(bus.clone()).build()?;
/// assert_eq!(processor.process_events().await?, 1);
/// assert_eq!(bus.published()[0].event_type(), "order.placed");
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct OutboxProcessor {
    inner: Arc<Inner>,
}

struct Inner {
    repository: Arc<dyn OutboxRepository>,
    destinations: Arc<Destinations>,
    routes: Arc<RouteTable>,
    settings: ProcessorSettings,
    telemetry: Telemetry,
    shared: Arc<Shared>,
    runs: Mutex<Runs>,
    closed: OnceCell<()>,
}

#[derive(Default)]
struct Runs {
    /// The one under way, or the last one.
    latest: Option<Run>,
    /// No other follows.
    shut_down: bool,
}

impl Runs {
    fn may_begin(&self) -> Result<()> {
        let refuse = |why: &str| Err(Error::new(ErrorKind::Conflict, "start processor", why));
        if self.shut_down {
            return refuse("it was shut down for good");
        }
        if self.latest.as_ref().is_some_and(|run| !run.is_over()) {
            return refuse("it is running already");
        }
        Ok(())
    }
}

impl OutboxProcessor {
    /// Starts to build a processor over a repository.
    pub fn builder(repository: impl OutboxRepository) -> OutboxProcessorBuilder {
        OutboxProcessorBuilder::new(Arc::new(repository))
    }

    /// Starts to build a processor over a shared repository.
    pub fn builder_shared(repository: Arc<dyn OutboxRepository>) -> OutboxProcessorBuilder {
        OutboxProcessorBuilder::new(repository)
    }

    pub(crate) fn new(
        repository: Arc<dyn OutboxRepository>,
        destinations: Destinations,
        routes: RouteTable,
        settings: ProcessorSettings,
        telemetry: Telemetry,
    ) -> Self {
        telemetry.describe(destinations.all());
        let inner = Inner {
            repository,
            destinations: Arc::new(destinations),
            routes: Arc::new(routes),
            settings,
            telemetry,
            shared: Arc::default(),
            runs: Mutex::default(),
            closed: OnceCell::new(),
        };
        Self { inner: Arc::new(inner) }
    }

    /// Starts delivering in the background. Must be called within a tokio runtime.
    ///
    /// Checks the repository first. A database that is away does not prevent starting: it is waited
    /// for, and [`statistics`](Self::statistics) say so meanwhile. Nor does a bus that is down.
    ///
    /// # Errors
    /// The repository's, when waiting would not mend it: a schema that is missing or too old, refused
    /// credentials or rights, a wrong setting. `Conflict` when it is running already or shut down, and
    /// when another processor delivers from an outbox that takes one at a time (SQLite).
    pub async fn start(&self) -> Result<()> {
        let inner = &self.inner;
        let claimed = match inner.claim().await {
            Err(error) if !run::is_outage(&error) => return Err(error),
            claimed => claimed,
        };
        let (stopped, end) = inner.begin(false)?;
        run::spawn(inner.shell(stopped), claimed, end);
        Ok(())
    }

    /// Stops: fetches no more, waits for acknowledgements and their settlement up to
    /// `shutdown_timeout`, and leaves the rest pending. It can be started again.
    ///
    /// Whoever calls it while it stops waits for the same end and gets the same report. When it does
    /// not run, the report is that of the last run; one that died is told of by its
    /// [`failure`](StopReport::failure). A pass in the foreground is asked to stop and not waited
    /// for.
    pub async fn stop(&self) -> StopReport {
        let end = {
            let runs = self.inner.lock();
            let Some(run) = &runs.latest else { return StopReport::default() };
            run.signal_stop();
            if run.is_foreground() && !run.is_over() {
                return StopReport::default();
            }
            run.end()
        };
        run::ended(end).await
    }

    /// Stops for good: as [`stop`](Self::stop), then [closes](posthaste_core::EventBus::close) the
    /// bus of each destination, once. It cannot be started again.
    ///
    /// Nothing else closes a bus: neither `stop`, which a start can follow, nor dropping, which cannot
    /// wait. A bus that fails to close within ten seconds is logged.
    pub async fn shutdown(&self) -> StopReport {
        let inner = &self.inner;
        inner.lock().shut_down = true;
        let report = self.stop().await;
        // One in the foreground goes on for as long as somebody polls it.
        let _ = tokio::time::timeout(inner.settings.shutdown_timeout, self.ended()).await;
        inner.closed.get_or_init(|| inner.close_buses()).await;
        report
    }

    /// Completes when the run under way has ended: stopped by somebody, or dead. At once when there is
    /// none, with the report of the last one.
    ///
    /// To wait for beside whatever else a service does:
    ///
    /// ```
    /// # use posthaste_core::memory::{MemoryBus, MemoryRepository};
    /// # use posthaste_processor::OutboxProcessor;
    /// # async fn serve() {}
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> posthaste_core::Result<()> {
    /// # let processor =
    /// #     OutboxProcessor::builder(MemoryRepository::new()).bus(MemoryBus::new()).build()?;
    /// processor.start().await?;
    /// tokio::select! {
    ///     () = serve() => {}
    ///     report = processor.ended() => eprintln!("the relay died: {:?}", report.failure),
    /// }
    /// let report = processor.shutdown().await;
    /// assert_eq!(report.failure, None);
    /// # Ok(())
    /// # }
    /// ```
    pub async fn ended(&self) -> StopReport {
        let end = self.inner.lock().latest.as_ref().map(Run::end);
        match end {
            Some(end) => run::ended(end).await,
            None => StopReport::default(),
        }
    }

    /// Whether it delivers in the background.
    #[must_use]
    pub fn is_running(&self) -> bool {
        let runs = self.inner.lock();
        runs.latest.as_ref().is_some_and(|run| !run.is_foreground() && !run.is_over())
    }

    /// One pass in the foreground: offers every event that is due now once, and returns how many
    /// were delivered. Failed events are scheduled for their retry and not waited for, however soon
    /// it is due. In the background a relay waits for other events to tell whose fault a failure is;
    /// a pass does not: where nothing tells at once, it is the event's own and counts. Only a relay in the
    /// background says in the database what it does; whoever calls this knows.
    ///
    /// # Errors
    /// The repository's; `Conflict` while it is running.
    pub async fn process_events(&self) -> Result<u64> {
        self.run_in_foreground(Until::PassDone).await
    }

    /// Delivers until nothing is pending but dead letters, what waits behind them, and events
    /// delayed further than `patience` from now. Waits for retries and outages; end it early by
    /// [`stop`](Self::stop). Returns how many were delivered.
    ///
    /// # Errors
    /// As [`process_events`](Self::process_events), but only for the first contact with the
    /// database: later outages are waited for.
    pub async fn drain(&self, patience: Duration) -> Result<u64> {
        self.run_in_foreground(Until::Drained { patience }).await
    }

    async fn run_in_foreground(&self, until: Until) -> Result<u64> {
        let inner = &self.inner;
        let claim = inner.claim().await?;
        // The end is told of by its drop, also when this future is dropped half way.
        let (stopped, _end) = inner.begin(true)?;
        // Dropped before that: whoever hears of the end can start.
        let _claim = claim;
        let outcome = inner.shell(stopped).run(until).instrument(inner.telemetry.span()).await;
        match outcome.error {
            Some(error) => Err(error),
            None => Ok(outcome.delivered),
        }
    }

    /// Dead letters, oldest first, at most `limit`.
    ///
    /// # Errors
    /// The repository's.
    pub async fn get_failed_events(&self, limit: usize) -> Result<Vec<OutboxEvent>> {
        let call = self.inner.repository.failed_events(limit);
        self.inner.telemetry.storage("failed_events", call).await
    }

    /// Removes delivered events that were processed longer ago than `older_than`. Returns how
    /// many.
    ///
    /// # Errors
    /// The repository's.
    pub async fn cleanup_processed_events(&self, older_than: Duration) -> Result<u64> {
        let call = self.inner.repository.cleanup_processed(older_than);
        let removed = self.inner.telemetry.storage("cleanup", call).await?;
        self.inner.telemetry.pruned(removed);
        Ok(removed)
    }

    /// What it has done and how it is doing. Cheap: asks no database.
    #[must_use]
    pub fn statistics(&self) -> ProcessorStatistics {
        self.inner.shared.statistics()
    }

    /// Its settings.
    #[must_use]
    pub fn settings(&self) -> &ProcessorSettings {
        &self.inner.settings
    }
}

impl Inner {
    fn lock(&self) -> MutexGuard<'_, Runs> {
        // No holder panics half way through a change.
        self.runs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Looks at the repository and takes the right to deliver from it.
    async fn claim(&self) -> Result<Claim> {
        // Without this, a processor that runs would be told of another one that does.
        self.lock().may_begin()?;
        run::check_and_claim(&*self.repository, &self.telemetry).await
    }

    /// Begins a run, unless one is under way.
    fn begin(&self, foreground: bool) -> Result<(watch::Receiver<bool>, EndOfRun)> {
        let mut runs = self.lock();
        runs.may_begin()?;
        let (run, stopped, end) = run::new(&self.shared, &self.telemetry, foreground);
        let destinations = self.destinations.all();
        self.shared.started(destinations.iter().map(|destination| destination.name.to_string()));
        runs.latest = Some(run);
        Ok((stopped, end))
    }

    fn shell(&self, stop: watch::Receiver<bool>) -> Shell {
        Shell {
            repository: Arc::clone(&self.repository),
            destinations: Arc::clone(&self.destinations),
            routes: Arc::clone(&self.routes),
            settings: self.settings.clone(),
            shared: Arc::clone(&self.shared),
            telemetry: self.telemetry.clone(),
            stop,
        }
    }

    async fn close_buses(&self) {
        join_all(self.destinations.all().iter().map(|destination| self.close(destination))).await;
    }

    async fn close(&self, destination: &Destination) {
        let closing = tokio::time::timeout(CLOSE_TIMEOUT, self.telemetry.close(destination));
        let closed = closing.await.unwrap_or_else(|_| {
            Err(Error::new(ErrorKind::Timeout, "close", "the bus did not close in time"))
        });
        if let Err(error) = closed {
            let (destination, error) = (&*destination.name, error.report());
            tracing::warn!(destination, error, "the bus was not closed");
        }
    }
}

impl std::fmt::Debug for OutboxProcessor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("OutboxProcessor")
            .field("repository", &self.inner.repository.capabilities().name)
            .field("destinations", &self.inner.destinations.all())
            .field("settings", &self.inner.settings)
            .finish_non_exhaustive()
    }
}
