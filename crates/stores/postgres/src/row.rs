//! A row of the table as an event.
//!
//! Programs that know only the table obey no rule of ours, and a database in `SQL_ASCII` obeys no
//! encoding. What a row holds beyond the rules is its own trouble: it is read as far as it can be, and
//! [`StoredEvent::unfit`] says why it cannot be delivered. Only what concerns every row, a column of
//! another type for one, is an error of reading.

use bytes::Bytes;
use jiff::Timestamp;
use posthaste_core::{
    DEFAULT_MAX_RETRIES, Error, ErrorKind, EventRecord, HEADERS_BYTES_MAX, Headers, OrderKey,
    Payload, Result, Seq, Shard,
};
use sqlx::Row;
use sqlx::postgres::PgRow;
use uuid::Uuid;

use crate::error::failed;
use crate::timestamp::Instant;

/// The media type of `payload` where a writer left `content_type` out.
const UNKNOWN_CONTENT_TYPE: &str = "application/octet-stream";

/// The largest body that is read, in bytes. It is written twice in SQL, as a number.
pub(crate) const BODY_BYTES_MAX: i64 = 128 * 1024 * 1024;

/// So much of an event's texts beside its body is not counted.
const USUAL_TEXT_BYTES: usize = 4_096;

/// JSON of headers within their limit can be so long, each character escaped.
const HEADERS_JSON_BYTES_MAX: usize = 8 * HEADERS_BYTES_MAX;

/// The column of a writer's own key, no more of it than tells that it is too long.
macro_rules! key_column {
    () => {
        "left(partition_key, 1024)"
    };
}
pub(crate) use key_column;

/// Whether an attempt failed, be it that none was counted: what `OutboxEvent::has_failed` says.
macro_rules! has_failed {
    () => {
        "(coalesce(retry_count, 0) > 0 or error_message is not null)"
    };
}
pub(crate) use has_failed;

/// The columns [`StoredEvent::read`] expects, in its order, with these for the body and the headers. JSON
/// travels as text: it is delivered as it is and never parsed. Of what a writer may make as long as it
/// likes, no more is asked for than tells that it is too long.
macro_rules! columns {
    () => {
        columns!("event_data::text", "left(headers::text, 131073)", "payload")
    };
    ($json:literal, $headers:literal, $payload:literal) => {
        concat!(
            "seq, id, aggregate_id, aggregate_type, event_type, ",
            $json,
            ", left(partition_key, 1024), destination, topic, ",
            $headers,
            ", ",
            $payload,
            ", content_type, created_at, available_at, processed_at, dead_at, dead_reason, \
             retry_count, max_retries, left(error_message, 2000), clock_timestamp()"
        )
    };
}
pub(crate) use columns;

/// The shard of a row, for [`shard`] to read.
macro_rules! shard_column {
    () => {
        "outbox_shard(coalesce(nullif(partition_key, ''), aggregate_id::text))"
    };
}
pub(crate) use shard_column;

/// A row as read.
pub(crate) struct StoredEvent {
    pub(crate) seq: Seq,
    /// The database's clock when the row was read.
    pub(crate) now: Timestamp,
    pub(crate) record: EventRecord,
    /// Why it cannot be delivered. `record` then has what could be read.
    pub(crate) unfit: Option<Error>,
    /// What its body takes in memory, and what its other texts take beyond the usual.
    pub(crate) bytes: usize,
}

impl StoredEvent {
    /// Reads a row of [`columns!`]. What a foreign writer set to null reads as the default, and so does
    /// an empty text where one means "not given": some languages have no other.
    pub(crate) fn read(row: &PgRow, operation: &'static str) -> Result<Self> {
        Self::decode(row).map_err(failed(operation))
    }

    fn decode(row: &PgRow) -> Result<Self, sqlx::Error> {
        let now = row.try_get::<Instant, _>(20)?.0;
        let mut texts = Texts { row, unfit: None, bytes: 0 };
        let aggregate_id: Uuid = row.try_get(2)?;
        let mut headers = texts.headers()?;
        let content_type = texts.given(11, "content_type")?;
        let payload = texts.payload(content_type, &mut headers)?;
        let record = EventRecord {
            id: row.try_get(1)?,
            aggregate_id,
            aggregate_type: texts.given(3, "aggregate_type")?,
            event_type: texts.text(4, "event_type")?.unwrap_or_default(),
            order_key: order_key(texts.text(6, "partition_key")?.as_deref(), aggregate_id),
            destination: texts.given(7, "destination")?,
            topic: texts.given(8, "topic")?,
            headers,
            payload,
            created_at: time(row, 12)?.unwrap_or(now),
            available_at: time(row, 13)?,
            processed_at: time(row, 14)?,
            dead_at: time(row, 15)?,
            dead_reason: texts.text(16, "dead_reason")?,
            retry_count: count(row, 17)?.unwrap_or(0),
            // Zero is what a language without null writes for "not given".
            max_retries: count(row, 18)?.filter(|max| *max > 0).unwrap_or(DEFAULT_MAX_RETRIES),
            error_message: texts.text(19, "error_message")?,
        };
        let body = record.payload.body().len();
        let bytes = body + texts.bytes.saturating_sub(body + USUAL_TEXT_BYTES);
        let unfit = texts.unfit.or_else(|| record.check_stored().err());
        Ok(Self { seq: row.try_get(0)?, now, record, unfit, bytes })
    }
}

/// Reads the texts of a row, whatever they hold.
struct Texts<'r> {
    row: &'r PgRow,
    unfit: Option<Error>,
    bytes: usize,
}

impl Texts<'_> {
    fn text(&mut self, index: usize, name: &'static str) -> sqlx::Result<Option<Box<str>>> {
        let (text, is_utf8) = any_text(self.row, index)?;
        if !is_utf8 {
            let why = "a text that is not UTF-8 cannot be delivered";
            let error = Error::new(ErrorKind::Corrupt, "read event", why);
            self.unfit.get_or_insert(error.with_context("column", name));
        }
        self.bytes += text.as_deref().map_or(0, str::len);
        Ok(text)
    }

    /// The same, where an empty one means that none was given.
    fn given(&mut self, index: usize, name: &'static str) -> sqlx::Result<Option<Box<str>>> {
        Ok(self.text(index, name)?.filter(|text| !text.is_empty()))
    }

    fn headers(&mut self) -> sqlx::Result<Headers> {
        let Some(json) = self.text(9, "headers")? else { return Ok(Headers::new()) };
        let read = if json.len() > HEADERS_JSON_BYTES_MAX {
            Err(Error::new(
                ErrorKind::Malformed,
                "read headers",
                "headers are over 128 KiB of JSON",
            ))
        } else {
            Headers::from_json(json.as_bytes())
        };
        Ok(read.unwrap_or_else(|error| {
            self.unfit.get_or_insert(error);
            Headers::new()
        }))
    }

    /// The body. A header that names its media type is that column's, given in another place.
    fn payload(
        &mut self,
        content_type: Option<Box<str>>,
        headers: &mut Headers,
    ) -> sqlx::Result<Payload> {
        let named = headers.take("content-type");
        if let Some(data) = self.row.try_get::<Option<&[u8]>, _>(10)? {
            self.bytes += data.len();
            let content_type = content_type.or(named);
            return Ok(Payload::Bytes {
                data: Bytes::copy_from_slice(data),
                content_type: content_type.unwrap_or_else(|| UNKNOWN_CONTENT_TYPE.into()),
            });
        }
        let json = self.text(5, "event_data")?.unwrap_or_else(|| "null".into());
        Ok(Payload::Json(Bytes::from(json.into_boxed_bytes().into_vec())))
    }
}

/// A text column as it is, and whether it is UTF-8: in a database in `SQL_ASCII` it need not be.
fn any_text(row: &PgRow, index: usize) -> sqlx::Result<(Option<Box<str>>, bool)> {
    match row.try_get::<Option<&str>, _>(index) {
        Ok(text) => Ok((text.map(Into::into), true)),
        Err(sqlx::Error::ColumnDecode { source, .. })
            if source.downcast_ref::<std::str::Utf8Error>().is_some() =>
        {
            let bytes = row.try_get_raw(index)?;
            let bytes = bytes.as_bytes().map_err(sqlx::Error::Decode)?;
            Ok((Some(String::from_utf8_lossy(bytes).into()), false))
        }
        Err(error) => Err(error),
    }
}

/// A text column, with what is not UTF-8 replaced.
pub(crate) fn text(row: &PgRow, index: usize) -> sqlx::Result<Option<Box<str>>> {
    any_text(row, index).map(|(text, _)| text)
}

/// The identity a key has everywhere: its own where it is given, else the aggregate's.
pub(crate) fn order_key(partition_key: Option<&str>, aggregate_id: Uuid) -> OrderKey {
    let named = partition_key.filter(|key| !key.is_empty());
    named.map_or(OrderKey::Aggregate(aggregate_id), |key| OrderKey::Named(key.into()))
}

/// The shard that the column at `index` names.
pub(crate) fn shard(row: &PgRow, index: usize) -> Result<Shard, sqlx::Error> {
    let number: i32 = row.try_get(index)?;
    let shard = usize::try_from(number).ok().and_then(Shard::from_index);
    shard.ok_or_else(|| sqlx::Error::Decode(format!("there is no shard {number}").into()))
}

fn time(row: &PgRow, index: usize) -> Result<Option<Timestamp>, sqlx::Error> {
    Ok(row.try_get::<Option<Instant>, _>(index)?.map(|instant| instant.0))
}

/// A count that a foreign writer may have made negative.
fn count(row: &PgRow, index: usize) -> Result<Option<u32>, sqlx::Error> {
    Ok(row.try_get::<Option<i32>, _>(index)?.map(|count| u32::try_from(count).unwrap_or(0)))
}
