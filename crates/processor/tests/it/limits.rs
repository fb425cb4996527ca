//! What a processor never exceeds, whatever the backlog.

use std::collections::HashMap;
use std::num::NonZeroU32;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use posthaste_core::{
    BusCapabilities, EventBus, KeyPipelining, OutboxEvent, Payload, PublishResult,
};
use posthaste_processor::{OutboxProcessor, ProcessorSettings};
use tokio::time::Instant;
use uuid::Uuid;

use crate::hooked::Hooked;
use crate::support::{
    HOUR, SECOND, Seen, SlowBus, World, assert_first_deliveries_in_order, interleaved, series,
    settings, singles,
};

const MILLIS: Duration = Duration::from_millis(1);

/// Delivers all of these through a bus, and tells what the bus saw.
async fn deliver(events: &[OutboxEvent], bus: SlowBus, max_concurrent_events: usize) -> Seen {
    let world = World::with(events).await;
    let processor = OutboxProcessor::builder(world.outbox.clone())
        .bus(bus.clone())
        .max_concurrent_events(max_concurrent_events)
        .build()
        .unwrap();
    assert_eq!(processor.drain(HOUR).await.unwrap(), events.len() as u64);
    let seen = bus.seen();
    assert_eq!(seen.published.len(), events.len());
    assert_first_deliveries_in_order(&seen.published);
    seen
}

#[tokio::test(start_paused = true)]
async fn no_more_than_max_concurrent_events_are_in_flight_and_as_many_are_used() {
    for limit in [1, 2, 7, 10, 64] {
        let seen = deliver(&singles(500), SlowBus::new(5 * MILLIS), limit).await;
        // A call waits for room for a quarter of it all, so that events travel in batches.
        let used = limit - limit.div_ceil(4) + 1..=limit;
        assert!(used.contains(&seen.in_flight_max), "{} of {limit}", seen.in_flight_max);
    }
}

#[tokio::test(start_paused = true)]
async fn one_event_of_a_key_is_in_flight_where_a_bus_may_deliver_later_ones_all_the_same() {
    let bus = SlowBus::new(5 * MILLIS).pipelining(KeyPipelining::OnePerKey);
    let seen = deliver(&interleaved(5, 40), bus, 100).await;
    assert_eq!((seen.of_key_in_call_max, seen.calls_of_key_max), (1, 1));
    assert_eq!(seen.in_flight_max, 5, "all keys at once");
}

#[tokio::test(start_paused = true)]
async fn a_key_goes_in_one_call_of_several_events_where_only_a_suffix_can_fail() {
    let bus = SlowBus::new(5 * MILLIS).pipelining(KeyPipelining::SuffixFails);
    let seen = deliver(&series("a", 200), bus, 100).await;
    assert!(seen.of_key_in_call_max > 1);
    assert_eq!(seen.calls_of_key_max, 1, "the next chunk waits for the one before");
}

#[tokio::test(start_paused = true)]
async fn a_call_holds_no_more_events_than_the_bus_takes() {
    for limit in [1, 3, 100] {
        let bus =
            SlowBus::new(MILLIS).pipelining(KeyPipelining::SuffixFails).batch_events_max(limit);
        let seen = deliver(&interleaved(300, 2), bus, 400).await;
        assert_eq!(seen.batch_max, limit);
    }
}

#[tokio::test(start_paused = true)]
async fn no_query_asks_for_more_than_batch_size() {
    let world = World::with(&singles(500)).await;
    let largest = Arc::new(Mutex::new(0));
    let noted = largest.clone();
    let repository = Hooked::new(world.outbox.clone()).fetched(move |page| {
        let mut largest = noted.lock().unwrap();
        *largest = page.events.len().max(*largest);
    });
    let processor =
        OutboxProcessor::builder(repository).bus(world.bus.clone()).batch_size(37).build().unwrap();
    processor.drain(SECOND).await.unwrap();
    assert_eq!(*largest.lock().unwrap(), 37);
    world.assert_all_delivered_once();
}

#[tokio::test(start_paused = true)]
async fn the_rate_limit_holds_over_any_second_and_is_used() {
    let world = World::with(&singles(400)).await;
    let times: Arc<Mutex<Vec<Instant>>> = Arc::default();
    let noted = times.clone();
    world.script.plan(move |_, _| {
        noted.lock().unwrap().push(Instant::now());
        None
    });
    let changed = ProcessorSettings {
        rate_limit_events_per_second: NonZeroU32::new(50),
        max_concurrent_events: 100,
        ..settings()
    };
    let processor = world.builder().settings(changed).build().unwrap();
    let started = Instant::now();
    processor.drain(HOUR).await.unwrap();
    // A tenth of a second's worth may go at once.
    assert!(started.elapsed() >= 395 * SECOND / 50, "{:?}", started.elapsed());
    assert!(started.elapsed() < 2 * 395 * SECOND / 50, "{:?}", started.elapsed());
    let times = times.lock().unwrap();
    assert_eq!(times.len(), 400);
    for (at, first) in times.iter().enumerate() {
        let within = times[at..].iter().take_while(|time| **time < *first + SECOND).count();
        assert!(within <= 56, "{within} events within a second");
    }
}

const BODY_BYTES: usize = 10 * 1024;

fn large(number: usize) -> OutboxEvent {
    OutboxEvent::builder(Uuid::now_v7(), "it.large")
        .payload(
            Payload::bytes(vec![number as u8; BODY_BYTES], "application/octet-stream").unwrap(),
        )
        .build()
        .unwrap()
}

/// Payload bytes handed out by the repository and not acknowledged yet, by event.
#[derive(Clone, Default)]
struct Ledger(Arc<Mutex<(HashMap<Uuid, usize>, usize)>>);

impl Ledger {
    fn handed_out(&self, events: impl Iterator<Item = OutboxEvent>) {
        let mut state = self.0.lock().unwrap();
        state.0.extend(events.map(|event| (event.id(), event.payload().body().len())));
        let bytes = state.0.values().sum();
        state.1 = state.1.max(bytes);
    }

    fn acknowledged(&self, events: &[OutboxEvent]) {
        let mut state = self.0.lock().unwrap();
        for event in events {
            state.0.remove(&event.id());
        }
    }

    fn bytes_max(&self) -> usize {
        self.0.lock().unwrap().1
    }
}

struct LedgerBus(Ledger);

#[async_trait]
impl EventBus for LedgerBus {
    fn capabilities(&self) -> BusCapabilities {
        BusCapabilities::new("ledger")
    }

    async fn publish(&self, events: &[OutboxEvent]) -> Vec<PublishResult> {
        tokio::time::sleep(20 * MILLIS).await;
        self.0.acknowledged(events);
        events.iter().map(|_| Ok(())).collect()
    }
}

/// Delivers events of 10 KiB with a buffer of 64 KiB; returns the most bytes held at once.
async fn bytes_held(max_concurrent_events: usize) -> usize {
    let events: Vec<OutboxEvent> = (0..300).map(large).collect();
    let world = World::with(&events).await;
    let ledger = Ledger::default();
    let noted = ledger.clone();
    let repository = Hooked::new(world.outbox.clone()).fetched(move |page| {
        noted.handed_out(page.events.iter().map(|pending| pending.event.clone()));
    });
    let changed =
        ProcessorSettings { buffer_bytes_max: 64 * 1024, max_concurrent_events, ..settings() };
    let processor = OutboxProcessor::builder(repository)
        .bus(LedgerBus(ledger.clone()))
        .settings(changed)
        .build()
        .unwrap();
    assert_eq!(processor.drain(HOUR).await.unwrap(), 300);
    ledger.bytes_max()
}

#[tokio::test(start_paused = true)]
async fn payloads_in_memory_stay_within_the_buffer() {
    for max_concurrent_events in [1, 4, 100] {
        let held = bytes_held(max_concurrent_events).await;
        assert!(held <= 64 * 1024 + BODY_BYTES, "{held} bytes, {max_concurrent_events} in flight");
    }
}

#[tokio::test(start_paused = true)]
async fn an_event_larger_than_the_buffer_is_delivered_alone() {
    let huge = |number: usize| {
        OutboxEvent::builder(Uuid::now_v7(), "it.huge")
            .payload(Payload::bytes(vec![number as u8; 300 * 1024], "text/plain").unwrap())
            .build()
            .unwrap()
    };
    let events: Vec<OutboxEvent> = (0..5).map(huge).collect();
    let world = World::with(&events).await;
    let changed = ProcessorSettings { buffer_bytes_max: 64 * 1024, ..settings() };
    let processor = world.builder().settings(changed).build().unwrap();
    assert_eq!(processor.drain(SECOND).await.unwrap(), 5);
}

#[tokio::test(start_paused = true)]
async fn events_in_memory_stay_bounded_behind_an_outage_and_behind_stuck_keys() {
    use posthaste_testkit::faults::Fault;
    for fault in [Fault::Unavailable, Fault::FailBeforeWrite, Fault::RejectPermanently] {
        let world = World::with(&interleaved(20, 500)).await;
        world.script.set(Some(fault));
        let processor = world.builder().batch_size(50).build().unwrap();
        processor.start().await.unwrap();
        for _ in 0..100 {
            tokio::time::sleep(Duration::from_millis(300)).await;
            let statistics = processor.statistics();
            let held = statistics.buffered + statistics.in_flight + statistics.unsettled;
            assert!(held <= 2 * 50 + 2 * 10, "{fault:?}: {held} events in memory");
        }
    }
}
