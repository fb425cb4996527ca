//! Connections that reading and recording keep at hand.

#![allow(clippy::unwrap_used, reason = "a test states what it expects")]

mod common;

use std::time::{Duration, Instant};

use posthaste_core::{ErrorKind, OutboxRepository};
use posthaste_postgres::PostgresOutbox;

use common::{TestDatabase, everything};

#[tokio::test]
async fn a_read_finds_the_connection_of_the_one_before() {
    let Some(database) = TestDatabase::create().await else { return };
    let outbox = database.outbox().await;
    outbox.fetch_pending(&everything()).await.unwrap();
    outbox.fetch_pending(&everything()).await.unwrap();
    // What goes back to the pool, as the connection that created the outbox, is looked at first.
    tokio::time::sleep(Duration::from_millis(300)).await;
    let pool = outbox.pool();
    assert_eq!(pool.size() as usize - pool.num_idle(), 1, "one is kept");
}

#[tokio::test]
async fn a_pool_that_closes_gets_its_connections() {
    let Some(database) = TestDatabase::create().await else { return };
    let outbox = database.outbox().await;
    outbox.fetch_pending(&everything()).await.unwrap();
    let closed = tokio::time::timeout(Duration::from_secs(5), outbox.pool().close()).await;
    assert!(closed.is_ok(), "it waits for all of its connections");
    assert!(outbox.fetch_pending(&everything()).await.is_err());
}

#[tokio::test]
async fn a_small_pool_is_left_to_others() {
    let Some(database) = TestDatabase::create().await else { return };
    database.outbox().await;
    let mut options = database.options();
    options.max_connections = 1;
    let outbox = PostgresOutbox::connect(&options).await.unwrap();
    outbox.fetch_pending(&everything()).await.unwrap();
    let taken = tokio::time::timeout(Duration::from_secs(5), outbox.pool().acquire()).await;
    taken.unwrap().unwrap();
}

#[tokio::test]
async fn a_connection_that_died_at_hand_fails_one_read() {
    let Some(database) = TestDatabase::create().await else { return };
    let outbox = database.outbox().await;
    loop {
        outbox.fetch_pending(&everything()).await.unwrap();
        let used_at = Instant::now();
        end_all_connections(&database).await;
        let read = outbox.fetch_pending(&everything()).await;
        // So long after it was used, it is looked at first: a busy machine has to try again.
        if used_at.elapsed() < Duration::from_millis(900) {
            let error = read.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Unreachable, "{}", error.report());
            break;
        }
    }
    outbox.fetch_pending(&everything()).await.unwrap();
}

/// As when a server has moved while the relay had nothing to do.
#[tokio::test]
async fn a_connection_that_died_long_ago_fails_nothing() {
    let Some(database) = TestDatabase::create().await else { return };
    let outbox = database.outbox().await;
    outbox.fetch_pending(&everything()).await.unwrap();
    end_all_connections(&database).await;
    tokio::time::sleep(Duration::from_millis(1_100)).await;
    outbox.fetch_pending(&everything()).await.unwrap();
}

async fn end_all_connections(database: &TestDatabase) {
    database
        .run(
            "select pg_terminate_backend(pid) from pg_stat_activity \
             where datname = current_database() and pid <> pg_backend_pid()",
        )
        .await;
}

/// An application's pool may be the same.
#[tokio::test]
async fn what_is_set_on_a_connection_does_not_come_back_to_the_pool() {
    let Some(database) = TestDatabase::create().await else { return };
    let outbox = database.outbox().await;
    outbox.fetch_pending(&everything()).await.unwrap();
    database.run("alter table outbox_events_pending rename to elsewhere").await;
    outbox.fetch_pending(&everything()).await.unwrap_err();
    let pool = outbox.pool();
    let mut all = Vec::new();
    for _ in 0..pool.options().get_max_connections() {
        let mut connection = pool.acquire().await.unwrap();
        let set = sqlx::query_scalar("show enable_seqscan").fetch_one(&mut *connection);
        let set: String = set.await.unwrap();
        assert_eq!(set, "on");
        all.push(connection);
    }
}

#[test]
fn an_outbox_may_outlive_its_runtime() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let outbox = runtime.block_on(async {
        let database = TestDatabase::create().await?;
        let outbox = database.outbox().await;
        outbox.fetch_pending(&everything()).await.unwrap();
        Some(outbox)
    });
    drop(runtime);
    drop(outbox);
}
