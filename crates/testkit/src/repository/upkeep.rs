//! What counting and cleaning up promise.

use std::time::Duration;

use anyhow::ensure;
use jiff::{SignedDuration, Timestamp};
use posthaste_core::{Backlog, OutboxAdmin, OutboxRepository, PendingEvent, SettlementOutcome};

use super::{RepositoryHarness, dead, pending, retry_after, settlement};
use crate::samples;

const HOUR: Duration = Duration::from_secs(3_600);
const DAY: Duration = Duration::from_secs(24 * 3_600);

pub(super) async fn backlog_counts_each_phase<H: RepositoryHarness>(
    harness: &H,
) -> anyhow::Result<()> {
    let repository = harness.fresh().await?;
    repository.store(&samples::events(7)?).await?;
    let later = Timestamp::now().checked_add(SignedDuration::from_hours(1))?;
    repository.store(&[samples::builder()?.available_at(later).build()?]).await?;
    let found = pending(&repository).await?;
    repository
        .settle(&[
            settlement(&found[0], SettlementOutcome::Delivered),
            settlement(&found[1], dead()),
            settlement(&found[2], dead()),
            settlement(&found[3], retry_after(HOUR, 1)),
        ])
        .await?;
    let backlog = repository.backlog(0).await?;
    let counts = (backlog.ready, backlog.retrying, backlog.scheduled, backlog.dead);
    ensure!(counts == (3, 1, 1, 2), "ready, retrying, scheduled, dead: {counts:?}");
    let oldest = found[4].event.created_at();
    ensure!(backlog.oldest_pending_at == Some(oldest), "{:?}", backlog.oldest_pending_at);
    ensure!(backlog.oldest_pending_age < HOUR, "age: {:?}", backlog.oldest_pending_age);
    let same = repository.backlog(found[0].seq).await?;
    ensure!(same.pending() == backlog.pending(), "a hint below all pending changed the counts");
    Ok(())
}

pub(super) async fn backlog_of_an_empty_outbox_is_zero<H: RepositoryHarness>(
    harness: &H,
) -> anyhow::Result<()> {
    let repository = harness.fresh().await?;
    let backlog = repository.backlog(0).await?;
    ensure!(backlog == Backlog::default(), "{backlog:?}");
    Ok(())
}

pub(super) async fn cleanup_removes_only_old_delivered_events<H: RepositoryHarness>(
    harness: &H,
) -> anyhow::Result<()> {
    let repository = harness.fresh().await?;
    repository.store(&samples::events(5)?).await?;
    let found = pending(&repository).await?;
    let outcomes: Vec<_> =
        found[..3].iter().map(|event| settlement(event, SettlementOutcome::Delivered)).collect();
    repository.settle(&outcomes).await?;
    repository.settle(&[settlement(&found[3], dead())]).await?;
    repository.cleanup_processed(DAY).await?;
    for event in &found {
        ensure!(is_there(&repository, event).await?, "cleanup removed an event before its time");
    }
    let retention = if harness.age_delivered(&repository, 3 * DAY).await? {
        2 * DAY
    } else {
        // Past the resolution of the store's clock.
        tokio::time::sleep(Duration::from_millis(20)).await;
        Duration::ZERO
    };
    repository.cleanup_processed(retention).await?;
    for event in &found[..3] {
        ensure!(!is_there(&repository, event).await?, "an old delivered event is left");
    }
    ensure!(is_there(&repository, &found[3]).await?, "cleanup removed a dead letter");
    ensure!(is_there(&repository, &found[4]).await?, "cleanup removed a pending event");
    ensure!(repository.cleanup_processed(retention).await? == 0, "nothing was left to remove");
    Ok(())
}

pub(super) async fn check_and_maintain_may_be_repeated<H: RepositoryHarness>(
    harness: &H,
) -> anyhow::Result<()> {
    let repository = harness.fresh().await?;
    repository.store(&samples::events(2)?).await?;
    for _ in 0..3 {
        repository.check().await?;
        repository.maintain().await?;
    }
    ensure!(pending(&repository).await?.len() == 2, "upkeep changed what is pending");
    Ok(())
}

async fn is_there<R: OutboxAdmin>(repository: &R, event: &PendingEvent) -> anyhow::Result<bool> {
    Ok(repository.find_event(event.event.id()).await?.is_some())
}
