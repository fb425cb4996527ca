//! What an operator is shown of keys that wait.

use std::time::Duration;

use anyhow::{Context, ensure};
use jiff::{SignedDuration, Timestamp};
use posthaste_core::{
    EventFilter, OrderKey, OutboxAdmin, OutboxEvent, OutboxRepository, Seq, SettlementOutcome,
    StuckBy, StuckKey, StuckKeyPage, StuckKeyQuery,
};
use uuid::Uuid;

use super::{RepositoryHarness, dead, pending, retry_after, settlement};
use crate::samples;

const HOUR: Duration = Duration::from_secs(3_600);

async fn page<R: OutboxAdmin>(
    repository: &R,
    by: StuckBy,
    after: Seq,
    limit: usize,
) -> anyhow::Result<StuckKeyPage> {
    Ok(repository.stuck_keys(&StuckKeyQuery { by, after, limit }).await?)
}

/// The first ten.
async fn stuck<R: OutboxAdmin>(repository: &R, by: StuckBy) -> anyhow::Result<Vec<StuckKey>> {
    let page = page(repository, by, 0, 10).await?;
    ensure!(page.next.is_none(), "a page with all there is goes on after {:?}", page.next);
    Ok(page.keys)
}

/// Stores these events and gives each of them its outcome.
async fn settled<R: OutboxRepository>(
    repository: &R,
    events: &[OutboxEvent],
    outcome: impl Fn(usize) -> Option<SettlementOutcome>,
) -> anyhow::Result<Vec<Seq>> {
    repository.store(events).await?;
    let found = pending(repository).await?;
    let settlements: Vec<_> = found
        .iter()
        .enumerate()
        .filter_map(|(index, event)| Some(settlement(event, outcome(index)?)))
        .collect();
    repository.settle(&settlements).await?;
    Ok(found.iter().map(|event| event.seq).collect())
}

pub(super) async fn a_key_with_a_dead_letter_is_listed_once<H: RepositoryHarness>(
    harness: &H,
) -> anyhow::Result<()> {
    let repository = harness.fresh().await?;
    let (one, other) = (Uuid::now_v7(), Uuid::now_v7());
    let mut events = samples::series(one, 6)?;
    events.extend(samples::series(other, 2)?);
    // Of `one`: delivered, dead, pending, dead, delivered, pending. Of `other`: pending.
    let places = settled(&repository, &events, |index| match index {
        1 | 3 => Some(dead()),
        0 | 4 => Some(SettlementOutcome::Delivered),
        _ => None,
    })
    .await?;
    let [key]: [StuckKey; 1] = stuck(&repository, StuckBy::DeadLetter)
        .await?
        .try_into()
        .ok()
        .context("not one key for one key with two dead letters")?;
    ensure!(key.key == OrderKey::Aggregate(one), "the key is {}", key.key);
    ensure!((key.seq, key.id) == (places[1], events[1].id()), "its head is not the first");
    ensure!(&*key.event_type == events[1].event_type(), "the type is {}", key.event_type);
    ensure!(key.dead_at.is_some() && key.next_attempt_at.is_none());
    ensure!(key.dead_reason.as_deref() == Some("retries_exhausted"), "{:?}", key.dead_reason);
    ensure!(key.error_message.as_deref() == Some("no"), "{:?}", key.error_message);
    ensure!(key.retry_count == 3, "{} attempts", key.retry_count);
    ensure!(key.waiting == 2, "{} wait behind it instead of 2", key.waiting);
    ensure!(!key.waiting_is_minimum, "so few are counted exactly");
    ensure!(stuck(&repository, StuckBy::Retry).await?.is_empty(), "none waits for a retry");
    Ok(())
}

pub(super) async fn a_key_that_waits_for_a_retry_is_listed_with_its_next_attempt<
    H: RepositoryHarness,
>(
    harness: &H,
) -> anyhow::Result<()> {
    let repository = harness.fresh().await?;
    let aggregate = Uuid::now_v7();
    let mut events = samples::series(aggregate, 3)?;
    // Its writer delayed it: nothing has failed.
    let later = Timestamp::now().checked_add(SignedDuration::from_hours(1))?;
    events.push(samples::builder()?.available_at(later).build()?);
    events.extend(samples::events(2)?);
    // The last one's time has come: it waits for nothing.
    let places = settled(&repository, &events, |index| match index {
        0 => Some(retry_after(HOUR, 2)),
        5 => Some(retry_after(Duration::ZERO, 1)),
        _ => None,
    })
    .await?;
    let keys = stuck(&repository, StuckBy::Retry).await?;
    ensure!(keys.len() == 1, "{} keys wait for a retry instead of 1", keys.len());
    let key = &keys[0];
    ensure!((key.seq, key.id) == (places[0], events[0].id()), "another event");
    ensure!(key.key == OrderKey::Aggregate(aggregate), "another key");
    ensure!((key.retry_count, key.waiting) == (2, 2), "{} and {}", key.retry_count, key.waiting);
    ensure!(key.error_message.as_deref() == Some("publish: it failed"), "{:?}", key.error_message);
    ensure!(key.dead_at.is_none() && key.dead_reason.is_none());
    let wait = key.next_attempt_at.context("no next attempt")?.duration_since(Timestamp::now());
    ensure!((3_000..3_900).contains(&wait.as_secs()), "the next attempt is {wait} from now");
    ensure!(stuck(&repository, StuckBy::DeadLetter).await?.is_empty(), "none is dead");
    Ok(())
}

pub(super) async fn stuck_keys_are_paged_by_place<H: RepositoryHarness>(
    harness: &H,
) -> anyhow::Result<()> {
    for (by, outcome) in [(StuckBy::DeadLetter, dead()), (StuckBy::Retry, retry_after(HOUR, 1))] {
        let repository = harness.fresh().await?;
        let (first, events) = (Uuid::now_v7(), samples::events(4)?);
        let mut all = samples::series(first, 1)?;
        all.extend(events);
        // A second one of the first key, which is on the first page already.
        all.extend(samples::series(first, 1)?);
        let places = settled(&repository, &all, |_| Some(outcome.clone())).await?;
        let (mut found, mut after) = (Vec::new(), 0);
        for _ in 0..3 {
            let page = page(&repository, by, after, 2).await?;
            ensure!(page.keys.len() <= 2, "{} keys with limit 2", page.keys.len());
            found.extend(page.keys.iter().map(|key| key.seq));
            let Some(next) = page.next else { break };
            ensure!(next > after, "the next page begins where this one did");
            after = next;
        }
        // A store may know the first of a key only among those that it looks at.
        let again = usize::from(by == StuckBy::Retry);
        ensure!(
            found == places[..5] || found == places[..5 + again],
            "{by:?}: {found:?} instead of {:?}",
            &places[..5]
        );
    }
    Ok(())
}

pub(super) async fn a_key_is_its_aggregates_or_its_own<H: RepositoryHarness>(
    harness: &H,
) -> anyhow::Result<()> {
    let repository = harness.fresh().await?;
    let aggregate = Uuid::now_v7();
    let named = |key: &str, type_name: &str| {
        let payload = posthaste_core::Payload::json_text("1")?;
        let builder = OutboxEvent::builder(aggregate, type_name).payload(payload);
        anyhow::Ok(builder.order_key(key).destination("audit").build()?)
    };
    let mut events = vec![named(samples::UNICODE, "named")?, named("other", "other")?];
    events.extend(samples::series(aggregate, 2)?);
    events.push(named(samples::UNICODE, "behind")?);
    settled(&repository, &events, |index| (index == 0 || index == 2).then(dead)).await?;
    let keys = stuck(&repository, StuckBy::DeadLetter).await?;
    let found: Vec<(String, u64)> =
        keys.iter().map(|key| (key.key.to_string(), key.waiting)).collect();
    let expected = [(samples::UNICODE.to_owned(), 1), (aggregate.to_string(), 1)];
    ensure!(found == expected, "{found:?} instead of {expected:?}");
    ensure!(keys[0].destination.as_deref() == Some("audit"), "{:?}", keys[0].destination);
    ensure!(keys[1].destination.is_none(), "{:?}", keys[1].destination);
    Ok(())
}

pub(super) async fn a_key_leaves_the_list_when_nothing_holds_it<H: RepositoryHarness>(
    harness: &H,
) -> anyhow::Result<()> {
    let repository = harness.fresh().await?;
    let events = samples::events(3)?;
    settled(&repository, &events, |index| match index {
        0 => Some(dead()),
        1 => Some(retry_after(HOUR, 1)),
        _ => Some(dead()),
    })
    .await?;
    repository.discard_events(&EventFilter::with_ids([events[0].id()])).await?;
    let ids = |keys: Vec<StuckKey>| keys.iter().map(|key| key.id).collect::<Vec<_>>();
    let found = ids(stuck(&repository, StuckBy::DeadLetter).await?);
    ensure!(found == [events[2].id()], "{found:?}");
    repository.retry_events(&EventFilter::all()).await?;
    for by in [StuckBy::DeadLetter, StuckBy::Retry] {
        let found = ids(stuck(&repository, by).await?);
        ensure!(found.is_empty(), "{by:?}: {found:?} are listed and wait for nothing");
    }
    Ok(())
}
