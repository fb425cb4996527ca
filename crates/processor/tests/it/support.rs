//! An outbox and a bus that fail on purpose, and what tests look at.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use jiff::Timestamp;
use posthaste_core::memory::{MemoryBus, MemoryRepository};
use posthaste_core::{
    BusCapabilities, EventBus, KeyPipelining, OutboxEvent, OutboxEventBuilder, OutboxRepository,
    Payload, PublishResult,
};
use posthaste_processor::{OutboxProcessor, OutboxProcessorBuilder, ProcessorSettings};
use posthaste_testkit::faults::{BusScript, FaultyBus, FaultyRepository, RepositoryScript};
use uuid::Uuid;

pub(crate) const SECOND: Duration = Duration::from_secs(1);
pub(crate) const MINUTE: Duration = Duration::from_secs(60);
pub(crate) const HOUR: Duration = Duration::from_secs(3_600);

/// A memory repository and a memory bus, each within one that fails as its script says.
pub(crate) struct World {
    pub(crate) outbox: MemoryRepository,
    pub(crate) repository: FaultyRepository<MemoryRepository>,
    pub(crate) storage: RepositoryScript,
    pub(crate) delivered: MemoryBus,
    pub(crate) bus: FaultyBus<MemoryBus>,
    pub(crate) script: BusScript,
}

impl World {
    pub(crate) fn new() -> Self {
        let outbox = MemoryRepository::with_clock(clock());
        let repository = FaultyRepository::new(outbox.clone());
        let delivered = MemoryBus::new();
        let bus = FaultyBus::new(delivered.clone());
        let (storage, script) = (repository.script(), bus.script());
        Self { outbox, repository, storage, delivered, bus, script }
    }

    /// A world whose outbox holds these events.
    pub(crate) async fn with(events: &[OutboxEvent]) -> Self {
        let world = Self::new();
        world.store(events).await;
        world
    }

    pub(crate) async fn store(&self, events: &[OutboxEvent]) {
        self.outbox.store(events).await.unwrap();
    }

    pub(crate) fn builder(&self) -> OutboxProcessorBuilder {
        OutboxProcessor::builder(self.repository.clone()).bus(self.bus.clone()).settings(settings())
    }

    /// A processor with [`settings`].
    pub(crate) fn processor(&self) -> OutboxProcessor {
        self.builder().build().unwrap()
    }

    /// A processor with [`settings`], started.
    pub(crate) async fn started(&self) -> OutboxProcessor {
        let processor = self.processor();
        processor.start().await.unwrap();
        processor
    }

    /// The stored form of an event.
    pub(crate) fn stored(&self, id: Uuid) -> OutboxEvent {
        self.outbox.events().into_iter().find(|event| event.id() == id).expect("a stored event")
    }

    pub(crate) fn pending(&self) -> usize {
        self.outbox.events().iter().filter(|event| event.is_pending()).count()
    }

    pub(crate) fn dead(&self) -> usize {
        self.outbox.events().iter().filter(|event| event.is_dead()).count()
    }

    pub(crate) async fn until_nothing_pending(&self) {
        until("nothing is pending", || self.pending() == 0).await;
    }

    /// In spite of an outage, every event waits as if it had not been tried.
    pub(crate) fn assert_no_attempt_counted(&self, processor: &OutboxProcessor) {
        for event in self.outbox.events() {
            assert!(event.is_pending());
            assert_eq!((event.retry_count(), event.error_message()), (0, None));
            assert_eq!(event.available_at(), None);
        }
        let statistics = processor.statistics();
        assert_eq!((statistics.retried, statistics.dead_lettered), (0, 0));
    }

    /// The outage is over: nothing is lost, repeated or out of order.
    pub(crate) async fn assert_resumes(&self, processor: &OutboxProcessor) {
        self.until_nothing_pending().await;
        self.assert_all_delivered_once();
        assert_first_deliveries_in_order(&self.delivered.published());
        assert_eq!(processor.statistics().destinations[0].paused_for, None);
    }

    /// Every event reached the bus, once each.
    pub(crate) fn assert_all_delivered_once(&self) {
        let delivered = ids(&self.delivered.published());
        let unique: HashSet<Uuid> = delivered.iter().copied().collect();
        assert_eq!(unique.len(), delivered.len(), "an event was delivered twice");
        assert_eq!(unique, ids(&self.outbox.events()).into_iter().collect());
    }
}

/// The time that goes with the runtime's, which stands still in most tests.
pub(crate) fn clock() -> impl Fn() -> Timestamp {
    let (since, at) = (tokio::time::Instant::now(), Timestamp::now());
    move || at + since.elapsed()
}

/// Small numbers of the tests' own, so that no default decides what they see.
pub(crate) fn settings() -> ProcessorSettings {
    ProcessorSettings {
        batch_size: 100,
        max_concurrent_events: 10,
        poll_interval: 5 * SECOND,
        // What is alone is decided at once; what patience does has tests of its own.
        outage_patience: Duration::ZERO,
        ..ProcessorSettings::default()
    }
}

/// Waits for a condition, up to two hours of paused time.
pub(crate) async fn until(what: &str, mut condition: impl FnMut() -> bool) {
    for _ in 0..100_000 {
        if condition() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(72)).await;
    }
    panic!("it never came to this: {what}");
}

pub(crate) fn builder(key: &str, number: usize) -> OutboxEventBuilder {
    OutboxEvent::builder(Uuid::from_u128(1), "it.numbered")
        .order_key(key)
        .payload(Payload::json_text(number.to_string()).unwrap())
}

/// Event `number` of `key`.
pub(crate) fn event(key: &str, number: usize) -> OutboxEvent {
    builder(key, number).build().unwrap()
}

/// `count` events of one key, numbered from 0.
pub(crate) fn series(key: &str, count: usize) -> Vec<OutboxEvent> {
    (0..count).map(|number| event(key, number)).collect()
}

/// `count` events of a key each.
pub(crate) fn singles(count: usize) -> Vec<OutboxEvent> {
    (0..count).map(|number| event(&format!("key-{number}"), 0)).collect()
}

/// `per_key` events of each of `keys` keys, the keys taking turns.
pub(crate) fn interleaved(keys: usize, per_key: usize) -> Vec<OutboxEvent> {
    (0..keys * per_key).map(|n| event(&format!("key-{}", n % keys), n / keys)).collect()
}

pub(crate) fn ids<'a>(events: impl IntoIterator<Item = &'a OutboxEvent>) -> Vec<Uuid> {
    events.into_iter().map(OutboxEvent::id).collect()
}

/// The numbers of a key's events, in the order given.
pub(crate) fn numbers(events: &[OutboxEvent], key: &str) -> Vec<usize> {
    let of_key = events.iter().filter(|event| event.order_key().to_string() == key);
    of_key.map(number).collect()
}

pub(crate) fn number(event: &OutboxEvent) -> usize {
    serde_json::from_slice(event.payload().body()).unwrap()
}

/// First deliveries of each key came in the order of their numbers, without a hole.
pub(crate) fn assert_first_deliveries_in_order(published: &[OutboxEvent]) {
    let mut seen: HashSet<Uuid> = HashSet::new();
    let mut next: HashMap<String, usize> = HashMap::new();
    for event in published {
        if seen.insert(event.id()) {
            let key = event.order_key().to_string();
            let expected = next.entry(key.clone()).or_default();
            assert_eq!(number(event), *expected, "order of {key}");
            *expected += 1;
        }
    }
}

/// A bus that takes its time and watches how it is called.
#[derive(Clone)]
pub(crate) struct SlowBus {
    capabilities: BusCapabilities,
    takes: Duration,
    seen: Arc<Mutex<Seen>>,
}

/// What a [`SlowBus`] saw.
#[derive(Default, Clone)]
pub(crate) struct Seen {
    in_flight: usize,
    keys_in_flight: HashMap<String, usize>,
    /// The most events in flight at once.
    pub(crate) in_flight_max: usize,
    /// The most calls at once that held events of one key.
    pub(crate) calls_of_key_max: usize,
    /// The most events of one key in one call.
    pub(crate) of_key_in_call_max: usize,
    /// The most events in one call.
    pub(crate) batch_max: usize,
    pub(crate) published: Vec<OutboxEvent>,
}

impl SlowBus {
    pub(crate) fn new(takes: Duration) -> Self {
        Self { capabilities: BusCapabilities::new("slow"), takes, seen: Arc::default() }
    }

    pub(crate) fn pipelining(mut self, key_pipelining: KeyPipelining) -> Self {
        self.capabilities.key_pipelining = key_pipelining;
        self
    }

    pub(crate) fn batch_events_max(mut self, events: usize) -> Self {
        self.capabilities.batch_events_max = events;
        self
    }

    pub(crate) fn seen(&self) -> Seen {
        self.seen.lock().unwrap().clone()
    }
}

#[async_trait]
impl EventBus for SlowBus {
    fn capabilities(&self) -> BusCapabilities {
        self.capabilities
    }

    async fn publish(&self, events: &[OutboxEvent]) -> Vec<PublishResult> {
        let mut of_key: HashMap<String, usize> = HashMap::new();
        for event in events {
            *of_key.entry(event.order_key().to_string()).or_default() += 1;
        }
        {
            let mut seen = self.seen.lock().unwrap();
            seen.in_flight += events.len();
            seen.in_flight_max = seen.in_flight_max.max(seen.in_flight);
            seen.batch_max = seen.batch_max.max(events.len());
            for (key, count) in &of_key {
                let calls = seen.keys_in_flight.entry(key.clone()).or_default();
                *calls += 1;
                let calls = *calls;
                seen.calls_of_key_max = seen.calls_of_key_max.max(calls);
                seen.of_key_in_call_max = seen.of_key_in_call_max.max(*count);
            }
        }
        tokio::time::sleep(self.takes).await;
        let mut seen = self.seen.lock().unwrap();
        seen.in_flight -= events.len();
        for key in of_key.keys() {
            *seen.keys_in_flight.get_mut(key).unwrap() -= 1;
        }
        seen.published.extend_from_slice(events);
        events.iter().map(|_| Ok(())).collect()
    }
}
