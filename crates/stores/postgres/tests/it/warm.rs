//! Connections that reading and recording keep at hand.

use std::time::{Duration, Instant};

use posthaste_core::{ErrorKind, OutboxRepository};
use posthaste_postgres::PostgresOutbox;

use crate::common::{TestDatabase, everything};

#[tokio::test]
async fn a_read_finds_the_connection_of_the_one_before() {
    let Some(database) = TestDatabase::create().await else { return };
    let outbox = database.outbox().await;
    outbox.fetch_pending(&everything()).await.unwrap();
    outbox.fetch_pending(&everything()).await.unwrap();
    assert_eq!(kept(&outbox).await, 1);
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
    skip(Duration::from_secs(2)).await;
    outbox.fetch_pending(&everything()).await.unwrap();
}

/// As when the network has gone and nobody says so: each of those that are kept would be waited for.
#[tokio::test]
async fn what_was_kept_with_a_connection_that_died_is_not_tried() {
    let Some(database) = TestDatabase::create().await else { return };
    let outbox = database.outbox().await;
    let query = everything();
    // On a busy machine the one may be done before the other begins.
    for _ in 0..50 {
        let (one, other) = tokio::join!(outbox.fetch_pending(&query), outbox.fetch_pending(&query));
        one.unwrap();
        other.unwrap();
        if kept(&outbox).await == 2 {
            break;
        }
    }
    assert_eq!(kept(&outbox).await, 2);
    end_all_connections(&database).await;
    skip(Duration::from_secs(2)).await;
    outbox.fetch_pending(&query).await.unwrap();
    assert_eq!(kept(&outbox).await, 1, "the other is given up, too");
}

/// What the server keeps for a session grows.
#[tokio::test]
async fn a_connection_is_kept_for_ten_minutes() {
    let Some(database) = TestDatabase::create().await else { return };
    let outbox = database.outbox().await;
    outbox.fetch_pending(&everything()).await.unwrap();
    let first = session_of_last_read(&database).await;
    skip(Duration::from_secs(580)).await;
    outbox.fetch_pending(&everything()).await.unwrap();
    assert_eq!(session_of_last_read(&database).await, first);
    skip(Duration::from_secs(30)).await;
    outbox.fetch_pending(&everything()).await.unwrap();
    assert_ne!(session_of_last_read(&database).await, first);
}

/// Connections that are kept, and no other is in use.
async fn kept(outbox: &PostgresOutbox) -> usize {
    // What goes back to the pool, as the connection that created the outbox, is looked at first.
    tokio::time::sleep(Duration::from_millis(300)).await;
    let pool = outbox.pool();
    pool.size() as usize - pool.num_idle()
}

/// To this process, so much time goes by.
async fn skip(time: Duration) {
    tokio::time::pause();
    tokio::time::advance(time).await;
    tokio::time::resume();
}

async fn session_of_last_read(database: &TestDatabase) -> i32 {
    let last = "select pid from pg_stat_activity where datname = current_database() \
                and pid <> pg_backend_pid() and query like '%outbox_events_pending%' \
                order by query_start desc limit 1";
    database.value(last).await
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
