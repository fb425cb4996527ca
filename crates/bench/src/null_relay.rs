//! A relay that publishes into nothing, as a process of its own so that its time can be told apart.

use anyhow::Result;
use async_trait::async_trait;
use posthaste_core::{BusCapabilities, EventBus, KeyPipelining, OutboxEvent, PublishResult};
use posthaste_postgres::{PostgresOptions, PostgresOutbox};
use posthaste_processor::OutboxProcessor;

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
pub(crate) async fn run(url: &str, batch_size: usize, max_concurrent_events: usize) -> Result<()> {
    let outbox = PostgresOutbox::connect(&PostgresOptions::from_url(url)).await?;
    let processor = OutboxProcessor::builder(outbox)
        .bus(Nothing)
        .batch_size(batch_size)
        .max_concurrent_events(max_concurrent_events)
        .build()?;
    processor.start().await?;
    std::future::pending().await
}
