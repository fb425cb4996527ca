//! A bus that answers by the event's key.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use posthaste::{BusCapabilities, Error, ErrorKind, EventBus, OutboxEvent, PublishResult};
use uuid::Uuid;

/// How events of a key are answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Nature {
    Good,
    /// Each event is taken at its so many and first attempt.
    FailsFirst(u32),
    Slow(Duration),
    /// Each attempt fails in a way that may pass.
    Poison,
    /// Refused for good.
    Rejected,
}

#[derive(Clone, Default)]
pub(crate) struct KeyedBus {
    natures: Arc<HashMap<String, Nature>>,
    seen: Arc<Mutex<Seen>>,
}

/// What came to it.
#[derive(Default)]
pub(crate) struct Seen {
    attempts: HashMap<Uuid, u32>,
    /// Events in the order in which they were first taken.
    pub(crate) taken: Vec<(Uuid, Instant)>,
}

impl KeyedBus {
    pub(crate) fn new(natures: HashMap<String, Nature>) -> Self {
        Self { natures: Arc::new(natures), seen: Arc::default() }
    }

    pub(crate) fn nature(&self, key: &str) -> Nature {
        self.natures.get(key).copied().unwrap_or(Nature::Good)
    }

    pub(crate) fn taken(&self) -> Vec<(Uuid, Instant)> {
        self.seen.lock().unwrap().taken.clone()
    }

    async fn answer(&self, event: &OutboxEvent) -> PublishResult {
        let nature = self.nature(&event.order_key().to_string());
        if let Nature::Slow(time) = nature {
            tokio::time::sleep(time).await;
        }
        let mut seen = self.seen.lock().unwrap();
        let attempts = seen.attempts.entry(event.id()).or_default();
        *attempts += 1;
        match nature {
            Nature::FailsFirst(failures) if *attempts <= failures => {
                return Err(Error::new(ErrorKind::Failed, "publish", "not yet, on purpose"));
            }
            Nature::Poison => {
                return Err(Error::new(ErrorKind::Failed, "publish", "never, on purpose"));
            }
            Nature::Rejected => {
                return Err(Error::new(ErrorKind::Rejected, "publish", "refused, on purpose"));
            }
            _ => {}
        }
        if seen.taken.iter().all(|(id, _)| *id != event.id()) {
            seen.taken.push((event.id(), Instant::now()));
        }
        Ok(())
    }
}

#[async_trait]
impl EventBus for KeyedBus {
    fn capabilities(&self) -> BusCapabilities {
        BusCapabilities { batch_events_max: 20, ..BusCapabilities::new("keyed") }
    }

    async fn publish(&self, events: &[OutboxEvent]) -> Vec<PublishResult> {
        futures_util::future::join_all(events.iter().map(|event| self.answer(event))).await
    }
}
