//! The schema: how it comes to be, and what is refused.

use std::sync::Arc;

use posthaste_core::{ErrorKind, OutboxAdmin, OutboxMigrations, OutboxRepository};
use posthaste_postgres::PostgresOutbox;
use tokio::sync::Barrier;

use crate::common::{FINGERPRINT, TestDatabase, insert, pending, pending_types, run};

/// A hand-written outbox: the contract's columns as a flat table.
const FLAT: &str = "create table outbox_events (
    id uuid primary key default gen_random_uuid(),
    aggregate_id uuid not null,
    event_type varchar(100) not null,
    event_data jsonb not null,
    created_at timestamptz default now(),
    processed_at timestamptz,
    retry_count integer default 0,
    max_retries integer default 3,
    error_message text);
    create index outbox_events_pending_dead on outbox_events (created_at)";

#[tokio::test]
async fn migrate_is_idempotent_and_safe_when_several_start_at_once() {
    let Some(database) = TestDatabase::create().await else { return };
    let outbox = PostgresOutbox::connect(&database.options()).await.unwrap();
    let status = outbox.migration_status().await.unwrap();
    assert_eq!((status.current, status.pending.len()), (0, 3));

    let mut starts = Vec::new();
    let together = Arc::new(Barrier::new(4));
    for _ in 0..4 {
        let outbox = PostgresOutbox::connect(&database.options()).await.unwrap();
        let together = Arc::clone(&together);
        starts.push(tokio::spawn(async move {
            together.wait().await;
            outbox.migrate().await.unwrap().len()
        }));
    }
    let mut applied = 0;
    for start in starts {
        applied += start.await.unwrap();
    }
    assert_eq!(applied, 3);
    assert_eq!(outbox.migrate().await.unwrap(), []);
    let status = outbox.migration_status().await.unwrap();
    assert_eq!((status.current, status.wanted, status.pending.len()), (3, 3, 0));
    outbox.check().await.unwrap();
}

/// An outbox that the first version made and filled.
#[tokio::test]
async fn an_older_schema_is_refused_until_it_is_migrated_and_keeps_its_events() {
    let Some(database) = TestDatabase::create().await else { return };
    let outbox = PostgresOutbox::connect(&database.options()).await.unwrap();
    database.run(include_str!("../../migrations/0001_outbox.sql")).await;
    database
        .run(
            "create table outbox_migrations (version integer primary key, name text not null, \
                 applied_at timestamptz not null default now()); \
             insert into outbox_migrations (version, name) values (1, 'outbox')",
        )
        .await;
    database.run(&crate::common::insert("before")).await;
    let error = outbox.check().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Schema, "{}", error.report());
    let applied = outbox.migrate().await.unwrap();
    assert_eq!(applied.iter().map(|step| step.version).collect::<Vec<_>>(), [2, 3]);
    outbox.check().await.unwrap();
    assert_eq!(crate::common::pending_types(&outbox).await, ["before"]);
}

#[tokio::test]
async fn printed_sql_gives_what_migrate_gives() {
    let (Some(migrated), Some(printed)) =
        (TestDatabase::create().await, TestDatabase::create().await)
    else {
        return;
    };
    let sql = migrated.outbox().await.migration_sql();
    printed.run(&sql).await;
    let fingerprint: String = migrated.value(FINGERPRINT).await;
    assert!(fingerprint.contains("outbox_events_pending"));
    assert_eq!(fingerprint, printed.value::<String>(FINGERPRINT).await);
    let outbox = PostgresOutbox::connect(&printed.options()).await.unwrap();
    outbox.check().await.unwrap();
    assert_eq!(outbox.migrate().await.unwrap(), []);
}

#[tokio::test]
async fn a_missing_and_a_newer_schema_are_refused_with_what_to_do() {
    let Some(database) = TestDatabase::create().await else { return };
    let outbox = PostgresOutbox::connect(&database.options()).await.unwrap();
    let error = outbox.check().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Schema);
    assert!(error.to_string().contains("posthaste migrate up"), "{error}");
    let error = pending_error(&outbox).await;
    assert_eq!(error.kind(), ErrorKind::Schema, "{error}");

    outbox.migrate().await.unwrap();
    database.run("insert into outbox_migrations values (7, 'from the future')").await;
    for error in [outbox.check().await.unwrap_err(), outbox.migrate().await.unwrap_err()] {
        assert_eq!(error.kind(), ErrorKind::Schema);
        assert!(error.to_string().contains("version 7"), "{error}");
        assert!(error.to_string().contains("upgrade it"), "{error}");
    }
    assert!(outbox.migration_status().await.unwrap().is_newer_than_program());
}

async fn pending_error(outbox: &PostgresOutbox) -> posthaste_core::Error {
    outbox.backlog(0).await.unwrap_err()
}

#[tokio::test]
async fn a_table_of_unknown_shape_is_refused_naming_its_columns() {
    let Some(database) = TestDatabase::create().await else { return };
    database
        .run(
            "create table outbox_events (id bigint, event_type text, note text); \
              create view orders as select id from outbox_events",
        )
        .await;
    let outbox = PostgresOutbox::connect(&database.options()).await.unwrap();
    for error in [
        outbox.migrate().await.unwrap_err(),
        outbox.check().await.unwrap_err(),
        outbox.adopt_table().await.unwrap_err(),
    ] {
        assert_eq!(error.kind(), ErrorKind::Schema);
        let text = error.to_string();
        for part in [
            "column id is bigint, not uuid",
            "column aggregate_id is missing",
            "column note (text) is unknown",
            "view orders",
        ] {
            assert!(text.contains(part), "{text}");
        }
    }
}

#[tokio::test]
async fn a_flat_table_is_adopted_whole_and_in_order() {
    let Some(database) = TestDatabase::create().await else { return };
    database.run(FLAT).await;
    // Written in reverse, so that neither the table's order nor the ids' is the right one.
    database
        .run(
            "insert into outbox_events (aggregate_id, event_type, event_data, created_at, \
                 processed_at, retry_count, error_message) \
             select gen_random_uuid(), 'e' || n, jsonb_build_object('n', n), \
                 now() - interval '1 day' + n * interval '1 second', \
                 case when n % 4 = 0 then now() end, \
                 case n % 4 when 1 then 1 when 2 then 3 else 0 end, \
                 case n % 4 when 2 then 'it broke' end \
             from generate_series(1000, 1, -1) n; \
             grant insert on outbox_events to public",
        )
        .await;
    let outbox = PostgresOutbox::connect(&database.options()).await.unwrap();
    let error = outbox.migrate().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Schema);
    assert!(error.to_string().contains("posthaste migrate adopt"), "{error}");

    let report = outbox.adopt_table().await.unwrap();
    assert_eq!((report.pending, report.dead, report.delivered), (500, 250, 250));
    outbox.check().await.unwrap();
    let expected: Vec<String> =
        (1..=1000).filter(|n| matches!(n % 4, 1 | 3)).map(|n| format!("e{n}")).collect();
    assert_eq!(pending_types(&outbox).await, expected);
    assert_eq!(pending(&outbox).await[0].event.retry_count(), 1);
    let dead = outbox.failed_events(1).await.unwrap();
    assert_eq!(dead[0].event_type(), "e2");
    assert_eq!(dead[0].dead_reason(), Some("retries_exhausted"));
    assert_eq!(dead[0].error_message(), Some("it broke"));
    assert!(outbox.find_event(dead[0].id()).await.unwrap().is_some());

    let kept: i64 = database.value(&format!("select count(*) from {}", report.kept_as)).await;
    assert_eq!(kept, 1000);
    let granted: bool =
        database.value("select has_table_privilege('pg_monitor', 'outbox_events', 'insert')").await;
    assert!(granted, "rights are carried over");
    database.run(&insert("new")).await;
    assert_eq!(pending_types(&outbox).await.last().map(String::as_str), Some("new"));
    assert!(outbox.adopt_table().await.unwrap_err().to_string().contains("already"));
}

/// As asyncpg runs it, and tools that split at the ends of lines.
#[tokio::test]
async fn a_statement_a_line_gives_what_migrate_gives() {
    let (Some(migrated), Some(lines)) =
        (TestDatabase::create().await, TestDatabase::create().await)
    else {
        return;
    };
    migrated.outbox().await;
    let mut connection = lines.connection().await;
    let script = posthaste_postgres::statement_per_line(&posthaste_postgres::migration_sql(0));
    assert!(!script.contains("$$"));
    run(&mut connection, "begin").await;
    for statement in script.lines() {
        // By the extended protocol, which takes one statement only.
        sqlx::query(sqlx::AssertSqlSafe(statement)).execute(&mut connection).await.unwrap();
    }
    run(&mut connection, "commit").await;
    let same = "select count(*) from pg_class where relnamespace = 'public'::regnamespace";
    assert_eq!(migrated.value::<i64>(same).await, lines.value::<i64>(same).await);
    let outbox = PostgresOutbox::connect(&lines.options()).await.unwrap();
    assert_eq!(outbox.migrate().await.unwrap(), []);
    outbox.check().await.unwrap();
}

#[tokio::test]
async fn the_upgrade_as_sql_goes_there_and_back() {
    let Some(database) = TestDatabase::create().await else { return };
    database.version_2().await;
    let outbox = PostgresOutbox::connect(&database.options()).await.unwrap();
    database.run(&insert("kept")).await;
    for _ in 0..2 {
        database.run(&posthaste_postgres::migration_sql(2)).await;
        outbox.check().await.unwrap();
        database.run(&posthaste_postgres::rollback_sql(2).unwrap()).await;
        assert_eq!(outbox.migration_status().await.unwrap().current, 2);
    }
    outbox.migrate().await.unwrap();
    assert_eq!(pending_types(&outbox).await, ["kept"]);
    assert_eq!(posthaste_postgres::rollback_sql(1), None);
    database.run(&posthaste_postgres::rollback_sql(0).unwrap()).await;
    let left: i64 = database
        .value(
            "select (select count(*) from pg_class where relname like 'outbox%') \
                + (select count(*) from pg_proc where proname like 'outbox%')",
        )
        .await;
    assert_eq!(left, 0);
}
