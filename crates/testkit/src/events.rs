//! Events for a bus's own tests, beside the suite, and what they ask of results.

use posthaste_core::{Error, OutboxEvent, Payload, PublishResult};
use uuid::Uuid;

/// An event of its own key.
///
/// # Panics
/// Never: it is within all limits.
#[must_use]
pub fn event(number: usize) -> OutboxEvent {
    OutboxEvent::new(Uuid::now_v7(), "numbered", &number).expect("an event")
}

/// An event of `length` bytes, which are no text.
///
/// # Panics
/// Where an event must not be so long.
#[must_use]
pub fn bytes_event(length: usize) -> OutboxEvent {
    let payload = Payload::bytes(vec![0xfe; length], "application/octet-stream");
    let builder = OutboxEvent::builder(Uuid::now_v7(), "large");
    builder.payload(payload.expect("a payload")).build().expect("an event")
}

/// The error of a result that must be one.
///
/// # Panics
/// Where the event was published.
#[must_use]
pub fn error(result: &PublishResult) -> &Error {
    result.as_ref().expect_err("published, though it must not be")
}
