//! CloudEvents 1.0 in structured content mode: the JSON event format.

use bytes::Bytes;
use posthaste_core::{OutboxEvent, Result};

use super::key;
use crate::json_body::{push_data, push_member};

/// The media type of the JSON event format.
pub(super) const CONTENT_TYPE: &str = "application/cloudevents+json";

/// The JSON object of `event`.
///
/// # Errors
/// [`posthaste_core::ErrorKind::Malformed`] where its JSON payload is not JSON.
pub(super) fn encode(event: &OutboxEvent, source: &str) -> Result<Bytes> {
    let payload = event.payload();
    let mut json = Vec::with_capacity(payload.body().len() + 384);
    json.push(b'{');
    push_member(&mut json, "specversion", "1.0");
    push_member(&mut json, "id", &event.id().to_string());
    push_member(&mut json, "source", source);
    push_member(&mut json, "type", event.event_type());
    push_member(&mut json, "time", &event.created_at().to_string());
    push_member(&mut json, "subject", &key(event));
    push_member(&mut json, "aggregateid", &event.aggregate_id().to_string());
    if let Some(aggregate_type) = event.aggregate_type() {
        push_member(&mut json, "aggregatetype", aggregate_type);
    }
    push_member(&mut json, "datacontenttype", payload.content_type());
    push_data(&mut json, payload)?;
    json.push(b'}');
    Ok(json.into())
}
