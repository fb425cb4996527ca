//! A database of its own for every test, dropped when the test ends, however it ends.

#![allow(unreachable_pub, reason = "what is public here is so for the tests alone")]

use std::time::Duration;

use posthaste_core::{
    OutboxEvent, OutboxMigrations, OutboxRepository, PendingEvent, PendingQuery, PendingSelection,
    Settlement, SettlementOutcome,
};
use posthaste_postgres::{PostgresOptions, PostgresOutbox};
use posthaste_testkit::servers::{POSTGRES_URL, postgres_url, skip_test};
use sqlx::postgres::{PgConnectOptions, PgSslMode};
use sqlx::{AssertSqlSafe, ConnectOptions, Connection, PgConnection};
use uuid::Uuid;

/// All relations, columns, indexes, triggers and functions that are not PostgreSQL's own.
pub const FINGERPRINT: &str = "
    select string_agg(line, E'\\n' order by line) from (
        select format('%s %s %s %s', c.relkind, c.relname, pg_get_expr(c.relpartbound, c.oid),
                      c.relreplident) as line
        from pg_class c where c.relnamespace = 'public'::regnamespace
        union all
        select format('%s.%s %s %s', a.attrelid::regclass, a.attname,
                      format_type(a.atttypid, a.atttypmod), pg_get_expr(d.adbin, d.adrelid))
        from pg_attribute a left join pg_attrdef d on (d.adrelid, d.adnum) = (a.attrelid, a.attnum)
        join pg_class c on c.oid = a.attrelid
        where c.relnamespace = 'public'::regnamespace and a.attnum > 0 and not a.attisdropped
        union all select pg_get_indexdef(indexrelid) from pg_index
        where indrelid::regclass::text like 'outbox%'
        union all select pg_get_triggerdef(oid) from pg_trigger
        union all select concat_ws(' ', p.proname, md5(p.prosrc), p.proconfig, p.proacl)
        from pg_proc p where p.pronamespace = 'public'::regnamespace
        union all select conrelid::regclass || conname || pg_get_constraintdef(oid) from pg_constraint
        where connamespace = 'public'::regnamespace and contype = 'c' and conrelid::regclass::text
            in ('outbox_events_pending', 'outbox_events_processed', 'outbox_shards', 'outbox_signal')
        union all select version || name from outbox_migrations) lines";

/// A new database with nothing in it.
pub struct TestDatabase {
    pub name: String,
    server: PgConnectOptions,
}

impl TestDatabase {
    /// `None` (after saying so) where there is no server.
    pub async fn create() -> Option<Self> {
        let url = postgres_url();
        let server: PgConnectOptions = url.parse().expect(POSTGRES_URL);
        // A handshake per connection is most of what these tests would do.
        let plain = !url.contains("sslmode");
        let server = if plain { server.ssl_mode(PgSslMode::Disable) } else { server };
        match server.connect().await {
            Ok(connection) => Some(Self::create_on(connection, server, "").await),
            Err(error) => {
                skip_test(&format!("no PostgreSQL: {error}"));
                None
            }
        }
    }

    /// The same, in another encoding than the server's.
    pub async fn create_encoded(encoding: &str) -> Option<Self> {
        let found = Self::create().await?;
        let connection = found.server.connect().await.unwrap();
        let encoded = format!("template template0 encoding '{encoding}' locale 'C'");
        Some(Self::create_on(connection, found.server.clone(), &encoded).await)
    }

    /// A new database on another server.
    pub async fn create_at(url: &str) -> Self {
        let server: PgConnectOptions = url.parse().unwrap();
        let connection = server.connect().await.unwrap();
        Self::create_on(connection, server, "").await
    }

    async fn create_on(mut connection: PgConnection, server: PgConnectOptions, how: &str) -> Self {
        let name = format!("posthaste_test_{}", Uuid::now_v7().simple());
        let create = AssertSqlSafe(format!("create database {name} {how}"));
        sqlx::raw_sql(create).execute(&mut connection).await.unwrap();
        Self { name, server }
    }

    pub fn connect_options(&self) -> PgConnectOptions {
        self.server.clone().database(&self.name)
    }

    pub fn url(&self) -> String {
        self.connect_options().to_url_lossy().to_string()
    }

    pub fn options(&self) -> PostgresOptions {
        PostgresOptions { max_connections: 5, ..PostgresOptions::from_url(self.url()) }
    }

    /// A connection for a program that is not ours.
    pub async fn connection(&self) -> PgConnection {
        self.connect_options().connect().await.unwrap()
    }

    /// Runs SQL the way any program would.
    pub async fn run(&self, sql: &str) {
        let mut connection = self.connection().await;
        run(&mut connection, sql).await;
        connection.close().await.unwrap();
    }

    /// One value.
    pub async fn value<T>(&self, sql: &str) -> T
    where
        T: for<'r> sqlx::Decode<'r, sqlx::Postgres> + sqlx::Type<sqlx::Postgres> + Send + Unpin,
    {
        let mut connection = self.connection().await;
        sqlx::query_scalar(AssertSqlSafe(sql.to_owned())).fetch_one(&mut connection).await.unwrap()
    }

    /// An outbox in it, migrated.
    pub async fn outbox(&self) -> PostgresOutbox {
        let outbox = PostgresOutbox::connect(&self.options()).await.unwrap();
        outbox.migrate().await.unwrap();
        outbox
    }
}

impl Drop for TestDatabase {
    fn drop(&mut self) {
        let drop = format!("drop database if exists {} with (force)", self.name);
        run_apart(self.server.clone(), drop);
    }
}

impl TestDatabase {
    /// For `drop` of what lives within it.
    pub fn run_at_the_end(&self, sql: &str) {
        run_apart(self.connect_options(), sql.to_owned());
    }
}

/// In a thread of its own: `drop` cannot wait within the test's runtime.
fn run_apart(server: PgConnectOptions, sql: String) {
    let done = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        runtime.unwrap().block_on(async {
            if let Ok(mut connection) = server.connect().await {
                let _ = sqlx::raw_sql(AssertSqlSafe(sql)).execute(&mut connection).await;
            }
        });
    });
    let _ = done.join();
}

/// A login of its own, with no rights but everybody's. Gone, with all it was granted, when the test ends.
pub struct TestRole<'d> {
    pub name: String,
    database: &'d TestDatabase,
}

impl TestRole<'_> {
    pub fn connect_options(&self) -> PgConnectOptions {
        self.database.connect_options().username(&self.name)
    }

    pub async fn connection(&self) -> PgConnection {
        self.connect_options().connect().await.unwrap()
    }
}

impl TestDatabase {
    /// What 0.1.0 made, the days of the history included.
    pub async fn version_2(&self) {
        self.run(include_str!("../../../migrations/0001_outbox.sql")).await;
        self.run(include_str!("../../../migrations/0002_relays.sql")).await;
        self.run(
            "create table outbox_migrations (version integer primary key, name text not null, \
                 applied_at timestamptz not null default now()); \
             insert into outbox_migrations (version, name) values (1, 'outbox'), (2, 'relays'); \
             create table outbox_events_processed_y2026m01d01 partition of outbox_events_processed \
                 for values from ('2026-01-01 00:00:00+00') to ('2026-01-02 00:00:00+00')",
        )
        .await;
    }

    /// Roles are the whole server's: `name` is only the beginning.
    pub async fn role(&self, name: &str) -> TestRole<'_> {
        let name = format!("{name}_{}", Uuid::now_v7().simple());
        self.run(&format!("create role {name} login")).await;
        TestRole { name, database: self }
    }
}

impl Drop for TestRole<'_> {
    fn drop(&mut self) {
        let name = &self.name;
        self.database.run_at_the_end(&format!("drop owned by {name} cascade; drop role {name}"));
    }
}

pub async fn until_someone_waits_for_a_lock(database: &TestDatabase) {
    let waiting = "select count(*) from pg_stat_activity where wait_event_type = 'Lock' \
                   and datname = current_database()";
    for _ in 0..1_000 {
        if database.value::<i64>(waiting).await > 0 {
            return;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    panic!("nobody waits for what is held");
}

pub async fn run(connection: &mut PgConnection, sql: &str) {
    sqlx::raw_sql(AssertSqlSafe(sql.to_owned())).execute(connection).await.unwrap();
}

/// A small event of an aggregate.
pub fn event(aggregate_id: Uuid) -> OutboxEvent {
    OutboxEvent::new(aggregate_id, "test.happened", &serde_json::json!({ "n": 1 })).unwrap()
}

/// What a producer that knows only the contract writes.
pub fn insert(event_type: &str) -> String {
    format!(
        "insert into outbox_events (aggregate_id, event_type, event_data) \
         values ('{}', '{event_type}', '{{}}')",
        Uuid::now_v7()
    )
}

/// Asks for everything that is pending.
pub fn everything() -> PendingQuery {
    PendingQuery {
        leases: None,
        selection: PendingSelection::Forward { gaps: Vec::new(), after: 0 },
        events_max: 100_000,
        bytes_max: usize::MAX,
    }
}

/// Everything that is pending.
pub async fn pending(outbox: &PostgresOutbox) -> Vec<PendingEvent> {
    outbox.fetch_pending(&everything()).await.unwrap().events
}

/// The types of everything that is pending, by place.
pub async fn pending_types(outbox: &PostgresOutbox) -> Vec<String> {
    pending(outbox).await.iter().map(|found| found.event.event_type().to_owned()).collect()
}

/// The outcome of an event, without a lease.
pub fn settlement(found: &PendingEvent, outcome: SettlementOutcome) -> Settlement {
    Settlement { lease: None, seq: found.seq, id: found.event.id(), outcome }
}

/// An event was delivered.
pub fn delivered(found: &PendingEvent) -> Settlement {
    settlement(found, SettlementOutcome::Delivered)
}

/// Three events: delivered, dead, and delivered without a history.
pub fn settlements_of_each_kind(found: &[PendingEvent]) -> Vec<Settlement> {
    let outcomes = [
        SettlementOutcome::Delivered,
        SettlementOutcome::Dead { retry_count: 1, reason: "rejected", error: "no".into() },
        SettlementOutcome::DeliveredAndRemoved,
    ];
    found.iter().zip(outcomes).map(|(found, outcome)| settlement(found, outcome)).collect()
}
