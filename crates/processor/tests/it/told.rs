//! What a relay tells operators of itself, through the database.

use posthaste_core::memory::{MemoryBus, MemoryRepository};
use posthaste_core::{ErrorKind, OutboxRepository};
use posthaste_processor::OutboxProcessor;
use posthaste_testkit::faults::{Fault, FaultyBus};
use serde_json::{Value, json};

use crate::hooked::Hooked;
use crate::support::{MINUTE, SECOND, World, interleaved, settings, singles, until};

/// A relay on a store that keeps what it tells.
struct Telling {
    outbox: Hooked,
    bus: FaultyBus<MemoryBus>,
    relay: OutboxProcessor,
}

impl Telling {
    async fn with_events(events: usize) -> Self {
        let inner = MemoryRepository::new();
        inner.store(&singles(events)).await.unwrap();
        let outbox = Hooked::new(inner);
        let bus = FaultyBus::new(MemoryBus::new());
        let relay = OutboxProcessor::builder(outbox.clone())
            .bus(bus.clone())
            .settings(settings())
            .build()
            .unwrap();
        Self { outbox, bus, relay }
    }

    fn told(&self) -> Value {
        self.outbox.told().unwrap_or_default()
    }

    async fn until_told(&self, what: &str, is_so: impl Fn(&Value) -> bool) -> Value {
        until(what, || is_so(&self.told())).await;
        self.told()
    }
}

#[tokio::test(start_paused = true)]
async fn a_pause_is_told_with_its_reason_its_beginning_and_the_next_try() {
    let told = Telling::with_events(3).await;
    told.bus.script().set(Some(Fault::Unavailable));
    told.relay.start().await.unwrap();
    let paused = |told: &Value| told["destinations"][0]["retry_at"].is_string();
    let first = told.until_told("a pause with its end", paused).await;
    let to = &first["destinations"][0];
    assert!(to["paused_for"].as_str().unwrap().contains("on purpose"), "{first}");
    tokio::time::sleep(MINUTE).await;
    let later = told.until_told("a pause with its end", paused).await;
    let since = |told: &Value| told["destinations"][0]["paused_since"].clone();
    assert!(since(&first).is_string(), "{first}");
    assert_eq!(since(&later), since(&first), "one outage, however often it is tried");
    assert_eq!(later["started_at"], first["started_at"]);
    told.bus.script().clear();
    let over =
        told.until_told("the end", |told| told["destinations"][0]["paused_for"].is_null()).await;
    assert_eq!((since(&over), &over["destinations"][0]["retry_at"]), (json!(null), &json!(null)));
}

#[tokio::test(start_paused = true)]
async fn a_stop_takes_back_what_was_told() {
    let told = Telling::with_events(0).await;
    told.relay.start().await.unwrap();
    told.until_told("something", |told| told["state"] == "running").await;
    told.relay.stop().await;
    assert_eq!(told.outbox.told(), None);
}

#[tokio::test(start_paused = true)]
async fn how_fast_events_are_delivered_is_told_and_ends_at_zero() {
    let told = Telling::with_events(200).await;
    told.relay.start().await.unwrap();
    let rate = |told: &Value| told["delivered_per_second"].as_f64();
    told.until_told("a rate", |told| rate(told).is_some_and(|rate| rate > 1.0)).await;
    told.until_told("rest", |told| rate(told) == Some(0.0)).await;
    tokio::time::sleep(2 * MINUTE).await;
    let before = told.outbox.times_told();
    tokio::time::sleep(55 * SECOND).await;
    assert!(told.outbox.times_told() <= before + 1, "a relay at rest has nothing new to tell");
}

/// Nothing tells whose fault it is while one alone fails, with time for others to come.
#[tokio::test(start_paused = true)]
async fn events_that_are_undecided_are_counted() {
    let world = World::with(&interleaved(2, 1)).await;
    world.script.set(Some(Fault::FailBeforeWrite));
    let patient =
        posthaste_processor::ProcessorSettings { outage_patience: 10 * MINUTE, ..settings() };
    let relay = world.builder().settings(patient).build().unwrap();
    relay.start().await.unwrap();
    until("some are undecided", || relay.statistics().undecided > 0).await;
    world.script.clear();
    world.until_nothing_pending().await;
    assert_eq!(relay.statistics().undecided, 0);
}

#[tokio::test(start_paused = true)]
async fn an_error_of_the_database_keeps_its_kind() {
    let world = World::with(&singles(1)).await;
    world.storage.fail_next(
        posthaste_testkit::faults::Operation::Fetch,
        1,
        Fault::RejectPermanently,
    );
    let error = world.processor().process_events().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Rejected, "{error}");
}
