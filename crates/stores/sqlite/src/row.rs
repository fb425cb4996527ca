//! Rows as events. Any program may have written them, so every column may surprise.

use bytes::Bytes;
use jiff::Timestamp;
use posthaste_core::{
    DEFAULT_MAX_RETRIES, DeadHead, Error, ErrorKind, EventRecord, Headers, ORDER_KEY_BYTES_MAX,
    OrderKey, OutboxEvent, Payload, Result, Seq, Shard,
};
use sqlx::sqlite::SqliteRow;
use sqlx::{Decode, Row, Sqlite, TypeInfo, ValueRef};
use uuid::Uuid;

/// The largest body that is read, in bytes. It is written twice in SQL, as a number.
const BODY_BYTES_MAX: i64 = 128 * 1024 * 1024;

/// All columns, in the order in which [`Column`] counts them. A key that is too long is cut where it shows
/// that, and an error where nobody reads on; a body that is too large is left out, all but its size.
pub(crate) const COLUMNS: &str = "seq, substr(id, 1, 513), substr(aggregate_id, 1, 513), \
     aggregate_type, event_type, iif(length(cast(partition_key as blob)) > 512, \
         cast(substr(cast(partition_key as blob), 1, 513) as text), partition_key), \
     destination, topic, headers, iif(octet_length(event_data) <= 134217728, event_data, null), \
     iif(octet_length(payload) <= 134217728, payload, null), content_type, created_at, \
     available_at, processed_at, dead_at, dead_reason, cast(coalesce(retry_count, 0) as integer), \
     cast(max_retries as integer), substr(error_message, 1, 2000), \
     iif(payload is null, octet_length(event_data), octet_length(payload))";

/// Whether an attempt failed, be it that none was counted: what `OutboxEvent::has_failed` says.
macro_rules! has_failed {
    () => {
        "(coalesce(retry_count, 0) > 0 or error_message is not null)"
    };
}
pub(crate) use has_failed;

#[derive(Clone, Copy)]
enum Column {
    Seq,
    Id,
    AggregateId,
    AggregateType,
    EventType,
    PartitionKey,
    Destination,
    Topic,
    Headers,
    EventData,
    Payload,
    ContentType,
    CreatedAt,
    AvailableAt,
    ProcessedAt,
    DeadAt,
    DeadReason,
    RetryCount,
    MaxRetries,
    ErrorMessage,
    BodyBytes,
}

/// What is done about a value that cannot be read.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Reading {
    /// It is an error: such an event must not be delivered.
    Strict,
    /// It is replaced by something harmless: an operator must see the event.
    Lenient,
}

/// The place of any row.
pub(crate) fn seq(row: &SqliteRow) -> Seq {
    integer(row, Column::Seq).unwrap_or_default()
}

/// The event to deliver.
///
/// # Errors
/// [`ErrorKind::Corrupt`], naming the column, where a value cannot be read; [`ErrorKind::TooLarge`].
pub(crate) fn event(row: &SqliteRow) -> Result<OutboxEvent> {
    read(row, Reading::Strict)
}

/// The event to show: a value that cannot be read is left out, and an id becomes the nil UUID.
pub(crate) fn shown(row: &SqliteRow) -> Result<OutboxEvent> {
    read(row, Reading::Lenient)
}

/// Place and key of a row of [`COLUMNS`], and what routes it.
pub(crate) fn head_of(row: &SqliteRow) -> DeadHead {
    dead_head(
        row,
        [
            Column::Seq,
            Column::PartitionKey,
            Column::AggregateId,
            Column::EventType,
            Column::Destination,
        ]
        .map(|column| column as usize),
    )
}

/// A dead letter, from the columns `seq`, `partition_key`, `aggregate_id`, `event_type` and
/// `destination` at these places.
pub(crate) fn dead_head(
    row: &SqliteRow,
    [seq, partition_key, aggregate_id, event_type, destination]: [usize; 5],
) -> DeadHead {
    DeadHead {
        seq: row.get(seq),
        key: key(row, partition_key, aggregate_id),
        shard: Shard::default(),
        event_type: text_at(row, event_type).unwrap_or_default(),
        destination: text_at(row, destination).filter(|name| !name.is_empty()),
    }
}

/// The key of a dead letter, from the columns `partition_key` and `aggregate_id` at these places.
/// A key that cannot be read stands for itself.
fn key(row: &SqliteRow, partition_key: usize, aggregate_id: usize) -> OrderKey {
    if let Some(key) = bytes_at(row, partition_key).filter(|key| !key.is_empty()) {
        return OrderKey::Named(String::from_utf8_lossy(key).into());
    }
    let raw = bytes_at(row, aggregate_id).unwrap_or_default();
    uuid_at(row, aggregate_id)
        .map_or_else(|| OrderKey::Named(String::from_utf8_lossy(raw).into()), OrderKey::Aggregate)
}

fn read(row: &SqliteRow, reading: Reading) -> Result<OutboxEvent> {
    let lenient = reading == Reading::Lenient;
    let body_bytes = integer(row, Column::BodyBytes).unwrap_or(0);
    if body_bytes > BODY_BYTES_MAX && !lenient {
        let why = format!("its body has {body_bytes} bytes; at most {BODY_BYTES_MAX} are read");
        return Err(Error::new(ErrorKind::TooLarge, "read event", why));
    }
    let uuid = |column, name| match uuid(row, column, name) {
        Err(_) if lenient => Ok(Uuid::nil()),
        uuid => uuid,
    };
    let id = uuid(Column::Id, "id")?;
    let aggregate_id = uuid(Column::AggregateId, "aggregate_id")?;
    let order_key = match named_key(row) {
        Ok(Some(key)) => key,
        Ok(None) => OrderKey::Aggregate(aggregate_id),
        Err(_) if lenient => key(row, Column::PartitionKey as usize, Column::AggregateId as usize),
        Err(error) => return Err(error),
    };
    let headers = match bytes(row, Column::Headers).map(Headers::from_json) {
        None => Headers::new(),
        Some(Ok(headers)) => headers,
        Some(Err(_)) if lenient => Headers::new(),
        Some(Err(error)) => return Err(corrupt("headers", error.report())),
    };
    let time = |column, name| match time(row, column, name) {
        Err(_) if lenient => Ok(None),
        time => time,
    };
    Ok(OutboxEvent::restore(EventRecord {
        id,
        aggregate_id,
        aggregate_type: text(row, Column::AggregateType),
        event_type: text(row, Column::EventType).unwrap_or_default(),
        order_key,
        destination: text(row, Column::Destination).filter(|name| !name.is_empty()),
        topic: text(row, Column::Topic).filter(|name| !name.is_empty()),
        headers,
        payload: payload(row),
        created_at: time(Column::CreatedAt, "created_at")?.unwrap_or(Timestamp::UNIX_EPOCH),
        available_at: time(Column::AvailableAt, "available_at")?,
        processed_at: state_time(row, Column::ProcessedAt),
        dead_at: state_time(row, Column::DeadAt),
        dead_reason: text(row, Column::DeadReason),
        retry_count: count(integer(row, Column::RetryCount).unwrap_or(0)),
        max_retries: integer(row, Column::MaxRetries).map_or(DEFAULT_MAX_RETRIES, count),
        error_message: text(row, Column::ErrorMessage),
    }))
}

fn payload(row: &SqliteRow) -> Payload {
    match bytes(row, Column::Payload) {
        None => {
            Payload::Json(Bytes::copy_from_slice(bytes(row, Column::EventData).unwrap_or(b"null")))
        }
        Some(data) => Payload::Bytes {
            data: Bytes::copy_from_slice(data),
            content_type: text(row, Column::ContentType)
                .unwrap_or_else(|| "application/octet-stream".into()),
        },
    }
}

fn named_key(row: &SqliteRow) -> Result<Option<OrderKey>> {
    let Some(raw) = bytes(row, Column::PartitionKey).filter(|raw| !raw.is_empty()) else {
        return Ok(None);
    };
    if raw.len() > ORDER_KEY_BYTES_MAX {
        return Err(corrupt("partition_key", "it has more than 512 bytes"));
    }
    if is_blob(row, Column::PartitionKey as usize) {
        return Err(corrupt("partition_key", "it is a blob; a key is text"));
    }
    let key = std::str::from_utf8(raw).map_err(|error| corrupt("partition_key", error))?;
    OrderKey::named(key).map(Some).map_err(|error| corrupt("partition_key", error.report()))
}

fn uuid(row: &SqliteRow, column: Column, name: &'static str) -> Result<Uuid> {
    let raw = bytes(row, column).unwrap_or_default();
    uuid_at(row, column as usize).ok_or_else(|| {
        let shown: String = String::from_utf8_lossy(raw).chars().take(60).collect();
        corrupt(name, format!("{shown:?} is not a UUID"))
    })
}

/// Text with hyphens or without, in any case, or a blob of 16 bytes: the spellings that the
/// schema's `order_key` and the settlement's guard bring to one form.
fn uuid_at(row: &SqliteRow, index: usize) -> Option<Uuid> {
    let raw = bytes_at(row, index)?;
    // Text of 16 characters is no UUID, though it has as many bytes.
    if is_blob(row, index) {
        return Uuid::from_slice(raw).ok();
    }
    // Other lengths that the parser takes are those of `{...}` and `urn:uuid:...`.
    matches!(raw.len(), 32 | 36).then(|| Uuid::try_parse_ascii(raw).ok()).flatten()
}

fn is_blob(row: &SqliteRow, index: usize) -> bool {
    row.try_get_raw(index).is_ok_and(|value| value.type_info().name() == "BLOB")
}

fn time(row: &SqliteRow, column: Column, name: &'static str) -> Result<Option<Timestamp>> {
    let Some(raw) = text(row, column) else { return Ok(None) };
    let time = crate::time::parse(&raw)
        .ok_or_else(|| corrupt(name, format!("{:?} is not an ISO 8601 time", head(&raw))))?;
    Ok(Some(time))
}

/// That it is set decides the event's state, whatever the text.
fn state_time(row: &SqliteRow, column: Column) -> Option<Timestamp> {
    text(row, column).map(|raw| crate::time::parse(&raw).unwrap_or(Timestamp::UNIX_EPOCH))
}

fn count(value: i64) -> u32 {
    u32::try_from(value.max(0)).unwrap_or(u32::MAX)
}

fn text(row: &SqliteRow, column: Column) -> Option<Box<str>> {
    text_at(row, column as usize)
}

/// Text; what is not UTF-8 in it is replaced.
fn text_at(row: &SqliteRow, index: usize) -> Option<Box<str>> {
    bytes_at(row, index).map(|raw| String::from_utf8_lossy(raw).into())
}

fn integer(row: &SqliteRow, column: Column) -> Option<i64> {
    row.try_get_unchecked::<Option<i64>, _>(column as usize).ok().flatten()
}

fn bytes(row: &SqliteRow, column: Column) -> Option<&[u8]> {
    bytes_at(row, column as usize)
}

/// The bytes of a value, whichever type SQLite stored it as.
fn bytes_at(row: &SqliteRow, index: usize) -> Option<&[u8]> {
    let value = row.try_get_raw(index).ok().filter(|value| !value.is_null())?;
    <&[u8] as Decode<Sqlite>>::decode(value).ok()
}

fn head(text: &str) -> String {
    text.chars().take(60).collect()
}

fn corrupt(column: &'static str, why: impl std::fmt::Display) -> Error {
    Error::new(ErrorKind::Corrupt, "read event", why.to_string()).with_context("column", column)
}
