//! What `diagnose` finds: each sort of trouble is named with what to do, by its own look, and a database
//! that is in order has none.

use std::time::{Duration, Instant};

use posthaste_core::{Finding, OutboxAdmin, OutboxMigrations, Severity};
use posthaste_postgres::{PostgresOptions, PostgresOutbox};
use uuid::Uuid;

use crate::common::{TestDatabase, run};

const INSERT: &str = "insert into outbox_events (aggregate_id, event_type, event_data) values \
    ('01890a5d-ac96-774b-bcce-b302099a8057', 't', '{}')";

async fn found(outbox: &PostgresOutbox, about: &str) -> Finding {
    let findings = outbox.diagnose().await;
    let found = findings.iter().find(|finding| &*finding.about == about);
    found.unwrap_or_else(|| panic!("nothing about {about}: {findings:?}")).clone()
}

#[track_caller]
fn is(finding: &Finding, severity: Severity, parts: &[&str], hint: &str) {
    assert_eq!(finding.severity, severity, "{finding:?}");
    for part in parts {
        assert!(finding.message.contains(part), "{part}: {finding:?}");
    }
    assert!(finding.hint.as_deref().unwrap().contains(hint), "{hint}: {finding:?}");
}

/// A role of this test's own, dropped at its end with all that it was granted.
async fn role(database: &TestDatabase) -> (String, PostgresOptions) {
    let role = format!("looks_{}", Uuid::now_v7().simple());
    database.run(&format!("create role {role} login")).await;
    let mut options = database.options();
    let url = options.url.unwrap();
    let (_, host) = url.split_once('@').unwrap();
    options.url = Some(format!("postgres://{role}@{host}"));
    (role, options)
}

async fn drop_role(database: &TestDatabase, role: &str) {
    database.run(&format!("drop owned by {role}; drop role {role}")).await;
}

#[tokio::test]
async fn an_outbox_in_order_has_nothing_to_tell() {
    let Some(database) = TestDatabase::create().await else { return };
    let outbox = database.outbox().await;
    database.run(INSERT).await;
    let findings = outbox.diagnose().await;
    assert_eq!(findings.len(), 10);
    for finding in findings {
        assert_eq!(finding.severity, Severity::Fine, "{finding:?}");
    }
}

#[tokio::test]
async fn missing_rights_are_named_all_at_once_and_each_look_is_by_itself() {
    let Some(database) = TestDatabase::create().await else { return };
    let _owner = database.outbox().await;
    let (role, options) = role(&database).await;
    let outbox = PostgresOutbox::connect(&options).await.unwrap();
    let rights = found(&outbox, "rights").await;
    let parts = ["select, update, delete on outbox_events", "select, update on outbox_shards"];
    is(&rights, Severity::Error, &parts, "migrate sql --roles");
    // Whoever cannot look is told so, and the others go on.
    assert_eq!(found(&outbox, "rows").await.severity, Severity::Error);
    assert_eq!(found(&outbox, "replica identity").await.severity, Severity::Fine);
    let refused = outbox.migration_status().await.unwrap_err();
    assert!(refused.report().contains("select, update on outbox_shards"), "{refused}");
    drop_role(&database, &role).await;
}

#[tokio::test]
async fn each_statement_of_a_relay_is_tried_and_what_the_server_refuses_is_told_in_its_words() {
    let Some(database) = TestDatabase::create().await else { return };
    let outbox = database.outbox().await;
    database.run("alter table outbox_relays rename column leaving to left_us").await;
    let statements = found(&outbox, "statements").await;
    is(&statements, Severity::Error, &["take and renew a share", "leaving"], "migrate");
    assert!(!statements.message.contains("record outcomes"), "{statements:?}");
}

#[tokio::test]
async fn a_schema_of_another_version_is_told_once_and_not_with_each_statement() {
    let Some(database) = TestDatabase::create().await else { return };
    database.version_2().await;
    let outbox = PostgresOutbox::connect(&database.options()).await.unwrap();
    let findings = outbox.diagnose().await;
    let about = |about: &str| findings.iter().find(|finding| &*finding.about == about);
    is(about("schema").unwrap(), Severity::Error, &["version 2"], "migrate up");
    assert!(about("statements").is_none(), "{findings:?}");
}

#[tokio::test]
async fn row_level_security_that_binds_this_user_is_an_error_and_only_that() {
    let Some(database) = TestDatabase::create().await else { return };
    let owner = database.outbox().await;
    let (role, options) = role(&database).await;
    database
        .run(&format!(
            "grant all on all tables in schema public to {role}; \
             grant all on all sequences in schema public to {role}; \
             alter table outbox_shards enable row level security"
        ))
        .await;
    let outbox = PostgresOutbox::connect(&options).await.unwrap();
    let bound = found(&outbox, "row level security").await;
    is(&bound, Severity::Error, &["hides rows of outbox_shards"], &format!("{role} bypassrls"));
    assert_eq!(found(&outbox, "statements").await.severity, Severity::Error);
    let passed = found(&owner, "row level security").await;
    assert_eq!(passed.severity, Severity::Fine, "{passed:?}");
    drop_role(&database, &role).await;
}

#[tokio::test]
async fn a_publication_of_a_table_without_identity_is_named_with_the_table() {
    let Some(database) = TestDatabase::create().await else { return };
    let outbox = database.outbox().await;
    database.run("create publication everything for all tables").await;
    assert_eq!(found(&outbox, "replica identity").await.severity, Severity::Fine);
    database.run("alter table outbox_events_processed_default replica identity default").await;
    let history = found(&outbox, "replica identity").await;
    let default = "outbox_events_processed_default";
    is(&history, Severity::Warning, &["publication everything", default], "identity full");
    database.run("alter table outbox_events_pending replica identity nothing").await;
    let pending = found(&outbox, "replica identity").await;
    is(
        &pending,
        Severity::Error,
        &["outbox_events_pending", "nothing can be recorded"],
        "using index",
    );
    database.run("alter publication everything set (publish = 'insert')").await;
    assert_eq!(found(&outbox, "replica identity").await.severity, Severity::Fine);
}

#[tokio::test]
async fn a_subscription_that_fills_the_outbox_is_named() {
    let Some(database) = TestDatabase::create().await else { return };
    let outbox = database.outbox().await;
    let name = format!("looks_{}", Uuid::now_v7().simple());
    database
        .run(&format!(
            "create subscription {name} connection 'host=127.0.0.1 port=1' publication p \
             with (connect = false)"
        ))
        .await;
    assert_eq!(found(&outbox, "subscriptions").await.severity, Severity::Fine);
    // As the server does when it begins to copy a table.
    database
        .run(&format!(
            "insert into pg_subscription_rel (srsubid, srrelid, srsubstate) select oid, \
             'outbox_events_pending'::regclass, 'r' from pg_subscription where subname = '{name}'"
        ))
        .await;
    let fills = found(&outbox, "subscriptions").await;
    is(&fills, Severity::Warning, &[&name, "late and out of order"], "cut-over");
    database
        .run(&format!("alter subscription {name} set (slot_name = none); drop subscription {name}"))
        .await;
}

#[tokio::test]
async fn a_sequence_that_breaks_order_or_stands_too_low_is_found() {
    let Some(database) = TestDatabase::create().await else { return };
    let outbox = database.outbox().await;
    for (change, part) in [("cache 20", "cache 20"), ("increment -1", "increment -1")] {
        database.run(&format!("alter sequence outbox_events_seq {change} minvalue -100")).await;
        is(&found(&outbox, "sequence").await, Severity::Error, &[part, "order"], "alter sequence");
        database.run("alter sequence outbox_events_seq cache 1 increment 1").await;
    }
    database.run(INSERT).await;
    database.run("update outbox_events set seq = 500").await;
    is(&found(&outbox, "sequence").await, Severity::Warning, &["waits at 500"], "setval");
}

#[tokio::test]
async fn rows_that_wait_for_ever_or_count_as_something_else_are_found() {
    let Some(database) = TestDatabase::create().await else { return };
    let outbox = database.outbox().await;
    let wait = "alter table outbox_events_pending drop constraint outbox_events_seq_is_positive; \
        alter table outbox_events_processed drop constraint outbox_events_processed_at_is_real";
    database.run(wait).await;
    for (set, part, hint) in [
        ("seq = -3", "seq of 0 or less", "nextval"),
        ("available_at = 'infinity'", "over a year ahead (first at place", "events release"),
        ("created_at = now() + interval '3 days'", "created_at in the future", "default"),
        ("processed_at = '0001-01-01'", "processed_at that no relay set", "leave it out"),
        (
            "dead_at = now(), dead_reason = 'corrupt'",
            "could not be read as an event",
            "--state dead",
        ),
        (r#"event_data = to_jsonb('{"a": 1}'::text)"#, "JSON within a JSON string", "languages.md"),
    ] {
        database.run(INSERT).await;
        database.run(&format!("update outbox_events set {set}")).await;
        let rows = found(&outbox, "rows").await;
        is(&rows, Severity::Warning, &["1 row", part], hint);
        assert!(!rows.message.contains("; "), "one sort alone: {rows:?}");
        database.run("delete from outbox_events").await;
    }
    assert_eq!(found(&outbox, "rows").await.severity, Severity::Fine);
}

#[tokio::test]
async fn an_error_for_want_of_a_lock_names_who_locks_the_table() {
    let Some(database) = TestDatabase::create().await else { return };
    let outbox = database.outbox().await;
    let mut holder = database.connection().await;
    let pid: i32 =
        sqlx::query_scalar("select pg_backend_pid()").fetch_one(&mut holder).await.unwrap();
    run(&mut holder, "begin; lock table outbox_events").await;
    let error = posthaste_core::OutboxRepository::backlog(&outbox, 0).await.unwrap_err();
    assert!(error.report().contains(&format!("held_by=pid {pid}, ")), "{}", error.report());
}

#[tokio::test]
async fn who_holds_waiting_rows_or_the_table_is_named_after_a_while() {
    let Some(database) = TestDatabase::create().await else { return };
    let outbox = database.outbox().await;
    database.run(INSERT).await;
    let mut holder = database.connection().await;
    run(&mut holder, "set application_name = 'console'").await;
    let pid: i32 =
        sqlx::query_scalar("select pg_backend_pid()").fetch_one(&mut holder).await.unwrap();
    let warning = Severity::Warning;
    for (lock, what, severity) in [
        (
            "select from outbox_events for update",
            "holds 1 waiting event, the first at place 1",
            warning,
        ),
        ("lock table outbox_signal in share mode", "holds ShareLock on outbox_signal", warning),
        (
            "lock table outbox_events_pending",
            "holds AccessExclusiveLock on outbox_events_pending",
            warning,
        ),
        // Without them no lease can be renewed.
        (
            "select from outbox_shards where shard < 3 for update",
            "holds 3 rows of outbox_shards",
            Severity::Error,
        ),
    ] {
        run(&mut holder, &format!("begin; {lock}")).await;
        let begun = Instant::now();
        let locks = loop {
            let locks = found(&outbox, "locks").await;
            if locks.severity != Severity::Fine {
                break locks;
            }
            assert!(begun.elapsed() < Duration::from_secs(60), "{what}: {locks:?}");
        };
        let pid = format!("pid {pid}, user ");
        is(&locks, severity, &[&pid, "application console", what], "pg_terminate_backend");
        run(&mut holder, "rollback").await;
    }
    assert_eq!(found(&outbox, "locks").await.severity, Severity::Fine);
}

#[tokio::test]
async fn a_database_that_takes_no_writes_says_who_set_that() {
    let Some(database) = TestDatabase::create().await else { return };
    let outbox = database.outbox().await;
    let name = &database.name;
    database.run(&format!("alter database {name} set default_transaction_read_only = on")).await;
    // Connections that are open have the old setting.
    drop(outbox);
    let outbox = PostgresOutbox::connect(&database.options()).await.unwrap();
    let writes = found(&outbox, "writes").await;
    is(
        &writes,
        Severity::Error,
        &["takes no writes", "(database)"],
        &format!("alter database {name}"),
    );
}

#[tokio::test]
async fn an_outbox_in_another_schema_is_named_with_the_way_to_it() {
    let Some(database) = TestDatabase::create().await else { return };
    let _owner = database.outbox().await;
    let (role, options) = role(&database).await;
    let search = |path: &str| {
        let url = options.url.clone().unwrap();
        let mark = if url.contains('?') { '&' } else { '?' };
        PostgresOptions { url: Some(format!("{url}{mark}schema={path}")), ..options.clone() }
    };
    database.run("create schema shop").await;
    let outbox = PostgresOutbox::connect(&search("nowhere")).await.unwrap();
    let missing = found(&outbox, "schema").await;
    is(
        &missing,
        Severity::Error,
        &["(nowhere) exists", "there is one in public"],
        "?schema=public",
    );
    database.run("alter table outbox_events_pending set schema shop").await;
    let locked = found(&outbox, "schema").await;
    let hint = format!("grant usage on schema shop to {role}");
    is(&locked, Severity::Error, &["one in shop, which this user may not use"], &hint);
    database.run("drop table outbox_events cascade; drop table outbox_migrations").await;
    is(&found(&outbox, "schema").await, Severity::Error, &["(nowhere) exists"], "create schema");
    let outbox = PostgresOutbox::connect(&search("public")).await.unwrap();
    is(&found(&outbox, "schema").await, Severity::Error, &["no outbox"], "migrate up");
    drop_role(&database, &role).await;
}

#[tokio::test]
async fn a_table_that_a_crash_empties_and_a_trigger_that_is_off_are_found() {
    let Some(database) = TestDatabase::create().await else { return };
    let outbox = database.outbox().await;
    database.run("alter table outbox_events_pending disable trigger outbox_events_revived").await;
    let schema = found(&outbox, "schema").await;
    is(&schema, Severity::Warning, &["trigger outbox_events_revived"], "enable trigger");
    database.run("alter table outbox_events_pending set unlogged").await;
    let schema = found(&outbox, "schema").await;
    is(&schema, Severity::Warning, &["outbox_events_pending is unlogged"], "set logged");
}
