use std::sync::Arc;

use posthaste_core::{Error, ErrorKind, OutboxEvent, Payload, Result};
use sqlx::{Connection, QueryBuilder, Sqlite, SqliteConnection};

use crate::SqliteOutbox;
use crate::error::database;

/// 13 values a row must stay below SQLite's 32,766 values a statement.
const STATEMENT_EVENTS_MAX: usize = 2_000;

/// Stores events in the caller's own transaction: they are committed with it, or not at all.
///
/// Call it as the last thing before commit. After an error, roll back.
///
/// # Errors
/// [`Rejected`](posthaste_core::ErrorKind::Rejected) for an event that is stored already, and for a
/// connection that is in no transaction: the events would be committed without the data.
/// [`Conflict`](posthaste_core::ErrorKind::Conflict) where another connection is writing,
/// [`Schema`](posthaste_core::ErrorKind::Schema) where there is no outbox.
pub async fn store_events(connection: &mut SqliteConnection, events: &[OutboxEvent]) -> Result<()> {
    require_transaction(connection).await?;
    store(connection, events).await
}

/// Refuses a connection that commits each statement by itself.
///
/// sqlx knows of the transactions that were begun by its own calls. One that was begun by a
/// statement shows in that no other can be begun within it.
async fn require_transaction(connection: &mut SqliteConnection) -> Result<()> {
    if connection.is_in_transaction()
        || sqlx::query("begin").execute(&mut *connection).await.is_err()
    {
        return Ok(());
    }
    let ended = sqlx::query("rollback").execute(connection).await;
    ended.map_err(|error| database("store events", error))?;
    Err(Error::new(
        ErrorKind::Rejected,
        "store events",
        "the connection is in no transaction: begin one, and store the events in it together with \
         the data",
    ))
}

pub(crate) async fn store(connection: &mut SqliteConnection, events: &[OutboxEvent]) -> Result<()> {
    events.iter().try_for_each(OutboxEvent::check_new)?;
    for chunk in events.chunks(STATEMENT_EVENTS_MAX) {
        insert(chunk)
            .build()
            // Statements for every number of rows would fill the cache.
            .persistent(chunk.len() == 1)
            .execute(&mut *connection)
            .await
            .map_err(|error| database("store events", error))?;
    }
    Ok(())
}

fn insert(events: &[OutboxEvent]) -> QueryBuilder<Sqlite> {
    let mut query = QueryBuilder::new(
        "insert into outbox_events (id, aggregate_id, event_type, event_data, max_retries, \
         aggregate_type, partition_key, destination, topic, headers, payload, content_type, \
         available_at) ",
    );
    query.push_values(events, |mut row, event| {
        let (text, payload, content_type) = match event.payload() {
            Payload::Json(json) => (String::from_utf8_lossy(json).into_owned(), None, None),
            Payload::Bytes { data, content_type } => {
                ("null".to_owned(), Some(Arc::new(data.to_vec())), Some(content_type.to_string()))
            }
        };
        let headers = event.headers();
        row.push_bind(event.id().to_string())
            .push_bind(event.aggregate_id().to_string())
            .push_bind(event.event_type().to_owned())
            .push_bind(text)
            // The table takes 0 for "not given"; here it was.
            .push_bind(i64::from(event.max_retries().max(1)))
            .push_bind(event.aggregate_type().map(str::to_owned))
            .push_bind(event.order_key().as_named().map(str::to_owned))
            .push_bind(event.destination().map(str::to_owned))
            .push_bind(event.topic().map(str::to_owned))
            .push_bind((!headers.is_empty()).then(|| headers.to_json()))
            .push_bind(payload)
            .push_bind(content_type)
            .push_bind(event.available_at().map(|time| time.to_string()));
    });
    query
}

impl SqliteOutbox {
    pub(crate) async fn store_all(&self, events: &[OutboxEvent]) -> Result<()> {
        if events.is_empty() {
            return Ok(());
        }
        let fail = |error| database("store events", error);
        let mut transaction = self.begin_write("store events").await?;
        store(&mut transaction, events).await?;
        transaction.commit().await.map_err(fail)?;
        self.wake.notify();
        Ok(())
    }
}
