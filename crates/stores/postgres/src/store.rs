//! Storing events inside a transaction: the user's own, or ours.

use posthaste_core::{Error, ErrorKind, OrderKey, OutboxEvent, Payload, Result};
use sqlx::error::DatabaseError;
use sqlx::{Connection, PgConnection};
use uuid::Uuid;

use crate::error::failed;
use crate::session::statement;
use crate::timestamp::Instant;

const STORE: &str = "store events";

/// `order by` makes PostgreSQL draw the numbers in the order given: a default is evaluated row by
/// row as the sorted rows arrive.
const INSERT: &str = "\
    insert into outbox_events (id, aggregate_id, aggregate_type, event_type, event_data, \
        partition_key, destination, topic, headers, payload, content_type, available_at, \
        max_retries) \
    select id, aggregate_id, aggregate_type, event_type, event_data::jsonb, \
        partition_key, destination, topic, headers::jsonb, payload, content_type, available_at, \
        max_retries \
    from unnest($1::uuid[], $2::uuid[], $3::text[], $4::text[], $5::text[], $6::text[], \
        $7::text[], $8::text[], $9::text[], $10::bytea[], $11::text[], $12::timestamptz[], \
        $13::int4[]) with ordinality as event (id, aggregate_id, aggregate_type, event_type, \
        event_data, partition_key, destination, topic, headers, payload, content_type, \
        available_at, max_retries, place) \
    order by place";

/// Stores events within the caller's own transaction, in one statement.
///
/// Call it last, just before `commit`: by then the transaction holds the row locks of whatever it
/// changed, so that the events of an aggregate are numbered in the order in which transactions
/// held it ("append last"). A writer that cannot, calls [`lock_key`] first. The events exist when
/// the transaction commits, and only then; events of one call are numbered in the order given.
///
/// Relays find the events by themselves. [`PostgresOutbox::notify`](crate::PostgresOutbox::notify)
/// after the commit shortens that wait. Behind a pooler in transaction mode use
/// [`PostgresOutbox::store_in`](crate::PostgresOutbox::store_in).
///
/// # Errors
/// `Rejected` where an event of that id is pending already, and for a connection that is in no
/// transaction: the events would be committed without the data. `Malformed` for a value the
/// database cannot hold (a NUL character in JSON), `Schema` where there is no outbox. After any
/// error PostgreSQL allows only a rollback.
pub async fn store_events(connection: &mut PgConnection, events: &[OutboxEvent]) -> Result<()> {
    require_transaction(connection).await?;
    store(connection, events, false).await
}

/// Refuses a connection that commits each statement by itself.
///
/// sqlx knows of the transactions that were begun by its own calls. Of one that was begun by a
/// statement, only the server knows: that takes a round trip.
pub(crate) async fn require_transaction(connection: &mut PgConnection) -> Result<()> {
    if connection.is_in_transaction() {
        return Ok(());
    }
    // In one text, so that it takes one round trip and no prepared statement.
    let begun =
        sqlx::raw_sql("savepoint posthaste; release savepoint posthaste").execute(connection).await;
    match begun {
        Ok(_) => Ok(()),
        Err(error) if is_outside_transaction(&error) => Err(Error::new(
            ErrorKind::Rejected,
            STORE,
            "the connection is in no transaction: begin one, and store the events in it together \
             with the data",
        )),
        Err(error) => Err(failed(STORE)(error)),
    }
}

/// `no_active_sql_transaction`
fn is_outside_transaction(error: &sqlx::Error) -> bool {
    error.as_database_error().and_then(DatabaseError::code).as_deref() == Some("25P01")
}

/// Makes this transaction the only one that may store events of `key` until it ends.
///
/// For writers that store events before they hold the row locks of the aggregate. Call it before
/// storing; all writers of that key must.
///
/// # Errors
/// Those of the connection.
pub async fn lock_key(connection: &mut PgConnection, key: &OrderKey) -> Result<()> {
    // A two-part lock: the first part keeps our locks apart from the application's own.
    statement("select pg_advisory_xact_lock(hashtext('posthaste.order_key'), hashtext($1))", true)
        .bind(key.to_string())
        .execute(connection)
        .await
        .map_err(failed("lock order key"))?;
    Ok(())
}

pub(crate) async fn store(
    connection: &mut PgConnection,
    events: &[OutboxEvent],
    pooler: bool,
) -> Result<()> {
    if events.is_empty() {
        return Ok(());
    }
    let columns = Columns::collect(events)?;
    statement(INSERT, pooler)
        .bind(columns.ids)
        .bind(columns.aggregate_ids)
        .bind(columns.aggregate_types)
        .bind(columns.event_types)
        .bind(columns.event_data)
        .bind(columns.partition_keys)
        .bind(columns.destinations)
        .bind(columns.topics)
        .bind(columns.headers)
        .bind(columns.payloads)
        .bind(columns.content_types)
        .bind(columns.available_at)
        .bind(columns.max_retries)
        .execute(connection)
        .await
        .map_err(failed(STORE))?;
    Ok(())
}

/// The events turned by ninety degrees: one array per column.
#[derive(Default)]
struct Columns<'e> {
    ids: Vec<Uuid>,
    aggregate_ids: Vec<Uuid>,
    aggregate_types: Vec<Option<&'e str>>,
    event_types: Vec<&'e str>,
    event_data: Vec<&'e str>,
    partition_keys: Vec<Option<&'e str>>,
    destinations: Vec<Option<&'e str>>,
    topics: Vec<Option<&'e str>>,
    headers: Vec<Option<String>>,
    payloads: Vec<Option<&'e [u8]>>,
    content_types: Vec<Option<&'e str>>,
    available_at: Vec<Option<Instant>>,
    max_retries: Vec<i32>,
}

impl<'e> Columns<'e> {
    fn collect(events: &'e [OutboxEvent]) -> Result<Self> {
        let mut columns = Self::default();
        for event in events {
            event.check_new()?;
            let (json, bytes) = match event.payload() {
                Payload::Json(text) => (json_text(event, text)?, None),
                Payload::Bytes { data, content_type } => {
                    ("null", Some((data.as_ref(), content_type.as_ref())))
                }
            };
            let headers = event.headers();
            columns.ids.push(event.id());
            columns.aggregate_ids.push(event.aggregate_id());
            columns.aggregate_types.push(event.aggregate_type());
            columns.event_types.push(event.event_type());
            columns.event_data.push(json);
            columns.partition_keys.push(event.order_key().as_named());
            columns.destinations.push(event.destination());
            columns.topics.push(event.topic());
            columns.headers.push((!headers.is_empty()).then(|| headers.to_json()));
            columns.payloads.push(bytes.map(|(data, _)| data));
            columns.content_types.push(bytes.map(|(_, content_type)| content_type));
            columns.available_at.push(event.available_at().map(Instant));
            // The table takes 0 for "not given", as Go writes it; of attempts, one is the least.
            let max_retries = i32::try_from(event.max_retries()).unwrap_or(i32::MAX);
            columns.max_retries.push(max_retries.max(1));
        }
        Ok(columns)
    }
}

fn json_text<'e>(event: &OutboxEvent, text: &'e [u8]) -> Result<&'e str> {
    std::str::from_utf8(text).map_err(|error| {
        Error::new(ErrorKind::Malformed, STORE, "a JSON payload is not UTF-8")
            .with_context("id", event.id())
            .with_source(error)
    })
}
