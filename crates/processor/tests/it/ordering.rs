//! Order per key, and what holds a key back.

use std::time::Duration;

use jiff::Timestamp;
use posthaste_core::{EventFilter, KeyPipelining, OutboxAdmin, OutboxEvent, RetryPolicy};
use posthaste_processor::{DeadHeadPolicy, Destination, OutboxProcessor, ProcessorSettings};
use posthaste_testkit::faults::{Fault, FaultyBus};

use crate::support::{
    HOUR, MINUTE, SECOND, SlowBus, World, assert_first_deliveries_in_order, builder, event,
    interleaved, number, numbers, series, settings, until,
};

const QUICK: RetryPolicy = RetryPolicy {
    base_delay: Duration::from_millis(20),
    max_delay: SECOND,
    backoff_multiplier: 2.0,
    jitter: true,
};

/// Fails many first and second attempts, differently for every event, in every way.
fn mixed_faults(event: &OutboxEvent, attempt: u32) -> Option<Fault> {
    let draw = (event.id().as_u128() ^ (u128::from(attempt) << 20)) % 1_000_003 % 10;
    match (attempt, draw) {
        (1 | 2, 0 | 1) => Some(Fault::FailBeforeWrite),
        (1 | 2, 2) => Some(Fault::FailAfterWrite),
        // Not to the end: an outage beside every failure would excuse them all.
        (1..=4, 3) if number(event) < 10 => Some(Fault::Unavailable),
        _ => None,
    }
}

#[tokio::test(start_paused = true)]
async fn many_keys_keep_their_order_across_retries_and_outages() {
    for pipelining in [KeyPipelining::SuffixFails, KeyPipelining::OnePerKey] {
        let events = interleaved(25, 20);
        let world = World::with(&events).await;
        let inner = SlowBus::new(Duration::from_millis(3)).pipelining(pipelining);
        let bus = FaultyBus::new(inner.clone());
        let script = bus.script();
        script.plan(mixed_faults);
        let processor = OutboxProcessor::builder(world.outbox.clone())
            .bus(bus)
            .batch_size(40)
            .retry_policy(QUICK)
            .build()
            .unwrap();
        processor.drain(HOUR).await.unwrap();
        // One that fails alone counts for sure: the others may have failed in outages only.
        script.fail_next(1, Fault::FailBeforeWrite);
        world.store(&[event("alone", 0)]).await;
        processor.drain(HOUR).await.unwrap();
        assert_eq!((world.pending(), world.dead()), (0, 0));
        assert_first_deliveries_in_order(&inner.seen().published);
        let statistics = processor.statistics();
        assert!(statistics.retried > 0 && statistics.interrupted > 0, "{statistics:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn many_keys_keep_their_order_across_restarts() {
    let events = interleaved(20, 20);
    let world = World::with(&events).await;
    let inner = SlowBus::new(Duration::from_millis(3));
    let bus = FaultyBus::new(inner.clone());
    bus.script().plan(mixed_faults);
    let mut restarts = 0;
    while world.pending() > 0 {
        let changed = ProcessorSettings {
            batch_size: 30,
            retry_policy: QUICK,
            // The acknowledgements under way are lost.
            shutdown_timeout: Duration::ZERO,
            ..settings()
        };
        let processor = OutboxProcessor::builder(world.outbox.clone())
            .bus(bus.clone())
            .settings(changed)
            .build()
            .unwrap();
        processor.start().await.unwrap();
        tokio::time::sleep(Duration::from_millis(40)).await;
        processor.stop().await;
        restarts += 1;
        assert!(restarts < 10_000, "nothing moves any more");
    }
    assert!(restarts > 3, "{restarts}");
    assert_eq!(world.dead(), 0);
    assert_first_deliveries_in_order(&inner.seen().published);
}

#[tokio::test(start_paused = true)]
async fn a_failing_event_holds_back_only_its_key() {
    let world = World::with(&interleaved(10, 10)).await;
    world.script.plan(|event, _| {
        let failing = numbers(std::slice::from_ref(event), "key-4") == [3];
        failing.then_some(Fault::FailBeforeWrite)
    });
    let policy = RetryPolicy { base_delay: 20 * SECOND, ..RetryPolicy::default() };
    let processor = world.builder().retry_policy(policy).build().unwrap();
    processor.start().await.unwrap();
    until("all other keys are through", || world.delivered.published().len() == 93).await;
    tokio::time::sleep(5 * SECOND).await;
    assert_eq!(numbers(&world.delivered.published(), "key-4"), [0, 1, 2]);
    assert_eq!(processor.statistics().parked_keys, 1);

    world.script.clear();
    world.until_nothing_pending().await;
    assert_first_deliveries_in_order(&world.delivered.published());
}

/// A world whose key `a` has a dead letter at number 1, of five.
async fn dead_head(policy: DeadHeadPolicy) -> (World, OutboxEvent, OutboxProcessor) {
    let events = series("a", 5);
    let world = World::with(&events).await;
    let poison = events[1].id();
    world.script.plan(move |event, _| (event.id() == poison).then_some(Fault::RejectPermanently));
    let destination =
        Destination::new("default", std::sync::Arc::new(world.bus.clone())).dead_head(policy);
    let processor = OutboxProcessor::builder(world.repository.clone())
        .destination(destination)
        .build()
        .unwrap();
    processor.start().await.unwrap();
    until("it is dead", || world.dead() == 1).await;
    tokio::time::sleep(MINUTE).await;
    (world, events[1].clone(), processor)
}

#[tokio::test(start_paused = true)]
async fn a_dead_head_blocks_its_key_also_after_a_restart() {
    let (world, _, processor) = dead_head(DeadHeadPolicy::Block).await;
    assert_eq!(numbers(&world.delivered.published(), "a"), [0]);
    processor.stop().await;

    let restarted = world.started().await;
    world.store(&[event("b", 0), event("a", 5)]).await;
    tokio::time::sleep(MINUTE).await;
    assert_eq!(numbers(&world.delivered.published(), "a"), [0]);
    assert_eq!(numbers(&world.delivered.published(), "b"), [0]);
    assert_eq!(restarted.statistics().parked_keys, 1);
}

#[tokio::test(start_paused = true)]
async fn a_skipped_dead_head_lets_its_key_go_on() {
    let (world, _, processor) = dead_head(DeadHeadPolicy::Skip).await;
    assert_eq!(numbers(&world.delivered.published(), "a"), [0, 2, 3, 4]);
    assert_eq!((world.pending(), world.dead()), (0, 1));
    processor.stop().await;
    world.store(&[event("a", 5)]).await;
    processor.start().await.unwrap();
    world.until_nothing_pending().await;
}

#[tokio::test(start_paused = true)]
async fn a_retried_dead_letter_and_its_key_go_on_in_order_while_it_runs() {
    let (world, dead, _processor) = dead_head(DeadHeadPolicy::Block).await;
    world.script.clear();
    assert_eq!(world.outbox.retry_events(&EventFilter::with_ids([dead.id()])).await.unwrap(), 1);
    world.until_nothing_pending().await;
    assert_eq!(numbers(&world.delivered.published(), "a"), [0, 1, 2, 3, 4]);
    assert_eq!(world.dead(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_retried_dead_letter_that_dies_again_blocks_again() {
    let (world, dead, _processor) = dead_head(DeadHeadPolicy::Block).await;
    for attempts in 2..=4 {
        world.outbox.retry_events(&EventFilter::with_ids([dead.id()])).await.unwrap();
        until("it is dead again", || world.script.attempts(dead.id()) == attempts).await;
        tokio::time::sleep(MINUTE).await;
        assert_eq!(numbers(&world.delivered.published(), "a"), [0]);
    }
    world.script.clear();
    world.outbox.retry_events(&EventFilter::all()).await.unwrap();
    world.until_nothing_pending().await;
    assert_eq!(numbers(&world.delivered.published(), "a"), [0, 1, 2, 3, 4]);
}

#[tokio::test(start_paused = true)]
async fn a_discarded_dead_letter_lets_its_key_go_on_while_it_runs() {
    let (world, dead, _processor) = dead_head(DeadHeadPolicy::Block).await;
    assert_eq!(world.outbox.discard_events(&EventFilter::with_ids([dead.id()])).await.unwrap(), 1);
    world.until_nothing_pending().await;
    assert_eq!(numbers(&world.delivered.published(), "a"), [0, 2, 3, 4]);
}

#[tokio::test(start_paused = true)]
async fn an_operators_retry_does_not_wait_for_the_backoff() {
    let world = World::with(&series("a", 3)).await;
    world.script.fail_next(1, Fault::FailBeforeWrite);
    let policy = RetryPolicy { base_delay: HOUR, max_delay: HOUR, ..RetryPolicy::default() };
    let processor = world.builder().retry_policy(policy).build().unwrap();
    processor.start().await.unwrap();
    until("it waits for its retry", || world.outbox.events()[0].retry_count() == 1).await;
    let started = tokio::time::Instant::now();
    world.outbox.retry_events(&EventFilter::all()).await.unwrap();
    world.until_nothing_pending().await;
    assert!(started.elapsed() < MINUTE);
    assert_eq!(numbers(&world.delivered.published(), "a"), [0, 1, 2]);
}

#[tokio::test(start_paused = true)]
async fn a_delayed_event_holds_its_key_and_no_other() {
    let delayed = builder("a", 0).available_at(Timestamp::now() + 25 * SECOND).build().unwrap();
    let world = World::with(&[delayed, event("a", 1), event("b", 0)]).await;
    let _processor = world.started().await;
    tokio::time::sleep(10 * SECOND).await;
    assert_eq!(numbers(&world.delivered.published(), "a"), [0; 0]);
    assert_eq!(numbers(&world.delivered.published(), "b"), [0]);
    world.until_nothing_pending().await;
    assert_eq!(numbers(&world.delivered.published(), "a"), [0, 1]);
}
