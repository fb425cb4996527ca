//! posthaste's brokers: one module and one feature each.
//!
//! | feature | bus | what counts as acknowledged |
//! |---|---|---|
//! | `ndjson` | [`ndjson::NdjsonBus`] | the line is written, flushed and, in a file, synced to disk |
//! | `nats` | [`nats::NatsBus`] | JetStream's acknowledgement that a stream stored the message |
//! | `webhook` | [`webhook::WebhookBus`] | an answer of 200 to 299 |
//!
//! Every bus is made from a plain configuration struct. Making one fails for a wrong setting, never
//! because the other side is down: it connects, and connects again, by itself. Where an event goes
//! and what it looks like there is described alike for all brokers: [`TopicTemplate`] and
//! [`EnvelopeFormat`].

#[cfg(any(feature = "nats", feature = "webhook"))]
mod envelope;
#[cfg(any(feature = "ndjson", feature = "nats", feature = "webhook"))]
mod json_body;
#[cfg(feature = "webhook")]
mod redact;
#[cfg(any(feature = "nats", feature = "webhook"))]
mod secret;
#[cfg(any(feature = "nats", feature = "webhook"))]
mod tls;
#[cfg(feature = "nats")]
mod topic;

#[cfg(feature = "nats")]
pub mod nats;
#[cfg(feature = "ndjson")]
pub mod ndjson;
#[cfg(feature = "webhook")]
pub mod webhook;

#[cfg(any(feature = "nats", feature = "webhook"))]
pub use envelope::EnvelopeFormat;
#[cfg(any(feature = "nats", feature = "webhook"))]
pub use secret::Secret;
#[cfg(feature = "nats")]
pub use topic::TopicTemplate;
