//! A health check that tells the truth: a backlog that nobody delivers is not healthy, however
//! alive the process is.

use std::time::Duration;

use jiff::Timestamp;
use posthaste_core::{EventRecord, OutboxEvent};
use posthaste_processor::{OutboxProcessor, ProcessorSettings, ProcessorStatistics, RelayState};
use posthaste_testkit::faults::Fault;

use crate::support::{HOUR, MINUTE, SECOND, SlowBus, World, builder, series, settings, singles};

/// The repository's clock is the real one: events that have waited must be stored as old.
fn old(events: Vec<OutboxEvent>) -> Vec<OutboxEvent> {
    created_at(Timestamp::now() - HOUR, events)
}

fn created_at(created_at: Timestamp, events: Vec<OutboxEvent>) -> Vec<OutboxEvent> {
    let age = |event: OutboxEvent| {
        OutboxEvent::restore(EventRecord { created_at, ..event.record().clone() })
    };
    events.into_iter().map(age).collect()
}

fn reason(processor: &OutboxProcessor) -> Option<String> {
    processor.statistics().unhealthy_because(MINUTE)
}

#[tokio::test(start_paused = true)]
async fn idle_is_healthy_and_stopped_is_not() {
    let world = World::new();
    let processor = world.processor();
    assert!(reason(&processor).unwrap().contains("stopped"));
    processor.start().await.unwrap();
    tokio::time::sleep(SECOND).await;
    assert_eq!(reason(&processor), None);
    tokio::time::sleep(HOUR).await;
    assert_eq!(reason(&processor), None);
    processor.stop().await;
    assert!(reason(&processor).unwrap().contains("stopped"));
}

#[tokio::test(start_paused = true)]
async fn shutting_down_is_not_healthy() {
    let world = World::with(&singles(1)).await;
    world.script.set(Some(Fault::HoldResponse));
    let processor = world.started().await;
    world.script.until_held(1).await;
    let stopping = tokio::spawn({
        let processor = processor.clone();
        async move { processor.stop().await }
    });
    tokio::time::sleep(SECOND).await;
    assert!(reason(&processor).unwrap().contains("shutting down"));
    world.script.clear();
    stopping.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn an_unreachable_database_is_named_and_healthy_again_when_it_answers() {
    let world = World::new();
    let processor = world.started().await;
    tokio::time::sleep(MINUTE).await;
    world.storage.set_all(Some(Fault::Unavailable));
    tokio::time::sleep(10 * SECOND).await;
    let why = reason(&processor).unwrap();
    assert!(why.contains("database is unavailable") && why.contains("on purpose"), "{why}");
    world.storage.set_all(None);
    tokio::time::sleep(20 * SECOND).await;
    assert_eq!(reason(&processor), None);
}

#[tokio::test(start_paused = true)]
async fn events_due_and_none_acknowledged_is_not_healthy_and_names_the_paused_destination() {
    let world = World::with(&old(singles(5))).await;
    world.script.set(Some(Fault::Unavailable));
    let processor = world.started().await;
    tokio::time::sleep(30 * SECOND).await;
    assert_eq!(reason(&processor), None, "it has had no time to deliver yet");
    tokio::time::sleep(MINUTE).await;
    let why = reason(&processor).unwrap();
    assert!(why.contains("5 events wait"), "{why}");
    assert!(why.contains("destination default is paused") && why.contains("on purpose"), "{why}");

    world.script.clear();
    world.until_nothing_pending().await;
    tokio::time::sleep(10 * SECOND).await;
    assert_eq!(reason(&processor), None);
}

/// Fewer keys than are an outage: their events are tried again and again, and due only in between.
#[tokio::test(start_paused = true)]
async fn a_destination_that_has_taken_nothing_for_as_long_as_a_stall_is_named_with_its_reason() {
    let world = World::new();
    let patient = ProcessorSettings { outage_patience: HOUR, ..settings() };
    let processor = world.builder().settings(patient).build().unwrap();
    processor.start().await.unwrap();
    tokio::time::sleep(HOUR).await;
    world.script.set(Some(Fault::FailBeforeWrite));
    world.store(&created_at(Timestamp::now() + HOUR, singles(3))).await;
    for _ in 0..11 {
        tokio::time::sleep(5 * SECOND).await;
        assert_eq!(reason(&processor), None, "after a long rest, too, it is given its time");
    }
    tokio::time::sleep(10 * SECOND).await;
    for _ in 0..100 {
        tokio::time::sleep(Duration::from_millis(730)).await;
        let why = reason(&processor).expect("a reason, wherever the events are just now");
        assert!(why.contains("destination default takes nothing for"), "{why}");
        assert!(why.contains("3 keys fail") && why.contains("on purpose"), "{why}");
    }
    world.script.clear();
    world.until_nothing_pending().await;
    tokio::time::sleep(10 * SECOND).await;
    assert_eq!(reason(&processor), None);
}

#[tokio::test(start_paused = true)]
async fn a_bus_that_never_answers_is_not_healthy() {
    let world = World::with(&old(singles(5))).await;
    world.script.set(Some(Fault::HoldResponse));
    let processor = world.started().await;
    tokio::time::sleep(2 * MINUTE).await;
    assert!(reason(&processor).unwrap().contains("events wait and none was acknowledged"));
}

#[tokio::test(start_paused = true)]
async fn what_waits_behind_a_dead_letter_is_a_backlog_that_nobody_delivers() {
    let world = World::with(&old(series("a", 3))).await;
    world.script.fail_next(1, Fault::RejectPermanently);
    let processor = world.started().await;
    tokio::time::sleep(2 * MINUTE).await;
    assert_eq!((world.dead(), world.pending()), (1, 2));
    assert!(reason(&processor).unwrap().contains("2 events wait"));
}

#[tokio::test(start_paused = true)]
async fn a_backlog_that_shrinks_is_healthy_however_slowly() {
    let world = World::with(&old(singles(60))).await;
    let processor = OutboxProcessor::builder(world.outbox.clone())
        .bus(SlowBus::new(40 * SECOND))
        .max_concurrent_events(1)
        .build()
        .unwrap();
    processor.start().await.unwrap();
    for _ in 0..120 {
        tokio::time::sleep(10 * SECOND).await;
        assert_eq!(reason(&processor), None);
    }
    assert!(world.pending() > 20);
}

#[tokio::test(start_paused = true)]
async fn events_whose_time_has_not_come_make_nothing_unhealthy() {
    let delayed = builder("a", 0).available_at(Timestamp::now() + 24 * HOUR).build().unwrap();
    let world = World::with(&old(vec![delayed])).await;
    let processor = world.started().await;
    tokio::time::sleep(HOUR).await;
    assert_eq!(reason(&processor), None);
    let (backlog, age) = processor.statistics().backlog.unwrap();
    assert_eq!((backlog.scheduled, backlog.ready), (1, 0));
    assert!(age < 10 * SECOND, "counts are kept fresh");
}

#[test]
fn a_fresh_event_after_a_long_idle_time_is_given_its_time() {
    let idle = |age: Duration| ProcessorStatistics {
        state: RelayState::Running,
        running_for: 24 * HOUR,
        last_acknowledged: Some(12 * HOUR),
        backlog: Some((
            posthaste_core::Backlog {
                ready: 1,
                oldest_pending_age: age,
                ..posthaste_core::Backlog::default()
            },
            SECOND,
        )),
        ..ProcessorStatistics::default()
    };
    assert_eq!(idle(SECOND).unhealthy_because(MINUTE), None);
    assert!(idle(MINUTE).unhealthy_because(MINUTE).is_some());
}

#[tokio::test(start_paused = true)]
async fn statistics_count_what_happened() {
    let mut events = singles(10);
    let last = events.split_off(9);
    let world = World::with(&events).await;
    world.script.plan(|event, attempt| match (&*event.order_key().to_string(), attempt) {
        ("key-1" | "key-2", 1) => Some(Fault::FailBeforeWrite),
        ("key-3", _) => Some(Fault::RejectPermanently),
        ("key-9", 1) => Some(Fault::Unavailable),
        _ => None,
    });
    let processor = world.started().await;
    world.until_nothing_pending().await;
    // An outage would excuse the others' failures, if it came while these are looked into.
    world.store(&last).await;
    world.until_nothing_pending().await;
    tokio::time::sleep(10 * SECOND).await;
    let statistics = processor.statistics();
    assert_eq!(statistics.delivered, 9);
    assert_eq!((statistics.retried, statistics.dead_lettered), (2, 1));
    assert_eq!(statistics.interrupted, 1);
    assert_eq!((statistics.in_flight, statistics.buffered, statistics.unsettled), (0, 0, 0));
    assert_eq!(statistics.backlog.unwrap().0.dead, 1);
    assert!(statistics.last_acknowledged.unwrap() >= 10 * SECOND);
    assert!(statistics.running_for > statistics.last_acknowledged.unwrap());
    assert_eq!(statistics.destinations.len(), 1);
}
