//! A database that fails: nothing is lost, nothing dies of it, delivery resumes by itself.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use posthaste_processor::{OutboxProcessor, RelayState};
use posthaste_testkit::faults::{Fault, Operation};

use crate::hooked::Hooked;
use crate::support::{
    HOUR, MINUTE, SECOND, World, assert_first_deliveries_in_order, event, ids, interleaved,
    singles, until,
};

#[tokio::test(start_paused = true)]
async fn a_failed_settlement_is_repeated_and_nothing_is_sent_again() {
    for fault in [Fault::FailBeforeWrite, Fault::FailAfterWrite, Fault::Unavailable] {
        let world = World::with(&interleaved(30, 10)).await;
        world.storage.fail_next(Operation::Settle, 5, fault);
        let processor = world.started().await;
        world.until_nothing_pending().await;
        // What was written without an answer is repeated.
        tokio::time::sleep(MINUTE).await;
        assert_eq!(world.dead(), 0);
        world.assert_all_delivered_once();
        assert_eq!(processor.statistics().unsettled, 0);
        assert_first_deliveries_in_order(&world.delivered.published());
    }
}

#[tokio::test(start_paused = true)]
async fn a_retry_whose_record_fails_is_counted_once() {
    for fault in [Fault::FailBeforeWrite, Fault::FailAfterWrite] {
        let failing = event("a", 0);
        let world = World::with(std::slice::from_ref(&failing)).await;
        world.script.fail_next(1, Fault::FailBeforeWrite);
        world.storage.fail_next(Operation::Settle, 2, fault);
        let _processor = world.started().await;
        world.until_nothing_pending().await;
        assert_eq!(world.stored(failing.id()).retry_count(), 1);
        assert_eq!(world.script.attempts(failing.id()), 2);
    }
}

#[tokio::test(start_paused = true)]
async fn while_outcomes_cannot_be_recorded_little_is_sent_and_none_twice() {
    let world = World::with(&singles(1_000)).await;
    world.storage.set(Operation::Settle, Some(Fault::Unavailable));
    let processor = world.started().await;
    tokio::time::sleep(HOUR).await;
    let sent = world.delivered.published().len();
    // As much as fits in memory: batches of 100 and 10 in flight.
    assert!((1..=220).contains(&sent), "{sent} would be sent twice after a crash");
    assert_eq!(world.pending(), 1_000);
    assert_eq!(processor.statistics().state, RelayState::DatabaseUnavailable);

    world.storage.set(Operation::Settle, None);
    world.until_nothing_pending().await;
    world.assert_all_delivered_once();
    assert_eq!(processor.statistics().state, RelayState::Running);
}

/// A check that somebody gave the table, for one type of event; its rows are first in the outbox.
#[tokio::test(start_paused = true)]
async fn rows_that_cannot_be_recorded_hold_up_no_others_however_many_they_are() {
    let refused = singles(150);
    let world = World::with(&refused).await;
    world.storage.refuse_rows(ids(&refused));
    let processor = world.started().await;
    tokio::time::sleep(MINUTE).await;
    for number in 0..40 {
        let good = event(&format!("good {number}"), 0);
        world.store(std::slice::from_ref(&good)).await;
        tokio::time::sleep(5 * SECOND).await;
        assert!(!world.stored(good.id()).is_pending(), "{number} waited for rows that are refused");
    }
    assert_eq!(world.pending(), 150);
    assert_eq!(processor.statistics().state, RelayState::Running);
    assert_eq!(processor.statistics().unsettled, 150);

    world.storage.refuse_rows([]);
    world.until_nothing_pending().await;
    world.assert_all_delivered_once();
}

/// A right that was taken away and given back.
#[tokio::test(start_paused = true)]
async fn once_anything_is_recorded_again_all_that_was_refused_is_tried_at_once() {
    let world = World::with(&singles(50)).await;
    world.storage.set(Operation::Settle, Some(Fault::RejectPermanently));
    let processor = world.started().await;
    tokio::time::sleep(HOUR).await;
    world.storage.set(Operation::Settle, None);
    world.store(&[event("after", 0)]).await;
    tokio::time::sleep(2 * SECOND).await;
    assert_eq!(world.pending(), 0);
    assert_eq!(processor.statistics().state, RelayState::Running);
}

#[tokio::test(start_paused = true)]
async fn while_each_row_is_refused_no_more_is_sent_than_memory_holds_and_none_twice() {
    let events = singles(1_000);
    let world = World::with(&events).await;
    world.storage.set(Operation::Settle, Some(Fault::RejectPermanently));
    let processor = world.started().await;
    tokio::time::sleep(HOUR).await;
    assert_eq!(processor.statistics().state, RelayState::DatabaseUnavailable);
    // As much as fits in memory: batches of 100 and 10 in flight.
    let sent = world.delivered.published().len();
    assert!((1..=220).contains(&sent), "{sent} would be sent twice after a crash");

    world.storage.set(Operation::Settle, None);
    world.until_nothing_pending().await;
    world.assert_all_delivered_once();
    assert_eq!(processor.statistics().state, RelayState::Running);
}

#[tokio::test(start_paused = true)]
async fn each_read_that_fails_is_tried_again() {
    for operation in [
        Operation::Fetch,
        Operation::Watermark,
        Operation::DeadLetters,
        Operation::Backlog,
        Operation::Upkeep,
    ] {
        for fault in [Fault::Unavailable, Fault::FailAfterWrite, Fault::RejectPermanently] {
            let world = World::with(&interleaved(10, 5)).await;
            world.storage.fail_next(operation, 3, fault);
            let processor = world.started().await;
            world.until_nothing_pending().await;
            world.assert_all_delivered_once();
            processor.stop().await;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_database_down_for_an_hour_is_waited_for() {
    let world = World::with(&interleaved(10, 20)).await;
    world.script.plan(|_, attempt| (attempt == 1).then_some(Fault::FailBeforeWrite));
    let processor = world.builder().batch_size(10).build().unwrap();
    processor.start().await.unwrap();
    for _ in 0..3 {
        tokio::time::sleep(2 * SECOND).await;
        world.storage.set_all(Some(Fault::Unavailable));
        tokio::time::sleep(HOUR).await;
        assert!(processor.is_running());
        assert_eq!(processor.statistics().state, RelayState::DatabaseUnavailable);
        assert!(processor.statistics().database_error.is_some());
        world.storage.set_all(None);
    }
    world.until_nothing_pending().await;
    assert_eq!(world.dead(), 0);
    world.assert_all_delivered_once();
    assert_first_deliveries_in_order(&world.delivered.published());
    assert!(processor.statistics().database_error.is_none());
}

#[tokio::test(start_paused = true)]
async fn a_down_database_is_asked_ever_more_rarely() {
    let world = World::with(&singles(1)).await;
    world.storage.set(Operation::Watermark, Some(Fault::Unavailable));
    let _processor = world.started().await;
    tokio::time::sleep(HOUR).await;
    let calls = world.storage.calls(Operation::Watermark);
    assert!((700..1_500).contains(&calls), "{calls} calls in an hour");
}

#[tokio::test(start_paused = true)]
async fn a_pass_ends_with_the_databases_error_and_the_next_one_delivers_the_rest() {
    for operation in [Operation::Fetch, Operation::Watermark, Operation::Settle] {
        let world = World::with(&singles(20)).await;
        world.storage.fail_next(operation, 1, Fault::Unavailable);
        let processor = world.processor();
        let error = processor.process_events().await.unwrap_err();
        assert!(error.report().contains("unavailable on purpose"), "{}", error.report());
        processor.process_events().await.unwrap();
        assert_eq!((world.pending(), world.dead()), (0, 0));
    }
}

#[tokio::test(start_paused = true)]
async fn drain_waits_for_the_database() {
    let world = World::with(&interleaved(5, 5)).await;
    world.storage.fail_next(Operation::Fetch, 10, Fault::Unavailable);
    world.storage.fail_next(Operation::Settle, 10, Fault::FailAfterWrite);
    assert_eq!(world.processor().drain(SECOND).await.unwrap(), 25);
    assert_eq!(world.pending(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_repository_that_panics_hangs_nothing_and_loses_nothing() {
    let world = World::with(&interleaved(10, 10)).await;
    let left = Arc::new(AtomicUsize::new(5));
    let countdown = left.clone();
    let repository = Hooked::new(world.outbox.clone()).around(move |_| {
        let take = |left: usize| left.checked_sub(1);
        let spent = countdown.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take).is_err();
        assert!(spent, "a defect of the repository, on purpose");
    });
    let processor = OutboxProcessor::builder(repository).bus(world.bus.clone()).build().unwrap();
    processor.start().await.unwrap();
    // Panics while it starts, and again in the middle of its work.
    for _ in 0..10 {
        tokio::time::sleep(Duration::from_millis(700)).await;
        left.store(2, Ordering::Relaxed);
        world.store(&singles(20)).await;
    }
    tokio::time::sleep(MINUTE).await;
    assert!(processor.is_running());
    until("nothing is pending", || world.pending() == 0).await;
    world.assert_all_delivered_once();
}
