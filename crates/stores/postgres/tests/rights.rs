//! Whoever may do little stays so: nothing of the outbox runs their code with its owner's rights.

#![allow(clippy::unwrap_used, reason = "a test states what it expects")]

mod common;

use posthaste_core::OutboxMigrations;
use posthaste_postgres::PostgresOutbox;
use sqlx::{AssertSqlSafe, PgConnection};

use common::{TestDatabase, insert, run};

/// What a login plants in its own session: another `outbox_signal`, with code on it that tells in whose
/// name it ran.
const TRAP: &str = "
    create temp table outbox_signal (revision bigint);
    insert into outbox_signal values (1);
    grant all on outbox_signal to public;
    create function pg_temp.evil() returns trigger language plpgsql as $$
    begin
        raise exception 'runs as %', current_user;
    end $$;
    create trigger t before update on outbox_signal for each row execute function pg_temp.evil()";

/// And a table whose trigger is a function of the outbox's.
const OWN_TRIGGER: &str = "
    create temp table mine (a int);
    create trigger t after insert on mine for each row execute function public.outbox_signal_bump()";

const REVISION: &str = "select revision from public.outbox_signal";

async fn attempt(connection: &mut PgConnection, sql: &str) -> Result<(), String> {
    let done = sqlx::raw_sql(AssertSqlSafe(sql.to_owned())).execute(connection).await;
    done.map(|_| ()).map_err(|error| error.to_string())
}

#[tokio::test]
async fn a_login_without_rights_cannot_use_what_runs_as_the_owner() {
    let Some(database) = TestDatabase::create().await else { return };
    database.outbox().await;
    let nobody = database.role("nobody").await;
    let mut session = nobody.connection().await;
    run(&mut session, TRAP).await;
    let refused = attempt(&mut session, OWN_TRIGGER).await.unwrap_err();
    assert!(refused.contains("permission denied for function outbox_signal_bump"), "{refused}");
}

/// A trigger that was made when anybody could goes on firing.
#[tokio::test]
async fn a_trigger_that_was_planted_before_the_upgrade_reaches_the_real_signal_only() {
    let Some(database) = TestDatabase::create().await else { return };
    database.version_2().await;
    let nobody = database.role("nobody").await;
    let mut session = nobody.connection().await;
    run(&mut session, TRAP).await;
    run(&mut session, OWN_TRIGGER).await;
    let ran = attempt(&mut session, "insert into mine values (1)").await.unwrap_err();
    assert!(ran.contains("runs as"), "what this is about: {ran}");

    let outbox = PostgresOutbox::connect(&database.options()).await.unwrap();
    outbox.migrate().await.unwrap();
    let before: i64 = database.value(REVISION).await;
    run(&mut session, "insert into mine values (1)").await;
    assert_eq!(database.value::<i64>(REVISION).await, before + 1);
}

#[tokio::test]
async fn a_writer_and_an_operator_cannot_run_their_code_as_the_owner() {
    let Some(database) = TestDatabase::create().await else { return };
    database.outbox().await;
    let writer = database.role("writer").await;
    let operator = database.role("operator").await;
    database
        .run(&format!(
            "grant insert (aggregate_id, event_type, event_data) on outbox_events to {}; \
             grant select, update, delete on outbox_events to {}; \
             {}; update outbox_events set dead_at = now()",
            writer.name,
            operator.name,
            insert("dead"),
        ))
        .await;
    let mut session = writer.connection().await;
    run(&mut session, TRAP).await;
    attempt(&mut session, OWN_TRIGGER).await.unwrap_err();
    run(&mut session, &insert("good")).await;

    let mut session = operator.connection().await;
    run(&mut session, TRAP).await;
    attempt(&mut session, OWN_TRIGGER).await.unwrap_err();
    let before: i64 = database.value(REVISION).await;
    run(&mut session, "update outbox_events set dead_at = null").await;
    assert_eq!(database.value::<i64>(REVISION).await, before + 1, "the signal is the outbox's");
}

/// Functions of these names and better fitting types, in a schema that others may write to.
#[tokio::test]
async fn functions_of_others_are_not_called_in_place_of_the_servers() {
    let Some(database) = TestDatabase::create().await else { return };
    database.outbox().await;
    let shard = "select outbox_shard('key')";
    let before: i32 = database.value(shard).await;
    database
        .run(
            "create function hashtextextended(text, integer) returns bigint \
                 language sql immutable as 'select 1 / 0::bigint'; \
             create function both(bigint, integer) returns bigint \
                 language sql immutable as 'select 1 / 0::bigint'; \
             create operator & (leftarg = bigint, rightarg = integer, function = both)",
        )
        .await;
    assert_eq!(database.value::<i32>(shard).await, before);
}

#[tokio::test]
async fn a_schema_of_another_name_goes_on_working() {
    let Some(database) = TestDatabase::create().await else { return };
    database.outbox().await;
    database.run(&format!("{}; update outbox_events set dead_at = now()", insert("dead"))).await;
    database.run("alter schema public rename to store").await;
    let revision = "select revision from store.outbox_signal";
    let before: i64 = database.value(revision).await;
    database.run("update store.outbox_events set dead_at = null").await;
    assert_eq!(database.value::<i64>(revision).await, before + 1);
}
