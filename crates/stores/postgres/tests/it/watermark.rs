//! The watermark's guarantees: no event that is still to appear is missed.

use posthaste_core::{OutboxRepository, Watermark};
use posthaste_postgres::{PostgresOutbox, store_events};
use posthaste_testkit::servers::PostgresServer;
use sqlx::Connection;
use uuid::Uuid;

use crate::common::{TestDatabase, event, insert, pending, run};

async fn watermark(outbox: &PostgresOutbox) -> Watermark {
    outbox.watermark().await.unwrap()
}

#[tokio::test]
async fn an_open_writer_is_listed_under_one_name_until_its_events_are_visible() {
    let Some(database) = TestDatabase::create().await else { return };
    let outbox = database.outbox().await;
    assert_eq!(watermark(&outbox).await.high, 0);

    let mut slow = database.connection().await;
    let mut open = slow.begin().await.unwrap();
    let late = event(Uuid::now_v7());
    store_events(&mut open, std::slice::from_ref(&late)).await.unwrap();
    let first = watermark(&outbox).await;
    assert_eq!((first.high, first.writers.len()), (1, 1));

    outbox.store(&[event(Uuid::now_v7())]).await.unwrap();
    run(&mut open, "select 1").await;
    let second = watermark(&outbox).await;
    assert_eq!(second.high, 2);
    assert_eq!(second.writers, first.writers, "only the open one, under the same name");
    assert_eq!(pending(&outbox).await.iter().map(|found| found.seq).collect::<Vec<_>>(), [2]);

    open.commit().await.unwrap();
    assert_eq!(watermark(&outbox).await.writers, []);
    let found = pending(&outbox).await;
    assert_eq!(found.iter().map(|found| found.seq).collect::<Vec<_>>(), [1, 2]);
    assert_eq!(found[0].event.id(), late.id());
}

#[tokio::test]
async fn a_transaction_that_has_drawn_no_number_is_not_listed() {
    let Some(database) = TestDatabase::create().await else { return };
    let outbox = database.outbox().await;
    outbox.store(&[event(Uuid::now_v7()), event(Uuid::now_v7())]).await.unwrap();

    // A long report, a dump, a writer of other tables, a settlement.
    let mut reader = database.connection().await;
    run(&mut reader, "begin isolation level repeatable read; select count(*) from outbox_events")
        .await;
    let mut other = database.connection().await;
    run(&mut other, "begin; create table other (n int); insert into other values (1)").await;
    let mut settler = database.connection().await;
    run(&mut settler, "begin; update outbox_events set processed_at = now() where seq = 1 and processed_at is null").await;

    assert_eq!(watermark(&outbox).await.writers, []);
}

#[tokio::test]
async fn every_way_to_draw_a_number_is_listed() {
    let Some(database) = TestDatabase::create().await else { return };
    let outbox = database.outbox().await;
    for how in [
        insert("parent"),
        insert("leaf").replace("into outbox_events", "into outbox_events_pending"),
        "select nextval('outbox_events_seq')".into(),
        format!("savepoint s; {}; rollback to s", insert("rolled back")),
        format!("savepoint s; {}; release s", insert("released")),
        format!("do $$ begin {}; end $$", insert("in a function")),
    ] {
        let mut writer = database.connection().await;
        run(&mut writer, &format!("begin; {how}")).await;
        assert_eq!(watermark(&outbox).await.writers.len(), 1, "{how}");
        run(&mut writer, "rollback").await;
        assert_eq!(watermark(&outbox).await.writers, [], "{how}");
    }
}

/// Restored from a dump, in the same server and under the same name: the numbers may be drawn
/// further by then than they ever were.
#[tokio::test]
async fn another_database_of_the_same_name_is_another_incarnation() {
    let Some(database) = TestDatabase::create().await else { return };
    let outbox = database.outbox().await;
    outbox.store(&[event(Uuid::now_v7())]).await.unwrap();
    let before = watermark(&outbox).await;
    assert_eq!(watermark(&outbox).await, before, "the same as long as nothing happens");

    let other = TestDatabase::create().await.unwrap();
    let restored = other.outbox().await;
    restored.store(&[event(Uuid::now_v7())]).await.unwrap();
    let after = watermark(&restored).await;
    assert_eq!((after.high, &after.writers), (before.high, &before.writers));
    assert_ne!(after.incarnation, before.incarnation);

    // Restored in place, with `pg_restore --clean`.
    database.run("drop schema public cascade; create schema public").await;
    let again = database.outbox().await;
    again.store(&[event(Uuid::now_v7())]).await.unwrap();
    assert_ne!(watermark(&again).await.incarnation, before.incarnation);
}

/// The proof by many random schedules: a reader that trusts the watermark as the processor does
/// reads every committed event exactly once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reader_that_trusts_the_watermark_misses_nothing() {
    let Some(database) = TestDatabase::create().await else { return };
    let outbox = database.outbox().await;
    let writers: Vec<_> = (0..4_u64)
        .map(|writer| {
            let (outbox, aggregate) = (outbox.clone(), Uuid::now_v7());
            tokio::spawn(async move {
                let mut committed = 0_u64;
                for turn in 0..40_u64 {
                    let mut work = outbox.begin().await.unwrap();
                    let count = (writer * 7 + turn) % 4 + 1;
                    let connection = work.connection();
                    let events: Vec<_> = (0..count).map(|_| event(aggregate)).collect();
                    store_events(connection, &events).await.unwrap();
                    tokio::time::sleep(std::time::Duration::from_millis((writer + turn) % 5)).await;
                    if (writer + turn) % 5 == 0 {
                        work.rollback().await.unwrap();
                    } else {
                        work.commit().await.unwrap();
                        committed += count;
                    }
                }
                committed
            })
        })
        .collect();

    // Everything at or below a `high` whose writers are gone must be visible, for good.
    let mut closed = 0;
    let mut seen_at_close = std::collections::BTreeSet::new();
    let mut open: Vec<Watermark> = Vec::new();
    while !writers.iter().all(tokio::task::JoinHandle::is_finished) {
        let mark = watermark(&outbox).await;
        open.retain(|earlier| {
            let over = earlier.writers.iter().all(|writer| !mark.writers.contains(writer));
            if over {
                closed = closed.max(earlier.high);
            }
            !over
        });
        let visible: std::collections::BTreeSet<i64> =
            pending(&outbox).await.iter().map(|found| found.seq).collect();
        let late: Vec<_> = visible
            .iter()
            .filter(|seq| **seq <= 0 || (seen_below(&seen_at_close, **seq)))
            .collect();
        assert!(late.is_empty(), "appeared below a closed mark: {late:?}");
        seen_at_close = visible.range(..=closed).map(|seq| (*seq, closed)).collect();
        seen_at_close.insert((i64::MAX, closed));
        open.push(mark);
    }
    let mut committed = 0;
    for writer in writers {
        committed += writer.await.unwrap();
    }
    assert_eq!(pending(&outbox).await.len() as u64, committed);
}

/// Whether `seq` is below the mark closed at the last look and was not there then.
fn seen_below(seen: &std::collections::BTreeSet<(i64, i64)>, seq: i64) -> bool {
    let closed = seen.last().map_or(0, |(_, closed)| *closed);
    seq <= closed && !seen.contains(&(seq, closed))
}

/// Nothing that was proven before it holds after it: what was prepared has another name then, and the names
/// of others are given out again.
#[tokio::test]
async fn a_restart_is_another_incarnation_be_it_clean_or_a_crash() {
    let settings = ["max_prepared_transactions=5"];
    let Some(mut server) = PostgresServer::start(&settings).await else { return };
    let database = TestDatabase::create_at(&server.url("postgres")).await;
    let outbox = database.outbox().await;
    let mut writer = database.connection().await;
    let store = insert("prepared");
    run(&mut writer, &format!("begin; {store}; prepare transaction 'first'")).await;
    drop(writer);
    let before = watermark(&outbox).await;
    assert_eq!((watermark(&outbox).await, before.writers.len()), (before.clone(), 1));

    server.restart().await;
    let restarted = until_answered(&outbox).await;
    assert_ne!(restarted.incarnation, before.incarnation);
    assert_ne!(restarted.writers, before.writers, "it has another name");
    assert_eq!(restarted.writers.len(), 1);

    // A process of the server dies, and all others are started anew.
    let mut victim = database.connection().await;
    let pid: i32 =
        sqlx::query_scalar("select pg_backend_pid()").fetch_one(&mut victim).await.unwrap();
    let killed = std::process::Command::new("kill").args(["-9", &pid.to_string()]).status();
    assert!(killed.unwrap().success());
    let mut crashed = restarted.clone();
    for _ in 0..100 {
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
        crashed = until_answered(&outbox).await;
        if crashed.incarnation != restarted.incarnation {
            break;
        }
    }
    assert_ne!(crashed.incarnation, restarted.incarnation);
    assert_eq!(crashed.writers, restarted.writers, "what was prepared keeps its name from then on");

    database.run("commit prepared 'first'").await;
    let ended = watermark(&outbox).await;
    assert_ne!(ended.incarnation, crashed.incarnation);
    assert_eq!(ended.writers, []);
    outbox.pool().close().await;
}

async fn until_answered(outbox: &PostgresOutbox) -> Watermark {
    for _ in 0..100 {
        if let Ok(watermark) = outbox.watermark().await {
            return watermark;
        }
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    }
    panic!("the server does not come back");
}
