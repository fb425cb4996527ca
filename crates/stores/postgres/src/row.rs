//! A row of the table as an event.

use bytes::Bytes;
use jiff::Timestamp;
use posthaste_core::{
    DEFAULT_MAX_RETRIES, Error, EventRecord, Headers, OrderKey, Payload, Result, Seq, Shard,
};
use sqlx::Row;
use sqlx::postgres::PgRow;
use uuid::Uuid;

use crate::error::failed;
use crate::timestamp::Instant;

/// The media type of `payload` where a writer left `content_type` out.
const UNKNOWN_CONTENT_TYPE: &str = "application/octet-stream";

/// The columns [`StoredEvent::read`] expects, in its order. JSON travels as text: it is delivered
/// as it is and never parsed.
macro_rules! columns {
    () => {
        "seq, id, aggregate_id, aggregate_type, event_type, event_data::text, partition_key, \
         destination, topic, headers::text, payload, content_type, created_at, available_at, \
         processed_at, dead_at, dead_reason, retry_count, max_retries, error_message, \
         clock_timestamp()"
    };
}
pub(crate) use columns;

/// The shard of a row, for [`shard`] to read.
macro_rules! shard_column {
    () => {
        "outbox_shard(coalesce(partition_key, aggregate_id::text))"
    };
}
pub(crate) use shard_column;

/// A row as read.
pub(crate) struct StoredEvent {
    pub(crate) seq: Seq,
    /// The database's clock when the row was read.
    pub(crate) now: Timestamp,
    pub(crate) record: EventRecord,
    /// Why it cannot be delivered: its headers are none. `record` then has none.
    pub(crate) corrupt: Option<Error>,
}

impl StoredEvent {
    /// Reads a row of [`columns!`]. What a foreign writer set to null reads as the default.
    pub(crate) fn read(row: &PgRow, operation: &'static str) -> Result<Self> {
        Self::decode(row).map_err(failed(operation))
    }

    fn decode(row: &PgRow) -> Result<Self, sqlx::Error> {
        let now = row.try_get::<Instant, _>(20)?.0;
        let (headers, corrupt) = match row.try_get::<Option<&str>, _>(9)? {
            None => (Headers::new(), None),
            Some(json) => match Headers::from_json(json.as_bytes()) {
                Ok(headers) => (headers, None),
                Err(error) => (Headers::new(), Some(error)),
            },
        };
        let record = EventRecord {
            id: row.try_get(1)?,
            aggregate_id: row.try_get(2)?,
            aggregate_type: text(row, 3)?,
            event_type: row.try_get::<&str, _>(4)?.into(),
            order_key: order_key(row.try_get(6)?, row.try_get(2)?),
            destination: text(row, 7)?,
            topic: text(row, 8)?,
            headers,
            payload: payload(row)?,
            created_at: time(row, 12)?.unwrap_or(now),
            available_at: time(row, 13)?,
            processed_at: time(row, 14)?,
            dead_at: time(row, 15)?,
            dead_reason: text(row, 16)?,
            retry_count: count(row, 17)?.unwrap_or(0),
            max_retries: count(row, 18)?.unwrap_or(DEFAULT_MAX_RETRIES),
            error_message: text(row, 19)?,
        };
        Ok(Self { seq: row.try_get(0)?, now, record, corrupt })
    }
}

/// The identity a key has everywhere: its own where it is given, else the aggregate's.
pub(crate) fn order_key(partition_key: Option<&str>, aggregate_id: Uuid) -> OrderKey {
    partition_key.map_or(OrderKey::Aggregate(aggregate_id), |key| OrderKey::Named(key.into()))
}

/// The shard that the column at `index` names.
pub(crate) fn shard(row: &PgRow, index: usize) -> Result<Shard, sqlx::Error> {
    let number: i32 = row.try_get(index)?;
    let shard = usize::try_from(number).ok().and_then(Shard::from_index);
    shard.ok_or_else(|| sqlx::Error::Decode(format!("there is no shard {number}").into()))
}

fn payload(row: &PgRow) -> Result<Payload, sqlx::Error> {
    Ok(match row.try_get::<Option<&[u8]>, _>(10)? {
        Some(data) => Payload::Bytes {
            data: Bytes::copy_from_slice(data),
            content_type: text(row, 11)?.unwrap_or_else(|| UNKNOWN_CONTENT_TYPE.into()),
        },
        None => Payload::Json(Bytes::copy_from_slice(row.try_get::<&str, _>(5)?.as_bytes())),
    })
}

fn text(row: &PgRow, index: usize) -> Result<Option<Box<str>>, sqlx::Error> {
    Ok(row.try_get::<Option<&str>, _>(index)?.map(Into::into))
}

fn time(row: &PgRow, index: usize) -> Result<Option<Timestamp>, sqlx::Error> {
    Ok(row.try_get::<Option<Instant>, _>(index)?.map(|instant| instant.0))
}

/// A count that a foreign writer may have made negative.
fn count(row: &PgRow, index: usize) -> Result<Option<u32>, sqlx::Error> {
    Ok(row.try_get::<Option<i32>, _>(index)?.map(|count| u32::try_from(count).unwrap_or(0)))
}
