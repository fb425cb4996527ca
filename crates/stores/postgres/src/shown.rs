//! Rows as operators see them, whatever they hold: one whose body is too large or cannot be read is shown
//! without it, and the others with theirs.

use posthaste_core::{OutboxEvent, Payload, Result, Seq};
use sqlx::postgres::{PgArguments, PgRow};
use sqlx::query::Query;
use sqlx::{AssertSqlSafe, Postgres, QueryBuilder, Row};
use uuid::Uuid;

use crate::error::failed;
use crate::fetch::is_of_rows;
use crate::outbox::PostgresOutbox;
use crate::plans;
use crate::row::{BODY_BYTES_MAX, StoredEvent, columns};

/// An event with its body, where that is not too large, and whether it is.
const WHOLE: &str = concat!(
    columns!(
        "case when octet_length(event_data::text) <= 134217728 then event_data::text end",
        "left(headers::text, 131073)",
        "case when octet_length(payload) <= 134217728 then payload end"
    ),
    ", coalesce(octet_length(payload), octet_length(event_data::text)) > 134217728"
);

/// What is left of an event that cannot be read: all but its body and headers.
const HEAD: &str = columns!("'null'::text", "null::text", "null::bytea");

/// The events that a query of these columns finds, in its order.
pub(crate) async fn rows(
    outbox: &PostgresOutbox,
    operation: &'static str,
    query: impl Fn(&str) -> QueryBuilder<Postgres>,
) -> Result<Vec<OutboxEvent>> {
    let error = match ask(outbox, operation, &mut query(WHOLE)).await {
        Ok(rows) => return rows.iter().map(|row| whole(row, operation)).collect(),
        Err(error) if is_of_rows(&error) => error,
        Err(error) => return Err(error),
    };
    tracing::debug!(error = error.report(), "a row cannot be read; each is read by itself");
    let places = ask(outbox, operation, &mut query("seq, id")).await?;
    let mut events = Vec::with_capacity(places.len());
    for row in &places {
        let (seq, id) = (row.try_get(0), row.try_get(1));
        let place = (seq.map_err(failed(operation))?, id.map_err(failed(operation))?);
        events.extend(alone(outbox, operation, place).await?);
    }
    Ok(events)
}

/// One event; none where it is gone by now.
async fn alone(
    outbox: &PostgresOutbox,
    operation: &'static str,
    (seq, id): (Seq, Uuid),
) -> Result<Option<OutboxEvent>> {
    let query = |columns: &str| {
        let mut query = QueryBuilder::new("select ");
        query.push(columns).push(" from outbox_events where seq = ").push_bind(seq);
        query.push(" and id = ").push_bind(id);
        query
    };
    match ask(outbox, operation, &mut query(WHOLE)).await {
        Ok(rows) => rows.first().map(|row| whole(row, operation)).transpose(),
        Err(error) if is_of_rows(&error) => {
            let rows = ask(outbox, operation, &mut query(HEAD)).await?;
            let Some(row) = rows.first() else { return Ok(None) };
            let why = format!("not shown, since it cannot be read: {}", error.report());
            let stored = StoredEvent::read(row, operation)?;
            Ok(Some(without_body(stored, why)))
        }
        Err(error) => Err(error),
    }
}

fn whole(row: &PgRow, operation: &'static str) -> Result<OutboxEvent> {
    /// The column after those of an event.
    const IS_TOO_LARGE: usize = 21;
    let stored = StoredEvent::read(row, operation)?;
    let is_too_large: Option<bool> = row.try_get(IS_TOO_LARGE).map_err(failed(operation))?;
    if is_too_large == Some(true) {
        let mib = BODY_BYTES_MAX / (1024 * 1024);
        return Ok(without_body(stored, format!("not shown, since it has over {mib} MiB")));
    }
    Ok(OutboxEvent::restore(stored.record))
}

/// Says why in the place of the body: what else there is says what became of the event.
fn without_body(mut stored: StoredEvent, why: String) -> OutboxEvent {
    let content_type = "text/plain".into();
    stored.record.payload = Payload::Bytes { data: why.into(), content_type };
    OutboxEvent::restore(stored.record)
}

async fn ask(
    outbox: &PostgresOutbox,
    operation: &'static str,
    query: &mut QueryBuilder<Postgres>,
) -> Result<Vec<PgRow>> {
    let mut session = outbox.transaction(outbox.statement_timeout(), operation).await?;
    let any_bytes = sqlx::raw_sql(AssertSqlSafe(plans::any_bytes(true)));
    any_bytes.execute(session.connection()).await.map_err(failed(operation))?;
    let rows = build(query).fetch_all(session.connection()).await.map_err(failed(operation))?;
    session.finish().await?;
    Ok(rows)
}

/// Not kept prepared: its text differs from call to call.
pub(crate) fn build(query: &mut QueryBuilder<Postgres>) -> Query<'_, Postgres, PgArguments> {
    query.build().persistent(false)
}
