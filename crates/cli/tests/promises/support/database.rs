//! A database of one test's own, dropped when the test ends, however it ends.

use std::collections::HashMap;

use posthaste_testkit::servers::{PostgresServer, postgres_url, skip_test};
use sqlx::postgres::PgRow;
use sqlx::{AssertSqlSafe, Connection as _, PgConnection, Row as _};
use uuid::Uuid;

use crate::common::Cli;

/// All events to be delivered, with the number that its writer gave each within its key.
const COMMITTED: &str = "select id, coalesce((event_data->>'number')::bigint, 0) \
     from outbox_events where dead_at is null";

/// A database with an outbox, created by the program.
pub(crate) struct Database {
    name: String,
    /// The address of a database that is there already.
    server: String,
}

impl Database {
    /// On the shared server; `None` (after saying so) where there is none.
    pub(crate) async fn create() -> Option<Self> {
        let server = postgres_url();
        match PgConnection::connect(&server).await {
            Ok(connection) => Some(Self::create_on(connection, server).await),
            Err(error) => {
                skip_test(&format!("no PostgreSQL: {error}"));
                None
            }
        }
    }

    /// On a server of the test's own.
    pub(crate) async fn create_at(server: &PostgresServer) -> Self {
        let server = server.url("postgres");
        let connection = PgConnection::connect(&server).await.unwrap();
        Self::create_on(connection, server).await
    }

    async fn create_on(mut connection: PgConnection, server: String) -> Self {
        let name = format!("posthaste_promises_{}", Uuid::now_v7().simple());
        let create = AssertSqlSafe(format!("create database {name}"));
        sqlx::raw_sql(create).execute(&mut connection).await.unwrap();
        connection.close().await.unwrap();
        let database = Self { name, server };
        let url = database.url();
        Cli::new().run(&["--database-url", &url, "migrate", "up"]).succeeded();
        database
    }

    pub(crate) fn url(&self) -> String {
        let (base, options) = self.server.split_once('?').unwrap_or((&self.server, ""));
        let (base, _) = base.rsplit_once('/').expect("the address of a database");
        let separator = if options.is_empty() { "" } else { "?" };
        format!("{base}/{}{separator}{options}", self.name)
    }

    pub(crate) async fn connection(&self) -> PgConnection {
        PgConnection::connect(&self.url()).await.unwrap()
    }

    /// Runs SQL the way any program would.
    pub(crate) async fn run(&self, sql: &str) {
        let mut connection = self.connection().await;
        sqlx::raw_sql(AssertSqlSafe(sql.to_owned())).execute(&mut connection).await.unwrap();
        connection.close().await.unwrap();
    }

    pub(crate) async fn rows(&self, sql: &str) -> Vec<PgRow> {
        let mut connection = self.connection().await;
        let rows = sqlx::query(AssertSqlSafe(sql.to_owned())).fetch_all(&mut connection).await;
        connection.close().await.unwrap();
        rows.unwrap()
    }

    pub(crate) async fn count(&self, sql: &str) -> u64 {
        u64::try_from(self.rows(sql).await[0].get::<i64, _>(0)).unwrap()
    }

    /// Stores events of about 200 bytes, of 10,000 keys.
    pub(crate) async fn fill(&self, events: u64) {
        self.run(&format!(
            "insert into outbox_events (aggregate_id, event_type, event_data)
             select md5((n % 10000)::text)::uuid, 'account.changed',
                    jsonb_build_object('number', n / 10000 + 1, 'note', repeat('x', 150))
               from generate_series(0, {events} - 1) as n"
        ))
        .await;
    }

    /// Events that are neither delivered nor dead.
    pub(crate) async fn pending(&self) -> u64 {
        self.count(
            "select count(*) from outbox_events where processed_at is null and dead_at is null",
        )
        .await
    }

    /// Events that lost an attempt or carry an error, delivered ones included.
    pub(crate) async fn blamed(&self) -> u64 {
        self.count(
            "select count(*) from outbox_events \
              where retry_count <> 0 or error_message is not null or dead_at is not null",
        )
        .await
    }

    /// Every committed event that is to be delivered, with its number within its key.
    pub(crate) async fn committed(&self) -> HashMap<Uuid, i64> {
        self.rows(COMMITTED).await.iter().map(|row| (row.get(0), row.get(1))).collect()
    }
}

impl Drop for Database {
    fn drop(&mut self) {
        let drop = format!("drop database if exists {} with (force)", self.name);
        let server = self.server.clone();
        // A thread of its own: `drop` cannot wait within the test's runtime.
        let dropped = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.unwrap().block_on(async {
                if let Ok(mut connection) = PgConnection::connect(&server).await {
                    let _ = sqlx::raw_sql(AssertSqlSafe(drop)).execute(&mut connection).await;
                }
            });
        });
        let _ = dropped.join();
    }
}
