//! A database that is restored from a dump, elsewhere or under a relay that runs.

use std::collections::HashSet;
use std::sync::atomic::Ordering;
use std::time::Duration;

use posthaste_core::{OutboxEvent, OutboxTransaction as _};
use posthaste_postgres::{PostgresOptions, PostgresOutbox};
use posthaste_testkit::servers::{Dump, DumpFormat, PostgresServer, shared_nats};
use serde_json::json;
use sqlx::{AssertSqlSafe, Connection as _, PgConnection, Row as _};
use uuid::Uuid;

use crate::support::{
    Database, Figures, Plan, Relay, RelayConfig, Stream, Verdict, create_accounts, eventually,
    read_back, sized, write,
};

/// Stores events of 50 keys, numbered within each from `first` on.
fn numbered(events: u64, first: u64) -> String {
    format!(
        "insert into outbox_events (aggregate_id, event_type, event_data)
         select md5((n % 50)::text)::uuid, 'account.changed',
                jsonb_build_object('number', n / 50 + {first}, 'note', repeat('x', 150))
           from generate_series(0, {events} - 1) as n"
    )
}

/// A key whose first event becomes a dead letter, with two behind it.
const POISON: &str = "\
    insert into outbox_events (aggregate_id, partition_key, event_type, event_data, destination)
    values (gen_random_uuid(), 'poison', 'first', '{\"number\": 1}', 'nowhere'),
           (gen_random_uuid(), 'poison', 'second', '{\"number\": 2}', null),
           (gen_random_uuid(), 'poison', 'third', '{\"number\": 3}', null)";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_plain_dump_holds_is_delivered_from_another_cluster() {
    deliver_from_a_dump(DumpFormat::Plain).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_custom_dump_holds_is_delivered_from_another_cluster() {
    deliver_from_a_dump(DumpFormat::Custom).await;
}

/// Dumps an outbox while a relay delivers, services write and a transaction is open; the cluster is
/// then lost, and a relay delivers from the dump in another one.
async fn deliver_from_a_dump(format: DumpFormat) {
    let waiting = sized(1_500, 30_000);
    let Some(nats) = shared_nats().await else { return };
    let Some(source) = Database::create().await else { return };
    let Some(server) = PostgresServer::start(&[]).await else { return };
    let mut figures = Figures::of(&format!("restored from a dump ({format:?})"));
    let (before, after) = (Stream::create(&nats).await, Stream::create(&nats).await);
    let jetstream = before.jetstream().await;
    let plan = Plan { pause: Duration::from_millis(5), ..Plan::of(u64::MAX) };
    create_accounts(&source, plan.accounts).await;
    source.run(POISON).await;
    source.run(&numbered(waiting, 1)).await;
    let slow = RelayConfig {
        relay: "rate_limit_events_per_second = 500\nunknown_destination = \"dead\"",
        ..RelayConfig::default()
    };
    let mut relay = Relay::started(&source, &before, &slow);
    let writers = write(&source, &plan);
    let outbox = PostgresOutbox::connect(&PostgresOptions::from_url(source.url())).await.unwrap();
    let mut open = outbox.begin_transaction().await.unwrap();
    open.store(&[OutboxEvent::new(Uuid::now_v7(), "held", &json!({ "number": 1 })).unwrap()])
        .await
        .unwrap();
    eventually("a part delivered", async || before.messages(&jetstream).await > 300).await;
    eventually("a dead letter", async || dead(&source).await == 1).await;

    let Some(dump) = Dump::take(&source.url(), format).await else { return };

    // What is committed now, or delivered, the dump does not know of.
    open.commit().await.unwrap();
    plan.stop.store(true, Ordering::Relaxed);
    writers.await.unwrap();
    relay.kill();

    let restored = Database::of_dump(&server, &dump).await;
    let dumped = restored.committed().await;
    let pending = restored.pending().await;
    let delivered_before = dumped.len() as u64 - pending;
    assert!(pending > 0 && delivered_before > 0, "{pending} pending, {delivered_before} not");
    assert_eq!(dead(&restored).await, 1);
    let held = restored.count("select count(*) from outbox_events where event_type = 'held'").await;
    assert_eq!(held, 0, "it was not committed when the dump was made");
    // A number that is used twice would put a new event before an old one.
    let last = "select last_value - (select max(seq) from outbox_events) from outbox_events_seq";
    assert!(restored.rows(last).await[0].get::<i64, _>(0) >= 0);

    let mut relay = Relay::started(&restored, &after, &RelayConfig::default());
    let enough = Plan::of(200);
    let written = write(&restored, &enough).await.unwrap();
    assert!(written.failed == 0 && !written.committed.is_empty());
    eventually("all but what the dead letter blocks", async || restored.pending().await == 2).await;
    let keys = relay.cli.run(&["--output", "json", "keys", "list"]).succeeded();
    let keys: serde_json::Value = serde_json::from_str(&keys.stdout).unwrap();
    assert_eq!(
        (&keys["keys"][0]["key"], &keys["keys"][0]["waiting"]),
        (&"poison".into(), &2.into())
    );
    // The restored triggers tell the relay that runs.
    restored.run("delete from outbox_events where dead_at is not null").await;
    eventually("an empty outbox", async || restored.pending().await == 0).await;
    assert_eq!(relay.terminate().await.0, Some(0));
    let settled_in = "select count(*) from outbox_events_processed_default";
    assert_eq!(restored.count(settled_in).await, 0, "in the partition of its day");

    let committed = restored.committed().await;
    assert!(dumped.keys().all(|id| committed.contains_key(id)));
    assert!(written.committed.iter().all(|(id, _)| committed.contains_key(id)));
    // What the lost cluster's relay delivered, as far as the dump knows of it, and then ours.
    let mut deliveries = read_back(&before).await;
    deliveries.retain(|delivery| dumped.contains_key(&delivery.id));
    let by_the_first = deliveries.len();
    deliveries.extend(read_back(&after).await);
    let verdict = Verdict::of(&committed, &deliveries);
    verdict.add_to(&mut figures);
    figures.add("delivered before", delivered_before).add("pending in the dump", pending).print();
    // Again only what was delivered after the dump was made, or while it was.
    verdict.assert_kept(by_the_first - usize::try_from(delivered_before).unwrap());
}

async fn dead(database: &Database) -> u64 {
    database.count("select count(*) from outbox_events where dead_at is not null").await
}

/// The worst case: the dump is older than what the relay knows, and writers have drawn the numbers
/// anew, and more, before it looks again. Neither the numbers nor the timeline tell the difference.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_relay_that_runs_while_its_server_is_replaced_by_a_restored_one_reads_from_the_start() {
    let Some(nats) = shared_nats().await else { return };
    let Some(mut lost) = PostgresServer::start(&[]).await else { return };
    let Some(mut server) = PostgresServer::start(&[]).await else { return };
    let database = Database::create_at(&lost).await;
    let mut figures = Figures::of("database replaced");
    let stream = Stream::create_forgetful(&nats).await;
    let mut relay = Relay::started(&database, &stream, &RelayConfig::default());
    database.run(&numbered(100, 1)).await;
    eventually("an empty outbox", async || database.pending().await == 0).await;
    let Some(dump) = Dump::take(&database.url(), DumpFormat::Custom).await else { return };
    // Delivered, and lost with the server.
    database.run(&numbered(200, 3)).await;
    eventually("an empty outbox", async || database.pending().await == 0).await;
    let gone: HashSet<Uuid> = database.committed().await.into_keys().collect();

    let restored = Database::of_dump(&server, &dump).await;
    restored.run(&numbered(400, 3)).await;
    let committed = restored.committed().await;
    // At the address of the lost one, under its name.
    let rename = format!("alter database {} rename to {}", restored.name, database.name);
    let mut admin = PgConnection::connect(&server.url("postgres")).await.unwrap();
    sqlx::raw_sql(AssertSqlSafe(rename)).execute(&mut admin).await.unwrap();
    server.kill();
    lost.kill();
    eventually("a relay that admits it", async || !relay.is_ready().await).await;
    server.restart_at(lost.port()).await;
    eventually("an empty outbox", async || database.pending().await == 0).await;
    assert!(!relay.has_ended(), "the same relay all the time");
    assert_eq!(relay.terminate().await.0, Some(0));

    let mut deliveries = read_back(&stream).await;
    let only_lost = |id: &Uuid| gone.contains(id) && !committed.contains_key(id);
    deliveries.retain(|delivery| !only_lost(&delivery.id));
    let verdict = Verdict::of(&committed, &deliveries);
    verdict.add_to(&mut figures);
    figures.print();
    verdict.assert_kept(0);
}
