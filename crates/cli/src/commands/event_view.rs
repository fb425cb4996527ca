//! An event as JSON with stable field names, and as text.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use posthaste_core::{OutboxEvent, Payload};
use serde::Serialize;
use serde_json::value::RawValue;
use std::collections::BTreeMap;

use crate::output::time;
use crate::plain;

/// All of an event but its body.
#[derive(Debug, Serialize)]
pub(crate) struct EventView {
    id: String,
    state: &'static str,
    aggregate_id: String,
    aggregate_type: Option<String>,
    #[serde(rename = "type")]
    event_type: String,
    key: String,
    destination: Option<String>,
    topic: Option<String>,
    headers: BTreeMap<String, String>,
    content_type: String,
    payload_bytes: usize,
    created_at: String,
    available_at: Option<String>,
    processed_at: Option<String>,
    dead_at: Option<String>,
    dead_reason: Option<String>,
    retry_count: u32,
    max_retries: u32,
    error_message: Option<String>,
}

/// An event with its body.
#[derive(Debug, Serialize)]
pub(crate) struct FullEventView {
    #[serde(flatten)]
    event: EventView,
    #[serde(skip_serializing_if = "Option::is_none")]
    data: Option<Box<RawValue>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    data_base64: Option<String>,
}

impl EventView {
    /// The view of an event.
    pub(crate) fn new(event: &OutboxEvent) -> Self {
        let owned = |text: Option<&str>| text.map(str::to_owned);
        let at = |time: Option<jiff::Timestamp>| time.map(|time| time.to_string());
        Self {
            id: event.id().to_string(),
            state: event.state().as_str(),
            aggregate_id: event.aggregate_id().to_string(),
            aggregate_type: owned(event.aggregate_type()),
            event_type: event.event_type().to_owned(),
            key: event.order_key().to_string(),
            destination: owned(event.destination()),
            topic: owned(event.topic()),
            headers: event
                .headers()
                .iter()
                .map(|(name, value)| (name.to_owned(), value.to_owned()))
                .collect(),
            content_type: event.payload().content_type().to_owned(),
            payload_bytes: event.payload().body().len(),
            created_at: event.created_at().to_string(),
            available_at: at(event.available_at()),
            processed_at: at(event.processed_at()),
            dead_at: at(event.dead_at()),
            dead_reason: owned(event.dead_reason()),
            retry_count: event.retry_count(),
            max_retries: event.max_retries(),
            error_message: owned(event.error_message()),
        }
    }

    /// The fields and their values for people, those without a value left out.
    fn lines(&self) -> Vec<(&'static str, String)> {
        let mut lines = vec![
            ("id", self.id.clone()),
            ("state", self.state.to_owned()),
            ("type", self.event_type.clone()),
            ("key", self.key.clone()),
            ("aggregate id", self.aggregate_id.clone()),
        ];
        let optional = [
            ("aggregate type", &self.aggregate_type),
            ("destination", &self.destination),
            ("topic", &self.topic),
            ("available at", &self.available_at),
            ("delivered at", &self.processed_at),
            ("dead at", &self.dead_at),
            ("dead because", &self.dead_reason),
            ("last error", &self.error_message),
        ];
        lines.push(("created at", self.created_at.clone()));
        for (name, value) in optional {
            if let Some(value) = value {
                lines.push((name, value.clone()));
            }
        }
        lines.push(("failed attempts", format!("{} of {}", self.retry_count, self.max_retries)));
        for (name, value) in &self.headers {
            lines.push(("header", format!("{name}: {value}")));
        }
        lines.push(("content type", self.content_type.clone()));
        lines
    }
}

impl FullEventView {
    /// The view of an event.
    pub(crate) fn new(event: &OutboxEvent) -> Self {
        let body = event.payload().body();
        let data = match event.payload() {
            Payload::Json(_) => std::str::from_utf8(body)
                .ok()
                .and_then(|text| RawValue::from_string(text.to_owned()).ok()),
            Payload::Bytes { .. } => None,
        };
        let data_base64 = data.is_none().then(|| STANDARD.encode(body));
        Self { event: EventView::new(event), data, data_base64 }
    }

    /// The event for people.
    pub(crate) fn human(&self, event: &OutboxEvent) -> String {
        let mut text = String::new();
        for (name, value) in self.event.lines() {
            text.push_str(&format!("{name:<16}{}\n", plain::line(&value)));
        }
        text.push('\n');
        let body = event.payload().body();
        let pretty = serde_json::from_slice::<serde_json::Value>(body)
            .ok()
            .and_then(|value| serde_json::to_string_pretty(&value).ok());
        match (pretty, std::str::from_utf8(body)) {
            (Some(pretty), _) => text.push_str(&plain::lines(&pretty)),
            (None, Ok(body)) => text.push_str(&plain::lines(body)),
            (None, Err(_)) => {
                text.push_str(&format!(
                    "{} bytes, in base64:\n{}",
                    body.len(),
                    STANDARD.encode(body)
                ));
            }
        }
        text
    }
}

/// The columns of a list of events, and how many of them say which event it is.
pub(crate) const HEADER: ([&str; 8], usize) =
    (["id", "state", "type", "key", "to", "created", "delivered", "failed"], 3);

/// One row of a list of events.
pub(crate) fn row(event: &OutboxEvent) -> [String; 8] {
    let note = event.error_message().unwrap_or_default();
    // The first line is enough to recognise an error; `events show` has all of it.
    let note = note.lines().next().unwrap_or_default();
    let failed = match event.retry_count() {
        0 => String::new(),
        count => format!("{count}/{} ", event.max_retries()),
    };
    let reason = event.dead_reason().map(|reason| format!("{reason}: ")).unwrap_or_default();
    let key = event.order_key();
    [
        event.id().to_string(),
        event.state().as_str().to_owned(),
        event.event_type().to_owned(),
        key.to_string(),
        event.destination().unwrap_or_default().to_owned(),
        time(event.created_at()),
        event.processed_at().map(time).unwrap_or_default(),
        format!("{failed}{reason}{note}").trim_end_matches([':', ' ']).to_owned(),
    ]
}
