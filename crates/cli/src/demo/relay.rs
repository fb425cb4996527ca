//! A relay that can be killed: it lives in a runtime of its own.

use std::time::Duration;

use posthaste_core::{ErrorKind, RetryPolicy};
use posthaste_processor::{OutboxProcessor, ProcessorSettings, ProcessorStatistics};
use posthaste_sqlite::SqliteOutbox;
use tokio::runtime::Runtime;

use super::broker::Broker;

pub(super) struct Relay {
    runtime: Runtime,
    processor: OutboxProcessor,
}

impl Relay {
    pub(super) fn start(outbox: &SqliteOutbox, broker: &Broker) -> anyhow::Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("relay")
            .enable_all()
            .build()?;
        let processor = OutboxProcessor::builder(outbox.clone())
            .bus(broker.clone())
            .settings(ProcessorSettings {
                // Retries that suit a demo of seconds.
                retry_policy: RetryPolicy {
                    base_delay: Duration::from_millis(50),
                    max_delay: Duration::from_secs(1),
                    ..RetryPolicy::default()
                },
                ..ProcessorSettings::default()
            })
            .build()?;
        let starting = processor.clone();
        runtime.spawn(async move {
            // One that was killed may take a moment to give its right to deliver back.
            let mut started = starting.start().await;
            while matches!(&started, Err(error) if error.kind() == ErrorKind::Conflict) {
                tokio::time::sleep(Duration::from_millis(5)).await;
                started = starting.start().await;
            }
            if let Err(error) = started {
                tracing::error!(error = error.report(), "the demo's relay cannot start");
            }
        });
        Ok(Self { runtime, processor })
    }

    /// Ends it as `kill -9` would: what is on its way is dropped where it stands.
    pub(super) fn kill(self) {
        self.runtime.shutdown_background();
    }

    pub(super) async fn stop(self) -> ProcessorStatistics {
        self.processor.stop().await;
        let statistics = self.processor.statistics();
        self.runtime.shutdown_background();
        statistics
    }
}
