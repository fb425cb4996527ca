//! Events for tests, and what is asked of results.

use posthaste_core::{Error, OutboxEvent, Payload, PublishResult};
use uuid::Uuid;

/// The configuration of a stream.
pub(crate) fn stream_config(
    name: &str,
    subjects: &[&str],
) -> async_nats::jetstream::stream::Config {
    async_nats::jetstream::stream::Config {
        name: name.to_owned(),
        subjects: subjects.iter().map(|subject| (*subject).to_owned()).collect(),
        ..Default::default()
    }
}

/// An event of its own key.
pub(crate) fn event(number: usize) -> OutboxEvent {
    OutboxEvent::new(Uuid::now_v7(), "numbered", &number).unwrap()
}

/// An event of `length` bytes.
pub(crate) fn bytes_event(length: usize) -> OutboxEvent {
    let payload = Payload::bytes(vec![0xfe; length], "application/octet-stream").unwrap();
    OutboxEvent::builder(Uuid::now_v7(), "large").payload(payload).build().unwrap()
}

/// The error of a result that must be one.
pub(crate) fn error(result: &PublishResult) -> &Error {
    result.as_ref().expect_err("published, though it must not be")
}
