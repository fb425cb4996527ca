use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use posthaste_core::{Error, ErrorKind, OutboxEvent, OutboxRepository, Result};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::routes::Routes;
use crate::shared::Shared;
use crate::shell::{Shell, Until};
use crate::{
    OutboxProcessorBuilder, ProcessorSettings, ProcessorStatistics, RelayState, StopReport, chores,
    telemetry,
};

/// Delivers the events of one outbox until it is stopped.
///
/// Cheap to clone; clones are the same processor. When the last clone is dropped, it stops.
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
    routes: Arc<Routes>,
    settings: ProcessorSettings,
    shared: Arc<Shared>,
    run: Mutex<Option<Run>>,
}

/// A run under way.
struct Run {
    stop: watch::Sender<bool>,
    /// Only a background run has one.
    task: Option<JoinHandle<StopReport>>,
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
        routes: Routes,
        settings: ProcessorSettings,
    ) -> Self {
        telemetry::describe(routes.destinations());
        let inner = Inner {
            repository,
            routes: Arc::new(routes),
            settings,
            shared: Arc::default(),
            run: Mutex::default(),
        };
        Self { inner: Arc::new(inner) }
    }

    /// Starts delivering in the background. Must be called within a tokio runtime.
    ///
    /// Checks the repository first. A bus that is down does not prevent starting.
    ///
    /// # Errors
    /// The repository's, when it cannot be used; `Conflict` when it is running already.
    pub async fn start(&self) -> Result<()> {
        let inner = &self.inner;
        inner.repository.check().await?;
        let (stop, stopped) = watch::channel(false);
        let mut run = inner.lock();
        inner.refuse_second(run.as_ref())?;
        let shell = inner.shell(stopped);
        let chores = chores::run(
            Arc::clone(&inner.repository),
            Arc::clone(&inner.shared),
            inner.settings.retention,
        );
        let shared = Arc::clone(&inner.shared);
        let task = tokio::spawn(async move {
            let outcome = tokio::select! {
                outcome = shell.run(Until::Stopped) => outcome,
                // Never ends by itself; dropped together with the run.
                () = chores => unreachable!("chores end only with the run"),
            };
            shared.relay_state(RelayState::Stopped);
            telemetry::statistics(&shared.statistics());
            outcome.report
        });
        *run = Some(Run { stop, task: Some(task) });
        Ok(())
    }

    /// Stops: fetches no more, waits for acknowledgements and their settlement up to
    /// `shutdown_timeout`, and leaves the rest pending. Does nothing when it is not running.
    pub async fn stop(&self) -> StopReport {
        let Some(task) = self.inner.signal_stop() else { return StopReport::default() };
        let mut stopping = Stopping { inner: &self.inner, task: Some(task) };
        let report = match &mut stopping.task {
            Some(task) => task.await.unwrap_or_default(),
            None => StopReport::default(),
        };
        stopping.task = None;
        *self.inner.lock() = None;
        report
    }

    /// Whether it delivers in the background.
    #[must_use]
    pub fn is_running(&self) -> bool {
        let run = self.inner.lock();
        run.as_ref().and_then(|run| run.task.as_ref()).is_some_and(|task| !task.is_finished())
    }

    /// One pass in the foreground: offers every event that is due now once, and returns how many
    /// were delivered. Failed events are scheduled for their retry and not waited for.
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
        inner.repository.check().await?;
        let (stop, stopped) = watch::channel(false);
        {
            let mut run = inner.lock();
            inner.refuse_second(run.as_ref())?;
            *run = Some(Run { stop, task: None });
        }
        // Also when this future is dropped half way.
        let ended = ForegroundEnd(inner);
        let outcome = inner.shell(stopped).run(until).await;
        drop(ended);
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
        telemetry::storage("failed_events", self.inner.repository.failed_events(limit)).await
    }

    /// Removes delivered events that were processed longer ago than `older_than`. Returns how
    /// many.
    ///
    /// # Errors
    /// The repository's.
    pub async fn cleanup_processed_events(&self, older_than: Duration) -> Result<u64> {
        let call = self.inner.repository.cleanup_processed(older_than);
        let removed = telemetry::storage("cleanup", call).await?;
        telemetry::pruned(removed);
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
    fn lock(&self) -> MutexGuard<'_, Option<Run>> {
        // No holder panics half way through a change.
        self.run.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn refuse_second(&self, run: Option<&Run>) -> Result<()> {
        let running =
            run.is_some_and(|run| run.task.as_ref().is_none_or(|task| !task.is_finished()));
        if running {
            return Err(Error::new(
                ErrorKind::Conflict,
                "start processor",
                "it is running already",
            ));
        }
        Ok(())
    }

    /// Tells the run to stop; returns its task if it is a background run.
    fn signal_stop(&self) -> Option<JoinHandle<StopReport>> {
        let mut run = self.lock();
        let run = run.as_mut()?;
        run.stop.send_replace(true);
        run.task.take()
    }

    fn shell(&self, stop: watch::Receiver<bool>) -> Shell {
        let destinations = self.routes.destinations();
        self.shared.started(destinations.iter().map(|destination| destination.name.to_string()));
        Shell {
            repository: Arc::clone(&self.repository),
            routes: Arc::clone(&self.routes),
            settings: self.settings.clone(),
            shared: Arc::clone(&self.shared),
            stop,
        }
    }
}

/// Gives the task back when waiting for its end is given up half way.
struct Stopping<'a> {
    inner: &'a Inner,
    task: Option<JoinHandle<StopReport>>,
}

impl Drop for Stopping<'_> {
    fn drop(&mut self) {
        if let Some(task) = self.task.take()
            && let Some(run) = self.inner.lock().as_mut()
        {
            run.task = Some(task);
        }
    }
}

struct ForegroundEnd<'a>(&'a Inner);

impl Drop for ForegroundEnd<'_> {
    fn drop(&mut self) {
        *self.0.lock() = None;
        self.0.shared.relay_state(RelayState::Stopped);
    }
}

impl std::fmt::Debug for OutboxProcessor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("OutboxProcessor")
            .field("repository", &self.inner.repository.capabilities().name)
            .field("destinations", &self.inner.routes.destinations())
            .field("settings", &self.inner.settings)
            .finish_non_exhaustive()
    }
}
