//! An event as one line of JSON.

use posthaste_bus_kit::json_body::{push_data, push_member, push_name};
use posthaste_core::{OutboxEvent, Result};

/// Appends the line of `event`, its line break included.
///
/// # Errors
/// [`posthaste_core::ErrorKind::Malformed`] where its JSON payload is not JSON; part of the line
/// may have been appended.
pub(super) fn push(lines: &mut Vec<u8>, event: &OutboxEvent) -> Result<()> {
    lines.push(b'{');
    push_member(lines, "id", &event.id().to_string());
    push_member(lines, "type", event.event_type());
    push_member(lines, "key", &event.order_key().to_string());
    push_member(lines, "aggregate_id", &event.aggregate_id().to_string());
    if let Some(aggregate_type) = event.aggregate_type() {
        push_member(lines, "aggregate_type", aggregate_type);
    }
    push_member(lines, "created_at", &event.created_at().to_string());
    push_member(lines, "content_type", event.payload().content_type());
    if !event.headers().is_empty() {
        push_name(lines, "headers");
        lines.extend_from_slice(event.headers().to_json().as_bytes());
        lines.push(b',');
    }
    push_data(lines, event.payload())?;
    lines.extend_from_slice(b"}\n");
    Ok(())
}

#[cfg(test)]
mod tests {
    use posthaste_core::Payload;
    use uuid::Uuid;

    use super::*;

    fn line(event: &OutboxEvent) -> String {
        let mut lines = Vec::new();
        push(&mut lines, event).unwrap();
        String::from_utf8(lines).unwrap()
    }

    #[test]
    fn a_line_holds_every_part_and_ends_once() {
        let event = OutboxEvent::builder(Uuid::nil(), "a\"b")
            .id(Uuid::from_u128(1))
            .aggregate_type("order")
            .order_key("k")
            .header("tenant", "acme")
            .payload(Payload::json_text("{\n\"a\":1}").unwrap())
            .build()
            .unwrap();
        let line = line(&event);
        assert_eq!(line.matches('\n').count(), 1);
        let value: serde_json::Value = serde_json::from_str(&line).unwrap();
        assert_eq!(value["id"], Uuid::from_u128(1).to_string());
        assert_eq!(value["type"], "a\"b");
        assert_eq!(value["key"], "k");
        assert_eq!(value["aggregate_id"], Uuid::nil().to_string());
        assert_eq!(value["aggregate_type"], "order");
        assert_eq!(value["content_type"], "application/json");
        assert_eq!(value["headers"]["tenant"], "acme");
        assert_eq!(value["data"]["a"], 1);
        let created_at = value["created_at"].as_str().unwrap();
        assert_eq!(created_at.parse::<jiff::Timestamp>().unwrap(), event.created_at());
    }

    #[test]
    fn parts_the_event_lacks_are_left_out() {
        let payload = Payload::bytes(vec![0xff, 0xfe], "application/avro").unwrap();
        let event = OutboxEvent::builder(Uuid::nil(), "t").payload(payload).build().unwrap();
        let value: serde_json::Value = serde_json::from_str(&line(&event)).unwrap();
        for absent in ["aggregate_type", "headers", "data"] {
            assert!(value.get(absent).is_none(), "{absent}");
        }
        assert_eq!(value["data_base64"], "//4=");
        assert_eq!(value["key"], Uuid::nil().to_string());
    }
}
