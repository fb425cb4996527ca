//! Who can hold up migrations, upkeep and changes of hands, for how long, and that it is said who does.

use std::time::{Duration, Instant};

use posthaste_core::{ErrorKind, LeaseRequest, OutboxMigrations, OutboxRepository};
use posthaste_postgres::{PostgresOptions, PostgresOutbox};
use uuid::Uuid;

use crate::common::{TestDatabase, run};

/// The day in a week, and a statement that drops it.
async fn drop_last_day(database: &TestDatabase) -> String {
    let last: String = database
        .value(
            "select 'outbox_events_processed_' || to_char((now() at time zone 'UTC')::date + 7, \
                 '\"y\"YYYY\"m\"MM\"d\"DD')",
        )
        .await;
    database.run(&format!("drop table {last}")).await;
    last
}

async fn exists(database: &TestDatabase, table: &str) -> bool {
    database.value(&format!("select to_regclass('{table}') is not null")).await
}

async fn shards_of(outbox: &PostgresOutbox) -> usize {
    let request = LeaseRequest {
        relay: Uuid::now_v7(),
        name: "test".into(),
        ttl: Duration::from_secs(600),
        release: Vec::new(),
        leaving: false,
    };
    outbox.lease(&request).await.unwrap().shards.len()
}

#[tokio::test]
async fn a_login_without_rights_holds_up_nobody() {
    let Some(database) = TestDatabase::create().await else { return };
    let nobody = database.role("nobody").await;
    let mut session = nobody.connection().await;
    run(
        &mut session,
        "select pg_advisory_lock(hashtext('posthaste.migrate')), \
             pg_advisory_lock(hashtext('posthaste.lease'), hashtext('public'))",
    )
    .await;
    let outbox = PostgresOutbox::connect(&database.options()).await.unwrap();
    tokio::time::timeout(Duration::from_secs(20), outbox.migrate()).await.unwrap().unwrap();
    assert_eq!(shards_of(&outbox).await, 64);
    run(
        &mut session,
        "select pg_advisory_lock(hashtext('posthaste.history'), \
             (select oid::int4 from pg_class where relname = 'outbox_events_processed'))",
    )
    .await;
    let last = drop_last_day(&database).await;
    outbox.maintain().await.unwrap();
    assert!(exists(&database, &last).await);
}

/// One of the version before, which locks nothing but this.
#[tokio::test]
async fn a_relay_that_changes_hands_by_the_old_lock_is_waited_for() {
    let Some(database) = TestDatabase::create().await else { return };
    let outbox = database.outbox().await;
    let mut older = database.connection().await;
    run(
        &mut older,
        "begin; select pg_advisory_xact_lock(hashtext('posthaste.lease'), hashtext('public'))",
    )
    .await;
    assert_eq!(shards_of(&outbox).await, 0);
    run(&mut older, "commit").await;
    assert_eq!(shards_of(&outbox).await, 64);
}

#[tokio::test]
async fn a_migration_that_meets_a_lock_says_who_holds_it() {
    let Some(database) = TestDatabase::create().await else { return };
    database.version_2().await;
    let mut holder = database.connection().await;
    run(&mut holder, "begin; select count(*) from outbox_events").await;
    let pid: i32 =
        sqlx::query_scalar("select pg_backend_pid()").fetch_one(&mut holder).await.unwrap();
    let options =
        PostgresOptions { statement_timeout: Duration::from_secs(3), ..database.options() };
    let outbox = PostgresOutbox::connect(&options).await.unwrap();
    let error = outbox.migrate().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Conflict);
    let report = error.report();
    assert!(report.contains(&format!("pid {pid}")), "{report}");
    assert!(report.contains("idle in transaction for"), "{report}");
    run(&mut holder, "commit").await;
    assert_eq!(outbox.migrate().await.unwrap().len(), 1);
}

/// A dump holds what it reads for as long as it runs.
#[tokio::test]
async fn a_start_does_not_wait_for_a_day_that_cannot_be_created() {
    let Some(database) = TestDatabase::create().await else { return };
    let outbox = database.outbox().await;
    let last = drop_last_day(&database).await;
    let mut dump = database.connection().await;
    run(
        &mut dump,
        "begin; lock table outbox_events, outbox_events_processed_default in access share mode",
    )
    .await;
    let started = Instant::now();
    outbox.migrate().await.unwrap();
    outbox.check().await.unwrap();
    assert!(started.elapsed() < Duration::from_secs(10), "{:?}", started.elapsed());
    assert!(!exists(&database, &last).await);
    run(&mut dump, "commit").await;
    outbox.maintain().await.unwrap();
    assert!(exists(&database, &last).await);
}

#[tokio::test]
async fn a_day_that_fails_stops_neither_start_nor_the_other_days() {
    let Some(database) = TestDatabase::create().await else { return };
    let outbox = database.outbox().await;
    let day = |ahead: i32| {
        format!(
            "select 'outbox_events_processed_' || to_char((now() at time zone 'UTC')::date + {ahead}, \
                 '\"y\"YYYY\"m\"MM\"d\"DD')"
        )
    };
    let tomorrow: String = database.value(&day(1)).await;
    database.run(&format!("alter table {tomorrow} rename to archive_of_tomorrow")).await;
    database
        .run("alter table outbox_events add tenant text generated always as (event_data ->> 't') stored")
        .await;
    let last = drop_last_day(&database).await;
    outbox.migrate().await.unwrap();
    outbox.check().await.unwrap();
    outbox.maintain().await.unwrap();
    assert!(!exists(&database, &tomorrow).await);
    assert!(exists(&database, &last).await, "with the column of the owner's");
}
