//! What the conformance suite cannot see: a shard that changes hands while its events are settled.

use std::time::Duration;

use posthaste_core::{
    Lease, LeaseRequest, OutboxRepository, PendingQuery, PendingSelection, Settlement,
    SettlementOutcome, Shard, ShardLease,
};
use posthaste_postgres::PostgresOutbox;
use uuid::Uuid;

use crate::common::{TestDatabase, event, pending, run, until_someone_waits_for_a_lock};

async fn lease(outbox: &PostgresOutbox, relay: u128, ttl: Duration) -> Lease {
    let relay = Uuid::from_u128(relay);
    let request =
        LeaseRequest { relay, name: "test".into(), ttl, release: Vec::new(), leaving: false };
    outbox.lease(&request).await.unwrap()
}

fn settlement(
    found: &posthaste_core::PendingEvent,
    lease: &Lease,
    outcome: SettlementOutcome,
) -> (Settlement, ShardLease) {
    let lease = *lease.shards.iter().find(|lease| lease.shard == found.shard).unwrap();
    let settlement =
        Settlement { seq: found.seq, id: found.event.id(), lease: Some(lease), outcome };
    (settlement, lease)
}

/// The zombie's statement began before the shard changed hands, and sees the old generation: it must
/// wait for the change, and then find that it is too late.
#[tokio::test]
async fn a_settlement_that_meets_a_change_of_hands_changes_nothing() {
    let Some(database) = TestDatabase::create().await else { return };
    let outbox = database.outbox().await;
    for outcome in [SettlementOutcome::Delivered, SettlementOutcome::DeliveredAndRemoved] {
        meets_a_change_of_hands(&database, &outbox, outcome).await;
    }
    assert_eq!(pending(&outbox).await.len(), 2);
}

async fn meets_a_change_of_hands(
    database: &TestDatabase,
    outbox: &PostgresOutbox,
    outcome: SettlementOutcome,
) {
    outbox.store(&[event(Uuid::now_v7())]).await.unwrap();
    let found = pending(outbox).await.pop().unwrap();
    let held = lease(outbox, 1, Duration::from_secs(600)).await;
    let (settlement, ShardLease { shard, .. }) = settlement(&found, &held, outcome);

    let mut taker = database.connection().await;
    let take =
        format!("update outbox_shards set generation = generation + 1 where shard = {shard}");
    run(
        &mut taker,
        &format!("begin; select from outbox_shards where shard = {shard} for update; {take}"),
    )
    .await;
    let zombie = tokio::spawn({
        let outbox = outbox.clone();
        async move { outbox.settle(&[settlement]).await.unwrap() }
    });
    until_someone_waits_for_a_lock(database).await;
    run(&mut taker, "commit").await;
    assert_eq!(zombie.await.unwrap(), 0);
}

/// A settlement that is not committed yet holds its shards: whoever comes for them gets the others,
/// at once, and these the next time.
#[tokio::test]
async fn a_shard_is_not_taken_while_its_events_are_settled() {
    let Some(database) = TestDatabase::create().await else { return };
    let outbox = database.outbox().await;
    lease(&outbox, 1, Duration::from_millis(1)).await;
    let mut settling = database.connection().await;
    run(&mut settling, "begin; select from outbox_shards where shard in (3, 7) for key share")
        .await;
    let taken = lease(&outbox, 2, Duration::from_secs(600)).await;
    let kept: Vec<Shard> =
        posthaste_core::ShardSet::ALL.without(taken.shard_set()).iter().collect();
    assert_eq!(kept.iter().map(|shard| shard.index()).collect::<Vec<_>>(), [3, 7]);
    run(&mut settling, "commit").await;
    assert!(lease(&outbox, 2, Duration::from_secs(600)).await.shard_set().is_all());
}

/// However long a renewal has to wait, what it grants counts from when it was asked for.
#[tokio::test]
async fn a_relay_that_was_removed_while_it_renewed_is_told_so() {
    let Some(database) = TestDatabase::create().await else { return };
    let outbox = database.outbox().await;
    let held = lease(&outbox, 1, Duration::from_secs(600)).await;
    let mut remover = database.connection().await;
    run(&mut remover, "begin; delete from outbox_relays").await;
    let renewal = tokio::spawn({
        let outbox = outbox.clone();
        async move { lease(&outbox, 1, Duration::from_secs(600)).await }
    });
    until_someone_waits_for_a_lock(&database).await;
    run(&mut remover, "update outbox_shards set generation = generation + 1, owner = null; commit")
        .await;
    let renewed = renewal.await.unwrap();
    assert!(renewed.shard_set().is_all(), "it joined anew");
    let raised = held.shards.iter().zip(&renewed.shards).all(|(a, b)| b.generation > a.generation);
    assert!(raised, "{renewed:?}");
}

/// A relay whose read takes long loses its shards meanwhile: what it makes of a broken row is not
/// recorded, since the new owner has looked already.
#[tokio::test]
async fn a_read_of_a_relay_that_lost_the_shard_makes_no_dead_letters() {
    let Some(database) = TestDatabase::create().await else { return };
    let outbox = database.outbox().await;
    database
        .run(
            "insert into outbox_events (aggregate_id, event_type, event_data, headers) \
             values (gen_random_uuid(), 'broken', '1', '{\"a\": []}')",
        )
        .await;
    let old = lease(&outbox, 1, Duration::from_millis(1)).await;
    let new = lease(&outbox, 2, Duration::from_secs(600)).await;
    for (lease, dead) in [(old, 0), (new, 1)] {
        let query = PendingQuery {
            selection: PendingSelection::Forward { gaps: Vec::new(), after: 0 },
            leases: Some(lease.shards),
            events_max: 10,
            bytes_max: 1_000,
        };
        assert_eq!(outbox.fetch_pending(&query).await.unwrap().buried.len(), 1);
        assert_eq!(outbox.dead_heads(0, 10).await.unwrap().len(), dead);
    }
}

/// A relay that stands still in the middle of changing hands holds the lock. Others renew all the same.
#[tokio::test]
async fn a_relay_that_stands_still_while_it_takes_shards_holds_nobody_up() {
    let Some(database) = TestDatabase::create().await else { return };
    let outbox = database.outbox().await;
    let held = lease(&outbox, 1, Duration::from_secs(600)).await;
    let mut frozen = database.connection().await;
    run(
        &mut frozen,
        "begin; select pg_try_advisory_xact_lock(hashtext('posthaste.lease'), \
         hashtext(current_schema()))",
    )
    .await;
    assert_eq!(lease(&outbox, 1, Duration::from_secs(600)).await, held, "it renews");
    let newcomer = lease(&outbox, 2, Duration::from_secs(600)).await;
    assert!(newcomer.shards.is_empty() && newcomer.fair_share > 0, "it waits: {newcomer:?}");
    run(&mut frozen, "rollback").await;
    // The newcomer's own transaction, given up, may still be ending on another connection.
    let joins = async {
        while lease(&outbox, 2, Duration::from_secs(600)).await.fair_share != 32 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), joins).await.unwrap();
}

/// It was taken for dead, and others took their shares. What they left is not its own again, as if
/// nothing had happened: it has forgotten all it knew.
#[tokio::test]
async fn a_relay_that_was_removed_takes_what_is_left_anew() {
    let Some(database) = TestDatabase::create().await else { return };
    let outbox = database.outbox().await;
    let long = Duration::from_secs(600);
    let held = lease(&outbox, 1, Duration::from_millis(1)).await;
    database.run("insert into outbox_relays values (gen_random_uuid(), 'third', now(), now() + interval '1 h')").await;
    assert_eq!(lease(&outbox, 2, long).await.shards.len(), 32);
    let again = lease(&outbox, 1, long).await;
    assert!(!again.shards.is_empty(), "it takes its share of the rest");
    assert!(again.shards.iter().all(|lease| !held.shards.contains(lease)), "{again:?}");
}

/// The server's clock was set back while the relay that held everything was dead: its lease would last for as
/// long as the clock went back.
#[tokio::test]
async fn a_lease_longer_than_any_is_shortened_and_its_shards_are_taken_when_it_ends() {
    let Some(database) = TestDatabase::create().await else { return };
    let outbox = database.outbox().await;
    let (dead, ttl) = (Uuid::from_u128(1), Duration::from_secs(5));
    assert_eq!(lease(&outbox, 1, ttl).await.shards.len(), Shard::COUNT);
    database.run("update outbox_relays set lease_until = lease_until + interval '1 hour'").await;
    lease(&outbox, 2, ttl).await;
    let left: f64 = database
        .value(&format!(
            "select extract(epoch from lease_until - now())::float8 from outbox_relays \
             where relay = '{dead}'"
        ))
        .await;
    assert!((50.0..70.0).contains(&left), "{left} s");
    // A minute later.
    database
        .run(&format!("update outbox_relays set lease_until = now() where relay = '{dead}'"))
        .await;
    assert_eq!(lease(&outbox, 2, ttl).await.shards.len(), Shard::COUNT);
}

/// Each relay's row says how long its lease lasts.
#[tokio::test]
async fn relays_of_one_outbox_need_not_agree_how_long_a_lease_lasts() {
    let Some(database) = TestDatabase::create().await else { return };
    let outbox = database.outbox().await;
    let (short, long) = (Duration::from_secs(1), Duration::from_secs(3_600));
    assert_eq!(lease(&outbox, 1, long).await.shards.len(), Shard::COUNT);
    for _ in 0..2 {
        assert_eq!(lease(&outbox, 2, short).await.relays, 2);
    }
    let left: f64 = database
        .value(&format!(
            "select extract(epoch from lease_until - now())::float8 from outbox_relays \
             where relay = '{}'",
            Uuid::from_u128(1)
        ))
        .await;
    assert!(left > 3_500.0, "{left} s");
}
