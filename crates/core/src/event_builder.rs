//! How a new event is made, and the rules it must keep.

use std::time::Duration;

use jiff::Timestamp;
use uuid::Uuid;

use crate::{
    DEFAULT_MAX_RETRIES, Error, ErrorKind, EventRecord, Headers, OrderKey, OutboxEvent, Payload,
    Result,
};

/// The longest event type, in characters: the column's width.
pub const EVENT_TYPE_CHARS_MAX: usize = 100;
/// The longest aggregate type, destination name and topic, in characters: the columns' width.
const NAME_CHARS_MAX: usize = 255;

/// Collects an event's parts; [`build`](Self::build) checks them all.
#[derive(Debug, Clone)]
pub struct OutboxEventBuilder {
    id: Option<Uuid>,
    aggregate_id: Uuid,
    event_type: String,
    aggregate_type: Option<String>,
    order_key: Option<String>,
    destination: Option<String>,
    topic: Option<String>,
    headers: Vec<(String, String)>,
    payload: Option<Payload>,
    available_at: Option<Timestamp>,
    delay: Option<Duration>,
    max_retries: u32,
}

impl OutboxEventBuilder {
    pub(crate) const fn new(aggregate_id: Uuid, event_type: String) -> Self {
        Self {
            id: None,
            aggregate_id,
            event_type,
            aggregate_type: None,
            order_key: None,
            destination: None,
            topic: None,
            headers: Vec::new(),
            payload: None,
            available_at: None,
            delay: None,
            max_retries: DEFAULT_MAX_RETRIES,
        }
    }

    /// An identity of the caller's own. Default: a new UUIDv7.
    #[must_use]
    pub const fn id(mut self, id: Uuid) -> Self {
        self.id = Some(id);
        self
    }

    /// The kind of thing the event is about.
    #[must_use]
    pub fn aggregate_type(mut self, aggregate_type: impl Into<String>) -> Self {
        self.aggregate_type = Some(aggregate_type.into());
        self
    }

    /// What orders it instead of the aggregate's id.
    #[must_use]
    pub fn order_key(mut self, key: impl Into<String>) -> Self {
        self.order_key = Some(key.into());
        self
    }

    /// The name of a configured destination, instead of the one the routes choose.
    #[must_use]
    pub fn destination(mut self, destination: impl Into<String>) -> Self {
        self.destination = Some(destination.into());
        self
    }

    /// The subject, topic, queue or path within the destination.
    #[must_use]
    pub fn topic(mut self, topic: impl Into<String>) -> Self {
        self.topic = Some(topic.into());
        self
    }

    /// Adds a header; a later one of the same name, in whatever case, replaces it.
    #[must_use]
    pub fn header(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.headers.push((name.into(), value.into()));
        self
    }

    /// The body. Required.
    #[must_use]
    pub fn payload(mut self, payload: Payload) -> Self {
        self.payload = Some(payload);
        self
    }

    /// Not to be delivered before this time. Later events of its key wait behind it: give a
    /// delayed event a key of its own where they should not.
    #[must_use]
    pub const fn available_at(mut self, time: Timestamp) -> Self {
        self.available_at = Some(time);
        self
    }

    /// Not to be delivered before so long after [`build`](Self::build), by this machine's clock;
    /// otherwise as [`available_at`](Self::available_at), of which the later counts.
    #[must_use]
    pub const fn delay(mut self, delay: Duration) -> Self {
        self.delay = Some(delay);
        self
    }

    /// Failed attempts after which it is dead-lettered. Default [`DEFAULT_MAX_RETRIES`].
    #[must_use]
    pub const fn max_retries(mut self, max_retries: u32) -> Self {
        self.max_retries = max_retries;
        self
    }

    /// Checks every part and makes the event.
    ///
    /// # Errors
    /// [`ErrorKind::Malformed`], naming the part, for what no store or no broker takes: a nil id; an
    /// event type, aggregate type, destination or topic that is empty, too long or holds a control
    /// character; a malformed or [reserved](Headers::reserved) header; a malformed order key; a
    /// missing payload.
    ///
    /// What only some brokers cannot carry is a dead letter there; in a service's tests
    /// [`MemoryBus::strict`](crate::memory::MemoryBus::strict) refuses it.
    pub fn build(self) -> Result<OutboxEvent> {
        if self.id.is_some_and(|id| id.is_nil()) {
            let why = "the id is nil, which every event would share that was given none";
            return Err(Error::new(ErrorKind::Malformed, "build event", why));
        }
        check_name("event_type", &self.event_type, EVENT_TYPE_CHARS_MAX)?;
        for (part, name) in [
            ("aggregate_type", &self.aggregate_type),
            ("destination", &self.destination),
            ("topic", &self.topic),
        ] {
            if let Some(name) = name {
                check_name(part, name, NAME_CHARS_MAX)?;
            }
        }
        let mut headers = Headers::new();
        for (name, value) in &self.headers {
            headers.insert(name, value)?;
            if let Some(why) = Headers::reserved(name) {
                return Err(Error::new(ErrorKind::Malformed, "build event", why)
                    .with_context("header", name));
            }
        }
        let order_key = match &self.order_key {
            Some(key) => OrderKey::named(key)?,
            None => OrderKey::Aggregate(self.aggregate_id),
        };
        let payload = self.payload.ok_or_else(|| {
            Error::new(ErrorKind::Malformed, "build event", "no payload was given")
        })?;
        let now = Timestamp::now();
        let delayed = self.delay.map(|delay| now.checked_add(delay).unwrap_or(Timestamp::MAX));
        Ok(OutboxEvent::restore(EventRecord {
            id: self.id.unwrap_or_else(Uuid::now_v7),
            aggregate_id: self.aggregate_id,
            aggregate_type: self.aggregate_type.map(Into::into),
            event_type: self.event_type.into(),
            order_key,
            destination: self.destination.map(Into::into),
            topic: self.topic.map(Into::into),
            headers,
            payload,
            created_at: now,
            available_at: self.available_at.max(delayed),
            processed_at: None,
            dead_at: None,
            dead_reason: None,
            retry_count: 0,
            max_retries: self.max_retries,
            error_message: None,
        }))
    }
}

impl OutboxEvent {
    /// Whether a store can take this as a new event: what each of them checks before it asks its
    /// database, so that all refuse the same. An event of the builder's passes.
    ///
    /// # Errors
    /// [`ErrorKind::Malformed`], naming the column, for a nil id, text with a NUL character or
    /// longer than its column, and a malformed order key.
    pub fn check_new(&self) -> Result<()> {
        let record = self.record();
        let refuse = |column: &str, why: &str| {
            let why = format!("{column} {why}");
            Err(Error::new(ErrorKind::Malformed, "store events", why).with_context("id", record.id))
        };
        if record.id.is_nil() {
            return refuse("id", "is nil");
        }
        for (column, text, chars_max) in [
            ("event_type", Some(&record.event_type), EVENT_TYPE_CHARS_MAX),
            ("aggregate_type", record.aggregate_type.as_ref(), NAME_CHARS_MAX),
            ("destination", record.destination.as_ref(), NAME_CHARS_MAX),
            ("topic", record.topic.as_ref(), NAME_CHARS_MAX),
        ] {
            let Some(text) = text else { continue };
            if text.contains('\0') {
                return refuse(column, "holds a NUL character");
            }
            if text.len() > chars_max && text.chars().count() > chars_max {
                return refuse(column, "is longer than its column");
            }
        }
        match record.order_key.as_named() {
            // Not given, as other languages write it.
            None | Some("") => Ok(()),
            Some(key) => OrderKey::named(key).map(drop),
        }
    }
}

impl EventRecord {
    /// Whether the texts of a stored event are no longer than those of an event can be. For stores: what
    /// programs wrote that know only the table obeys no rule before it is read.
    ///
    /// # Errors
    /// [`ErrorKind::Malformed`], naming the part, where one is too long; also for a malformed order key.
    pub fn check_stored(&self) -> Result<()> {
        for (part, text, chars_max) in [
            ("event_type", Some(&self.event_type), EVENT_TYPE_CHARS_MAX),
            ("aggregate_type", self.aggregate_type.as_ref(), NAME_CHARS_MAX),
            ("destination", self.destination.as_ref(), NAME_CHARS_MAX),
            ("topic", self.topic.as_ref(), NAME_CHARS_MAX),
        ] {
            if text.is_some_and(|text| text.len() > chars_max && text.chars().count() > chars_max) {
                let why = format!("{part} is over {chars_max} characters");
                return Err(Error::new(ErrorKind::Malformed, "read event", why));
            }
        }
        self.order_key.as_named().map_or(Ok(()), |key| OrderKey::named(key).map(drop))
    }
}

/// Checks the name of a destination that events are sent to instead of the one they had. For stores.
///
/// # Errors
/// [`ErrorKind::Malformed`] where no event could be built with it.
pub fn check_destination(name: Option<&str>) -> Result<()> {
    name.map_or(Ok(()), |name| check_name("destination", name, NAME_CHARS_MAX))
}

fn check_name(part: &'static str, name: &str, chars_max: usize) -> Result<()> {
    let why = if name.is_empty() {
        "is empty".to_owned()
    } else if name.chars().count() > chars_max {
        format!("is over {chars_max} characters")
    } else if name.chars().any(char::is_control) {
        "holds a control character".to_owned()
    } else {
        return Ok(());
    };
    Err(Error::new(ErrorKind::Malformed, "build event", format!("{part} {why}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_malformed_part_is_named() {
        let base =
            || OutboxEvent::builder(Uuid::nil(), "t").payload(Payload::json_text("1").unwrap());
        let cases = [
            (OutboxEvent::builder(Uuid::nil(), "t").build(), "no payload"),
            (OutboxEvent::new(Uuid::nil(), "", &1), "event_type is empty"),
            (OutboxEvent::new(Uuid::nil(), "x".repeat(101), &1), "over 100"),
            (base().topic("a\nb").build(), "topic holds"),
            (base().order_key("").build(), "order key is empty"),
            (base().header("a b", "c").build(), "header name"),
            (base().header("Ph-Tenant", "c").build(), "posthaste's own"),
            (base().header("Content-Type", "c").build(), "Payload::bytes"),
            (base().id(Uuid::nil()).build(), "the id is nil"),
        ];
        for (result, expected) in cases {
            let error = result.unwrap_err();
            assert!(error.to_string().contains(expected), "{error}");
        }
    }

    #[test]
    fn what_serialises_to_json_is_a_payload_text_and_slices_too() {
        for event in [
            OutboxEvent::new(Uuid::nil(), "t", "text"),
            OutboxEvent::new(Uuid::nil(), "t", &[1, 2][..]),
        ] {
            assert!(event.unwrap().payload().is_json());
        }
    }

    #[test]
    fn the_later_of_delay_and_time_counts() {
        let base =
            || OutboxEvent::builder(Uuid::nil(), "t").payload(Payload::json_text("1").unwrap());
        let hour = Duration::from_secs(3_600);
        let delayed = base().delay(hour).build().unwrap();
        assert_eq!(delayed.available_at(), Some(delayed.created_at() + hour));
        let later = Timestamp::now() + 2 * hour;
        assert_eq!(
            base().delay(hour).available_at(later).build().unwrap().available_at(),
            Some(later)
        );
        assert_eq!(
            base().delay(Duration::MAX).build().unwrap().available_at(),
            Some(Timestamp::MAX)
        );
    }
}
