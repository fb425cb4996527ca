use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;

use crate::{BusCapabilities, EventBus, KeyPipelining, OutboxEvent, PublishResult};

/// Keeps what was published, in order. Clones share their events.
#[derive(Debug, Clone, Default)]
pub struct MemoryBus {
    published: Arc<Mutex<Vec<OutboxEvent>>>,
}

impl MemoryBus {
    /// An empty bus.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Everything published so far, repeated deliveries included.
    #[must_use]
    pub fn published(&self) -> Vec<OutboxEvent> {
        self.lock().clone()
    }

    fn lock(&self) -> MutexGuard<'_, Vec<OutboxEvent>> {
        // A panic of another test thread does not make the list wrong.
        self.published.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[async_trait]
impl EventBus for MemoryBus {
    fn capabilities(&self) -> BusCapabilities {
        BusCapabilities {
            batch_events_max: 1_000,
            key_pipelining: KeyPipelining::SuffixFails,
            durable: false,
            ..BusCapabilities::new("memory")
        }
    }

    async fn publish(&self, events: &[OutboxEvent]) -> Vec<PublishResult> {
        self.lock().extend_from_slice(events);
        events.iter().map(|_| Ok(())).collect()
    }
}
