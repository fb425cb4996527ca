//! What a relay tells operators of itself, through the database.

use posthaste_core::memory::{MemoryBus, MemoryRepository};
use posthaste_core::{ErrorKind, EventFilter, OutboxAdmin, OutboxRepository};
use posthaste_processor::{OutboxProcessor, ProcessorSettings};
use posthaste_testkit::faults::{Fault, FaultyBus};
use serde_json::{Value, json};

use crate::hooked::Hooked;
use crate::support::{HOUR, MINUTE, SECOND, World, interleaved, settings, singles, until};

/// A relay on a store that keeps what it tells.
struct Telling {
    inner: MemoryRepository,
    outbox: Hooked,
    bus: FaultyBus<MemoryBus>,
    relay: OutboxProcessor,
}

impl Telling {
    async fn with_events(events: usize) -> Self {
        Self::with_settings(events, settings()).await
    }

    /// One that counts no attempt for long of what nothing tells about.
    async fn patient(events: usize) -> Self {
        let patient = ProcessorSettings { outage_patience: 10 * MINUTE, ..settings() };
        Self::with_settings(events, patient).await
    }

    async fn with_settings(events: usize, settings: ProcessorSettings) -> Self {
        let inner = MemoryRepository::new();
        inner.store(&singles(events)).await.unwrap();
        let outbox = Hooked::new(inner.clone());
        let bus = FaultyBus::new(MemoryBus::new());
        let relay = OutboxProcessor::builder(outbox.clone())
            .bus(bus.clone())
            .settings(settings)
            .build()
            .unwrap();
        Self { inner, outbox, bus, relay }
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
async fn a_destination_that_fails_and_is_not_paused_is_told_with_its_reason_and_beginning() {
    // One fewer than are an outage.
    let told = Telling::patient(7).await;
    told.bus.script().set(Some(Fault::FailBeforeWrite));
    told.relay.start().await.unwrap();
    let all_fail = |told: &Value| told["destinations"][0]["uncounted_keys"] == 7;
    let first = told.until_told("all keys fail", all_fail).await;
    let to = &first["destinations"][0];
    assert_eq!((&to["paused_for"], &to["failing_keys"]), (&json!(null), &json!(7)), "{first}");
    assert!(to["last_error"].as_str().unwrap().contains("on purpose"), "{first}");
    assert_eq!(to["last_error_kind"], "failed");
    let named: Vec<_> = to["uncounted"].as_array().unwrap().iter().collect();
    let places: Vec<_> = named.iter().map(|key| key["seq"].as_u64().unwrap()).collect();
    assert_eq!(places, [1, 2, 3, 4, 5], "some are named, the lowest places first");
    assert_eq!((&named[0]["key"], named[0]["id"].is_string()), (&json!("key-0"), true));
    let since = |told: &Value| told["destinations"][0]["failing_since"].clone();
    assert!(since(&first).is_string(), "{first}");

    let before = told.outbox.times_told();
    tokio::time::sleep(MINUTE).await;
    assert!(told.outbox.times_told() <= before + 7, "not at each attempt");
    assert_eq!(since(&told.told()), since(&first), "however often it is tried");
    told.bus.script().clear();
    let over =
        told.until_told("the end", |told| told["destinations"][0]["last_error"].is_null()).await;
    assert!(since(&over).is_null(), "{over}");
    let to = &over["destinations"][0];
    assert_eq!((&to["failing_keys"], &to["uncounted_keys"]), (&json!(0), &json!(0)), "{over}");
    assert_eq!((&to["uncounted"], &to["last_error_kind"]), (&json!([]), &json!(null)), "{over}");
}

#[tokio::test(start_paused = true)]
async fn a_key_that_fails_beside_others_has_a_reason_and_its_destination_no_beginning() {
    let told = Telling::patient(3).await;
    told.bus.script().plan(|event, _| {
        (event.order_key().to_string() == "key-1").then_some(Fault::FailBeforeWrite)
    });
    told.relay.start().await.unwrap();
    until("one fails", || told.relay.statistics().destinations[0].failing_keys == 1).await;
    for event in interleaved(1, 3) {
        told.inner.store(&[event]).await.unwrap();
        tokio::time::sleep(SECOND / 2).await;
    }
    until("others were taken", || told.relay.statistics().destinations[0].failing_for.is_none())
        .await;
    tokio::time::sleep(2 * SECOND).await;
    let state = told.relay.statistics().destinations.remove(0);
    assert!(state.last_error.is_some_and(|why| why.contains("on purpose")));
    assert_eq!(state.failing_keys, 1);
}

/// Whoever discards an event that fails ends the matter.
#[tokio::test(start_paused = true)]
async fn a_key_whose_event_was_discarded_fails_no_more() {
    let world = World::with(&singles(2)).await;
    world.script.set(Some(Fault::FailBeforeWrite));
    let patient = ProcessorSettings { outage_patience: HOUR, ..settings() };
    let relay = world.builder().settings(patient).build().unwrap();
    relay.start().await.unwrap();
    let failing = || relay.statistics().destinations[0].failing_keys;
    until("both fail", || failing() == 2).await;
    tokio::time::sleep(MINUTE).await;
    let first = world.outbox.events()[0].id();
    world.outbox.discard_events(&EventFilter::with_ids([first])).await.unwrap();
    tokio::time::sleep(MINUTE / 2).await;
    assert_eq!(failing(), 1);
    world.outbox.discard_events(&EventFilter::all()).await.unwrap();
    tokio::time::sleep(MINUTE / 2).await;
    assert_eq!(failing(), 0);
    assert_eq!(relay.statistics().destinations[0].last_error, None);

    // What fails after that fails since then.
    world.store(&singles(1)).await;
    until("it fails again", || failing() == 1).await;
    let since = relay.statistics().destinations[0].failing_for;
    assert!(since.is_some_and(|time| time < MINUTE / 2), "{since:?}");
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
    let patient = ProcessorSettings { outage_patience: 10 * MINUTE, ..settings() };
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
