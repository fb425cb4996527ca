//! What fetching and the watermark promise.

use std::time::Duration;

use anyhow::ensure;
use jiff::{SignedDuration, Timestamp};
use posthaste_core::{
    HeadSelection, OrderKey, OutboxRepository, PendingEvent, PendingSelection, Seq,
    SettlementOutcome,
};
use uuid::Uuid;

use super::{BYTES_MAX, RepositoryHarness, everything, page, pending, settlement, stored};
use crate::{samples, skip};

pub(super) async fn fetch_orders_by_place<H: RepositoryHarness>(harness: &H) -> anyhow::Result<()> {
    let repository = harness.fresh().await?;
    for _ in 0..5 {
        repository.store(&samples::events(3)?).await?;
    }
    let all = places(&pending(&repository).await?);
    ensure!(all.len() == 15 && all.is_sorted(), "{all:?}");
    let backwards = PendingSelection::At(all.iter().rev().copied().collect());
    let found = page(&repository, backwards, 100, BYTES_MAX).await?;
    ensure!(places(&found.events) == all, "places asked for backwards come in another order");
    Ok(())
}

pub(super) async fn fetch_keeps_to_events_max_and_says_that_there_are_more<H: RepositoryHarness>(
    harness: &H,
) -> anyhow::Result<()> {
    let repository = harness.fresh().await?;
    repository.store(&samples::events(5)?).await?;
    let all = places(&pending(&repository).await?);
    let first = page(&repository, everything(), 2, BYTES_MAX).await?;
    ensure!(places(&first.events) == all[..2], "not the first two");
    ensure!(first.more, "`more` is false though a limit cut the page short");
    let rest = PendingSelection::Forward { gaps: Vec::new(), after: all[1] };
    let rest = page(&repository, rest, 100, BYTES_MAX).await?;
    ensure!(places(&rest.events) == all[2..], "not the rest");
    ensure!(!rest.more, "`more` is true though no limit was met");
    Ok(())
}

pub(super) async fn fetch_stops_at_bytes_max_but_gives_at_least_one<H: RepositoryHarness>(
    harness: &H,
) -> anyhow::Result<()> {
    let repository = harness.fresh().await?;
    for _ in 0..3 {
        repository.store(&[samples::bytes_event(1_000)?]).await?;
    }
    for (bytes_max, expected) in [(1, 1), (1_000, 1), (1_001, 2), (2_000, 2), (100_000, 3)] {
        let found = page(&repository, everything(), 100, bytes_max).await?;
        let count = found.events.len();
        ensure!(count == expected, "{count} events of 1,000 bytes for bytes_max {bytes_max}");
        ensure!(found.more == (expected < 3), "bytes_max {bytes_max}: `more` is {}", found.more);
    }
    Ok(())
}

pub(super) async fn fetch_forward_gives_gaps_and_what_follows_by_place<H: RepositoryHarness>(
    harness: &H,
) -> anyhow::Result<()> {
    let repository = harness.fresh().await?;
    repository.store(&samples::events(7)?).await?;
    let all = places(&pending(&repository).await?);
    let gap = |first: usize, last: usize| (all[first], all[last]);
    for (gaps, after, expected) in [
        (vec![], 0, all.clone()),
        (vec![], all[4], all[5..].to_vec()),
        (vec![gap(1, 1)], all[4], vec![all[1], all[5], all[6]]),
        (vec![gap(0, 1), gap(3, 3)], all[5], vec![all[0], all[1], all[3], all[6]]),
        (vec![gap(2, 2)], all[6], vec![all[2]]),
    ] {
        let selection = PendingSelection::Forward { gaps: gaps.clone(), after };
        let found = page(&repository, selection.clone(), 100, BYTES_MAX).await?;
        let found = places(&found.events);
        ensure!(found == expected, "gaps {gaps:?}, after {after}: {found:?} of {all:?}");
        let cut = page(&repository, selection, 1, BYTES_MAX).await?;
        ensure!(places(&cut.events) == expected[..1], "limit 1 gives not the first by place");
    }
    Ok(())
}

pub(super) async fn fetch_finds_events_at_places<H: RepositoryHarness>(
    harness: &H,
) -> anyhow::Result<()> {
    let repository = harness.fresh().await?;
    repository.store(&samples::events(4)?).await?;
    let all = places(&pending(&repository).await?);
    let asked = vec![all[3], all[1], all[3] + 1_000];
    let found =
        places(&page(&repository, PendingSelection::At(asked), 100, BYTES_MAX).await?.events);
    ensure!(found == [all[1], all[3]], "{found:?}");
    let none = page(&repository, PendingSelection::At(Vec::new()), 100, BYTES_MAX).await?;
    ensure!(none.events.is_empty(), "no place asked for, yet something found");
    Ok(())
}

pub(super) async fn fetch_finds_events_of_a_key<H: RepositoryHarness>(
    harness: &H,
) -> anyhow::Result<()> {
    let repository = harness.fresh().await?;
    let (one, other) = (Uuid::now_v7(), Uuid::now_v7());
    let named = |aggregate| samples::numbered(aggregate, 0);
    let keyed = || anyhow::Ok(samples::builder()?.order_key("a key").build()?);
    repository
        .store(&[named(one)?, keyed()?, named(other)?, named(one)?, keyed()?, named(one)?])
        .await?;
    let all = places(&pending(&repository).await?);
    let aggregate = OrderKey::Aggregate(one);
    for (key, after, up_to, expected) in [
        (aggregate.clone(), 0, all[5], vec![all[0], all[3], all[5]]),
        (aggregate.clone(), all[0], all[4], vec![all[3]]),
        (OrderKey::named("a key")?, 0, all[5], vec![all[1], all[4]]),
        (OrderKey::named("no such key")?, 0, all[5], vec![]),
    ] {
        let selection = PendingSelection::Key { key: key.clone(), after, up_to };
        let found = places(&page(&repository, selection, 100, BYTES_MAX).await?.events);
        ensure!(found == expected, "{key} after {after} up to {up_to}: {found:?} of {all:?}");
    }
    let selection = PendingSelection::Key { key: aggregate, after: 0, up_to: all[5] };
    let cut = page(&repository, selection, 2, BYTES_MAX).await?;
    ensure!(places(&cut.events) == [all[0], all[3]] && cut.more, "limits do not hold for a key");
    Ok(())
}

pub(super) async fn delayed_events_are_fetched_with_the_wait_that_is_left<H: RepositoryHarness>(
    harness: &H,
) -> anyhow::Result<()> {
    let repository = harness.fresh().await?;
    let now = Timestamp::now();
    let hour = SignedDuration::from_hours(1);
    let delayed = samples::builder()?.available_at(now.checked_add(hour)?).build()?;
    let found = stored(&repository, &delayed).await?;
    let expected = Duration::from_secs(3_300)..Duration::from_secs(3_900);
    ensure!(expected.contains(&found.wait), "wait of an hour's delay: {:?}", found.wait);
    let past = samples::builder()?.available_at(now.checked_sub(hour)?).build()?;
    let found = stored(&repository, &past).await?;
    ensure!(found.wait.is_zero(), "wait of an event that is due: {:?}", found.wait);
    Ok(())
}

pub(super) async fn watermark_covers_every_stored_event<H: RepositoryHarness>(
    harness: &H,
) -> anyhow::Result<()> {
    let repository = harness.fresh().await?;
    let empty = repository.watermark().await?;
    ensure!(empty.high >= 0, "high is {} in an empty outbox", empty.high);
    repository.store(&samples::events(10)?).await?;
    let greatest = places(&pending(&repository).await?).last().copied().unwrap_or_default();
    let watermark = repository.watermark().await?;
    ensure!(watermark.high >= greatest, "high {} is below {greatest}", watermark.high);
    let late_commits = repository.capabilities().late_commits;
    ensure!(
        late_commits || watermark.writers.is_empty(),
        "the store says that nothing commits late, yet names open writers"
    );
    Ok(())
}

pub(super) async fn a_store_wakes_who_waits_for_events<H: RepositoryHarness>(
    harness: &H,
) -> anyhow::Result<()> {
    let repository = harness.fresh().await?;
    if !repository.capabilities().wakes {
        return Err(skip("the store has no wake-up"));
    }
    let waiting = repository.clone();
    let mut woken = tokio::spawn(async move { waiting.wait_for_events().await });
    // A wake-up is a hint, so one store may go unnoticed, but not a hundred.
    for _ in 0..100 {
        repository.store(&[samples::event()?]).await?;
        if let Ok(ended) = tokio::time::timeout(Duration::from_millis(100), &mut woken).await {
            return Ok(ended?);
        }
    }
    woken.abort();
    anyhow::bail!("nobody was woken")
}

fn places(events: &[PendingEvent]) -> Vec<Seq> {
    events.iter().map(|event| event.seq).collect()
}

pub(super) async fn heads_tell_of_what_is_undelivered_without_changing_it<H: RepositoryHarness>(
    harness: &H,
) -> anyhow::Result<()> {
    let repository = harness.fresh().await?;
    let hour = Duration::from_secs(3_600);
    let delayed = samples::builder()?.available_at(jiff::Timestamp::now() + hour).build()?;
    let elsewhere = samples::builder()?.destination("elsewhere").build()?;
    let delivered = samples::event()?;
    repository.store(&[delayed.clone(), elsewhere.clone(), delivered]).await?;
    let found = pending(&repository).await?;
    let places: Vec<Seq> = found.iter().map(|found| found.seq).collect();
    repository.settle(&[settlement(&found[2], SettlementOutcome::Delivered)]).await?;
    let between = HeadSelection::Between { after: 0, up_to: places[2] };
    for selection in [HeadSelection::At(places.clone()), between] {
        let heads = repository.heads(&selection, 10).await?;
        ensure!(heads.len() == 2, "{} undelivered events instead of 2", heads.len());
        ensure!((heads[0].seq, heads[0].id) == (places[0], delayed.id()), "{:?}", heads[0]);
        ensure!(heads[0].wait > hour / 2 && heads[1].wait.is_zero(), "{heads:?}");
        ensure!(heads[1].destination.as_deref() == Some("elsewhere"), "{:?}", heads[1]);
        ensure!(&heads[1].key == elsewhere.order_key(), "{:?}", heads[1]);
        ensure!(heads[1].shard == found[1].shard, "{:?}", heads[1]);
    }
    let first = HeadSelection::Between { after: 0, up_to: Seq::MAX };
    ensure!(repository.heads(&first, 1).await?.len() == 1, "more than the limit");
    let second = HeadSelection::Between { after: places[0], up_to: places[1] };
    let second = repository.heads(&second, 10).await?;
    ensure!(second.len() == 1 && second[0].seq == places[1], "{second:?}");
    Ok(())
}
