//! A relay that publishes into nothing, as a process of its own so that its time can be told apart.

use std::time::Duration;

use anyhow::Result;
use async_trait::async_trait;
use posthaste_core::{BusCapabilities, EventBus, KeyPipelining, OutboxEvent, PublishResult};
use posthaste_postgres::{PostgresOptions, PostgresOutbox};
use posthaste_processor::{OutboxProcessor, ProcessorSettings};

/// Takes everything at once.
struct Nothing;

#[async_trait]
impl EventBus for Nothing {
    fn capabilities(&self) -> BusCapabilities {
        BusCapabilities {
            batch_events_max: 1_000,
            // Nothing fails, so nothing later can pass it.
            key_pipelining: KeyPipelining::SuffixFails,
            ..BusCapabilities::new("nothing")
        }
    }

    async fn publish(&self, events: &[OutboxEvent]) -> Vec<PublishResult> {
        events.iter().map(|_| Ok(())).collect()
    }
}

/// Delivers until it is killed.
pub(crate) async fn run(
    url: &str,
    batch_size: usize,
    max_concurrent_events: usize,
    no_history: bool,
) -> Result<()> {
    let outbox = PostgresOutbox::connect(&PostgresOptions::from_url(url)).await?;
    let defaults = ProcessorSettings::default();
    let retention = if no_history { Some(Duration::ZERO) } else { defaults.retention };
    let settings = ProcessorSettings { batch_size, max_concurrent_events, retention, ..defaults };
    let processor = OutboxProcessor::builder(outbox).bus(Nothing).settings(settings).build()?;
    processor.start().await?;
    std::future::pending().await
}
