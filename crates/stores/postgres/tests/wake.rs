//! Wake-ups: hints that come after the commit and cost the writer nothing.

#![allow(clippy::unwrap_used, reason = "a test states what it expects")]

mod common;

use std::time::Duration;

use posthaste_core::OutboxRepository;
use posthaste_postgres::{PostgresOptions, PostgresOutbox, lock_key, store_events};
use sqlx::Connection;
use uuid::Uuid;

use common::{TestDatabase, event};

const SOON: Duration = Duration::from_secs(5);
const NEVER: Duration = Duration::from_millis(400);

/// Waits for LISTEN to be there, which itself counts as news.
async fn listening(outbox: &PostgresOutbox) {
    tokio::time::timeout(SOON, outbox.wait_for_events()).await.expect("LISTEN starts");
}

#[tokio::test]
async fn a_commit_elsewhere_wakes_a_relay_and_a_rollback_does_not() {
    let Some(database) = TestDatabase::create().await else { return };
    let relay = database.outbox().await;
    let writer = PostgresOutbox::connect(&database.options()).await.unwrap();
    listening(&relay).await;

    let mut work = writer.begin().await.unwrap();
    work.add_event(event(Uuid::now_v7()));
    work.rollback().await.unwrap();
    assert!(tokio::time::timeout(NEVER, relay.wait_for_events()).await.is_err());

    let mut work = writer.begin().await.unwrap();
    work.add_event(event(Uuid::now_v7()));
    work.commit().await.unwrap();
    tokio::time::timeout(SOON, relay.wait_for_events()).await.expect("woken by a unit of work");

    let mut connection = database.connection().await;
    let mut transaction = connection.begin().await.unwrap();
    store_events(&mut transaction, &[event(Uuid::now_v7())]).await.unwrap();
    transaction.commit().await.unwrap();
    assert!(tokio::time::timeout(NEVER, relay.wait_for_events()).await.is_err());
    writer.notify();
    tokio::time::timeout(SOON, relay.wait_for_events()).await.expect("woken by notify");
}

#[tokio::test]
async fn without_listen_waiting_is_for_ever_and_says_so() {
    let Some(database) = TestDatabase::create().await else { return };
    database.outbox().await;
    for options in [
        PostgresOptions { listen: false, ..database.options() },
        PostgresOptions { transaction_pooler: true, ..database.options() },
    ] {
        let relay = PostgresOutbox::connect(&options).await.unwrap();
        assert!(!relay.capabilities().wakes);
        assert!(tokio::time::timeout(NEVER, relay.wait_for_events()).await.is_err());
    }
}

#[tokio::test]
async fn a_locked_key_admits_one_writer_at_a_time() {
    let Some(database) = TestDatabase::create().await else { return };
    database.outbox().await;
    let (mut one, mut two) = (database.connection().await, database.connection().await);
    let (key, other) = (event(Uuid::now_v7()), event(Uuid::now_v7()));
    let mut first = one.begin().await.unwrap();
    lock_key(&mut first, key.order_key()).await.unwrap();
    let mut second = two.begin().await.unwrap();
    lock_key(&mut second, other.order_key()).await.unwrap();
    let waits = async { lock_key(&mut second, key.order_key()).await.unwrap() };
    let mut waits = std::pin::pin!(waits);
    assert!(tokio::time::timeout(NEVER, &mut waits).await.is_err());
    first.commit().await.unwrap();
    tokio::time::timeout(SOON, waits).await.expect("free after the commit");
}
