//! Several relays on one outbox.

use std::collections::HashMap;
use std::time::Duration;

use anyhow::ensure;
use posthaste_core::{
    Lease, LeaseRequest, OutboxEvent, OutboxRepository, Payload, PendingEvent, PendingQuery,
    Settlement, SettlementOutcome, Shard, ShardLease,
};
use uuid::Uuid;

use super::{BYTES_MAX, RepositoryHarness, dead, everything, pending, retry_after};

/// Outlasts every check that does not wait for its end.
const LONG: Duration = Duration::from_secs(600);
const SHORT: Duration = Duration::from_millis(300);

async fn lease<R: OutboxRepository>(
    repository: &R,
    relay: u128,
    ttl: Duration,
    release: &[ShardLease],
) -> anyhow::Result<Lease> {
    let request = LeaseRequest {
        relay: Uuid::from_u128(relay),
        name: format!("relay {relay}").into(),
        ttl,
        release: release.to_vec(),
        leaving: false,
    };
    Ok(repository.lease(&request).await?)
}

pub(super) async fn a_relay_alone_leases_every_shard<H: RepositoryHarness>(
    harness: &H,
) -> anyhow::Result<()> {
    let repository = harness.fresh().await?;
    let first = lease(&repository, 1, LONG, &[]).await?;
    ensure!(first.shard_set().is_all() && first.shards.len() == Shard::COUNT, "{first:?}");
    ensure!((first.fair_share, first.relays) == (Shard::COUNT, 1), "{first:?}");
    let again = lease(&repository, 1, LONG, &[]).await?;
    ensure!(again == first, "renewing changes nothing: {again:?}");
    Ok(())
}

pub(super) async fn relays_share_evenly_once_the_surplus_is_given_back<H: RepositoryHarness>(
    harness: &H,
) -> anyhow::Result<()> {
    let repository = harness.fresh().await?;
    let all = lease(&repository, 1, LONG, &[]).await?;
    let newcomer = lease(&repository, 2, LONG, &[]).await?;
    ensure!(newcomer.shards.is_empty(), "what another relay holds is not taken: {newcomer:?}");
    ensure!((newcomer.fair_share, newcomer.relays) == (32, 2), "{newcomer:?}");
    let kept = lease(&repository, 1, LONG, &all.shards[32..]).await?;
    ensure!(kept.shards == all.shards[..32], "{kept:?}");
    let got = lease(&repository, 2, LONG, &[]).await?;
    ensure!(got.shards.len() == 32, "{got:?}");
    for taken in &got.shards {
        let before = all.shards.iter().find(|lease| lease.shard == taken.shard);
        let raised = before.is_some_and(|before| taken.generation > before.generation);
        ensure!(raised, "every acquisition raises the generation: {taken:?} after {before:?}");
    }
    Ok(())
}

pub(super) async fn a_shard_taken_since_is_not_released_by_its_old_owner<H: RepositoryHarness>(
    harness: &H,
) -> anyhow::Result<()> {
    let repository = harness.fresh().await?;
    let old = lease(&repository, 1, LONG, &[]).await?;
    repository.leave(Uuid::from_u128(1)).await?;
    // The same relay takes it again: what it released before is of the generation before.
    let new = lease(&repository, 1, LONG, &[]).await?;
    let after = lease(&repository, 1, LONG, &old.shards).await?;
    ensure!(after.shards == new.shards, "{after:?}");
    Ok(())
}

pub(super) async fn what_a_relay_leaves_is_free_at_once<H: RepositoryHarness>(
    harness: &H,
) -> anyhow::Result<()> {
    let repository = harness.fresh().await?;
    lease(&repository, 1, LONG, &[]).await?;
    repository.leave(Uuid::from_u128(1)).await?;
    let next = lease(&repository, 2, LONG, &[]).await?;
    ensure!(next.shard_set().is_all() && next.relays == 1, "{next:?}");
    Ok(())
}

pub(super) async fn a_relay_that_is_leaving_gets_nothing_and_counts_for_nobody<
    H: RepositoryHarness,
>(
    harness: &H,
) -> anyhow::Result<()> {
    let repository = harness.fresh().await?;
    let all = lease(&repository, 1, LONG, &[]).await?;
    let request = LeaseRequest {
        relay: Uuid::from_u128(1),
        name: "leaving".into(),
        ttl: LONG,
        release: all.shards[..60].to_vec(),
        leaving: true,
    };
    let left = repository.lease(&request).await?;
    ensure!(left.shards == all.shards[60..] && left.fair_share == 0, "{left:?}");
    let other = lease(&repository, 2, LONG, &[]).await?;
    ensure!(other.shards.len() == 60, "what it gave back is free: {other:?}");
    ensure!((other.fair_share, other.relays) == (64, 1), "{other:?}");
    Ok(())
}

pub(super) async fn a_relay_that_does_not_renew_loses_its_shards<H: RepositoryHarness>(
    harness: &H,
) -> anyhow::Result<()> {
    let repository = harness.fresh().await?;
    let old = lease(&repository, 1, SHORT, &[]).await?;
    ensure!(lease(&repository, 2, LONG, &[]).await?.shards.is_empty(), "it lives still");
    tokio::time::sleep(SHORT * 2).await;
    let new = lease(&repository, 2, LONG, &[]).await?;
    ensure!(new.shard_set().is_all(), "{new:?}");
    let raised =
        old.shards.iter().zip(&new.shards).all(|(old, new)| new.generation > old.generation);
    ensure!(raised, "{new:?}");
    let late = lease(&repository, 1, LONG, &[]).await?;
    ensure!(late.shards.is_empty(), "it is told that it lost them: {late:?}");
    Ok(())
}

pub(super) async fn a_relay_that_renews_late_keeps_what_nobody_took<H: RepositoryHarness>(
    harness: &H,
) -> anyhow::Result<()> {
    let repository = harness.fresh().await?;
    let before = lease(&repository, 1, SHORT, &[]).await?;
    tokio::time::sleep(SHORT * 2).await;
    let after = lease(&repository, 1, LONG, &[]).await?;
    ensure!(after == before, "{after:?}");
    Ok(())
}

pub(super) async fn a_settlement_under_a_lease_that_is_over_changes_nothing<
    H: RepositoryHarness,
>(
    harness: &H,
) -> anyhow::Result<()> {
    let repository = harness.fresh().await?;
    let events: Vec<OutboxEvent> = (0..30)
        .map(|_| OutboxEvent::new(Uuid::new_v4(), "test.leased", &1))
        .collect::<Result<_, _>>()?;
    repository.store(&events).await?;
    let found = pending(&repository).await?;
    let old = lease(&repository, 1, SHORT, &[]).await?;
    tokio::time::sleep(SHORT * 2).await;
    let new = lease(&repository, 2, LONG, &[]).await?;
    let kinds = [
        SettlementOutcome::Delivered,
        SettlementOutcome::DeliveredAndRemoved,
        retry_after(Duration::ZERO, 1),
        dead(),
    ];
    let outcomes = kinds.iter().cloned().cycle();
    let under = |lease: &Lease| -> Vec<Settlement> {
        let settle = |(event, outcome): (&posthaste_core::PendingEvent, _)| Settlement {
            seq: event.seq,
            id: event.event.id(),
            lease: lease.shards.iter().find(|lease| lease.shard == event.shard).copied(),
            outcome,
        };
        found.iter().zip(outcomes.clone()).map(settle).collect()
    };
    ensure!(repository.settle(&under(&old)).await? == 0, "a zombie settled");
    for (kind, outcome) in kinds.iter().enumerate() {
        let alike: Vec<Settlement> =
            under(&old).into_iter().skip(kind).step_by(kinds.len()).collect();
        ensure!(repository.settle(&alike).await? == 0, "a zombie settled: {outcome:?}");
    }
    ensure!(pending(&repository).await? == found, "events changed");
    let mut mixed = under(&new);
    mixed.truncate(20);
    mixed.extend(under(&old).split_off(20));
    ensure!(repository.settle(&mixed).await? == 20, "only what the living relay sent counts");
    Ok(())
}

pub(super) async fn a_forward_read_brings_the_keys_of_its_shards_only<H: RepositoryHarness>(
    harness: &H,
) -> anyhow::Result<()> {
    let repository = harness.fresh().await?;
    let mut events = Vec::new();
    for number in 0..100 {
        events.push(OutboxEvent::new(Uuid::new_v4(), "test.leased", &1)?);
        let named =
            OutboxEvent::builder(Uuid::nil(), "test.leased").payload(Payload::json_text("1")?);
        events.push(named.order_key(format!("kunde-{number}-ü")).build()?);
    }
    repository.store(&events).await?;
    let all = lease(&repository, 1, LONG, &[]).await?;
    let stored = pending(&repository).await?;
    for share in [&all.shards[..1], &all.shards[5..40], &all.shards[..]] {
        let query = PendingQuery {
            selection: everything(),
            leases: Some(share.to_vec()),
            events_max: 1_000,
            bytes_max: BYTES_MAX,
        };
        let found = repository.fetch_pending(&query).await?;
        let of_share =
            |stored: &&PendingEvent| share.iter().any(|lease| lease.shard == stored.shard);
        let expected: Vec<&PendingEvent> = stored.iter().filter(of_share).collect();
        let found_all = found.events.iter().eq(expected.iter().copied());
        ensure!(found_all && !found.more, "{} of {}", found.events.len(), expected.len());
    }
    Ok(())
}

pub(super) async fn a_key_has_one_shard_and_keys_are_spread<H: RepositoryHarness>(
    harness: &H,
) -> anyhow::Result<()> {
    let repository = harness.fresh().await?;
    let mut events = Vec::new();
    for aggregate in (0..640).map(Uuid::from_u128) {
        events.push(OutboxEvent::new(aggregate, "test.leased", &1)?);
        let named = OutboxEvent::builder(Uuid::nil(), "test.leased")
            .payload(Payload::json_text("1")?)
            .order_key(&*aggregate.to_string());
        events.push(named.build()?);
    }
    repository.store(&events).await?;
    let found = pending(&repository).await?;
    let mut keys_of = [0; Shard::COUNT];
    for both in found.chunks(2) {
        ensure!(both[0].shard == both[1].shard, "an id and its text are two keys: {both:?}");
        keys_of[both[0].shard.index()] += 1;
    }
    // Ten each, if evenly.
    ensure!(keys_of.iter().all(|keys| (1..40).contains(keys)), "keys of each shard: {keys_of:?}");
    let dead = |found: &PendingEvent| Settlement {
        seq: found.seq,
        id: found.event.id(),
        lease: None,
        outcome: dead(),
    };
    repository.settle(&found.iter().map(dead).collect::<Vec<_>>()).await?;
    let heads = repository.dead_heads(0, found.len()).await?;
    let shards = found.iter().map(|found| found.shard);
    ensure!(heads.iter().map(|head| head.shard).eq(shards), "dead letters have other shards");
    Ok(())
}

/// Many relays at once, some of which are late: no shard was ever given to two of them in one
/// generation.
pub(super) async fn a_generation_of_a_shard_has_one_owner<H: RepositoryHarness>(
    harness: &H,
) -> anyhow::Result<()> {
    let repository = harness.fresh().await?;
    let mut relays = tokio::task::JoinSet::new();
    for relay in 1..=6_u128 {
        let repository = repository.clone();
        relays.spawn(async move {
            let mut given: Vec<ShardLease> = Vec::new();
            for round in 0..30_u64 {
                let ttl = Duration::from_millis(20 + 10 * u64::try_from(relay)?);
                let surplus: Vec<ShardLease> = given.iter().step_by(5).copied().collect();
                let held = lease(&repository, relay, ttl, &surplus).await?.shards;
                given.extend(held);
                tokio::time::sleep(Duration::from_millis(round % 7 * 5)).await;
            }
            anyhow::Ok((relay, given))
        });
    }
    let mut owners: HashMap<ShardLease, u128> = HashMap::new();
    while let Some(relay) = relays.join_next().await {
        let (relay, given) = relay??;
        ensure!(!given.is_empty(), "relay {relay} never had a shard");
        for lease in given {
            let owner = *owners.entry(lease).or_insert(relay);
            ensure!(owner == relay, "{lease:?} was given to {owner} and to {relay}");
        }
    }
    Ok(())
}
