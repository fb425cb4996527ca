//! An error that could be the event's or the destination's: many keys that fail, and none that
//! succeeds, are an outage; anything less is the events' own.

use std::collections::HashSet;

use posthaste_core::OutboxEvent;
use posthaste_processor::ProcessorSettings;
use posthaste_testkit::faults::Fault;
use uuid::Uuid;

use crate::support::{
    HOUR, SECOND, World, assert_first_deliveries_in_order, event, ids, interleaved, settings,
    singles, until,
};

/// As many keys as make an outage: a constant of the machine.
const OUTAGE_KEYS: usize = 8;

/// From now on, events of these keys fail, and no others.
fn poison(world: &World, keys: HashSet<String>) {
    world.script.plan(move |event, _| {
        keys.contains(&event.order_key().to_string()).then_some(Fault::FailBeforeWrite)
    });
}

fn keys_of(events: &[OutboxEvent]) -> HashSet<String> {
    events.iter().map(|event| event.order_key().to_string()).collect()
}

fn retry_counts(world: &World) -> Vec<u32> {
    world.outbox.events().iter().map(OutboxEvent::retry_count).collect()
}

#[tokio::test(start_paused = true)]
async fn an_outage_that_looks_like_failing_events_counts_no_attempt_however_long() {
    for max_concurrent_events in [1, 10, 500] {
        let world = World::with(&interleaved(20, 10)).await;
        world.script.set(Some(Fault::FailBeforeWrite));
        let processor =
            world.builder().max_concurrent_events(max_concurrent_events).build().unwrap();
        processor.start().await.unwrap();
        tokio::time::sleep(HOUR).await;

        world.assert_no_attempt_counted(&processor);
        let why = processor.statistics().destinations[0].paused_for.clone().unwrap();
        assert!(why.starts_with("8 keys failed in a row and none succeeded"), "{why}");
        assert!(why.contains("failed on purpose"), "{why}");

        world.script.clear();
        world.assert_resumes(&processor).await;
        assert!(retry_counts(&world).iter().all(|count| *count == 0));
    }
}

#[tokio::test(start_paused = true)]
async fn in_such_an_outage_probes_are_of_several_keys_and_no_more() {
    let world = World::with(&interleaved(20, 10)).await;
    world.script.set(Some(Fault::FailBeforeWrite));
    let processor = world.builder().max_concurrent_events(40).build().unwrap();
    processor.start().await.unwrap();
    until("the outage is seen", || processor.statistics().destinations[0].paused_for.is_some())
        .await;
    let before = world.script.calls().len();
    tokio::time::sleep(HOUR).await;

    let calls = world.script.calls();
    let probes = &calls[before..];
    // Pauses of 2.5 to 5 seconds in the long run: 720 to 1440 an hour, and the short first ones.
    // Before them, each key that has not failed yet had a try of its own.
    assert!((720..1_480).contains(&probes.len()), "{} rounds of probes", probes.len());
    let mut probed: HashSet<Uuid> = HashSet::new();
    for probe in probes {
        let distinct: HashSet<Uuid> = probe.iter().copied().collect();
        assert_eq!(probe.len(), distinct.len());
        let is_new = distinct.is_disjoint(&probed);
        assert!(is_new || probe.len() == OUTAGE_KEYS, "{probe:?}");
        assert!(probe.len() <= OUTAGE_KEYS);
        probed.extend(distinct);
    }
    assert_eq!(probed.len(), 20, "every key has its turn");
}

#[tokio::test(start_paused = true)]
async fn poison_does_not_keep_a_destination_closed_that_is_back_and_ends_as_dead_letters() {
    let events = singles(OUTAGE_KEYS);
    let world = World::with(&events).await;
    world.script.set(Some(Fault::FailBeforeWrite));
    let processor = world.started().await;
    tokio::time::sleep(HOUR).await;
    let during = world.script.calls().len();
    poison(&world, keys_of(&events[1..]));
    world.script.set(None);
    until("the only one that can be delivered is", || world.pending() < OUTAGE_KEYS).await;
    assert_eq!(ids(&world.delivered.published()), [events[0].id()]);
    assert_eq!(world.script.calls().len(), during + 1, "by the first call after the outage");
    until("the others are dead letters", || world.dead() == OUTAGE_KEYS - 1).await;
    assert_eq!(retry_counts(&world), [0, 3, 3, 3, 3, 3, 3, 3]);
    assert_eq!(processor.statistics().destinations[0].paused_for, None);
}

#[tokio::test(start_paused = true)]
async fn a_poison_key_among_healthy_ones_is_counted_and_pauses_nothing() {
    let world = World::with(&interleaved(30, 5)).await;
    poison(&world, ["key-7".to_owned()].into());
    let processor = world.processor();
    processor.drain(HOUR).await.unwrap();

    let dead = world.outbox.events().into_iter().find(OutboxEvent::is_dead).unwrap();
    assert_eq!(dead.order_key().to_string(), "key-7");
    assert_eq!((dead.dead_reason(), dead.retry_count()), (Some("retries_exhausted"), 3));
    assert_eq!(world.script.attempts(dead.id()), 3, "each attempt counted");
    assert_eq!(world.delivered.published().len(), 29 * 5);
    assert_eq!(processor.statistics().interrupted, 0);
    assert_eq!(retry_counts(&world).iter().sum::<u32>(), 3);
}

#[tokio::test(start_paused = true)]
async fn fewer_poison_keys_than_make_an_outage_end_as_dead_letters() {
    for keys in [1, OUTAGE_KEYS - 1] {
        let world = World::with(&singles(keys)).await;
        world.script.set(Some(Fault::FailBeforeWrite));
        let processor = world.processor();
        processor.drain(HOUR).await.unwrap();
        assert_eq!(world.dead(), keys);
        for event in world.outbox.events() {
            assert_eq!((event.retry_count(), world.script.attempts(event.id())), (3, 3));
        }
        assert_eq!(processor.statistics().interrupted, 0);
    }
}

#[tokio::test(start_paused = true)]
async fn poison_in_numbers_ends_as_dead_letters_as_others_are_delivered() {
    let bad = singles(3 * OUTAGE_KEYS);
    let world = World::with(&bad).await;
    poison(&world, keys_of(&bad));
    let processor = world.started().await;
    until("an outage is suspected", || processor.statistics().destinations[0].paused_for.is_some())
        .await;
    let mut delivered = 0;
    while world.dead() < bad.len() {
        assert!(delivered < 60, "{} of {} dead", world.dead(), bad.len());
        world.store(&[event(&format!("healthy-{delivered}"), 0)]).await;
        delivered += 1;
        until("an event beside poison is delivered", || {
            world.delivered.published().len() == delivered
        })
        .await;
        tokio::time::sleep(10 * SECOND).await;
    }
    assert!(world.outbox.events().iter().all(|event| !event.is_dead() || event.retry_count() == 3));
}

#[tokio::test(start_paused = true)]
async fn a_key_that_did_not_fail_yet_is_among_the_next_probes() {
    let bad = singles(100);
    let world = World::with(&bad).await;
    poison(&world, keys_of(&bad));
    let _processor = world.started().await;
    tokio::time::sleep(HOUR).await;
    let before = world.script.calls().len();
    let healthy = event("healthy", 0);
    world.store(std::slice::from_ref(&healthy)).await;
    until("it is delivered", || !world.delivered.published().is_empty()).await;
    let calls = world.script.calls();
    let rounds = calls[before..].iter().position(|call| call.contains(&healthy.id())).unwrap();
    // One may have been on its way before it was read.
    assert!(rounds <= 1, "{rounds} rounds of probes without it");
}

#[tokio::test(start_paused = true)]
async fn an_outage_of_an_outbox_with_few_events_shows_in_time() {
    let world = World::new();
    world.script.set(Some(Fault::FailBeforeWrite));
    let processor = world.started().await;
    // One at a time, each alone: the first ones cannot be told from poison.
    for number in 0..100 {
        world.store(&[event(&format!("key-{number}"), 0)]).await;
        tokio::time::sleep(5 * SECOND).await;
    }
    assert!(world.dead() < OUTAGE_KEYS, "{} dead", world.dead());
    assert!(processor.statistics().destinations[0].paused_for.is_some());
    world.script.clear();
    world.until_nothing_pending().await;
    assert!(retry_counts(&world).iter().skip(OUTAGE_KEYS).all(|count| *count == 0));
}

#[tokio::test(start_paused = true)]
async fn a_stop_puts_back_uncounted_what_is_undecided() {
    let world = World::with(&interleaved(3, 4)).await;
    world.script.set(Some(Fault::FailBeforeWrite));
    let patient = ProcessorSettings { outage_patience: HOUR, ..settings() };
    let processor = world.builder().settings(patient).build().unwrap();
    processor.start().await.unwrap();
    until("an event failed", || !world.script.calls().is_empty()).await;
    let report = processor.stop().await;
    assert_eq!((report.unacknowledged, report.unsettled), (0, 0));
    assert!(retry_counts(&world).iter().all(|count| *count == 0));
    world.script.clear();
    processor.start().await.unwrap();
    world.until_nothing_pending().await;
    world.assert_all_delivered_once();
    assert_first_deliveries_in_order(&world.delivered.published());
}
