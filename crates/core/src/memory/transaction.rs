//! A transaction of the outbox in memory.

use async_trait::async_trait;

use super::MemoryRepository;
use crate::{OutboxEvent, OutboxTransaction, Result, UnitOfWork};

impl MemoryRepository {
    /// Starts a unit of work. Its events appear at commit, all at once.
    pub fn begin(&self) -> UnitOfWork<MemoryTransaction> {
        UnitOfWork::new(MemoryTransaction { repository: self.clone(), events: Vec::new() })
    }
}

/// A transaction of [`MemoryRepository`]: nothing is seen before its commit.
#[derive(Debug)]
pub struct MemoryTransaction {
    repository: MemoryRepository,
    events: Vec<OutboxEvent>,
}

#[async_trait]
impl OutboxTransaction for MemoryTransaction {
    type Connection = MemoryRepository;

    fn connection(&mut self) -> &mut MemoryRepository {
        &mut self.repository
    }

    async fn store(&mut self, events: &[OutboxEvent]) -> Result<()> {
        self.events.extend_from_slice(events);
        Ok(())
    }

    async fn commit(self) -> Result<()> {
        self.repository.store_all(&self.events)
    }

    async fn rollback(self) -> Result<()> {
        Ok(())
    }
}
