//! What settling and dead letters promise.

use std::time::Duration;

use anyhow::{Context, ensure};
use posthaste_core::{
    EventFilter, EventState, OrderKey, OutboxAdmin, OutboxEvent, OutboxRepository, PendingEvent,
    Settlement, SettlementOutcome,
};
use uuid::Uuid;

use super::{RepositoryHarness, dead, pending, pending_events, retry_after, settlement, stored};
use crate::{samples, skip};

const HOUR: Duration = Duration::from_secs(3_600);
const REMOVED: SettlementOutcome = SettlementOutcome::DeliveredAndRemoved;

pub(super) async fn delivered_events_are_no_longer_pending<H: RepositoryHarness>(
    harness: &H,
) -> anyhow::Result<()> {
    let repository = harness.fresh().await?;
    repository.store(&samples::events(3)?).await?;
    let found = pending(&repository).await?;
    settle_one(&repository, &found[1], SettlementOutcome::Delivered).await?;
    let left = samples::ids(&pending_events(&repository).await?);
    ensure!(left == [found[0].event.id(), found[2].event.id()], "the wrong events are pending");
    let delivered = find(&repository, found[1].event.id()).await?;
    ensure!(delivered.processed_at().is_some(), "processed_at is not set");
    ensure!(!delivered.is_dead(), "a delivered event is dead");
    Ok(())
}

/// It leaves no trace: not in the history, and no reason for relays to read from the start. Its place
/// is not used anew.
pub(super) async fn what_is_delivered_and_not_kept_is_gone<H: RepositoryHarness>(
    harness: &H,
) -> anyhow::Result<()> {
    let repository = harness.fresh().await?;
    repository.store(&samples::events(4)?).await?;
    let found = pending(&repository).await?;
    let before = repository.watermark().await?;
    let removals = [&found[1], &found[3]].map(|event| settlement(event, REMOVED));
    let changed = repository.settle(&removals).await?;
    ensure!(changed == 2, "{changed} changed");
    let left = pending(&repository).await?;
    ensure!(left == [found[0].clone(), found[2].clone()], "what is pending is not what was left");
    for event in [&found[1], &found[3]] {
        let found = repository.find_event(event.event.id()).await?;
        ensure!(found.is_none(), "an event that is not to be kept was kept: {found:?}");
    }
    let delivered = EventFilter::in_state(EventState::Delivered);
    ensure!(repository.count_events(&delivered, 10).await? == 0, "there is a history");
    let after = repository.watermark().await?;
    ensure!(after.revision == before.revision, "relays would read from the start");
    ensure!(after.high >= before.high, "numbers went back from {} to {}", before.high, after.high);
    let next = stored(&repository, &samples::event()?).await?;
    ensure!(next.seq > found[3].seq, "the place of a removed event is used anew");
    let kept = settlement(&found[0], SettlementOutcome::Delivered);
    let changed = repository.settle(&[kept, settlement(&found[2], REMOVED)]).await?;
    ensure!(changed == 2, "{changed} changed of one to keep and one not");
    ensure!(pending(&repository).await? == [next], "one to keep and one not were not both settled");
    ensure!(find(&repository, found[0].event.id()).await?.processed_at().is_some());
    Ok(())
}

pub(super) async fn only_what_is_pending_is_removed<H: RepositoryHarness>(
    harness: &H,
) -> anyhow::Result<()> {
    let repository = harness.fresh().await?;
    repository.store(&samples::events(5)?).await?;
    let found = pending(&repository).await?;
    repository
        .settle(&[
            settlement(&found[0], SettlementOutcome::Delivered),
            settlement(&found[1], dead()),
            settlement(&found[2], retry_after(HOUR, 1)),
            settlement(&found[3], REMOVED),
        ])
        .await?;
    let removals: Vec<Settlement> = found.iter().map(|event| settlement(event, REMOVED)).collect();
    for (removals, expected) in [(&removals[..2], 0), (&removals[3..4], 0), (&removals[..4], 1)] {
        let changed = repository.settle(removals).await?;
        ensure!(changed == expected, "{changed} changed instead of {expected}");
    }
    let delivered = find(&repository, found[0].event.id()).await?;
    ensure!(delivered.processed_at().is_some(), "what was delivered before is in the history");
    ensure!(find(&repository, found[1].event.id()).await?.is_dead(), "a dead letter is gone");
    let retried = repository.find_event(found[2].event.id()).await?;
    ensure!(retried.is_none(), "an event that was delivered by a retry was kept");
    ensure!(only_pending(&repository).await? == found[4], "an event that was not settled changed");
    Ok(())
}

pub(super) async fn a_retry_stays_pending_with_its_count_error_and_wait<H: RepositoryHarness>(
    harness: &H,
) -> anyhow::Result<()> {
    let repository = harness.fresh().await?;
    let event = stored(&repository, &samples::event()?).await?;
    settle_one(&repository, &event, retry_after(HOUR, 2)).await?;
    let found = only_pending(&repository).await?;
    ensure!(found.seq == event.seq, "a retry moved to another place");
    ensure!(found.event.retry_count() == 2, "retry_count is {}", found.event.retry_count());
    ensure!(found.event.error_message() == Some("publish: it failed"), "error_message is lost");
    let near = HOUR - Duration::from_secs(300)..=HOUR;
    ensure!(near.contains(&found.wait), "wait is {:?}", found.wait);
    Ok(())
}

pub(super) async fn a_dead_letter_stays_visible_and_is_not_fetched<H: RepositoryHarness>(
    harness: &H,
) -> anyhow::Result<()> {
    let repository = harness.fresh().await?;
    let event = stored(&repository, &samples::event()?).await?;
    settle_one(&repository, &event, dead()).await?;
    ensure!(pending(&repository).await?.is_empty(), "a dead letter is fetched");
    let found = find(&repository, event.event.id()).await?;
    ensure!(found.is_dead() && found.processed_at().is_none(), "it is not dead");
    ensure!(found.dead_reason() == Some("retries_exhausted"), "{:?}", found.dead_reason());
    ensure!(found.error_message() == Some("no"), "{:?}", found.error_message());
    ensure!(found.retry_count() == 3, "retry_count is {}", found.retry_count());
    Ok(())
}

pub(super) async fn one_batch_may_hold_every_outcome<H: RepositoryHarness>(
    harness: &H,
) -> anyhow::Result<()> {
    let repository = harness.fresh().await?;
    repository.store(&samples::events(5)?).await?;
    let found = pending(&repository).await?;
    let changed = repository
        .settle(&[
            settlement(&found[0], dead()),
            settlement(&found[1], SettlementOutcome::Delivered),
            settlement(&found[2], retry_after(HOUR, 1)),
            settlement(&found[4], REMOVED),
        ])
        .await?;
    ensure!(changed == 4, "{changed} changed");
    let left = samples::ids(&pending_events(&repository).await?);
    ensure!(left == [found[2].event.id(), found[3].event.id()], "the wrong events are pending");
    let third = find(&repository, found[2].event.id()).await?;
    let fourth = find(&repository, found[3].event.id()).await?;
    ensure!(third.retry_count() == 1 && fourth.retry_count() == 0, "retry_count of another event");
    ensure!(find(&repository, found[0].event.id()).await?.is_dead(), "the dead letter is not dead");
    let delivered = find(&repository, found[1].event.id()).await?;
    ensure!(delivered.processed_at().is_some(), "processed_at is not set");
    ensure!(repository.settle(&[]).await? == 0, "settling nothing changed something");
    Ok(())
}

pub(super) async fn settling_again_changes_nothing<H: RepositoryHarness>(
    harness: &H,
) -> anyhow::Result<()> {
    let repository = harness.fresh().await?;
    repository.store(&samples::events(2)?).await?;
    let found = pending(&repository).await?;
    let outcomes =
        [settlement(&found[0], SettlementOutcome::Delivered), settlement(&found[1], dead())];
    ensure!(repository.settle(&outcomes).await? == 2);
    ensure!(repository.settle(&outcomes).await? == 0, "a repeated settlement changed something");
    let other =
        [settlement(&found[0], dead()), settlement(&found[1], SettlementOutcome::Delivered)];
    ensure!(repository.settle(&other).await? == 0, "an event that was settled was settled anew");
    ensure!(!find(&repository, found[0].event.id()).await?.is_dead(), "a delivered event died");
    ensure!(find(&repository, found[1].event.id()).await?.is_dead(), "a dead letter came alive");
    Ok(())
}

pub(super) async fn a_repeated_retry_does_not_count_twice<H: RepositoryHarness>(
    harness: &H,
) -> anyhow::Result<()> {
    let repository = harness.fresh().await?;
    let event = stored(&repository, &samples::event()?).await?;
    for _ in 0..3 {
        repository.settle(&[settlement(&event, retry_after(HOUR, 1))]).await?;
    }
    let count = only_pending(&repository).await?.event.retry_count();
    ensure!(count == 1, "retry_count is {count} after repeating one settlement");
    Ok(())
}

pub(super) async fn a_settlement_with_another_id_changes_nothing<H: RepositoryHarness>(
    harness: &H,
) -> anyhow::Result<()> {
    let repository = harness.fresh().await?;
    let event = stored(&repository, &samples::event()?).await?;
    for outcome in [SettlementOutcome::Delivered, REMOVED, retry_after(HOUR, 1), dead()] {
        let strange = Settlement {
            lease: None,
            seq: event.seq,
            id: Uuid::now_v7(),
            outcome: outcome.clone(),
        };
        let nowhere =
            Settlement { lease: None, seq: event.seq + 100, id: event.event.id(), outcome };
        let changed = repository.settle(&[strange, nowhere]).await?;
        ensure!(changed == 0, "{changed} changed");
    }
    ensure!(only_pending(&repository).await? == event, "the event changed");
    Ok(())
}

pub(super) async fn any_error_text_can_be_settled<H: RepositoryHarness>(
    harness: &H,
) -> anyhow::Result<()> {
    let repository = harness.fresh().await?;
    // What a broker says is not ours to choose. A text that the store refuses would keep the whole
    // batch from being settled, again and again.
    for text in
        ["nul \0 in the middle", samples::UNICODE, "", "line\r\nbreak", &"long ".repeat(20_000)]
    {
        let event = stored(&repository, &samples::event()?).await?;
        let retry = SettlementOutcome::Retry { retry_count: 1, delay: HOUR, error: text.into() };
        settle_one(&repository, &event, retry).await.with_context(|| format!("{text:.20?}"))?;
        let dead =
            SettlementOutcome::Dead { retry_count: 2, reason: "rejected", error: text.into() };
        settle_one(&repository, &event, dead).await.with_context(|| format!("{text:.20?}"))?;
        ensure!(find(&repository, event.event.id()).await?.is_dead());
    }
    Ok(())
}

pub(super) async fn settlements_survive_reopening<H: RepositoryHarness>(
    harness: &H,
) -> anyhow::Result<()> {
    let repository = harness.fresh().await?;
    if !repository.capabilities().durable {
        return Err(skip("the store is not durable"));
    }
    repository.store(&samples::events(4)?).await?;
    let found = pending(&repository).await?;
    repository
        .settle(&[
            settlement(&found[0], SettlementOutcome::Delivered),
            settlement(&found[1], dead()),
            settlement(&found[3], REMOVED),
        ])
        .await?;
    let again = harness.reopen(&repository).await?;
    let again = again.context("a durable store's harness must implement `reopen`")?;
    let left = samples::ids(&pending_events(&again).await?);
    ensure!(left == [found[2].event.id()], "settlements are lost");
    Ok(())
}

pub(super) async fn dead_heads_are_paged_by_place<H: RepositoryHarness>(
    harness: &H,
) -> anyhow::Result<()> {
    let repository = harness.fresh().await?;
    let aggregate = Uuid::now_v7();
    repository.store(&samples::series(aggregate, 4)?).await?;
    repository
        .store(&[samples::builder()?.order_key("named").destination("billing").build()?])
        .await?;
    let found = pending(&repository).await?;
    // Dead in another order than stored, one delivered, one left pending.
    for index in [4, 2, 0] {
        settle_one(&repository, &found[index], dead()).await?;
    }
    settle_one(&repository, &found[1], SettlementOutcome::Delivered).await?;
    let first = repository.dead_heads(0, 2).await?;
    let expected = [found[0].seq, found[2].seq];
    ensure!(first.iter().map(|head| head.seq).eq(expected), "first page: {first:?}");
    ensure!(first[0].key == OrderKey::Aggregate(aggregate), "key: {:?}", first[0].key);
    let second = repository.dead_heads(found[2].seq, 2).await?;
    ensure!(second.len() == 1 && second[0].seq == found[4].seq, "second page: {second:?}");
    ensure!(second[0].key == OrderKey::named("named")?, "key: {:?}", second[0].key);
    ensure!(second[0].destination.as_deref() == Some("billing"), "{:?}", second[0].destination);
    ensure!(first[0].destination.is_none(), "{:?}", first[0].destination);
    ensure!(&*first[0].event_type == "check.numbered", "{:?}", first[0].event_type);
    Ok(())
}

pub(super) async fn failed_events_are_the_dead_letters_oldest_first<H: RepositoryHarness>(
    harness: &H,
) -> anyhow::Result<()> {
    let repository = harness.fresh().await?;
    repository.store(&samples::events(5)?).await?;
    let found = pending(&repository).await?;
    for index in [3, 1, 4] {
        settle_one(&repository, &found[index], dead()).await?;
    }
    settle_one(&repository, &found[0], retry_after(HOUR, 1)).await?;
    let all = samples::ids(&repository.failed_events(10).await?);
    let expected = [1, 3, 4].map(|index: usize| found[index].event.id());
    ensure!(all == expected, "not the dead letters, oldest first");
    let two = samples::ids(&repository.failed_events(2).await?);
    ensure!(two == expected[..2], "limit 2 gives {}", two.len());
    Ok(())
}

async fn settle_one<R: OutboxRepository>(
    repository: &R,
    event: &PendingEvent,
    outcome: SettlementOutcome,
) -> anyhow::Result<()> {
    let changed = repository.settle(&[settlement(event, outcome)]).await?;
    ensure!(changed == 1, "settling one event changed {changed}");
    Ok(())
}

async fn find<R: OutboxAdmin>(repository: &R, id: Uuid) -> anyhow::Result<OutboxEvent> {
    repository.find_event(id).await?.context("a stored event is not found")
}

async fn only_pending<R: OutboxRepository>(repository: &R) -> anyhow::Result<PendingEvent> {
    let mut found = pending(repository).await?;
    ensure!(found.len() == 1, "{} events are pending", found.len());
    found.pop().context("one event")
}
