//! Wake-ups: hints that come after the commit and cost the writer nothing.

use std::time::{Duration, Instant};

use posthaste_core::OutboxRepository;
use posthaste_postgres::{PostgresOptions, PostgresOutbox, lock_key, store_events};
use sqlx::Connection;
use uuid::Uuid;

use crate::common::{TestDatabase, event, insert};

const SOON: Duration = Duration::from_secs(5);
const NEVER: Duration = Duration::from_millis(400);
/// The pause before a lost connection is opened again is longer.
const RETRY: Duration = Duration::from_millis(900);

/// Waits for what tells of events to be there, which itself counts as news.
async fn hearing(outbox: &PostgresOutbox) {
    tokio::time::timeout(SOON, outbox.wait_for_events()).await.expect("it listens or watches");
}

async fn is_woken(relay: &PostgresOutbox, within: Duration) -> bool {
    tokio::time::timeout(within, relay.wait_for_events()).await.is_ok()
}

/// A relay that hears by LISTEN alone, and a writer.
async fn listener_and_writer(database: &TestDatabase) -> (PostgresOutbox, PostgresOutbox) {
    database.outbox().await;
    let options = PostgresOptions { watch_interval: None, ..database.options() };
    let relay = PostgresOutbox::connect(&options).await.unwrap();
    hearing(&relay).await;
    (relay, PostgresOutbox::connect(&options).await.unwrap())
}

#[tokio::test]
async fn a_commit_elsewhere_wakes_a_relay_and_a_rollback_does_not() {
    let Some(database) = TestDatabase::create().await else { return };
    let (relay, writer) = listener_and_writer(&database).await;

    let mut work = writer.begin().await.unwrap();
    work.add_event(event(Uuid::now_v7()));
    work.rollback().await.unwrap();
    assert!(!is_woken(&relay, NEVER).await);

    let mut work = writer.begin().await.unwrap();
    work.add_event(event(Uuid::now_v7()));
    work.commit().await.unwrap();
    assert!(is_woken(&relay, SOON).await, "by a unit of work");

    let mut connection = database.connection().await;
    let mut transaction = connection.begin().await.unwrap();
    store_events(&mut transaction, &[event(Uuid::now_v7())]).await.unwrap();
    transaction.commit().await.unwrap();
    assert!(!is_woken(&relay, NEVER).await);
    writer.notify();
    assert!(is_woken(&relay, SOON).await, "by notify");
}

/// A server, or a pooler, that ends it each time would be asked for connections without end.
#[tokio::test]
async fn a_lost_connection_is_not_opened_again_at_once() {
    let Some(database) = TestDatabase::create().await else { return };
    let (relay, writer) = listener_and_writer(&database).await;
    let waiting = somebody_waits(&relay);
    let listener = "select coalesce(max(pid), 0) from pg_stat_activity \
                    where datname = current_database() and query ilike 'listen %'";
    let lost: i32 = database.value(listener).await;
    let ended_at = Instant::now();
    let end = format!("select pg_terminate_backend({lost})");
    assert!(database.value::<bool>(&end).await);
    loop {
        let pid: i32 = database.value(listener).await;
        // What was seen late, on a busy machine, proves nothing.
        if ended_at.elapsed() > RETRY {
            break;
        }
        assert!(pid == lost || pid == 0, "it is back after {:?}", ended_at.elapsed());
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    while [lost, 0].contains(&database.value::<i32>(listener).await) {
        assert!(ended_at.elapsed() < SOON, "it does not come back");
    }
    waiting.abort();
    // That it is back is news itself.
    is_woken(&relay, NEVER).await;
    writer.notify();
    assert!(is_woken(&relay, SOON).await);
}

#[tokio::test]
async fn a_watch_finds_what_nobody_tells_of() {
    let Some(database) = TestDatabase::create().await else { return };
    database.outbox().await;
    for transaction_pooler in [false, true] {
        let options = PostgresOptions { listen: false, transaction_pooler, ..database.options() };
        let relay = PostgresOutbox::connect(&options).await.unwrap();
        assert!(relay.capabilities().wakes);
        hearing(&relay).await;
        for _ in 0..3 {
            assert!(!is_woken(&relay, NEVER).await, "of nothing");
            database.run(&insert("plain")).await;
            assert!(is_woken(&relay, SOON).await, "by plain SQL");
        }
    }
}

/// Longer than any statement, or answer, may take.
#[tokio::test]
async fn a_watch_that_seldom_looks_works_too() {
    let Some(database) = TestDatabase::create().await else { return };
    database.outbox().await;
    let watch_interval = Some(Duration::from_secs(11));
    let options = PostgresOptions { listen: false, watch_interval, ..database.options() };
    let relay = PostgresOutbox::connect(&options).await.unwrap();
    assert!(is_woken(&relay, 3 * SOON).await, "by its first look");
}

/// A relay that hears by its watch alone.
async fn watching(database: &TestDatabase) -> PostgresOutbox {
    database.outbox().await;
    let options = PostgresOptions { listen: false, ..database.options() };
    let relay = PostgresOutbox::connect(&options).await.unwrap();
    hearing(&relay).await;
    relay
}

/// Not the next one: the server looks anew each time. Between reading which one is under way and storing
/// the event, it may end by itself.
#[tokio::test]
async fn the_statement_that_is_under_way_finds_an_event() {
    let Some(database) = TestDatabase::create().await else { return };
    let relay = watching(&database).await;
    let begun = "select coalesce(max(query_start)::text, '') from pg_stat_activity \
                 where query like '%as looks where drawn%' and pid <> pg_backend_pid() \
                 and datname = current_database()";
    let waiting = somebody_waits(&relay);
    for _ in 0..20 {
        let mut looks = 0;
        while !relay_is_asleep(&database).await {
            looks += 1;
            assert!(looks < 1_000, "it never sleeps");
        }
        let before: String = database.value(begun).await;
        let (insert, woken) = (insert("plain"), is_woken(&relay, SOON));
        assert!(tokio::join!(woken, database.run(&insert)).0);
        if before == database.value::<String>(begun).await {
            return waiting.abort();
        }
    }
    panic!("it took another statement each time");
}

fn somebody_waits(relay: &PostgresOutbox) -> tokio::task::JoinHandle<()> {
    let relay = relay.clone();
    tokio::spawn(async move {
        loop {
            relay.wait_for_events().await;
        }
    })
}

async fn relay_is_asleep(database: &TestDatabase) -> bool {
    let asleep = "select count(*) from pg_stat_activity where wait_event = 'PgSleep' \
                  and datname = current_database()";
    database.value::<i64>(asleep).await > 0
}

#[tokio::test]
async fn a_watch_ends_when_nobody_waits_and_begins_again() {
    let Some(database) = TestDatabase::create().await else { return };
    let relay = watching(&database).await;
    let (mut looks, mut awake_in_a_row) = (0, 0);
    while awake_in_a_row < 100 {
        awake_in_a_row = if relay_is_asleep(&database).await { 0 } else { awake_in_a_row + 1 };
        tokio::time::sleep(Duration::from_millis(3)).await;
        looks += 1;
        assert!(looks < 3_000, "it goes on");
    }
    hearing(&relay).await;
    assert!(!is_woken(&relay, NEVER).await);
    database.run(&insert("plain")).await;
    assert!(is_woken(&relay, SOON).await);
}

/// The server would be kept busy by a look after the other, or by a question after the other. A writer
/// is somebody whose events are still to come.
#[tokio::test]
async fn a_watch_sleeps_between_its_looks_and_is_no_writer() {
    let Some(database) = TestDatabase::create().await else { return };
    let relay = watching(&database).await;
    let waiting = somebody_waits(&relay);
    let mut seen = 0;
    for _ in 0..100 {
        seen += usize::from(relay_is_asleep(&database).await);
        assert_eq!(relay.watermark().await.unwrap().writers, []);
        tokio::time::sleep(Duration::from_millis(3)).await;
    }
    assert!(seen > 50, "asleep in {seen} of 100 looks");
    waiting.abort();
}

#[tokio::test]
async fn without_either_waiting_is_for_ever_and_says_so() {
    let Some(database) = TestDatabase::create().await else { return };
    database.outbox().await;
    let deaf = PostgresOptions { watch_interval: None, ..database.options() };
    for options in [
        PostgresOptions { listen: false, ..deaf.clone() },
        PostgresOptions { transaction_pooler: true, ..deaf },
    ] {
        let relay = PostgresOutbox::connect(&options).await.unwrap();
        assert!(!relay.capabilities().wakes);
        assert!(!is_woken(&relay, NEVER).await);
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
