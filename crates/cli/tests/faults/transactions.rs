//! Transactions that wrote events and do not end.

use std::time::Duration;

use posthaste_core::{OutboxEvent, OutboxTransaction as _};
use posthaste_postgres::{PostgresOptions, PostgresOutbox};
use posthaste_testkit::servers::PostgresServer;
use serde_json::json;
use uuid::Uuid;

use crate::rig::{RELAYS, Rig};
use crate::support::{Database, eventually, sized};

/// The key of the events here, which no other transaction writes.
const KEY: Uuid = Uuid::from_u128(u128::MAX);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_transaction_open_for_long_is_delivered_in_order_whichever_relay_saw_it_begin() {
    let held_for = sized(Duration::from_secs(4), Duration::from_secs(60));
    let Some(mut rig) = Rig::start("long open transaction").await else { return };
    let options = PostgresOptions::from_url(rig.database.url());
    let outbox = PostgresOutbox::connect(&options).await.unwrap();
    let mut open = outbox.begin_transaction().await.unwrap();
    open.store(&events(1..=50)).await.unwrap();
    rig.progress().await;
    // The next relays meet the transaction when it is old, and its numbers far below all others.
    for relay in 0..RELAYS {
        rig.burst().await;
        rig.relays[relay].kill();
        rig.interrupt(1);
        rig.relays[relay].start();
    }
    tokio::time::sleep(held_for).await;
    rig.progress().await;
    assert_eq!(delivered_of_key(&rig.database).await, 0);
    open.store(&events(51..=100)).await.unwrap();
    open.commit().await.unwrap();
    rig.recover().await;
    eventually("its events", async || delivered_of_key(&rig.database).await == 100).await;
    let seconds = held_for.as_secs();
    rig.finish(&format!("a transaction with early and late events open for {seconds} s")).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn prepared_transactions_are_delivered_when_they_are_committed_even_after_a_crash() {
    let rounds = sized(1, 3);
    let settings = ["max_prepared_transactions=10"];
    let Some(mut server) = PostgresServer::start(&settings).await else { return };
    let Some(mut rig) = Rig::start_at("prepared transaction", &server).await else { return };
    for round in 0..rounds {
        let first = round * 20 + 1;
        prepare(&rig.database, "committed", first).await;
        prepare(&rig.database, "rolled_back", 1_000_000).await;
        rig.burst().await;
        server.kill_all();
        rig.interrupt(RELAYS);
        server.restart().await;
        rig.progress().await;
        rig.database.run("rollback prepared 'rolled_back'").await;
        let before = delivered_of_key(&rig.database).await;
        rig.database.run("commit prepared 'committed'").await;
        rig.recover().await;
        let its_events = before + 20;
        eventually("its events", async || delivered_of_key(&rig.database).await == its_events)
            .await;
    }
    let done = format!("{rounds} times prepared; PostgreSQL killed; then committed or rolled back");
    rig.finish(&done).await;
}

fn events(numbers: std::ops::RangeInclusive<i64>) -> Vec<OutboxEvent> {
    numbers
        .map(|number| OutboxEvent::new(KEY, "held", &json!({ "number": number })).unwrap())
        .collect()
}

/// Leaves a transaction with twenty events behind that no connection has.
async fn prepare(database: &Database, name: &str, first: i64) {
    database
        .run(&format!(
            "begin;
             insert into outbox_events (aggregate_id, event_type, event_data)
             select '{KEY}', 'held', jsonb_build_object('number', number)
               from generate_series({first}, {first} + 19) as number;
             prepare transaction '{name}'"
        ))
        .await;
}

async fn delivered_of_key(database: &Database) -> u64 {
    database
        .count(&format!(
            "select count(*) from outbox_events \
              where aggregate_id = '{KEY}' and processed_at is not null"
        ))
        .await
}
