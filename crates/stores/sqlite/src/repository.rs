use std::time::Duration;

use async_trait::async_trait;
use posthaste_core::{
    Backlog, Claim, DeadHead, EventFilter, EventState, OutboxAdmin, OutboxEvent, OutboxRepository,
    PendingPage, PendingQuery, RepositoryCapabilities, Result, Seq, Settlement, Unsettled,
    Watermark,
};

use uuid::Uuid;

use crate::{SqliteOutbox, relays};

#[async_trait]
impl OutboxRepository for SqliteOutbox {
    fn capabilities(&self) -> RepositoryCapabilities {
        RepositoryCapabilities {
            name: "sqlite",
            durable: true,
            late_commits: false,
            wakes: true,
            leases: false,
        }
    }

    async fn check(&self) -> Result<()> {
        self.check_schema().await
    }

    async fn claim(&self) -> Result<Claim> {
        self.take_claim()
    }

    async fn store(&self, events: &[OutboxEvent]) -> Result<()> {
        self.store_all(events).await
    }

    async fn fetch_pending(&self, query: &PendingQuery) -> Result<PendingPage> {
        self.confirm_claim()?;
        self.fetch_page(query).await
    }

    async fn watermark(&self) -> Result<Watermark> {
        self.confirm_claim()?;
        self.read_watermark().await
    }

    async fn settle(&self, settlements: &[Settlement]) -> Result<u64> {
        self.settle_all(settlements).await
    }

    async fn unsettled(&self, settlements: &[Settlement]) -> Result<Vec<Unsettled>> {
        self.find_unsettled(settlements).await
    }

    async fn dead_heads(&self, after: Seq, limit: usize) -> Result<Vec<DeadHead>> {
        self.read_dead_heads(after, limit).await
    }

    async fn failed_events(&self, limit: usize) -> Result<Vec<OutboxEvent>> {
        self.list_events(&EventFilter::in_state(EventState::Dead), limit).await
    }

    async fn backlog(&self, from: Seq) -> Result<Backlog> {
        self.count_backlog(from).await
    }

    async fn cleanup_processed(&self, older_than: Duration) -> Result<u64> {
        self.clean_up(older_than).await
    }

    async fn maintain(&self) -> Result<()> {
        self.checkpoint().await
    }

    async fn tell(&self, relay: Uuid, name: &str, report: &str) -> Result<()> {
        self.confirm_claim()?;
        relays::tell(self, relay, name, report).await
    }

    async fn leave(&self, relay: Uuid) -> Result<()> {
        relays::leave(self, relay).await
    }

    async fn wait_for_events(&self) {
        self.wake.wait().await;
    }
}
