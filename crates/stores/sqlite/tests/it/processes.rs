//! Several processes on one file, and the death of one.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use crate::support::{event, outbox, pending, run_sql};
use posthaste_core::{
    ErrorKind, ErrorStatus, OutboxEvent, OutboxRepository, Settlement, SettlementOutcome,
};
use posthaste_sqlite::{SqliteOptions, SqliteOutbox, store_events};
use sqlx::Connection;
use uuid::Uuid;

const PATH: &str = "POSTHASTE_TEST_CHILD_PATH";
const UNITS: &str = "POSTHASTE_TEST_CHILD_UNITS";
const UNIT_EVENTS: usize = 3;

/// Not a test: what a started process does. It commits units of an order and its events, and says
/// so after each commit.
#[tokio::test]
#[ignore = "started by the other tests"]
async fn child() {
    let Ok(path) = std::env::var(PATH) else { return };
    let units: usize = std::env::var(UNITS).unwrap().parse().unwrap();
    let outbox = SqliteOutbox::open(path).await.unwrap();
    for _ in 0..units {
        let order = Uuid::now_v7();
        let mut unit = outbox.begin().await.unwrap();
        sqlx::query("insert into orders (id) values (?1)")
            .bind(order.to_string())
            .execute(unit.connection())
            .await
            .unwrap();
        for number in 0..UNIT_EVENTS {
            unit.add_event(OutboxEvent::new(order, "order", &number).unwrap());
        }
        unit.commit().await.unwrap();
        let mut stdout = std::io::stdout();
        writeln!(stdout, "committed {order}").unwrap();
        stdout.flush().unwrap();
    }
}

fn start(path: &Path, units: usize) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "processes::child", "--ignored", "--nocapture", "--test-threads=1"])
        .env(PATH, path)
        .env(UNITS, units.to_string())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap()
}

/// The orders that the process says it committed.
fn committed(lines: impl Iterator<Item = std::io::Result<String>>) -> Vec<Uuid> {
    lines
        .map_while(Result::ok)
        .filter_map(|line| line.split("committed ").nth(1)?.trim().parse().ok())
        .collect()
}

async fn orders(outbox: &SqliteOutbox) -> Vec<Uuid> {
    let mut unit = outbox.begin().await.unwrap();
    let ids: Vec<String> =
        sqlx::query_scalar("select id from orders").fetch_all(unit.connection()).await.unwrap();
    ids.iter().map(|id| id.parse().unwrap()).collect()
}

/// Every order has all its events in order, and every event has its order.
async fn assert_in_step(outbox: &SqliteOutbox, orders: &[Uuid]) {
    let found = pending(outbox).await;
    assert_eq!(found.len(), orders.len() * UNIT_EVENTS, "events without order, or the other way");
    for order in orders {
        let bodies: Vec<_> = found
            .iter()
            .filter(|found| found.event.aggregate_id() == *order)
            .map(|found| found.event.payload().body().clone())
            .collect();
        assert_eq!(bodies, ["0", "1", "2"], "{order}");
    }
}

#[tokio::test]
async fn a_killed_process_leaves_what_it_committed_and_nothing_else() {
    let (_directory, outbox) = outbox().await;
    run_sql(&outbox, "create table orders (id text)").await.unwrap();
    outbox.close().await;
    let mut promised = Vec::new();
    for round in 0..8_u64 {
        let mut process = start(outbox.path(), 1_000_000);
        let mut lines = BufReader::new(process.stdout.take().unwrap()).lines();
        promised.extend(committed(lines.by_ref().take(6 + round as usize)));
        // Somewhere within one of the next units.
        std::thread::sleep(Duration::from_micros(700 * round));
        process.kill().unwrap();
        process.wait().unwrap();
        promised.extend(committed(lines));
        let after = SqliteOutbox::open(outbox.path()).await.unwrap();
        let orders = orders(&after).await;
        for order in &promised {
            assert!(orders.contains(order), "a committed order is lost: {order}");
        }
        assert!(promised.len() > 8 * round as usize / 2, "the process committed next to nothing");
        assert_in_step(&after, &orders).await;
        after.close().await;
    }
}

#[tokio::test]
async fn several_processes_write_at_once() {
    let (_directory, outbox) = outbox().await;
    run_sql(&outbox, "create table orders (id text)").await.unwrap();
    let mut processes: Vec<Child> = (0..3).map(|_| start(outbox.path(), 40)).collect();
    // The relay settles meanwhile, in yet another process: this one.
    let own = event();
    outbox.store(std::slice::from_ref(&own)).await.unwrap();
    let seq =
        pending(&outbox).await.iter().find(|found| found.event.id() == own.id()).map(|own| own.seq);
    let delivered = Settlement {
        lease: None,
        seq: seq.unwrap(),
        id: own.id(),
        outcome: SettlementOutcome::Delivered,
    };
    assert_eq!(outbox.settle(&[delivered]).await.unwrap(), 1);
    let mut promised = Vec::new();
    for process in &mut processes {
        promised.extend(committed(BufReader::new(process.stdout.take().unwrap()).lines()));
        assert!(process.wait().unwrap().success());
    }
    let mut orders = orders(&outbox).await;
    orders.sort_unstable();
    promised.sort_unstable();
    assert_eq!(orders, promised);
    assert_eq!(orders.len(), 120);
    assert_in_step(&outbox, &orders).await;
}

#[tokio::test]
async fn a_commit_of_another_connection_wakes_and_a_settlement_does_not() {
    let (_directory, outbox) = outbox().await;
    let other = SqliteOutbox::open(outbox.path()).await.unwrap();
    let woken = |limit| tokio::time::timeout(limit, outbox.wait_for_events());
    let (long, short) = (Duration::from_secs(20), Duration::from_millis(300));
    woken(long).await.expect("the first wait ends at once: something may be there");
    woken(short).await.expect_err("nothing happened");
    other.store(&[event()]).await.unwrap();
    woken(long).await.expect("another connection stored an event");
    let found = pending(&outbox).await.remove(0);
    let delivered = Settlement {
        lease: None,
        seq: found.seq,
        id: found.event.id(),
        outcome: SettlementOutcome::Delivered,
    };
    outbox.settle(&[delivered]).await.unwrap();
    woken(short).await.expect_err("a settlement brings no new event");
    let mut unit = outbox.begin().await.unwrap();
    unit.add_event(event());
    unit.commit().await.unwrap();
    woken(long).await.expect("a unit of work was committed, if before the wait");
    run_sql(&outbox, "update outbox_signal set revision = revision + 1").await.unwrap();
    woken(long).await.expect("an operator revived something");
}

#[tokio::test]
async fn the_users_own_transaction_takes_events_along() {
    let (_directory, outbox) = outbox().await;
    let url = format!("sqlite://{}", outbox.path().display());
    let mut connection = sqlx::SqliteConnection::connect(&url).await.unwrap();
    for keep in [false, true] {
        let mut transaction = connection.begin().await.unwrap();
        store_events(&mut transaction, &[event(), event()]).await.unwrap();
        if keep {
            transaction.commit().await.unwrap();
        } else {
            transaction.rollback().await.unwrap();
        }
        assert_eq!(pending(&outbox).await.len(), if keep { 2 } else { 0 });
    }
}

#[tokio::test]
async fn a_writer_that_does_not_end_is_a_conflict_and_no_events_fault() {
    let (_directory, outbox) = outbox().await;
    let options = SqliteOptions::new(outbox.path()).busy_timeout(Duration::from_millis(100));
    let impatient = SqliteOutbox::open_with(options).await.unwrap();
    outbox.store(&[event()]).await.unwrap();
    let unit = outbox.begin().await.unwrap();
    let error = impatient.store(&[event()]).await.unwrap_err();
    assert_eq!((error.kind(), error.status()), (ErrorKind::Conflict, ErrorStatus::Unavailable));
    // Reading goes on beside the writer.
    assert_eq!(pending(&impatient).await.len(), 1);
    unit.rollback().await.unwrap();
    impatient.store(&[event()]).await.unwrap();
    assert_eq!(pending(&outbox).await.len(), 2);
}

#[tokio::test]
async fn a_full_disk_throttles_and_loses_nothing() {
    let (_directory, outbox) = outbox().await;
    outbox.store(&[event()]).await.unwrap();
    // The writer is one connection, so its limit holds for every later write.
    let limit = async |pages: &'static str| {
        let mut unit = outbox.begin().await.unwrap();
        sqlx::query(pages).execute(unit.connection()).await.unwrap();
        unit.commit().await.unwrap();
    };
    limit("pragma max_page_count = 1").await;
    let payload = posthaste_core::Payload::bytes(vec![7; 1 << 20], "a/b").unwrap();
    let large = OutboxEvent::builder(Uuid::now_v7(), "t").payload(payload).build().unwrap();
    let error = outbox.store(&[event(), large.clone()]).await.unwrap_err();
    assert_eq!((error.kind(), error.status()), (ErrorKind::Throttled, ErrorStatus::Unavailable));
    assert!(error.report().contains("disk is full"), "{}", error.report());
    assert_eq!(pending(&outbox).await.len(), 1);
    limit("pragma max_page_count = 1000000").await;
    outbox.store(&[large]).await.unwrap();
    assert_eq!(pending(&outbox).await.len(), 2);
}

#[tokio::test]
async fn one_relay_at_a_time() {
    let (directory, outbox) = outbox().await;
    let link = directory.path().join("alias.db");
    #[cfg(unix)]
    std::os::unix::fs::symlink(outbox.path(), &link).unwrap();
    #[cfg(not(unix))]
    let link = outbox.path();
    let same = SqliteOutbox::open(&link).await.unwrap();
    let claim = outbox.claim().await.unwrap();
    let error = same.claim().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Conflict);
    assert!(error.report().contains("another relay"), "{}", error.report());
    drop(claim);
    let _claim = same.claim().await.unwrap();
}
