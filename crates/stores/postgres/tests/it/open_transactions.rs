//! Operators are told who holds events back.

use std::time::Duration;

use posthaste_core::{OpenTransaction, OutboxAdmin, OutboxMigrations, TransactionHolder};
use posthaste_postgres::{PostgresOptions, PostgresOutbox};
use posthaste_testkit::servers::PostgresServer;
use sqlx::{Connection, PgConnection};

use crate::common::{TestDatabase, insert, run};

async fn open(outbox: &PostgresOutbox) -> Vec<OpenTransaction> {
    outbox.open_transactions(Duration::ZERO, 10).await.unwrap()
}

async fn pid(connection: &mut PgConnection) -> i32 {
    sqlx::query_scalar("select pg_backend_pid()").fetch_one(connection).await.unwrap()
}

#[tokio::test]
async fn the_session_that_holds_events_back_is_named_and_no_other() {
    let Some(database) = TestDatabase::create().await else { return };
    let outbox = database.outbox().await;
    // A long report, and a writer of other tables: they hold nothing back.
    let mut reader = database.connection().await;
    run(&mut reader, "begin isolation level repeatable read; select count(*) from outbox_events")
        .await;
    let mut other = database.connection().await;
    run(&mut other, "begin; create table other (n int); insert into other values (1)").await;
    assert_eq!(open(&outbox).await, []);

    let mut writer = database.connection().await;
    let process = pid(&mut writer).await;
    run(&mut writer, "set application_name = 'a late writer'").await;
    run(&mut writer, &format!("begin; {}", insert("held"))).await;
    run(&mut writer, "select 'the last\n statement'").await;
    let found = open(&outbox).await;
    let [OpenTransaction { holder, user, age, token }] = &found[..] else { panic!("{found:?}") };
    let TransactionHolder::Session { pid, application, activity, .. } = holder else {
        panic!("{holder:?}")
    };
    assert_eq!((*pid, application.as_deref()), (process, Some("a late writer")));
    assert!(user.is_some() && age.is_some(), "{found:?}");
    let activity = activity.as_ref().unwrap();
    assert_eq!(&*activity.state, "idle in transaction");
    assert_eq!(&*activity.query, "select 'the last\n statement'");
    assert!(activity.state_for <= age.unwrap(), "{found:?}");
    assert_eq!(&open(&outbox).await[0].token, token, "under the same name again");
    let old = Duration::from_secs(3_600);
    assert_eq!(outbox.open_transactions(old, 10).await.unwrap(), [], "it is not so old");

    run(&mut writer, "rollback").await;
    assert_eq!(open(&outbox).await, []);
}

#[tokio::test]
async fn the_oldest_come_first_and_no_more_than_asked_for() {
    let Some(database) = TestDatabase::create().await else { return };
    let outbox = database.outbox().await;
    let mut writers = Vec::new();
    for number in 0..4 {
        let mut writer = database.connection().await;
        run(&mut writer, &format!("set application_name = 'writer {number}'; begin")).await;
        // Began in this order, and wrote in the opposite one.
        writers.push(writer);
    }
    for writer in writers.iter_mut().rev() {
        run(writer, &insert("held")).await;
    }
    let oldest = outbox.open_transactions(Duration::ZERO, 2).await.unwrap();
    let names: Vec<_> = oldest
        .iter()
        .map(|found| match &found.holder {
            TransactionHolder::Session { application, .. } => application.as_deref().unwrap(),
            TransactionHolder::Prepared { name } => panic!("{name} is prepared"),
        })
        .collect();
    assert_eq!(names, ["writer 0", "writer 1"]);
}

#[tokio::test]
async fn a_prepared_transaction_is_named_also_after_a_restart() {
    let Some(mut server) = PostgresServer::start(&["max_prepared_transactions=5"]).await else {
        return;
    };
    let database = TestDatabase::create_at(&server.url("postgres")).await;
    let outbox = database.outbox().await;
    let mut writer = database.connection().await;
    // A savepoint has a number and a lock of its own.
    run(&mut writer, &format!("begin; savepoint s; {}; release s", insert("prepared"))).await;
    run(&mut writer, "prepare transaction 'order 42'").await;
    // Another that holds nothing back.
    run(&mut writer, "begin; create table other (n int); prepare transaction 'other'").await;
    let expected = TransactionHolder::Prepared { name: "order 42".into() };
    let found = open(&outbox).await;
    assert_eq!(found.len(), 1, "{found:?}");
    assert_eq!((&found[0].holder, found[0].user.as_deref()), (&expected, Some("root")));
    assert!(found[0].age.is_some());

    drop(writer);
    server.restart().await;
    let outbox = PostgresOutbox::connect(&database.options()).await.unwrap();
    let found = open(&outbox).await;
    assert_eq!(found.len(), 1, "{found:?}");
    assert_eq!(found[0].holder, expected, "it outlives a crash");
    database.run("rollback prepared 'order 42'").await;
    assert_eq!(open(&outbox).await, []);
    // The database cannot be dropped before.
    database.run("rollback prepared 'other'").await;
}

#[tokio::test]
async fn what_we_may_not_see_of_a_session_is_left_out_and_the_session_is_not() {
    let Some(server) = PostgresServer::start(&[]).await else { return };
    let admin = PostgresOptions::from_url(server.url("postgres"));
    PostgresOutbox::connect(&admin).await.unwrap().migrate().await.unwrap();
    let mut writer = PgConnection::connect(&server.url("postgres")).await.unwrap();
    let process = pid(&mut writer).await;
    run(&mut writer, "create role watcher login; grant select on outbox_events_seq to watcher")
        .await;
    run(&mut writer, &format!("begin; {}", insert("held"))).await;

    let url = server.url("postgres").replace("root@", "watcher@");
    let watcher = PostgresOutbox::connect(&PostgresOptions::from_url(url)).await.unwrap();
    // Nobody knows how old it is: it is shown whatever the age asked for.
    let found = watcher.open_transactions(Duration::from_secs(3_600), 10).await.unwrap();
    let [OpenTransaction { holder, age: None, .. }] = &found[..] else { panic!("{found:?}") };
    let TransactionHolder::Session { pid, activity: None, .. } = holder else {
        panic!("{holder:?}")
    };
    assert_eq!(*pid, process);

    let mut admin = PgConnection::connect(&server.url("postgres")).await.unwrap();
    run(&mut admin, "grant pg_read_all_stats to watcher").await;
    let found = watcher.open_transactions(Duration::ZERO, 10).await.unwrap();
    assert!(found[0].age.is_some(), "{found:?}");
}
