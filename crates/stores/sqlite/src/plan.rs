//! How SQLite means to run a statement, for tests.

use posthaste_core::OutboxMigrations;
use sqlx::{AssertSqlSafe, Row};

use crate::SqliteOutbox;

/// The query plan of `sql` on a new outbox, a line for each step. Parameters stay unbound.
pub(crate) async fn of(sql: &str) -> String {
    let directory = tempfile::tempdir().unwrap();
    let outbox = SqliteOutbox::open(directory.path().join("plan.db")).await.unwrap();
    outbox.migrate().await.unwrap();
    let explain = format!("explain query plan {sql}");
    let rows = sqlx::query(AssertSqlSafe(explain)).fetch_all(&outbox.writer).await.unwrap();
    let lines: Vec<String> = rows.iter().map(|row| row.get("detail")).collect();
    lines.join("\n")
}
