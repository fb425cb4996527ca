//! What becomes of an event that fails, and of one that the bus treats badly.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use jiff::Timestamp;
use posthaste_core::memory::MemoryBus;
use posthaste_core::{
    BusCapabilities, EventBus, OutboxEvent, OutboxRepository, Outcomes, PublishResult, RetryPolicy,
    Seq, Settlement, SettlementOutcome,
};
use posthaste_processor::{Destination, OutboxProcessor};
use posthaste_testkit::faults::Fault;

use crate::support::{
    HOUR, MINUTE, World, assert_first_deliveries_in_order, builder, event, ids, interleaved,
    numbers, series, singles,
};

#[tokio::test(start_paused = true)]
async fn a_lost_answer_repeats_the_same_id_key_and_bytes_and_loses_nothing() {
    let world = World::with(&singles(12)).await;
    world.script.plan(|_, attempt| (attempt == 1).then_some(Fault::FailAfterWrite));
    assert_eq!(world.processor().drain(HOUR).await.unwrap(), 12);

    let published = world.delivered.published();
    assert_first_deliveries_in_order(&published);
    for event in world.outbox.events() {
        let deliveries: Vec<&OutboxEvent> =
            published.iter().filter(|delivered| delivered.id() == event.id()).collect();
        assert_eq!(deliveries.len(), 2);
        for delivery in deliveries {
            assert_eq!(delivery.order_key(), event.order_key());
            assert_eq!(delivery.payload(), event.payload());
            assert_eq!(delivery.headers(), event.headers());
            assert_eq!(delivery.event_type(), event.event_type());
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_refusal_for_good_is_a_dead_letter_at_once_and_says_why() {
    let refused = event("a", 0);
    let world = World::with(std::slice::from_ref(&refused)).await;
    world.script.set(Some(Fault::RejectPermanently));
    let processor = world.processor();
    assert_eq!(processor.process_events().await.unwrap(), 0);

    let stored = world.stored(refused.id());
    assert!(stored.is_dead());
    assert_eq!(stored.dead_reason(), Some("rejected"));
    assert_eq!(stored.retry_count(), 0, "no retry was spent on it");
    assert!(stored.error_message().unwrap().contains("rejected on purpose"));
    assert_eq!(world.script.attempts(refused.id()), 1);
    assert_eq!(processor.get_failed_events(5).await.unwrap(), [stored]);
    assert_eq!(processor.statistics().dead_lettered, 1);

    world.script.clear();
    assert_eq!(processor.process_events().await.unwrap(), 0, "dead letters wait for an operator");
}

#[tokio::test(start_paused = true)]
async fn a_failed_attempt_shows_in_the_repository_until_retries_are_used_up() {
    for (max_retries, attempts) in [(0, 1), (1, 1), (3, 3), (5, 5)] {
        let failing = builder("a", 0).max_retries(max_retries).build().unwrap();
        let world = World::with(&[failing.clone(), event("b", 0)]).await;
        let id = failing.id();
        world.script.plan(move |event, _| (event.id() == id).then_some(Fault::FailBeforeWrite));
        let processor = world.processor();
        processor.process_events().await.unwrap();
        if attempts > 1 {
            let waiting = world.stored(id);
            assert!(waiting.is_pending());
            assert_eq!(waiting.retry_count(), 1);
            assert!(waiting.available_at() > Some(Timestamp::now()));
            assert!(waiting.error_message().unwrap().contains("failed on purpose"));
        }
        processor.drain(HOUR).await.unwrap();

        let dead = world.stored(id);
        assert!(dead.is_dead());
        assert_eq!(dead.dead_reason(), Some("retries_exhausted"));
        assert_eq!((dead.retry_count(), world.script.attempts(id)), (attempts, attempts));
        assert!(dead.error_message().unwrap().contains("failed on purpose"));
        assert_eq!(world.pending(), 0);
    }
}

#[tokio::test(start_paused = true)]
async fn retries_wait_longer_each_time() {
    let failing = builder("a", 0).max_retries(5).build().unwrap();
    let world = World::with(&[failing]).await;
    let attempts = std::sync::Arc::new(std::sync::Mutex::new(Vec::new()));
    let noted = attempts.clone();
    world.script.plan(move |_, _| {
        noted.lock().unwrap().push(tokio::time::Instant::now());
        Some(Fault::FailBeforeWrite)
    });
    world.processor().drain(HOUR).await.unwrap();
    let attempts = attempts.lock().unwrap();
    let waits: Vec<f64> =
        attempts.windows(2).map(|pair| (pair[1] - pair[0]).as_secs_f64()).collect();
    assert_eq!(waits.len(), 4);
    for (wait, ceiling) in waits.iter().zip([1.0, 2.0, 4.0, 8.0]) {
        // Jitter draws from the upper half; the timer may add a millisecond or two.
        assert!((ceiling / 2.0..=ceiling + 0.05).contains(wait), "{waits:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn behind_a_failed_event_of_its_call_the_rest_of_the_key_counts_no_attempt() {
    let world = World::with(&series("a", 10)).await;
    world.script.fail_next(1, Fault::FailBeforeWrite);
    let processor = world.builder().max_concurrent_events(40).build().unwrap();
    processor.drain(HOUR).await.unwrap();
    assert!(world.script.calls()[0].len() > 1, "a call held several events of the key");
    let counts: Vec<u32> = world.outbox.events().iter().map(OutboxEvent::retry_count).collect();
    assert_eq!(counts, [1, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(numbers(&world.delivered.published(), "a"), (0..10).collect::<Vec<_>>());
}

/// A bus that breaks its contract on its first calls.
struct Unruly {
    calls: AtomicUsize,
    how: Breach,
    inner: MemoryBus,
}

#[derive(Debug, Clone, Copy)]
enum Breach {
    Panics,
    PanicsAfterWriting,
    GivesNoResults,
    GivesOneResultTooFew,
    GivesTooManyResults,
}

#[async_trait]
impl EventBus for Unruly {
    fn capabilities(&self) -> BusCapabilities {
        self.inner.capabilities()
    }

    async fn publish(&self, events: &[OutboxEvent]) -> Vec<PublishResult> {
        if self.calls.fetch_add(1, Ordering::Relaxed) >= 3 {
            return self.inner.publish(events).await;
        }
        match self.how {
            Breach::Panics => panic!("a defect of the bus, on purpose"),
            Breach::PanicsAfterWriting => {
                self.inner.publish(events).await;
                panic!("a defect of the bus, on purpose")
            }
            Breach::GivesNoResults => Vec::new(),
            Breach::GivesOneResultTooFew => {
                let (_, written) = events.split_last().unwrap();
                self.inner.publish(written).await
            }
            Breach::GivesTooManyResults => {
                let mut results = self.inner.publish(events).await;
                results.extend([Ok(()), Ok(())]);
                results
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_bus_that_breaks_its_contract_loses_nothing_and_hangs_nothing() {
    for how in [
        Breach::Panics,
        Breach::PanicsAfterWriting,
        Breach::GivesNoResults,
        Breach::GivesOneResultTooFew,
        Breach::GivesTooManyResults,
    ] {
        let events = interleaved(6, 5);
        let world = World::with(&events).await;
        let inner = MemoryBus::new();
        let bus = Unruly { calls: AtomicUsize::new(0), how, inner: inner.clone() };
        let processor = OutboxProcessor::builder(world.outbox.clone()).bus(bus).build().unwrap();
        processor.drain(MINUTE).await.unwrap();
        assert_eq!((world.pending(), world.dead()), (0, 0), "{how:?}");
        let delivered: HashSet<_> = ids(&inner.published()).into_iter().collect();
        assert_eq!(delivered.len(), events.len(), "{how:?}");
        assert_first_deliveries_in_order(&inner.published());
        assert!(world.outbox.events().iter().all(|event| event.retry_count() == 0), "{how:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn an_error_text_is_stored_bounded_and_without_the_characters_databases_refuse() {
    struct Verbose;

    #[async_trait]
    impl EventBus for Verbose {
        fn capabilities(&self) -> BusCapabilities {
            BusCapabilities::new("verbose")
        }

        async fn publish(&self, events: &[OutboxEvent]) -> Vec<PublishResult> {
            let text = "é\0".repeat(100_000);
            let error =
                || posthaste_core::Error::new(posthaste_core::ErrorKind::Failed, "publish", &text);
            events.iter().map(|_| Err(error())).collect()
        }
    }

    let world = World::with(&singles(1)).await;
    let processor = OutboxProcessor::builder(world.outbox.clone()).bus(Verbose).build().unwrap();
    processor.process_events().await.unwrap();
    let events = world.outbox.events();
    let stored = events[0].error_message().unwrap();
    assert!(stored.chars().count() <= 2_000);
    assert!(!stored.contains('\0'));
}

/// Records that the event at this place failed and goes again after `delay`.
async fn put_off(world: &World, seq: Seq, retry_count: u32, delay: Duration) {
    let id = world.outbox.events()[usize::try_from(seq).unwrap() - 1].id();
    let outcome = SettlementOutcome::Retry { retry_count, delay, error: "no".into() };
    let settlement = Settlement { seq, id, lease: None, outcome };
    assert_eq!(world.outbox.settle(&[settlement]).await.unwrap(), 1);
}

/// The machine's clock was a year ahead for a moment, and is right again: what was written meanwhile is not.
#[tokio::test(start_paused = true)]
async fn a_retry_does_not_wait_for_what_a_wrong_clock_said() {
    const YEAR: Duration = Duration::from_secs(365 * 24 * 3_600);
    let scheduled = builder("scheduled", 0).available_at(Timestamp::now() + YEAR).build().unwrap();
    let world = World::with(&[event("counted", 0), event("uncounted", 0), scheduled]).await;
    put_off(&world, 1, 1, YEAR).await;
    put_off(&world, 2, 0, YEAR).await;
    let _processor = world.started().await;
    tokio::time::sleep(MINUTE).await;
    assert_eq!((world.delivered.published().len(), world.pending()), (2, 1));

    // A destination may ask for longer delays than are usual.
    let world = World::with(&singles(1)).await;
    put_off(&world, 1, 1, HOUR).await;
    let policy = RetryPolicy { max_delay: 2 * HOUR, ..RetryPolicy::default() };
    let bus = Arc::new(world.bus.clone());
    let destination = Destination::new("default", bus).retry_policy(policy);
    let processor = OutboxProcessor::builder(world.repository.clone())
        .destination(destination)
        .build()
        .unwrap();
    processor.start().await.unwrap();
    tokio::time::sleep(HOUR / 2).await;
    assert_eq!(world.pending(), 1);
    tokio::time::sleep(HOUR).await;
    assert_eq!(world.pending(), 0);
}

/// Holds an event of each id already, and drops what comes as a repeat.
struct Holding(MemoryBus);

#[async_trait]
impl EventBus for Holding {
    fn capabilities(&self) -> BusCapabilities {
        BusCapabilities { deduplicates: true, ..self.0.capabilities() }
    }

    async fn publish(&self, events: &[OutboxEvent]) -> Vec<PublishResult> {
        events.iter().map(|_| Ok(())).collect()
    }

    async fn publish_each(&self, events: &[OutboxEvent], outcomes: Outcomes<'_>) {
        for position in 0..events.len() {
            outcomes.repeated(position);
            outcomes.known(vec![(position, Ok(()))]);
        }
    }
}

/// What was there before the relay may have been sent by the one before it.
#[tokio::test(start_paused = true)]
async fn a_repeat_that_nobody_can_have_sent_is_counted_as_lost() {
    let world = World::with(&singles(3)).await;
    let bus = Holding(world.delivered.clone());
    let processor = OutboxProcessor::builder(world.repository.clone()).bus(bus).build().unwrap();
    processor.start().await.unwrap();
    world.until_nothing_pending().await;
    assert_eq!(processor.statistics().lost_as_repeat, 0);
    world.store(&[event("new", 0)]).await;
    world.until_nothing_pending().await;
    assert_eq!(processor.statistics().lost_as_repeat, 1);
}
