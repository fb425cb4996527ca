//! What an operator's tools are promised.

use std::time::Duration;

use anyhow::{Context, ensure};
use jiff::SignedDuration;
use posthaste_core::{
    ErrorKind, EventFilter, EventPlace, EventState, OutboxAdmin, OutboxEvent, OutboxRepository,
    Pattern, PendingEvent, SettlementOutcome,
};
use uuid::Uuid;

use super::{RepositoryHarness, dead, pending, retry_after, settlement};
use crate::samples;

const HOUR: Duration = Duration::from_secs(3_600);

/// One event in each state, in this order.
struct EachState {
    pending: PendingEvent,
    retrying: PendingEvent,
    dead: PendingEvent,
    delivered: PendingEvent,
}

async fn each_state<R: OutboxRepository>(repository: &R) -> anyhow::Result<EachState> {
    repository.store(&samples::events(4)?).await?;
    let found: [PendingEvent; 4] =
        pending(repository).await?.try_into().ok().context("four stored events are not pending")?;
    let [pending, retrying, dead_letter, delivered] = found;
    repository
        .settle(&[
            settlement(&retrying, retry_after(HOUR, 1)),
            settlement(&dead_letter, dead()),
            settlement(&delivered, SettlementOutcome::Delivered),
        ])
        .await?;
    Ok(EachState { pending, retrying, dead: dead_letter, delivered })
}

pub(super) async fn find_event_finds_an_event_in_every_state<H: RepositoryHarness>(
    harness: &H,
) -> anyhow::Result<()> {
    let repository = harness.fresh().await?;
    let events = each_state(&repository).await?;
    for (event, state) in [
        (&events.pending, EventState::Pending),
        (&events.retrying, EventState::Retrying),
        (&events.dead, EventState::Dead),
        (&events.delivered, EventState::Delivered),
    ] {
        let found = repository.find_event(event.event.id()).await?;
        let found = found.with_context(|| format!("no {} event", state.as_str()))?;
        ensure!(found.state() == state, "{:?} instead of {state:?}", found.state());
        ensure!(found.payload() == event.event.payload(), "its body changed with its state");
    }
    ensure!(repository.find_event(Uuid::now_v7()).await?.is_none(), "an unknown id is found");
    Ok(())
}

pub(super) async fn list_filters_by_state<H: RepositoryHarness>(harness: &H) -> anyhow::Result<()> {
    let repository = harness.fresh().await?;
    let events = each_state(&repository).await?;
    let id = |event: &PendingEvent| event.event.id();
    for (state, expected) in [
        (EventState::Pending, vec![id(&events.pending), id(&events.retrying)]),
        (EventState::Retrying, vec![id(&events.retrying)]),
        (EventState::Dead, vec![id(&events.dead)]),
        (EventState::Delivered, vec![id(&events.delivered)]),
    ] {
        expect(&repository, &EventFilter::in_state(state), &expected).await?;
    }
    let mut all = samples::ids(&repository.list_events(&EventFilter::all(), 10).await?);
    all.sort_unstable();
    let mut expected = [&events.pending, &events.retrying, &events.dead, &events.delivered].map(id);
    expected.sort_unstable();
    ensure!(all == expected, "the filter of all gives {} events of 4", all.len());
    Ok(())
}

pub(super) async fn list_filters_by_type_key_and_ids<H: RepositoryHarness>(
    harness: &H,
) -> anyhow::Result<()> {
    let repository = harness.fresh().await?;
    let typed = OutboxEvent::new(Uuid::now_v7(), "rare'type", &1)?;
    let keyed = samples::builder()?.order_key("a key").build()?;
    let plain = samples::event()?;
    repository.store(&[typed.clone(), keyed.clone(), plain.clone()]).await?;
    let by_type =
        |pattern| EventFilter { event_type: Some(Pattern::new(pattern)), ..EventFilter::all() };
    expect(&repository, &by_type("rare'type"), &[typed.id()]).await?;
    expect(&repository, &by_type("r*'t*e"), &[typed.id()]).await?;
    // Signs that databases give a meaning of their own have none.
    for pattern in ["rare_type", "rare%", "rare?type", "[r]are'type", "rare\\'type", "*'"] {
        expect(&repository, &by_type(pattern), &[]).await.context(pattern)?;
    }
    let by_key = |key: String| EventFilter { order_key: Some(key), ..EventFilter::all() };
    expect(&repository, &by_key("a key".to_owned()), &[keyed.id()]).await?;
    expect(&repository, &by_key(plain.aggregate_id().to_string()), &[plain.id()]).await?;
    // It has a key of its own, so its aggregate does not name it.
    expect(&repository, &by_key(keyed.aggregate_id().to_string()), &[]).await?;
    let ids = EventFilter::with_ids([plain.id(), typed.id(), Uuid::now_v7()]);
    expect(&repository, &ids, &[typed.id(), plain.id()]).await?;
    let mut near = *typed.id().as_bytes();
    near[15] = !near[15];
    let near = Uuid::from_bytes(near);
    let range = Some((typed.id().min(near), typed.id().max(near)));
    let between = EventFilter { ids_between: range, ..EventFilter::all() };
    expect(&repository, &between, &[typed.id()]).await?;
    let both = EventFilter { order_key: Some("a key".into()), ..by_type("rare'type") };
    expect(&repository, &both, &[]).await
}

pub(super) async fn list_filters_by_time_and_place<H: RepositoryHarness>(
    harness: &H,
) -> anyhow::Result<()> {
    let repository = harness.fresh().await?;
    repository.store(&samples::events(3)?).await?;
    let found = pending(&repository).await?;
    let all: Vec<Uuid> = found.iter().map(|found| found.event.id()).collect();
    let time = found[0].event.created_at();
    let later = time.checked_add(SignedDuration::from_mins(10))?;
    let from = |time| EventFilter { created_from: Some(time), ..EventFilter::all() };
    let before = |time| EventFilter { created_before: Some(time), ..EventFilter::all() };
    expect(&repository, &from(time), &all).await.context("from is inclusive")?;
    expect(&repository, &from(later), &[]).await?;
    expect(&repository, &before(time), &[]).await.context("before is exclusive")?;
    expect(&repository, &before(later), &all).await?;
    let place = repository.event_place(all[0]).await?;
    ensure!(place == Some(EventPlace::undelivered(found[0].seq)), "{place:?}");
    ensure!(repository.event_place(Uuid::now_v7()).await?.is_none(), "a place of nothing");
    let after = EventFilter { after: place, ..EventFilter::all() };
    expect(&repository, &after, &all[1..]).await
}

pub(super) async fn pages_go_on_through_what_is_delivered<H: RepositoryHarness>(
    harness: &H,
) -> anyhow::Result<()> {
    let repository = harness.fresh().await?;
    each_state(&repository).await?;
    let all = samples::ids(&repository.list_events(&EventFilter::all(), 10).await?);
    let mut seen = Vec::new();
    let mut filter = EventFilter::all();
    loop {
        let page = samples::ids(&repository.list_events(&filter, 1).await?);
        let Some(last) = page.last() else { break };
        ensure!(seen.len() < all.len(), "the pages do not end: {seen:?}");
        filter.after = repository.event_place(*last).await?;
        seen.extend(page);
    }
    ensure!(seen == all, "one list has {all:?}, its pages {seen:?}");
    Ok(())
}

pub(super) async fn list_and_count_keep_to_their_limit<H: RepositoryHarness>(
    harness: &H,
) -> anyhow::Result<()> {
    let repository = harness.fresh().await?;
    let events = samples::events(5)?;
    repository.store(&events).await?;
    let filter = EventFilter::in_state(EventState::Pending);
    let two = samples::ids(&repository.list_events(&filter, 2).await?);
    ensure!(two == samples::ids(&events[..2]), "limit 2 gives not the first two");
    for (limit, expected) in [(100, 5), (5, 5), (3, 3)] {
        let count = repository.count_events(&filter, limit).await?;
        ensure!(count == expected, "{count} counted with limit {limit}");
    }
    Ok(())
}

pub(super) async fn retry_revives_a_dead_letter_at_its_old_place<H: RepositoryHarness>(
    harness: &H,
) -> anyhow::Result<()> {
    let repository = harness.fresh().await?;
    let events = each_state(&repository).await?;
    let before = repository.watermark().await?.revision;
    let changed = repository.retry_events(&EventFilter::in_state(EventState::Dead)).await?;
    ensure!(changed == 1, "{changed} revived");
    ensure!(
        repository.watermark().await?.revision != before,
        "the revision is as before, so a running relay does not notice"
    );
    let found = pending(&repository).await?;
    let revived = found.iter().find(|found| found.event.id() == events.dead.event.id());
    let revived = revived.context("a revived dead letter is not pending")?;
    ensure!(revived.seq == events.dead.seq, "it moved to another place");
    ensure!(revived.wait.is_zero(), "it is not due");
    ensure!(revived.event.retry_count() == 0, "it has no fresh set of retries");
    ensure!(revived.event.dead_reason().is_none(), "dead_reason stays");
    ensure!(repository.dead_heads(0, 10).await?.is_empty(), "it is still a dead head");
    Ok(())
}

pub(super) async fn retry_makes_a_waiting_retry_due_at_once<H: RepositoryHarness>(
    harness: &H,
) -> anyhow::Result<()> {
    let repository = harness.fresh().await?;
    let events = each_state(&repository).await?;
    let id = events.retrying.event.id();
    let before = repository.watermark().await?.revision;
    let changed = repository.retry_events(&EventFilter::with_ids([id])).await?;
    ensure!(changed == 1, "{changed} changed");
    let found = pending(&repository).await?;
    let found = found.iter().find(|found| found.event.id() == id).context("it is gone")?;
    ensure!(found.wait.is_zero(), "it still waits {:?}", found.wait);
    ensure!(repository.watermark().await?.revision != before, "a running relay does not notice");
    Ok(())
}

pub(super) async fn retry_and_discard_leave_what_does_not_match<H: RepositoryHarness>(
    harness: &H,
) -> anyhow::Result<()> {
    let repository = harness.fresh().await?;
    let events = each_state(&repository).await?;
    let nothing = EventFilter::with_ids([Uuid::now_v7()]);
    ensure!(repository.retry_events(&nothing).await? == 0);
    ensure!(repository.discard_events(&nothing).await? == 0);
    let delivered = EventFilter::with_ids([events.delivered.event.id()]);
    ensure!(repository.retry_events(&delivered).await? == 0, "a delivered event was retried");
    let dead = repository.find_event(events.dead.event.id()).await?;
    ensure!(dead.is_some_and(|event| event.is_dead()), "a dead letter that did not match changed");
    let delivered = repository.find_event(events.delivered.event.id()).await?;
    ensure!(delivered.is_some_and(|event| event.processed_at().is_some()));
    Ok(())
}

pub(super) async fn an_empty_list_of_ids_selects_nothing<H: RepositoryHarness>(
    harness: &H,
) -> anyhow::Result<()> {
    let repository = harness.fresh().await?;
    let events = each_state(&repository).await?;
    let nothing = EventFilter::with_ids([]);
    expect(&repository, &nothing, &[]).await?;
    for state in EventState::ALL {
        let nothing = EventFilter { state: Some(state), ..nothing.clone() };
        expect(&repository, &nothing, &[]).await?;
        ensure!(repository.retry_events(&nothing).await? == 0, "retried of no ids");
        ensure!(repository.discard_events(&nothing).await? == 0, "discarded of no ids");
    }
    ensure!(repository.retry_events(&nothing).await? == 0, "retried of no ids");
    ensure!(repository.discard_events(&nothing).await? == 0, "discarded of no ids");
    for event in [&events.pending, &events.retrying, &events.dead, &events.delivered] {
        repository.find_event(event.event.id()).await?.context("an event is gone")?;
    }
    let dead = repository.find_event(events.dead.event.id()).await?;
    ensure!(dead.is_some_and(|event| event.is_dead()), "a dead letter was revived");
    Ok(())
}

pub(super) async fn discard_removes_pending_and_dead_but_not_delivered<H: RepositoryHarness>(
    harness: &H,
) -> anyhow::Result<()> {
    let repository = harness.fresh().await?;
    let events = each_state(&repository).await?;
    let before = repository.watermark().await?.revision;
    let dead = EventFilter::in_state(EventState::Dead);
    ensure!(repository.discard_events(&dead).await? == 1);
    ensure!(repository.find_event(events.dead.event.id()).await?.is_none(), "it is still there");
    ensure!(
        repository.watermark().await?.revision != before,
        "the revision is as before, so a relay goes on blocking the discarded letter's key"
    );
    let removed = repository.discard_events(&EventFilter::all()).await?;
    ensure!(removed == 2, "{removed} removed of one pending and one retrying");
    ensure!(pending(&repository).await?.is_empty());
    ensure!(repository.find_event(events.delivered.event.id()).await?.is_some());
    Ok(())
}

async fn expect<R: OutboxAdmin>(
    repository: &R,
    filter: &EventFilter,
    expected: &[Uuid],
) -> anyhow::Result<()> {
    let found = samples::ids(&repository.list_events(filter, 100).await?);
    ensure!(found == expected, "{filter:?} lists {found:?} instead of {expected:?}");
    let count = repository.count_events(filter, 100).await?;
    ensure!(count == expected.len() as u64, "{filter:?} counts {count}");
    Ok(())
}

pub(super) async fn release_makes_what_waits_due_and_keeps_its_attempts<H: RepositoryHarness>(
    harness: &H,
) -> anyhow::Result<()> {
    let repository = harness.fresh().await?;
    let events = each_state(&repository).await?;
    let delayed = samples::builder()?.available_at(jiff::Timestamp::now() + HOUR).build()?;
    repository.store(std::slice::from_ref(&delayed)).await?;
    let before = repository.watermark().await?.revision;
    let none = EventFilter::with_ids([events.dead.event.id(), events.delivered.event.id()]);
    ensure!(repository.release_events(&none).await? == 0, "a dead or delivered event was released");
    ensure!(repository.release_events(&EventFilter::all()).await? == 2, "two events waited");
    ensure!(repository.watermark().await?.revision != before, "relays are not told");
    for found in pending(&repository).await? {
        ensure!(found.wait.is_zero(), "an event waits still");
        let attempts = u32::from(found.event.id() == events.retrying.event.id());
        ensure!(found.event.retry_count() == attempts, "its attempts are not what they were");
    }
    Ok(())
}

pub(super) async fn reroute_changes_the_destination_and_nothing_else<H: RepositoryHarness>(
    harness: &H,
) -> anyhow::Result<()> {
    let repository = harness.fresh().await?;
    let events = each_state(&repository).await?;
    let before = repository.watermark().await?.revision;
    let moved = repository.reroute_events(&EventFilter::all(), Some("elsewhere")).await?;
    ensure!(moved == 3, "{moved} events moved; all but the delivered one were to");
    ensure!(repository.watermark().await?.revision != before, "relays are not told");
    for (event, state) in [
        (&events.pending, EventState::Pending),
        (&events.retrying, EventState::Retrying),
        (&events.dead, EventState::Dead),
    ] {
        let found = repository.find_event(event.event.id()).await?.context("an event is gone")?;
        ensure!(found.destination() == Some("elsewhere"), "{:?}", found.destination());
        ensure!(found.state() == state, "{:?} instead of {state:?}", found.state());
    }
    let one = EventFilter::with_ids([events.pending.event.id()]);
    ensure!(repository.reroute_events(&one, None).await? == 1, "the routes choose again");
    let found = repository.find_event(events.pending.event.id()).await?.context("it is gone")?;
    ensure!(found.destination().is_none(), "{:?}", found.destination());
    let bad = repository.reroute_events(&one, Some("")).await;
    ensure!(bad.is_err_and(|error| error.kind() == ErrorKind::Malformed), "no name is a name");
    Ok(())
}
