//! Events for the checks.

use anyhow::{Context, Result};
use posthaste_core::{OutboxEvent, OutboxEventBuilder, Payload};
use uuid::Uuid;

/// An event about a new aggregate.
pub(crate) fn event() -> Result<OutboxEvent> {
    numbered(Uuid::now_v7(), 0)
}

/// Event `number` of `aggregate`.
pub(crate) fn numbered(aggregate: Uuid, number: usize) -> Result<OutboxEvent> {
    Ok(OutboxEvent::new(aggregate, "check.numbered", &serde_json::json!({ "number": number }))?)
}

/// `count` numbered events of one aggregate.
pub(crate) fn series(aggregate: Uuid, count: usize) -> Result<Vec<OutboxEvent>> {
    (0..count).map(|number| numbered(aggregate, number)).collect()
}

/// `count` events of an aggregate each.
pub(crate) fn events(count: usize) -> Result<Vec<OutboxEvent>> {
    (0..count).map(|number| numbered(Uuid::now_v7(), number)).collect()
}

/// A builder with an aggregate and a payload of its own.
pub(crate) fn builder() -> Result<OutboxEventBuilder> {
    let builder = OutboxEvent::builder(Uuid::now_v7(), "check.built");
    Ok(builder.payload(Payload::json_text(r#"{"built":true}"#)?))
}

/// An event whose body is `length` bytes, all byte values in turn.
pub(crate) fn bytes_event(length: usize) -> Result<OutboxEvent> {
    let data: Vec<u8> = (0..length).map(|index| (index % 256) as u8).collect();
    let payload = Payload::bytes(data, "application/octet-stream")?;
    Ok(builder()?.payload(payload).build()?)
}

/// Text from several scripts, a combining accent, an emoji outside the BMP, and quotes.
pub(crate) const UNICODE: &str = "Grüße, 世界, e\u{301}, مرحبا 🚚 'single' \"double\" \\ %s $1 ?";

/// The ids of events, in order.
pub(crate) fn ids<'a>(events: impl IntoIterator<Item = &'a OutboxEvent>) -> Vec<Uuid> {
    events.into_iter().map(OutboxEvent::id).collect()
}

/// Where bodies are JSON, their values are compared: a store may normalise white space.
pub(crate) fn same_payload(left: &Payload, right: &Payload) -> Result<bool> {
    if !(left.is_json() && right.is_json()) {
        return Ok(left == right);
    }
    let value = |payload: &Payload| {
        serde_json::from_slice::<serde_json::Value>(payload.body())
            .with_context(|| format!("not JSON: {:?}", payload.body()))
    };
    Ok(value(left)? == value(right)?)
}
