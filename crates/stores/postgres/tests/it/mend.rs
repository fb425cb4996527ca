//! Tables of the outbox that other tools dropped, replaced, altered or emptied.

use posthaste_core::{ErrorKind, OutboxMigrations, OutboxRepository};
use posthaste_postgres::PostgresOutbox;

use crate::common::{FINGERPRINT, TestDatabase, insert, pending_types};

async fn refusal(outbox: &PostgresOutbox) -> String {
    let error = outbox.check().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Schema, "{}", error.report());
    error.report()
}

/// Says which lines differ: there are hundreds.
fn assert_same(whole: &str, mended: &str, after: &str) {
    let differ = |these: &str, those: &str| -> Vec<String> {
        these
            .lines()
            .filter(|line| !those.lines().any(|other| other == *line))
            .map(Into::into)
            .collect()
    };
    let (gone, new) = (differ(whole, mended), differ(mended, whole));
    assert!(gone.is_empty() && new.is_empty(), "{after}: gone {gone:#?}, new {new:#?}");
}

#[tokio::test]
async fn migrate_makes_again_whatever_is_missing() {
    let Some(database) = TestDatabase::create().await else { return };
    let outbox = database.outbox().await;
    let whole: String = database.value(FINGERPRINT).await;
    for (loss, named) in [
        ("drop table outbox_signal", "table outbox_signal"),
        ("drop table outbox_relays", "table outbox_relays"),
        ("drop table outbox_shards", "table outbox_shards"),
        ("drop table outbox_events_pending", "table outbox_events_pending"),
        ("drop table outbox_events_processed", "table outbox_events_processed"),
        ("drop table outbox_events_processed_default", "table outbox_events_processed_default"),
        ("drop table outbox_events", "table outbox_events,"),
        (
            "alter table outbox_events detach partition outbox_events_processed",
            "partition outbox_events_processed of outbox_events",
        ),
        (
            "alter table outbox_events detach partition outbox_events_pending",
            "partition outbox_events_pending of outbox_events",
        ),
        (
            "alter table outbox_events_processed detach partition outbox_events_processed_default",
            "partition outbox_events_processed_default of outbox_events_processed",
        ),
        ("drop sequence outbox_events_seq cascade", "sequence outbox_events_seq"),
        ("alter table outbox_events alter id drop default", "default of the column id"),
        ("drop function outbox_shard", "function outbox_shard(text)"),
        (
            "drop table outbox_events, outbox_signal, outbox_relays, outbox_shards",
            "table outbox_signal",
        ),
        ("truncate outbox_shards", "64 of the 64 rows of outbox_shards"),
        ("delete from outbox_shards where shard in (0, 7)", "2 of the 64 rows of outbox_shards"),
        ("truncate outbox_signal", "the row of outbox_signal"),
    ] {
        database.run(loss).await;
        let refused = refusal(&outbox).await;
        assert!(
            refused.contains(named) && refused.contains("posthaste migrate up"),
            "{loss}: {refused}"
        );
        assert_eq!(outbox.migrate().await.unwrap(), [], "{loss}");
        outbox.check().await.unwrap();
        assert_same(&whole, &database.value::<String>(FINGERPRINT).await, loss);
        database.run("begin; delete from outbox_events; commit").await;
        database.run(&insert("after")).await;
        assert_eq!(pending_types(&outbox).await, ["after"], "{loss}");
    }
    // What a relay can do without, until somebody migrates.
    for loss in [
        "drop function outbox_signal_bump cascade",
        "drop function outbox_event_as_meant cascade",
        "alter table outbox_events_pending drop constraint outbox_events_seq_is_positive",
        "alter table outbox_events_pending drop constraint outbox_events_seq_key",
        "drop index outbox_events_pending_dead",
        "drop index outbox_events_processed_id",
        "alter table outbox_events alter max_retries drop default",
    ] {
        let loss = loss.replace("outbox_events_seq_key", "outbox_events_pending_seq_key");
        database.run(&loss).await;
        outbox.check().await.unwrap();
        outbox.migrate().await.unwrap();
        assert_same(&whole, &database.value::<String>(FINGERPRINT).await, &loss);
    }
}

/// Places that were given out must not be given again: later events would go before those that wait.
#[tokio::test]
async fn a_sequence_that_is_made_again_goes_on_behind_what_waits() {
    let Some(database) = TestDatabase::create().await else { return };
    let outbox = database.outbox().await;
    for event_type in ["first", "second"] {
        database.run(&insert(event_type)).await;
    }
    database.run("drop sequence outbox_events_seq cascade").await;
    outbox.migrate().await.unwrap();
    database.run(&insert("third")).await;
    assert_eq!(pending_types(&outbox).await, ["first", "second", "third"]);
}

/// `pg_dump --schema-only`, and frameworks that keep one.
#[tokio::test]
async fn tables_of_a_dump_without_data_are_taken_over() {
    let Some(database) = TestDatabase::create().await else { return };
    let outbox = database.outbox().await;
    let whole: String = database.value(FINGERPRINT).await;
    for emptied in [
        "truncate outbox_migrations, outbox_signal, outbox_shards",
        "truncate outbox_signal, outbox_shards; drop table outbox_migrations",
    ] {
        database.run(emptied).await;
        assert!(refusal(&outbox).await.contains("a dump without data"));
        assert_eq!(outbox.migrate().await.unwrap(), []);
        outbox.check().await.unwrap();
        assert_same(&whole, &database.value::<String>(FINGERPRINT).await, emptied);
    }
    // One of the version before.
    let older = TestDatabase::create().await.unwrap();
    older.version_2().await;
    older.run("truncate outbox_migrations, outbox_signal, outbox_shards").await;
    let outbox = PostgresOutbox::connect(&older.options()).await.unwrap();
    let applied = outbox.migrate().await.unwrap();
    assert_eq!(applied.iter().map(|step| step.version).collect::<Vec<_>>(), [3]);
    outbox.check().await.unwrap();
}

/// An ORM that makes its tables anew at each start: a plain table with all of our columns.
#[tokio::test]
async fn a_table_that_another_tool_put_in_its_place_is_adopted() {
    let Some(database) = TestDatabase::create().await else { return };
    let outbox = database.outbox().await;
    let whole: String = database.value(FINGERPRINT).await;
    database
        .run(
            "create table made as select * from outbox_events with no data; \
             drop table outbox_events cascade; alter table made rename to outbox_events; \
             alter table outbox_events alter retry_count type bigint; \
             insert into outbox_events (seq, id, aggregate_id, event_type, event_data, topic, \
                 created_at, dead_at, processed_at) values \
                 (2, gen_random_uuid(), gen_random_uuid(), 'second', '{}', 'to', now(), null, null), \
                 (1, gen_random_uuid(), gen_random_uuid(), 'first', '{}', null, now(), null, null), \
                 (3, gen_random_uuid(), gen_random_uuid(), 'dead', '{}', null, now(), now(), null), \
                 (4, gen_random_uuid(), gen_random_uuid(), 'done', '{}', null, now(), null, now())",
        )
        .await;
    for error in [outbox.check().await.unwrap_err(), outbox.migrate().await.unwrap_err()] {
        assert!(error.report().contains("posthaste migrate adopt"), "{}", error.report());
    }
    let report = outbox.adopt_table().await.unwrap();
    assert_eq!((report.pending, report.dead, report.delivered), (2, 1, 1));
    assert_eq!(pending_types(&outbox).await, ["first", "second"]);
    outbox.check().await.unwrap();
    database.run("drop table outbox_events_flat").await;
    assert_same(&whole, &database.value::<String>(FINGERPRINT).await, "adopted");
}

#[tokio::test]
async fn rows_that_cannot_be_adopted_are_named() {
    let Some(database) = TestDatabase::create().await else { return };
    let id = "'22222222-2222-4222-8222-222222222222'";
    database
        .run(&format!(
            "create table outbox_events (id uuid, aggregate_id uuid, event_type text, event_data json, \
                 created_at timestamptz, processed_at timestamptz, retry_count integer, \
                 max_retries integer, error_message text); \
             insert into outbox_events (id, aggregate_id, event_type, event_data) values \
                 ({id}, gen_random_uuid(), repeat('x', 150), '{{}}'), \
                 ({id}, gen_random_uuid(), 'nul', '{{\"a\": \"\\u0000\"}}'); \
             insert into outbox_events (id, aggregate_id, event_type, event_data, processed_at) \
                 select gen_random_uuid(), gen_random_uuid(), 'never', '{{}}', time::timestamptz \
                 from unnest(array['0001-01-01', '-infinity', '1970-01-01', 'infinity']) time"
        ))
        .await;
    let outbox = PostgresOutbox::connect(&database.options()).await.unwrap();
    let error = outbox.adopt_table().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Schema);
    for part in [
        "1 rows have an event_type of over 100 characters, the first is 22222222",
        "2 rows have an id that other rows have, too",
        "4 rows have a processed_at that is a time which was never set (set it to null",
        "1 rows have a NUL character in event_data",
    ] {
        assert!(error.report().contains(part), "{}", error.report());
    }
}

#[tokio::test]
async fn a_column_of_another_type_is_named_at_start() {
    let Some(database) = TestDatabase::create().await else { return };
    let outbox = database.outbox().await;
    database.run("alter table outbox_events add column tenant text").await;
    outbox.check().await.unwrap();
    database.run("alter table outbox_events alter aggregate_id type text").await;
    database.run("alter table outbox_events alter seq type numeric").await;
    let refused = refusal(&outbox).await;
    for part in ["column aggregate_id is text, not uuid", "column seq is numeric, not bigint"] {
        assert!(refused.contains(part), "{refused}");
    }
    assert_eq!(outbox.column_faults().await.unwrap().len(), 2);
}

#[tokio::test]
async fn a_setting_that_quotes_every_name_is_no_fault_of_a_column() {
    let Some(database) = TestDatabase::create().await else { return };
    drop(database.outbox().await);
    let set = format!("alter database {} set quote_all_identifiers = on", database.name);
    database.run(&set).await;
    let outbox = PostgresOutbox::connect(&database.options()).await.unwrap();
    outbox.check().await.unwrap();
    assert_eq!(outbox.column_faults().await.unwrap(), Vec::<String>::new());
    database.run("alter table outbox_events rename to outbox_events_made").await;
    database
        .run(
            "create table outbox_events (id uuid, aggregate_id uuid, event_type text, event_data json, \
                 created_at timestamptz, processed_at timestamptz, retry_count integer, \
                 max_retries integer, error_message text); \
             drop table outbox_events_made cascade",
        )
        .await;
    outbox.adopt_table().await.unwrap();
    outbox.check().await.unwrap();
}

/// A relay that runs must not take it for the fault of each event by itself.
#[tokio::test]
async fn a_history_that_was_detached_is_the_schemas_fault_and_not_the_events() {
    let Some(database) = TestDatabase::create().await else { return };
    let outbox = database.outbox().await;
    database.run(&insert("sent")).await;
    let found = crate::common::pending(&outbox).await;
    database.run("alter table outbox_events detach partition outbox_events_processed").await;
    let settlement = crate::common::delivered(&found[0]);
    let error = outbox.settle(std::slice::from_ref(&settlement)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Schema, "{}", error.report());
    assert!(error.report().contains("detached"), "{}", error.report());
    assert!(error.report().contains("posthaste migrate up"), "{}", error.report());
    outbox.migrate().await.unwrap();
    assert_eq!(outbox.settle(&[settlement]).await.unwrap(), 1);
}
