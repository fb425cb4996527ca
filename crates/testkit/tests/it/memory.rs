//! The suites pass on the in-memory repository and bus.

use async_trait::async_trait;
use posthaste_core::memory::{MemoryBus, MemoryRepository, MemoryTransaction};
use posthaste_core::{OutboxEvent, UnitOfWork};
use posthaste_testkit::faults::{FaultyBus, FaultyRepository};
use posthaste_testkit::{
    BusHarness, Received, RepositoryHarness, TransactionHarness, bus_suite, repository_suite,
    transaction_suite,
};

struct Memory;

#[async_trait]
impl RepositoryHarness for Memory {
    type Repository = MemoryRepository;

    async fn fresh(&self) -> anyhow::Result<MemoryRepository> {
        Ok(MemoryRepository::new())
    }
}

#[async_trait]
impl TransactionHarness for Memory {
    type Transaction = MemoryTransaction;

    async fn begin(
        &self,
        repository: &MemoryRepository,
    ) -> anyhow::Result<UnitOfWork<MemoryTransaction>> {
        Ok(repository.begin())
    }
}

#[async_trait]
impl BusHarness for Memory {
    type Bus = MemoryBus;

    async fn fresh(&self) -> anyhow::Result<MemoryBus> {
        Ok(MemoryBus::new())
    }

    async fn received(&self, bus: &MemoryBus) -> anyhow::Result<Vec<Received>> {
        Ok(bus.published().iter().map(received).collect())
    }
}

fn received(event: &OutboxEvent) -> Received {
    Received {
        id: event.id(),
        key: event.order_key().to_string(),
        event_type: event.event_type().to_owned(),
        content_type: event.payload().content_type().to_owned(),
        headers: event
            .headers()
            .iter()
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .collect(),
        body: event.payload().body().clone(),
    }
}

/// A wrapper without faults must be as good as what it wraps.
struct WrappedWithoutFaults;

#[async_trait]
impl RepositoryHarness for WrappedWithoutFaults {
    type Repository = FaultyRepository<MemoryRepository>;

    async fn fresh(&self) -> anyhow::Result<Self::Repository> {
        Ok(FaultyRepository::new(MemoryRepository::new()))
    }
}

#[async_trait]
impl BusHarness for WrappedWithoutFaults {
    type Bus = FaultyBus<MemoryBus>;

    async fn fresh(&self) -> anyhow::Result<Self::Bus> {
        Ok(FaultyBus::new(MemoryBus::new()))
    }

    async fn received(&self, bus: &Self::Bus) -> anyhow::Result<Vec<Received>> {
        Ok(bus.inner().published().iter().map(received).collect())
    }
}

#[tokio::test]
async fn the_memory_repository_passes() {
    repository_suite(&Memory).await.assert_passed();
}

#[tokio::test]
async fn the_memory_transaction_passes() {
    transaction_suite(&Memory).await.assert_passed();
}

#[tokio::test]
async fn the_memory_bus_passes() {
    bus_suite(&Memory).await.assert_passed();
}

#[tokio::test]
async fn wrappers_without_faults_pass() {
    repository_suite(&WrappedWithoutFaults).await.assert_passed();
    bus_suite(&WrappedWithoutFaults).await.assert_passed();
}
