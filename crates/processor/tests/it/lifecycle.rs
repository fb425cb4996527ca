//! Start, stop, one pass, drain.

use std::time::Duration;

use jiff::Timestamp;
use posthaste_core::{ErrorKind, OutboxRepository, RetryPolicy};
use posthaste_processor::{ProcessorSettings, RelayState, StopReport};
use posthaste_testkit::faults::{Fault, Operation};

use crate::support::{HOUR, MINUTE, SECOND, World, builder, event, ids, settings, singles, until};

fn in_an_hour() -> Timestamp {
    Timestamp::now() + HOUR
}

#[tokio::test(start_paused = true)]
async fn a_started_processor_delivers_what_is_and_what_comes_until_it_is_stopped() {
    let world = World::with(&singles(3)).await;
    let processor = world.processor();
    assert!(!processor.is_running());
    processor.start().await.unwrap();
    assert!(processor.is_running());
    world.until_nothing_pending().await;
    world.store(&[event("late", 0)]).await;
    world.until_nothing_pending().await;

    assert_eq!(processor.stop().await, StopReport::default());
    assert!(!processor.is_running());
    assert_eq!(processor.statistics().state, RelayState::Stopped);
    world.assert_all_delivered_once();

    world.store(&[event("later", 0)]).await;
    tokio::time::sleep(MINUTE).await;
    assert_eq!(world.pending(), 1, "a stopped processor delivers nothing");
}

#[tokio::test(start_paused = true)]
async fn while_it_runs_every_second_start_is_a_conflict_and_the_first_goes_on() {
    let world = World::new();
    let processor = world.started().await;
    assert_eq!(processor.start().await.unwrap_err().kind(), ErrorKind::Conflict);
    assert_eq!(processor.process_events().await.unwrap_err().kind(), ErrorKind::Conflict);
    assert_eq!(processor.drain(SECOND).await.unwrap_err().kind(), ErrorKind::Conflict);
    assert_eq!(processor.clone().start().await.unwrap_err().kind(), ErrorKind::Conflict);

    assert!(processor.is_running());
    world.store(&singles(2)).await;
    world.until_nothing_pending().await;
}

#[tokio::test(start_paused = true)]
async fn a_stopped_processor_starts_again_and_keeps_its_counts() {
    let world = World::with(&singles(2)).await;
    let processor = world.started().await;
    world.until_nothing_pending().await;
    processor.stop().await;
    world.store(&singles(3)).await;
    processor.start().await.unwrap();
    world.until_nothing_pending().await;
    processor.stop().await;
    assert_eq!(processor.statistics().delivered, 5);
    assert_eq!(processor.process_events().await.unwrap(), 0);
}

#[tokio::test(start_paused = true)]
async fn stop_without_a_run_does_nothing() {
    let processor = World::new().processor();
    assert_eq!(processor.stop().await, StopReport::default());
    processor.start().await.unwrap();
    processor.stop().await;
    assert_eq!(processor.stop().await, StopReport::default());
}

#[tokio::test(start_paused = true)]
async fn a_database_that_is_away_refuses_a_pass_and_leaves_it_startable() {
    let world = World::with(&singles(1)).await;
    world.storage.set(Operation::Check, Some(Fault::Unavailable));
    let processor = world.processor();
    assert!(processor.process_events().await.is_err());
    assert!(processor.drain(SECOND).await.is_err());

    world.storage.set(Operation::Check, None);
    processor.start().await.unwrap();
    world.until_nothing_pending().await;
}

#[tokio::test(start_paused = true)]
async fn stop_waits_for_acknowledgements_on_their_way_and_records_them() {
    let world = World::with(&singles(4)).await;
    world.script.set(Some(Fault::HoldResponse));
    let processor = world.builder().max_concurrent_events(1).poll_interval(SECOND).build().unwrap();
    processor.start().await.unwrap();
    world.script.until_held(1).await;

    let stopping = tokio::spawn({
        let processor = processor.clone();
        async move { processor.stop().await }
    });
    tokio::time::sleep(10 * SECOND).await;
    assert!(!stopping.is_finished());
    assert_eq!(processor.statistics().state, RelayState::Draining);
    world.script.release();

    let report = stopping.await.unwrap();
    assert_eq!((report.unacknowledged, report.unsettled, report.returned), (0, 0, 3));
    assert_eq!(world.delivered.published().len(), 1, "nothing new is sent while stopping");
    assert_eq!(world.pending(), 3);
}

#[tokio::test(start_paused = true)]
async fn stop_gives_up_at_its_timeout_and_reports_what_it_leaves_pending() {
    let world = World::with(&singles(5)).await;
    world.script.set(Some(Fault::HoldResponse));
    let changed =
        ProcessorSettings { max_concurrent_events: 2, shutdown_timeout: 7 * SECOND, ..settings() };
    let processor = world.builder().settings(changed).build().unwrap();
    processor.start().await.unwrap();
    world.script.until_held(2).await;

    let report = processor.stop().await;
    assert_eq!((report.unacknowledged, report.unsettled, report.returned), (2, 0, 3));
    assert_eq!(report.failure, None);
    assert_eq!(world.pending(), 5);

    world.script.clear();
    processor.start().await.unwrap();
    world.until_nothing_pending().await;
}

#[tokio::test(start_paused = true)]
async fn stop_reports_what_was_acknowledged_and_could_not_be_recorded() {
    let world = World::with(&singles(5)).await;
    world.storage.set(Operation::Settle, Some(Fault::Unavailable));
    let processor = world.started().await;
    until("all are acknowledged", || world.delivered.published().len() == 5).await;
    let report = processor.stop().await;
    assert_eq!((report.unacknowledged, report.unsettled, report.returned), (0, 5, 0));
    assert_eq!(world.pending(), 5, "they are delivered again at the next start");
}

#[tokio::test(start_paused = true)]
async fn the_longest_shutdown_timeout_there_is_waits_without_end() {
    let world = World::with(&singles(1)).await;
    world.script.set(Some(Fault::HoldResponse));
    let changed = ProcessorSettings { shutdown_timeout: Duration::MAX, ..settings() };
    let processor = world.builder().settings(changed).build().unwrap();
    processor.start().await.unwrap();
    world.script.until_held(1).await;
    let stopping = tokio::spawn(async move { processor.stop().await });
    tokio::time::sleep(HOUR).await;
    world.script.release();
    assert_eq!(stopping.await.unwrap(), StopReport::default());
    assert_eq!(world.pending(), 0);
}

#[tokio::test(start_paused = true)]
async fn dropping_the_last_clone_stops() {
    let world = World::with(&singles(1)).await;
    let first = world.started().await;
    let last = first.clone();
    drop(first);
    world.until_nothing_pending().await;
    assert!(last.is_running());
    drop(last);

    tokio::time::sleep(SECOND).await;
    world.store(&singles(1)).await;
    let asked = world.storage.calls(Operation::Watermark);
    tokio::time::sleep(HOUR).await;
    assert_eq!(world.storage.calls(Operation::Watermark), asked, "the database is left alone");
    assert_eq!(world.pending(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_pass_offers_each_due_event_once_and_counts_what_was_delivered() {
    let mut events = singles(250);
    let failing = events[120].id();
    events.push(builder("delayed", 0).available_at(in_an_hour()).build().unwrap());
    let world = World::with(&events).await;
    world.script.plan(move |event, _| (event.id() == failing).then_some(Fault::FailBeforeWrite));

    let processor = world.processor();
    assert_eq!(processor.process_events().await.unwrap(), 249);
    assert!(!processor.is_running());
    assert!(events[..250].iter().all(|event| world.script.attempts(event.id()) == 1));
    assert_eq!(world.script.attempts(events[250].id()), 0, "its time has not come");
    assert_eq!(world.pending(), 2);

    assert_eq!(processor.process_events().await.unwrap(), 0, "the retry is not due yet");
    assert_eq!(world.script.attempts(failing), 1);
    world.store(&[event("new", 0)]).await;
    assert_eq!(processor.process_events().await.unwrap(), 1, "the count is that of one pass");
}

#[tokio::test(start_paused = true)]
async fn a_pass_offers_no_event_twice_however_soon_its_retry_is_due() {
    let world = World::with(&singles(3)).await;
    world.script.set(Some(Fault::FailBeforeWrite));
    let soon = RetryPolicy { base_delay: Duration::from_millis(1), ..RetryPolicy::default() };
    let processor = world.builder().retry_policy(soon).build().unwrap();
    for pass in 1..=2 {
        let begun = tokio::time::Instant::now();
        assert_eq!(processor.process_events().await.unwrap(), 0);
        assert!(begun.elapsed() < Duration::from_millis(100), "it waits for a verdict");
        for event in world.outbox.events() {
            assert_eq!((world.script.attempts(event.id()), event.retry_count()), (pass, pass));
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_pass_takes_the_whole_of_a_key() {
    let world = World::with(&crate::support::interleaved(3, 150)).await;
    assert_eq!(world.processor().process_events().await.unwrap(), 450);
    world.assert_all_delivered_once();
}

#[tokio::test(start_paused = true)]
async fn a_pass_ends_while_a_destination_is_down() {
    let world = World::with(&singles(1_000)).await;
    world.script.set(Some(Fault::Unavailable));
    let processor = world.processor();
    assert_eq!(processor.process_events().await.unwrap(), 0);
    assert_eq!(world.pending(), 1_000);
    world.script.clear();
    assert_eq!(processor.process_events().await.unwrap(), 1_000);
}

#[tokio::test(start_paused = true)]
async fn drain_waits_for_retries_and_outages_but_not_for_distant_or_blocked_events() {
    let mut events = singles(20);
    events.push(builder("distant", 0).available_at(in_an_hour()).build().unwrap());
    events.extend([event("blocked", 0), event("blocked", 1)]);
    let world = World::with(&events).await;
    world.script.plan(|event, attempt| match (&*event.order_key().to_string(), attempt) {
        ("blocked", _) => Some(Fault::RejectPermanently),
        ("key-3", 1 | 2) => Some(Fault::FailBeforeWrite),
        ("key-5" | "key-6", 1..=4) => Some(Fault::Unavailable),
        _ => None,
    });

    assert_eq!(world.processor().drain(MINUTE).await.unwrap(), 20);
    let delivered = ids(&world.delivered.published());
    assert!(events[..20].iter().all(|event| delivered.contains(&event.id())));
    assert_eq!((world.pending(), world.dead()), (2, 1));
}

#[tokio::test(start_paused = true)]
async fn drain_waits_for_events_delayed_within_its_patience() {
    let soon = Timestamp::now() + 20 * SECOND;
    let events = [builder("soon", 0).available_at(soon).build().unwrap(), event("now", 0)];
    let world = World::with(&events).await;
    assert_eq!(world.processor().drain(SECOND).await.unwrap(), 1);
    assert_eq!(world.processor().drain(MINUTE).await.unwrap(), 1);
}

#[tokio::test(start_paused = true)]
async fn drain_can_be_ended_by_stop() {
    let world = World::with(&singles(3)).await;
    world.script.set(Some(Fault::Unavailable));
    let processor = world.processor();
    let draining = tokio::spawn({
        let processor = processor.clone();
        async move { processor.drain(HOUR).await }
    });
    tokio::time::sleep(MINUTE).await;
    assert!(!draining.is_finished());
    processor.stop().await;
    assert_eq!(draining.await.unwrap().unwrap(), 0);
    assert_eq!(world.pending(), 3);
}

#[tokio::test(start_paused = true)]
async fn a_dropped_pass_leaves_the_processor_usable() {
    let world = World::with(&singles(1)).await;
    world.script.set(Some(Fault::HoldResponse));
    let processor = world.processor();
    assert!(tokio::time::timeout(SECOND, processor.process_events()).await.is_err());
    world.script.clear();
    assert_eq!(processor.process_events().await.unwrap(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_stop_that_is_not_waited_for_leaves_the_processor_startable() {
    let world = World::with(&singles(1)).await;
    world.script.set(Some(Fault::HoldResponse));
    let processor = world.started().await;
    world.script.until_held(1).await;
    assert!(tokio::time::timeout(SECOND, processor.stop()).await.is_err());
    world.script.clear();
    tokio::time::sleep(SECOND).await;
    processor.start().await.unwrap();
    world.until_nothing_pending().await;
}

#[tokio::test(start_paused = true)]
async fn cleanup_removes_delivered_events_and_never_a_pending_or_dead_one() {
    let dead = event("dead", 0);
    let delayed = builder("delayed", 0).available_at(in_an_hour()).build().unwrap();
    let world = World::with(&[event("sent", 0), dead.clone(), delayed.clone()]).await;
    let poison = dead.id();
    world.script.plan(move |event, _| (event.id() == poison).then_some(Fault::RejectPermanently));
    let processor = world.processor();
    processor.process_events().await.unwrap();

    assert_eq!(ids(&processor.get_failed_events(10).await.unwrap()), [dead.id()]);
    assert_eq!(processor.cleanup_processed_events(HOUR).await.unwrap(), 0, "it is too young");
    tokio::time::sleep(SECOND).await;
    assert_eq!(processor.cleanup_processed_events(Duration::ZERO).await.unwrap(), 1);
    assert_eq!(ids(&world.outbox.events()), [dead.id(), delayed.id()]);
}

#[tokio::test(start_paused = true)]
async fn a_running_processor_cleans_up_past_the_retention_unless_told_to_keep_all() {
    for (retention, left) in [(Some(Duration::ZERO), 0), (None, 1)] {
        let world = World::with(&singles(1)).await;
        let with = |retention| {
            world.builder().settings(ProcessorSettings { retention, ..settings() }).build().unwrap()
        };
        // What was delivered while events were still kept.
        with(None).process_events().await.unwrap();
        assert_eq!(world.outbox.events().len(), 1);
        let processor = with(retention);
        processor.start().await.unwrap();
        tokio::time::sleep(HOUR).await;
        assert_eq!(world.repository.failed_events(1).await.unwrap().len(), 0);
        assert_eq!(world.outbox.events().len(), left);
    }
}

#[tokio::test(start_paused = true)]
async fn without_retention_what_is_delivered_is_gone_at_once_and_nothing_else() {
    let [sent, dead, retried] = ["sent", "dead", "retried"].map(|key| event(key, 0));
    let world = World::with(&[sent, dead.clone(), retried.clone()]).await;
    let (poison, flaky) = (dead.id(), retried.id());
    world.script.plan(move |event, attempt| match event.id() {
        id if id == poison => Some(Fault::RejectPermanently),
        id if id == flaky && attempt == 1 => Some(Fault::FailBeforeWrite),
        _ => None,
    });
    let changed = ProcessorSettings { retention: Some(Duration::ZERO), ..settings() };
    let processor = world.builder().settings(changed).build().unwrap();
    // No upkeep runs beside a pass in the foreground.
    assert_eq!(processor.process_events().await.unwrap(), 1);
    assert_eq!(ids(&world.outbox.events()), [dead.id(), retried.id()]);
    assert_eq!(world.outbox.events()[1].retry_count(), 1);
    assert_eq!(processor.drain(HOUR).await.unwrap(), 1);
    assert_eq!(ids(&world.outbox.events()), [dead.id()]);
    assert!(world.outbox.events()[0].is_dead());
}
