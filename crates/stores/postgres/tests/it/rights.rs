//! Whoever may do little stays so: nothing of the outbox runs their code with its owner's rights.

use posthaste_core::{
    ErrorKind, EventFilter, LeaseRequest, OutboxAdmin, OutboxMigrations, OutboxRepository,
};
use posthaste_postgres::{PostgresOutbox, ROLES_SQL};
use sqlx::{AssertSqlSafe, PgConnection};

use crate::common::{TestDatabase, event, insert, pending, run, settlements_of_each_kind};

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
    assert!(refused.contains("permission denied for function"), "{refused}");
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
             create function meets(bigint, integer) returns bigint \
                 language sql immutable as 'select 1 / 0::bigint'; \
             create operator & (leftarg = bigint, rightarg = integer, function = meets)",
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

/// A database with the roles of `migrate sql --roles`, under names of its own: roles are the server's.
struct WithRoles {
    database: TestDatabase,
    prefix: String,
}

const ROLES: [&str; 4] = ["writer", "relay", "operator", "migrator"];

impl WithRoles {
    async fn create() -> Option<Self> {
        let database = TestDatabase::create().await?;
        database.outbox().await;
        let prefix = format!("r{}_", uuid::Uuid::now_v7().simple());
        let roles = Self { database, prefix };
        for _ in 0..2 {
            roles.database.run(&roles.own(ROLES_SQL)).await;
        }
        Some(roles)
    }

    fn own(&self, sql: &str) -> String {
        let rename = |sql: String, role: &&str| {
            sql.replace(&format!("outbox_{role}"), &format!("{}{role}", self.prefix))
        };
        let renamed = ROLES.iter().fold(sql.to_owned(), rename);
        // The table that is named as the role is.
        renamed.replace(&format!("{}relays", self.prefix), "outbox_relays")
    }

    async fn acting_as(&self, role: &str) -> PostgresOutbox {
        let role = format!("{}{role}", self.prefix);
        let options = self.database.connect_options().options([("role", role.as_str())]);
        let pool = sqlx::PgPool::connect_with(options).await.unwrap();
        let deaf = posthaste_postgres::PostgresOptions { listen: false, ..Default::default() };
        PostgresOutbox::from_pool_with(pool, &deaf)
    }

    async fn attempt(&self, role: &str, sql: &str) -> Result<(), String> {
        let mut connection = self.database.connection().await;
        run(&mut connection, &format!("set role {}{role}", self.prefix)).await;
        attempt(&mut connection, sql).await
    }
}

impl Drop for WithRoles {
    fn drop(&mut self) {
        for role in ROLES {
            let role = format!("{}{role}", self.prefix);
            self.database
                .run_at_the_end(&format!("drop owned by {role} cascade; drop role {role}"));
        }
    }
}

#[tokio::test]
async fn each_role_can_do_its_work() {
    let Some(roles) = WithRoles::create().await else { return };
    for _ in 0..3 {
        let stored = roles.attempt("writer", &format!("{} returning id", insert("stored"))).await;
        stored.unwrap();
    }

    let relay = roles.acting_as("relay").await;
    assert_eq!(relay.missing_rights().await.unwrap(), [""; 0]);
    relay.check().await.unwrap();
    relay.migrate().await.unwrap();
    relay.watermark().await.unwrap();
    relay.dead_heads(0, 10).await.unwrap();
    assert_eq!(relay.backlog(0).await.unwrap().pending(), 3);
    let request = LeaseRequest {
        relay: uuid::Uuid::now_v7(),
        name: "relay".into(),
        ttl: std::time::Duration::from_secs(60),
        release: Vec::new(),
        leaving: false,
    };
    assert!(relay.lease(&request).await.unwrap().shard_set().is_all());
    for finding in relay.diagnose().await {
        assert_eq!(finding.severity, posthaste_core::Severity::Fine, "{finding:?}");
    }
    let found = pending(&relay).await;
    let settlements = settlements_of_each_kind(&found);
    assert_eq!(relay.settle(&settlements).await.unwrap(), 3);
    relay.leave(request.relay).await.unwrap();

    let operator = roles.acting_as("operator").await;
    assert_eq!(operator.migration_status().await.unwrap().current, 3);
    assert_eq!(operator.list_events(&EventFilter::all(), 10).await.unwrap().len(), 2);
    assert_eq!(operator.retry_events(&EventFilter::all()).await.unwrap(), 1);
    assert_eq!(operator.discard_events(&EventFilter::all()).await.unwrap(), 1);

    let migrator = roles.acting_as("migrator").await;
    roles.database.run("delete from outbox_migrations where version = 3").await;
    assert_eq!(migrator.migrate().await.unwrap().len(), 1);
    migrator.cleanup_processed(std::time::Duration::ZERO).await.unwrap();
}

#[tokio::test]
async fn no_role_can_do_more() {
    let Some(roles) = WithRoles::create().await else { return };
    let forged = |column: &str, value: &str| {
        format!(
            "insert into outbox_events (aggregate_id, event_type, event_data, {column}) \
             values (gen_random_uuid(), 'forged', '1', {value})"
        )
    };
    let mut refused = vec![
        ("relay", insert("stored")),
        ("operator", insert("stored")),
        ("operator", "update outbox_shards set generation = 0".to_owned()),
        ("operator", "delete from outbox_relays".to_owned()),
        ("relay", "drop table outbox_signal".to_owned()),
        ("writer", "select pg_catalog.setval('outbox_events_seq', 1)".to_owned()),
    ];
    for (column, value) in
        [("seq", "7"), ("processed_at", "now()"), ("dead_at", "now()"), ("retry_count", "9")]
    {
        refused.push(("writer", forged(column, value)));
    }
    for denied in [
        "select event_data from outbox_events",
        "update outbox_events set dead_at = now()",
        "delete from outbox_events",
        "truncate outbox_events",
        "begin; lock table outbox_events in access exclusive mode",
        "begin; lock table outbox_migrations in share update exclusive mode",
        "select from outbox_shards for update",
    ] {
        refused.push(("writer", denied.to_owned()));
    }
    for (role, sql) in refused {
        let error = roles.attempt(role, &sql).await.unwrap_err();
        assert!(
            error.contains("permission denied") || error.contains("must be owner"),
            "{role}: {error}"
        );
    }
    for role in ROLES {
        let trap = format!("{TRAP}; {OWN_TRIGGER}");
        if role != "migrator" {
            let error = roles.attempt(role, &trap).await.unwrap_err();
            assert!(error.contains("permission denied for function"), "{role}: {error}");
        }
    }
    // And one that was granted nothing.
    let nobody = roles.database.role("nobody").await;
    let mut session = nobody.connection().await;
    for sql in
        ["select nextval('outbox_events_seq')", "select * from outbox_signal", &insert("stored")]
    {
        let error = attempt(&mut session, sql).await.unwrap_err();
        assert!(error.contains("permission denied"), "{sql}: {error}");
    }
}

#[tokio::test]
async fn a_right_that_is_missing_is_named_before_it_is_missed() {
    let Some(roles) = WithRoles::create().await else { return };
    let relay = roles.acting_as("relay").await;
    for (right, object) in [
        ("delete", "outbox_events"),
        ("update", "outbox_shards"),
        ("insert", "outbox_relays"),
        ("select", "outbox_signal"),
        ("select", "sequence outbox_events_seq"),
        ("execute", "function outbox_shard(text)"),
    ] {
        let sql = |verb: &str, to: &str| {
            roles.own(&format!("{verb} {right} on {object} {to} outbox_relay, public"))
        };
        roles.database.run(&sql("revoke", "from")).await;
        assert_eq!(relay.missing_rights().await.unwrap(), [format!("{right} on {object}")]);
        let error = relay.check().await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unauthorized);
        assert!(error.report().contains(&format!("{right} on {object}")), "{}", error.report());
        let back = format!("grant {right} on {object} to outbox_relay");
        roles.database.run(&roles.own(&back)).await;
    }
    roles.acting_as("migrator").await.store(&[event(uuid::Uuid::now_v7())]).await.unwrap();
}

/// The page shows what the program prints.
#[test]
fn the_page_on_roles_has_this_sql() {
    let page = include_str!("../../../../../docs/roles.md");
    assert!(page.contains(ROLES_SQL.trim_end()), "docs/roles.md shows migrations/roles.sql");
}
