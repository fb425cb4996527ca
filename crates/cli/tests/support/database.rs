//! An outbox of one test's own, and what is in it.

use std::collections::HashMap;
use std::ops::Deref;

use posthaste_testkit::servers::{Dump, PostgresServer};
use sqlx::postgres::PgRow;
use sqlx::{AssertSqlSafe, Connection as _, Row as _};
use uuid::Uuid;

use crate::common::Cli;
use crate::common::database::TestDatabase;

/// All events to be delivered, with the number that its writer gave each within its key.
const COMMITTED: &str = "select id, coalesce((event_data->>'number')::bigint, 0) \
     from outbox_events where dead_at is null";

/// A database with an outbox, created by the program.
pub(crate) struct Database(TestDatabase);

impl Deref for Database {
    type Target = TestDatabase;

    fn deref(&self) -> &TestDatabase {
        &self.0
    }
}

impl Database {
    /// On the shared server; `None` (after saying so) where there is none.
    pub(crate) async fn create() -> Option<Self> {
        TestDatabase::create().await.map(Self::migrated)
    }

    /// On a server of the test's own.
    pub(crate) async fn create_at(server: &PostgresServer) -> Self {
        Self::migrated(TestDatabase::create_at(server.url("postgres")).await)
    }

    /// What a dump holds, on a server of the test's own.
    pub(crate) async fn of_dump(server: &PostgresServer, dump: &Dump) -> Self {
        let database = TestDatabase::create_at(server.url("postgres")).await;
        dump.restore(&database.url()).await;
        Self(database)
    }

    fn migrated(database: TestDatabase) -> Self {
        Cli::new().run(&["--database-url", &database.url(), "migrate", "up"]).succeeded();
        Self(database)
    }

    pub(crate) async fn rows(&self, sql: &str) -> Vec<PgRow> {
        let mut connection = self.connection().await;
        let rows = sqlx::query(AssertSqlSafe(sql.to_owned())).fetch_all(&mut connection).await;
        connection.close().await.unwrap();
        rows.unwrap()
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

    /// Events that lost an attempt, delivered ones included. One that was tried and counted nothing says
    /// why in its `error_message` alone.
    pub(crate) async fn blamed(&self) -> u64 {
        self.count(
            "select count(*) from outbox_events \
              where retry_count <> 0 or dead_at is not null",
        )
        .await
    }

    /// Every committed event that is to be delivered, with its number within its key.
    pub(crate) async fn committed(&self) -> HashMap<Uuid, i64> {
        self.rows(COMMITTED).await.iter().map(|row| (row.get(0), row.get(1))).collect()
    }
}
