//! What an event looks like at a broker: its headers and its body.

mod encoding;
mod format;
mod structured;

use std::borrow::Cow;

use bytes::Bytes;
use posthaste_core::{Error, ErrorKind, OutboxEvent, Result};

pub use format::EnvelopeFormat;

/// `ce-source` where nothing else is configured.
pub const SOURCE_DEFAULT: &str = "/posthaste";

/// An event as a broker carries it.
#[derive(Debug)]
pub struct Message<'a> {
    /// Names and values. No name of the envelope occurs again among the user's.
    pub headers: Vec<(&'a str, Cow<'a, str>)>,
    /// The body.
    pub body: Bytes,
}

/// Turns events into messages of one format.
#[derive(Debug, Clone)]
pub struct Envelope {
    format: EnvelopeFormat,
    source: Box<str>,
    /// Which user headers mean something to the transport itself; asked in lower case.
    reserved: fn(&str) -> bool,
}

impl Envelope {
    /// Messages in `format`. `source` is the `source` of CloudEvents, which
    /// [`check_source`](Self::check_source) has seen; `reserved` says of a header's name in lower case
    /// whether it means something to the transport itself, so that an event may not set it.
    #[must_use]
    pub fn new(format: EnvelopeFormat, source: &str, reserved: fn(&str) -> bool) -> Self {
        Self { format, source: source.into(), reserved }
    }

    /// Checks the setting `ce-source` is made from.
    ///
    /// # Errors
    /// [`ErrorKind::Config`] where it is empty or not visible ASCII (a URI reference is both).
    pub fn check_source(source: &str) -> Result<()> {
        if source.is_empty() || !source.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(Error::new(
                ErrorKind::Config,
                "read cloudevents source",
                "the source is a URI reference: not empty, visible ASCII, no spaces",
            )
            .with_context("source", source.escape_debug()));
        }
        Ok(())
    }

    /// The message of `event`. A JSON or bytes body is shared, not copied, but for the structured
    /// format.
    ///
    /// # Errors
    /// [`ErrorKind::Malformed`] where a user header takes a name that is not the user's, or the
    /// event's JSON is none (structured format only; elsewhere the body is not looked at).
    pub fn message<'a>(&'a self, event: &'a OutboxEvent) -> Result<Message<'a>> {
        let mut headers = Vec::with_capacity(8 + event.headers().len());
        let body = match self.format {
            EnvelopeFormat::Plain => {
                push_plain(&mut headers, event);
                event.payload().body().clone()
            }
            EnvelopeFormat::CloudEvents => {
                self.push_binary(&mut headers, event);
                event.payload().body().clone()
            }
            EnvelopeFormat::CloudEventsStructured => {
                headers.push(("content-type", Cow::Borrowed(structured::CONTENT_TYPE)));
                structured::encode(event, &self.source)?
            }
        };
        for (name, value) in event.headers().iter() {
            self.check_user_header(name)?;
            headers.push((name, encoding::text(Cow::Borrowed(value))));
        }
        Ok(Message { headers, body })
    }

    fn push_binary<'a>(
        &'a self,
        headers: &mut Vec<(&'a str, Cow<'a, str>)>,
        event: &'a OutboxEvent,
    ) {
        headers.push(("ce-specversion", Cow::Borrowed("1.0")));
        headers.push(("ce-id", Cow::Owned(event.id().to_string())));
        headers.push(("ce-source", encoding::attribute(Cow::Borrowed(&self.source))));
        headers.push(("ce-type", encoding::attribute(Cow::Borrowed(event.event_type()))));
        headers.push(("ce-time", Cow::Owned(event.created_at().to_string())));
        headers.push(("ce-subject", encoding::attribute(key(event))));
        headers.push(("ce-aggregateid", Cow::Owned(event.aggregate_id().to_string())));
        if let Some(aggregate_type) = event.aggregate_type() {
            headers.push(("ce-aggregatetype", encoding::attribute(aggregate_type.into())));
        }
        headers.push(("content-type", Cow::Borrowed(event.payload().content_type())));
    }

    fn check_user_header(&self, name: &str) -> Result<()> {
        let lower = name.to_ascii_lowercase();
        let why = if lower.starts_with("ph-") {
            "names starting with ph- are posthaste's own"
        } else if lower == "content-type" {
            "the content type is a column of its own (content_type)"
        } else if lower.starts_with("ce-") && self.format.is_cloudevents() {
            "names starting with ce- are CloudEvents' own"
        } else if (self.reserved)(&lower) {
            "the transport gives this header a meaning of its own"
        } else {
            return Ok(());
        };
        Err(Error::new(ErrorKind::Malformed, "encode event", why).with_context("header", name))
    }
}

fn push_plain<'a>(headers: &mut Vec<(&'a str, Cow<'a, str>)>, event: &'a OutboxEvent) {
    headers.push(("ph-id", Cow::Owned(event.id().to_string())));
    headers.push(("ph-type", encoding::text(event.event_type().into())));
    headers.push(("ph-key", encoding::text(key(event))));
    headers.push(("ph-aggregate-id", Cow::Owned(event.aggregate_id().to_string())));
    if let Some(aggregate_type) = event.aggregate_type() {
        headers.push(("ph-aggregate-type", encoding::text(aggregate_type.into())));
    }
    headers.push(("ph-created-at", Cow::Owned(event.created_at().to_string())));
    headers.push(("content-type", Cow::Borrowed(event.payload().content_type())));
}

/// The order key as text.
fn key(event: &OutboxEvent) -> Cow<'_, str> {
    match event.order_key().as_named() {
        Some(named) => Cow::Borrowed(named),
        None => Cow::Owned(event.order_key().to_string()),
    }
}

#[cfg(test)]
mod tests {
    use posthaste_core::{OutboxEventBuilder, Payload};
    use uuid::Uuid;

    use super::*;

    fn envelope(format: EnvelopeFormat) -> Envelope {
        Envelope::new(format, "/shop", |name| name == "host")
    }

    fn event() -> OutboxEventBuilder {
        OutboxEvent::builder(Uuid::nil(), "order.placed")
            .id(Uuid::from_u128(7))
            .aggregate_type("order")
            .order_key("customer-7")
            .header("tenant", "acme")
    }

    fn json() -> OutboxEvent {
        event().payload(Payload::json_text("{\"a\":1}").unwrap()).build().unwrap()
    }

    fn names<'a>(message: &'a Message<'_>) -> Vec<&'a str> {
        message.headers.iter().map(|(name, _)| *name).collect()
    }

    #[test]
    fn plain_puts_everything_but_the_data_into_headers() {
        let (envelope, event) = (envelope(EnvelopeFormat::Plain), json());
        let message = envelope.message(&event).unwrap();
        assert_eq!(message.body, "{\"a\":1}");
        assert_eq!(
            names(&message),
            [
                "ph-id",
                "ph-type",
                "ph-key",
                "ph-aggregate-id",
                "ph-aggregate-type",
                "ph-created-at",
                "content-type",
                "tenant"
            ]
        );
        assert_eq!(message.headers[0].1, Uuid::from_u128(7).to_string());
        assert_eq!(message.headers[2].1, "customer-7");
    }

    #[test]
    fn cloudevents_binary_uses_the_standard_names() {
        let (envelope, event) = (envelope(EnvelopeFormat::CloudEvents), json());
        let message = envelope.message(&event).unwrap();
        let get = |name| &message.headers.iter().find(|(n, _)| *n == name).unwrap().1;
        assert_eq!(get("ce-specversion"), "1.0");
        assert_eq!(get("ce-id"), &Uuid::from_u128(7).to_string());
        assert_eq!(get("ce-source"), "/shop");
        assert_eq!(get("ce-type"), "order.placed");
        assert_eq!(get("ce-subject"), "customer-7");
        assert_eq!(get("content-type"), "application/json");
        get("ce-time").parse::<jiff::Timestamp>().unwrap();
    }

    #[test]
    fn structured_cloudevents_carry_json_as_it_is_and_bytes_as_base64() {
        let (envelope, event_json) = (envelope(EnvelopeFormat::CloudEventsStructured), json());
        let message = envelope.message(&event_json).unwrap();
        assert_eq!(names(&message), ["content-type", "tenant"]);
        assert_eq!(message.headers[0].1, "application/cloudevents+json");
        let value: serde_json::Value = serde_json::from_slice(&message.body).unwrap();
        assert_eq!(value["data"]["a"], 1);
        assert_eq!(value["subject"], "customer-7");
        assert_eq!(value["datacontenttype"], "application/json");

        let bytes = Payload::bytes(vec![0xff], "application/avro").unwrap();
        let event = event().payload(bytes).build().unwrap();
        let message = envelope.message(&event).unwrap();
        let value: serde_json::Value = serde_json::from_slice(&message.body).unwrap();
        assert_eq!(value["data_base64"], "/w==");
        assert!(value.get("data").is_none());
    }

    #[test]
    fn a_user_header_cannot_take_a_name_that_is_not_the_users() {
        for (format, name) in [
            (EnvelopeFormat::Plain, "PH-id"),
            (EnvelopeFormat::Plain, "Content-Type"),
            (EnvelopeFormat::Plain, "Host"),
            (EnvelopeFormat::CloudEvents, "Ce-Id"),
        ] {
            let envelope = envelope(format);
            // As a writer of plain SQL stores it: the builder refuses some.
            let mut record = json().record().clone();
            record.headers.insert(name, "x").unwrap();
            let event = OutboxEvent::restore(record);
            let error = envelope.message(&event).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Malformed, "{name}");
        }
        let event = event().header("ce-id", "x").payload(Payload::json(&1).unwrap());
        assert!(envelope(EnvelopeFormat::Plain).message(&event.build().unwrap()).is_ok());
    }

    #[test]
    fn what_is_not_ascii_is_percent_encoded_in_headers_and_only_there() {
        let event =
            event().order_key("Müller & Söhne").header("tenant", "Grüße").header("b", "a%20b");
        let event = event.payload(Payload::json(&1).unwrap()).build().unwrap();
        let get = |format, name: &str| {
            let envelope = envelope(format);
            let message = envelope.message(&event).unwrap();
            let found = message.headers.iter().find(|(n, _)| *n == name).unwrap();
            found.1.clone().into_owned()
        };
        assert_eq!(get(EnvelopeFormat::Plain, "ph-key"), "M%C3%BCller & S%C3%B6hne");
        assert_eq!(get(EnvelopeFormat::Plain, "tenant"), "Gr%C3%BC%C3%9Fe");
        assert_eq!(get(EnvelopeFormat::Plain, "b"), "a%20b");
        let subject = get(EnvelopeFormat::CloudEvents, "ce-subject");
        assert_eq!(subject, "M%C3%BCller%20&%20S%C3%B6hne");
        let envelope = envelope(EnvelopeFormat::CloudEventsStructured);
        let body = envelope.message(&event).unwrap().body;
        let value: serde_json::Value = serde_json::from_slice(&body).unwrap();
        assert_eq!(value["subject"], "Müller & Söhne");
    }

    #[test]
    fn a_body_is_shared_and_not_copied() {
        let (envelope, event) = (envelope(EnvelopeFormat::Plain), json());
        let message = envelope.message(&event).unwrap();
        assert_eq!(message.body.as_ptr(), event.payload().body().as_ptr());
    }
}
