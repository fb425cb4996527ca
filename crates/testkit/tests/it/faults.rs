//! Faults do what their names say.

use std::time::Duration;

use posthaste_core::memory::{MemoryBus, MemoryRepository};
use posthaste_core::{
    ErrorStatus, EventBus, OutboxEvent, OutboxRepository, PendingQuery, PendingSelection,
    PublishResult, Settlement, SettlementOutcome,
};
use posthaste_testkit::faults::{Fault, FaultyBus, FaultyRepository, Operation};
use uuid::Uuid;

fn event(aggregate: Uuid) -> OutboxEvent {
    OutboxEvent::new(aggregate, "test", &1).unwrap()
}

fn status(result: &PublishResult) -> Option<ErrorStatus> {
    result.as_ref().err().map(posthaste_core::Error::status)
}

fn ids(events: &[OutboxEvent]) -> Vec<Uuid> {
    events.iter().map(OutboxEvent::id).collect()
}

#[tokio::test]
async fn each_fault_writes_and_answers_as_its_name_says() {
    for (fault, written, answer) in [
        (Fault::FailBeforeWrite, 0, ErrorStatus::Transient),
        (Fault::FailAfterWrite, 1, ErrorStatus::Transient),
        (Fault::RejectPermanently, 0, ErrorStatus::Permanent),
        (Fault::Unavailable, 0, ErrorStatus::Unavailable),
    ] {
        let bus = FaultyBus::new(MemoryBus::new());
        bus.script().fail_next(1, fault);
        let event = event(Uuid::nil());
        let results = bus.publish(std::slice::from_ref(&event)).await;
        assert_eq!(status(&results[0]), Some(answer), "{fault:?}");
        assert_eq!(bus.inner().published().len(), written, "{fault:?}");
        assert!(bus.publish(std::slice::from_ref(&event)).await[0].is_ok());
        assert_eq!(bus.script().attempts(event.id()), 2);
        assert_eq!(bus.script().calls().len(), 2);
    }
}

#[tokio::test]
async fn a_held_response_comes_when_it_is_released_and_the_write_came_before() {
    let bus = FaultyBus::new(MemoryBus::new());
    let script = bus.script();
    script.fail_next(1, Fault::HoldResponse);
    let inner = bus.inner().clone();
    let call = tokio::spawn(async move { bus.publish(&[event(Uuid::nil())]).await });
    script.until_held(1).await;
    assert_eq!(inner.published().len(), 1);
    tokio::time::sleep(Duration::from_millis(20)).await;
    assert!(!call.is_finished());
    script.release();
    assert!(call.await.unwrap()[0].is_ok());
}

#[tokio::test]
async fn nothing_of_a_key_follows_its_failure_within_a_call() {
    let (poisoned, healthy) = (Uuid::now_v7(), Uuid::now_v7());
    let batch = [event(poisoned), event(healthy), event(poisoned), event(healthy)];
    let bus = FaultyBus::new(MemoryBus::new());
    let bad = batch[0].id();
    bus.script().plan(move |event, attempt| {
        (event.id() == bad && attempt == 1).then_some(Fault::FailBeforeWrite)
    });
    let results = bus.publish(&batch).await;
    assert_eq!(results.iter().map(Result::is_ok).collect::<Vec<_>>(), [false, true, false, true]);
    assert_eq!(ids(&bus.inner().published()), [batch[1].id(), batch[3].id()]);
    assert!(bus.publish(&batch[..1]).await[0].is_ok());
}

#[tokio::test]
async fn an_outage_lasts_until_it_is_cleared() {
    let bus = FaultyBus::new(MemoryBus::new());
    bus.script().set(Some(Fault::Unavailable));
    for _ in 0..3 {
        assert_eq!(
            status(&bus.publish(&[event(Uuid::nil())]).await[0]),
            Some(ErrorStatus::Unavailable)
        );
    }
    assert!(bus.check().await.is_err());
    bus.script().set(None);
    assert!(bus.check().await.is_ok());
    assert!(bus.publish(&[event(Uuid::nil())]).await[0].is_ok());
    assert_eq!(bus.inner().published().len(), 1);
}

async fn only_pending(repository: &impl OutboxRepository) -> Option<(i64, Uuid)> {
    let selection = PendingSelection::Forward { gaps: Vec::new(), after: 0 };
    let query = PendingQuery { leases: None, selection, events_max: 10, bytes_max: 1_000_000 };
    let page = repository.fetch_pending(&query).await.unwrap();
    page.events.first().map(|found| (found.seq, found.event.id()))
}

#[tokio::test]
async fn a_settlement_takes_effect_only_where_the_fault_comes_after_it() {
    for (fault, pending_after) in
        [(Fault::FailBeforeWrite, true), (Fault::Unavailable, true), (Fault::FailAfterWrite, false)]
    {
        let repository = FaultyRepository::new(MemoryRepository::new());
        repository.store(&[event(Uuid::nil())]).await.unwrap();
        let (seq, id) = only_pending(&repository).await.unwrap();
        repository.script().fail_next(Operation::Settle, 1, fault);
        let batch = [Settlement { lease: None, seq, id, outcome: SettlementOutcome::Delivered }];
        let error = repository.settle(&batch).await.unwrap_err();
        assert_eq!(error.status(), ErrorStatus::Unavailable, "{fault:?}");
        assert_eq!(only_pending(&repository).await.is_some(), pending_after, "{fault:?}");
        assert!(repository.settle(&batch).await.is_ok());
        assert!(only_pending(&repository).await.is_none());
        assert_eq!(repository.script().settlements(), [batch.to_vec(), batch.to_vec()]);
        assert_eq!(repository.script().calls(Operation::Settle), 2);
    }
}

#[tokio::test]
async fn an_outage_of_the_database_concerns_every_operation() {
    let repository = FaultyRepository::new(MemoryRepository::new());
    repository.script().set_all(Some(Fault::Unavailable));
    assert!(repository.check().await.is_err());
    assert!(repository.store(&[event(Uuid::nil())]).await.is_err());
    assert!(repository.watermark().await.is_err());
    assert!(repository.backlog(0).await.is_err());
    repository.script().set_all(None);
    assert!(repository.check().await.is_ok());
    assert_eq!(only_pending(&repository).await, None);
}
