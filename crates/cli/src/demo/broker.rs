//! The broker: remembers what it received, and fails on purpose.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use posthaste_core::{BusCapabilities, Error, ErrorKind, EventBus, OutboxEvent, PublishResult};
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};
use uuid::Uuid;

/// Clones are the same broker.
#[derive(Clone)]
pub(super) struct Broker(Arc<Mutex<State>>);

struct State {
    random: SmallRng,
    down: bool,
    refuses_poison: bool,
    received: Vec<Received>,
    distinct: HashSet<Uuid>,
    /// Calls answered with "I am down".
    refused: u64,
}

/// One delivery.
#[derive(Debug, Clone)]
pub(super) struct Received {
    pub(super) id: Uuid,
    pub(super) customer: Uuid,
    /// The customer's own count of its events.
    pub(super) number: u64,
}

/// What a delivery meets.
enum Fate {
    Fails,
    AnswerLost,
    Arrives,
}

impl Broker {
    pub(super) fn new(seed: u64) -> Self {
        Self(Arc::new(Mutex::new(State {
            random: SmallRng::seed_from_u64(seed),
            down: false,
            refuses_poison: true,
            received: Vec::new(),
            distinct: HashSet::new(),
            refused: 0,
        })))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // A killed relay does not leave it half written: no lock is held across an await.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn set_down(&self, down: bool) {
        self.lock().down = down;
    }

    pub(super) fn accept_poison(&self) {
        self.lock().refuses_poison = false;
    }

    /// How many different events have arrived.
    pub(super) fn distinct_events(&self) -> u64 {
        self.lock().distinct.len() as u64
    }

    /// Everything that arrived, in order, repeated deliveries included.
    pub(super) fn received(&self) -> Vec<Received> {
        self.lock().received.clone()
    }

    /// Calls that met the outage.
    pub(super) fn refused(&self) -> u64 {
        self.lock().refused
    }
}

impl State {
    fn deliver(&mut self, event: &OutboxEvent) -> PublishResult {
        let refuse = |kind, why| Err(Error::new(kind, "publish", why));
        if self.refuses_poison && event.event_type() == "order.poisoned" {
            return refuse(ErrorKind::Rejected, "the consumer cannot digest this event");
        }
        let fate = match self.random.random_range(0..100) {
            0 => Fate::Fails,
            1 => Fate::AnswerLost,
            _ => Fate::Arrives,
        };
        if matches!(fate, Fate::Fails) {
            return refuse(ErrorKind::Failed, "the broker stumbled over this event");
        }
        self.distinct.insert(event.id());
        self.received.push(Received {
            id: event.id(),
            customer: event.aggregate_id(),
            number: number_of(event),
        });
        match fate {
            // It arrived; the relay will never know.
            Fate::AnswerLost => refuse(ErrorKind::Failed, "the answer was lost"),
            Fate::Fails | Fate::Arrives => Ok(()),
        }
    }
}

fn number_of(event: &OutboxEvent) -> u64 {
    let body: HashMap<String, u64> =
        serde_json::from_slice(event.payload().body()).unwrap_or_default();
    body.get("number").copied().unwrap_or_default()
}

#[async_trait]
impl EventBus for Broker {
    fn capabilities(&self) -> BusCapabilities {
        BusCapabilities { durable: false, ..BusCapabilities::new("demo") }
    }

    async fn publish(&self, events: &[OutboxEvent]) -> Vec<PublishResult> {
        let results = {
            let mut state = self.lock();
            if state.down {
                state.refused += 1;
                let down =
                    || Err(Error::new(ErrorKind::Unreachable, "publish", "the broker is down"));
                events.iter().map(|_| down()).collect()
            } else {
                events.iter().map(|event| state.deliver(event)).collect()
            }
        };
        // The way there and back.
        tokio::time::sleep(Duration::from_millis(2)).await;
        results
    }
}
