use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;

use super::strict;
use crate::{BusCapabilities, EventBus, KeyPipelining, OutboxEvent, PublishResult};

/// Keeps what was published, in order. Clones share their events.
#[derive(Debug, Clone, Default)]
pub struct MemoryBus {
    published: Arc<Mutex<Vec<OutboxEvent>>>,
    strict: bool,
}

impl MemoryBus {
    /// An empty bus that takes everything.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// An empty bus that refuses for good what one of the real ones refuses, whichever it is:
    /// headers that NATS, HTTP or CloudEvents take for themselves, topics and event types that
    /// cannot be part of a subject (a space in them, for one), bodies over 1 MiB.
    ///
    /// For a service's tests: what passes here is carried by every broker.
    #[must_use]
    pub fn strict() -> Self {
        Self { strict: true, ..Self::default() }
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
        // What it refuses does not hold back what follows in the same call.
        let key_pipelining =
            if self.strict { KeyPipelining::OnePerKey } else { KeyPipelining::SuffixFails };
        BusCapabilities {
            batch_events_max: 1_000,
            key_pipelining,
            durable: false,
            ..BusCapabilities::new("memory")
        }
    }

    async fn publish(&self, events: &[OutboxEvent]) -> Vec<PublishResult> {
        let mut published = self.lock();
        let publish = |event: &OutboxEvent| {
            if self.strict {
                strict::check(event)?;
            }
            published.push(event.clone());
            Ok(())
        };
        events.iter().map(publish).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{ErrorKind, Payload};
    use uuid::Uuid;

    #[tokio::test]
    async fn a_strict_bus_refuses_what_one_of_the_real_ones_refuses() {
        let event = |event_type: &str| {
            let payload = Payload::json_text("{}").unwrap();
            OutboxEvent::builder(Uuid::nil(), event_type).payload(payload)
        };
        let large = Payload::bytes(vec![0; 1024 * 1024 + 1], "a/b").unwrap();
        let refused = [
            event("order placed"),
            event("order..placed"),
            event("t").topic("orders.*"),
            event("t").header("ce-source", "x"),
            event("t").header("NATS-Msg-Id", "x"),
            event("t").header("Host", "x"),
            event("t").payload(large),
        ];
        let (strict, lax) = (MemoryBus::strict(), MemoryBus::new());
        for builder in refused {
            let event = [builder.build().unwrap()];
            let error = strict.publish(&event).await.remove(0).unwrap_err();
            assert!(matches!(error.kind(), ErrorKind::Malformed | ErrorKind::TooLarge), "{error}");
            assert!(lax.publish(&event).await[0].is_ok());
        }
        let taken = event("order.placed").topic("a.b").header("tenant", "x").build().unwrap();
        assert!(strict.publish(&[taken]).await[0].is_ok());
        assert_eq!(strict.published().len(), 1);
    }
}
