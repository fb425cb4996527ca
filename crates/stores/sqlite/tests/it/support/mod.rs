//! What the tests of this folder share.

use posthaste_core::{
    OutboxEvent, OutboxMigrations, OutboxRepository, PendingEvent, PendingQuery, PendingSelection,
    Settlement, SettlementOutcome,
};
use posthaste_sqlite::SqliteOutbox;
use tempfile::TempDir;
use uuid::Uuid;

/// A migrated outbox in a directory of its own, which lives as long as the first value.
pub(crate) async fn outbox() -> (TempDir, SqliteOutbox) {
    let directory = tempfile::tempdir().unwrap();
    let outbox = SqliteOutbox::open(directory.path().join("outbox.db")).await.unwrap();
    outbox.migrate().await.unwrap();
    (directory, outbox)
}

pub(crate) fn event() -> OutboxEvent {
    OutboxEvent::new(Uuid::now_v7(), "test", &1).unwrap()
}

pub(crate) async fn pending(outbox: &SqliteOutbox) -> Vec<PendingEvent> {
    select(outbox, PendingSelection::Forward { gaps: Vec::new(), after: 0 }).await
}

/// Each of these was acknowledged.
pub(crate) fn delivered(found: &[PendingEvent]) -> Vec<Settlement> {
    found
        .iter()
        .map(|PendingEvent { seq, event, .. }| Settlement {
            seq: *seq,
            id: event.id(),
            lease: None,
            outcome: SettlementOutcome::Delivered,
        })
        .collect()
}

/// All that is pending, or the first ten thousand of it.
pub(crate) fn forward() -> PendingQuery {
    let selection = PendingSelection::Forward { gaps: Vec::new(), after: 0 };
    PendingQuery { leases: None, selection, events_max: 10_000, bytes_max: 1 << 26 }
}

pub(crate) async fn select(
    outbox: &SqliteOutbox,
    selection: PendingSelection,
) -> Vec<PendingEvent> {
    let query = PendingQuery { leases: None, selection, events_max: 10_000, bytes_max: 1 << 26 };
    outbox.fetch_pending(&query).await.unwrap().events
}

/// Runs SQL as another program would, on a connection that knows nothing of posthaste.
pub(crate) async fn run_sql(outbox: &SqliteOutbox, sql: &str) -> Result<(), sqlx::Error> {
    use sqlx::{AssertSqlSafe, Connection, SqliteConnection};
    let url = format!("sqlite://{}", outbox.path().display());
    let mut connection = SqliteConnection::connect(&url).await?;
    sqlx::raw_sql(AssertSqlSafe(sql)).execute(&mut connection).await?;
    connection.close().await
}
