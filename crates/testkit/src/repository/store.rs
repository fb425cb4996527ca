//! What storing promises.

use std::time::Duration;

use anyhow::{Context, ensure};
use futures_util::future::try_join_all;
use jiff::{SignedDuration, Timestamp};
use posthaste_core::{
    ErrorStatus, OutboxEvent, OutboxRepository, Payload, PendingSelection, SettlementOutcome,
};
use uuid::Uuid;

use super::{BYTES_MAX, RepositoryHarness, page, pending, pending_events, settlement, stored};
use crate::samples::{self, same_payload};
use crate::skip;

pub(super) async fn stored_events_are_pending_in_the_order_given<H: RepositoryHarness>(
    harness: &H,
) -> anyhow::Result<()> {
    let repository = harness.fresh().await?;
    let events = samples::events(20)?;
    repository.store(&events[..7]).await?;
    repository.store(&events[7..]).await?;
    let found = pending(&repository).await?;
    let values: Vec<_> = found.iter().map(|found| &found.event).collect();
    ensure!(samples::ids(values) == samples::ids(&events), "other events, or another order");
    ensure!(found.windows(2).all(|pair| pair[0].seq < pair[1].seq), "places do not grow");
    ensure!(found.iter().all(|found| found.seq > 0), "places must be positive");
    ensure!(found.iter().all(|found| found.wait.is_zero()), "a new event must be due at once");
    Ok(())
}

pub(super) async fn all_fields_survive_storing<H: RepositoryHarness>(
    harness: &H,
) -> anyhow::Result<()> {
    let repository = harness.fresh().await?;
    let soon = Timestamp::now().checked_add(SignedDuration::from_hours(1))?;
    let full = samples::builder()?
        .id(Uuid::now_v7())
        .aggregate_type("order")
        .order_key("customer-7")
        .destination("billing")
        .topic("orders.placed")
        .header("tenant", "acme")
        .header("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")
        .payload(Payload::json(&serde_json::json!({ "a": [1, 2.5, null, true], "b": {} }))?)
        .available_at(Timestamp::from_millisecond(soon.as_millisecond())?)
        .max_retries(7)
        .build()?;
    compare(&stored(&repository, &full).await?.event, &full)?;
    let bare = samples::event()?;
    compare(&stored(&repository, &bare).await?.event, &bare)
}

pub(super) async fn unicode_and_long_names_survive_storing<H: RepositoryHarness>(
    harness: &H,
) -> anyhow::Result<()> {
    let repository = harness.fresh().await?;
    let text = samples::UNICODE;
    let long = "界".repeat(100);
    let event = OutboxEvent::builder(Uuid::now_v7(), &long)
        .aggregate_type(text)
        .order_key(text)
        .destination(text)
        .topic("t".repeat(255))
        .header("note", text)
        .payload(Payload::json(&serde_json::json!({ text: text }))?)
        .build()?;
    compare(&stored(&repository, &event).await?.event, &event)
}

pub(super) async fn arbitrary_bytes_survive_storing<H: RepositoryHarness>(
    harness: &H,
) -> anyhow::Result<()> {
    let repository = harness.fresh().await?;
    for data in [&b""[..], b"\0", b"\xff\xfe\x00\xc3\x28", b"{not json", b"\0\0'\\"] {
        let payload = Payload::bytes(data, "application/vnd.check+avro; v=1")?;
        let event = samples::builder()?.payload(payload).build()?;
        compare(&stored(&repository, &event).await?.event, &event)
            .with_context(|| format!("payload {data:?}"))?;
    }
    Ok(())
}

pub(super) async fn five_megabytes_survive_storing<H: RepositoryHarness>(
    harness: &H,
) -> anyhow::Result<()> {
    let repository = harness.fresh().await?;
    let bytes = samples::bytes_event(5 * 1024 * 1024)?;
    compare(&stored(&repository, &bytes).await?.event, &bytes)?;
    let json = Payload::json(&serde_json::json!({ "text": "ä".repeat(5 * 512 * 1024) }))?;
    let json = samples::builder()?.payload(json).build()?;
    compare(&stored(&repository, &json).await?.event, &json)
}

pub(super) async fn storing_nothing_changes_nothing<H: RepositoryHarness>(
    harness: &H,
) -> anyhow::Result<()> {
    let repository = harness.fresh().await?;
    repository.store(&[]).await?;
    ensure!(pending(&repository).await?.is_empty());
    Ok(())
}

pub(super) async fn a_duplicate_of_a_pending_event_stores_none_of_its_batch<
    H: RepositoryHarness,
>(
    harness: &H,
) -> anyhow::Result<()> {
    let repository = harness.fresh().await?;
    let first = samples::event()?;
    repository.store(std::slice::from_ref(&first)).await?;
    let batch = [samples::event()?, first.clone(), samples::event()?];
    let error = match repository.store(&batch).await {
        Ok(()) => anyhow::bail!("the same event was stored twice"),
        Err(error) => error,
    };
    ensure!(
        error.status() != ErrorStatus::Unavailable,
        "a duplicate will stay one, yet the error is {}: {}",
        error.kind(),
        error.report()
    );
    // So many that an adapter may need several statements.
    let mut batch = samples::events(4_000)?;
    batch.push(first.clone());
    ensure!(repository.store(&batch).await.is_err(), "the same event was stored twice");
    let found = pending_events(&repository).await?;
    ensure!(samples::ids(&found) == [first.id()], "part of a refused batch was stored");
    Ok(())
}

pub(super) async fn five_thousand_events_are_stored_fetched_and_settled_at_once<
    H: RepositoryHarness,
>(
    harness: &H,
) -> anyhow::Result<()> {
    let repository = harness.fresh().await?;
    let events = samples::series(Uuid::now_v7(), 5_000)?;
    repository.store(&events).await?;
    let found = pending(&repository).await?;
    let values: Vec<_> = found.iter().map(|found| &found.event).collect();
    ensure!(samples::ids(values) == samples::ids(&events), "other events, or another order");
    let places = found.iter().map(|found| found.seq).collect();
    let at = page(&repository, PendingSelection::At(places), 10_000, BYTES_MAX).await?;
    ensure!(at.events.len() == events.len(), "{} found at their places", at.events.len());
    let outcomes: Vec<_> =
        found.iter().map(|found| settlement(found, SettlementOutcome::Delivered)).collect();
    let changed = repository.settle(&outcomes).await?;
    ensure!(changed == events.len() as u64, "{changed} settled");
    ensure!(pending(&repository).await?.is_empty());
    Ok(())
}

pub(super) async fn concurrent_stores_lose_nothing<H: RepositoryHarness>(
    harness: &H,
) -> anyhow::Result<()> {
    const TASKS: usize = 50;
    let repository = harness.fresh().await?;
    let tasks = (0..TASKS).map(|_| {
        let repository = repository.clone();
        tokio::spawn(async move {
            let events = samples::series(Uuid::now_v7(), 4)?;
            for pair in events.chunks(2) {
                repository.store(pair).await?;
            }
            anyhow::Ok(samples::ids(&events))
        })
    });
    let written = try_join_all(tasks).await?;
    let found = samples::ids(&pending_events(&repository).await?);
    ensure!(found.len() == TASKS * 4, "{} of {} events found", found.len(), TASKS * 4);
    for ids in written {
        let ids = ids?;
        let kept: Vec<_> = found.iter().filter(|id| ids.contains(id)).copied().collect();
        ensure!(kept == ids, "a task's events are lost or in another order");
    }
    Ok(())
}

pub(super) async fn events_survive_reopening<H: RepositoryHarness>(
    harness: &H,
) -> anyhow::Result<()> {
    let repository = harness.fresh().await?;
    if !repository.capabilities().durable {
        return Err(skip("the store is not durable"));
    }
    let events = samples::events(3)?;
    repository.store(&events).await?;
    let again = harness.reopen(&repository).await?;
    let again = again.context("a durable store's harness must implement `reopen`")?;
    let found = pending_events(&again).await?;
    ensure!(samples::ids(&found) == samples::ids(&events), "events are lost");
    let later = samples::event()?;
    again.store(std::slice::from_ref(&later)).await?;
    tokio::time::sleep(Duration::from_millis(1)).await;
    let found = samples::ids(&pending_events(&again).await?);
    ensure!(found.last() == Some(&later.id()), "a place was used anew after reopening");
    Ok(())
}

/// All that a writer chose, and the state of a new event.
fn compare(found: &OutboxEvent, expected: &OutboxEvent) -> anyhow::Result<()> {
    let (left, right) = (found.record(), expected.record());
    ensure!(left.id == right.id, "id");
    ensure!(left.aggregate_id == right.aggregate_id, "aggregate_id");
    ensure!(left.aggregate_type == right.aggregate_type, "aggregate_type");
    ensure!(left.event_type == right.event_type, "event_type");
    ensure!(left.order_key == right.order_key, "order_key: {:?}", left.order_key);
    ensure!(left.destination == right.destination, "destination");
    ensure!(left.topic == right.topic, "topic");
    ensure!(left.headers == right.headers, "headers: {:?}", left.headers);
    ensure!(same_payload(&left.payload, &right.payload)?, "payload");
    ensure!(left.payload.content_type() == right.payload.content_type(), "content_type");
    ensure!(left.available_at == right.available_at, "available_at: {:?}", left.available_at);
    ensure!(left.max_retries == right.max_retries, "max_retries");
    ensure!(left.retry_count == 0 && left.error_message.is_none(), "a new event has a history");
    ensure!(found.is_pending(), "a new event is not pending");
    let apart = left.created_at.duration_since(right.created_at).abs();
    ensure!(apart < SignedDuration::from_mins(5), "created_at is {apart:#} off");
    Ok(())
}
