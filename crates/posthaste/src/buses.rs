//! The brokers: one module and one feature each, and what all of them are made of.
//!
//! | feature | bus | what counts as acknowledged |
//! |---|---|---|
//! | `ndjson` | `ndjson::NdjsonBus` | the line is written, flushed and, in a file, synced to disk |
//! | `nats` | `nats::NatsBus` | JetStream's acknowledgement that a stream stored the message |
//! | `webhook` | `webhook::WebhookBus` | an answer of 200 to 299 |
//!
//! Every bus is made from a plain configuration struct. Making one fails for a wrong setting, never
//! because the other side is down: it connects, and connects again, by itself. Where an event goes
//! and what it looks like there is described alike for all brokers: [`TopicTemplate`] and
//! [`EnvelopeFormat`].

pub use posthaste_bus_kit as kit;
pub use posthaste_bus_kit::{EnvelopeFormat, Secret, TopicTemplate};

#[cfg(feature = "nats")]
pub use posthaste_nats as nats;
#[cfg(feature = "ndjson")]
pub use posthaste_ndjson as ndjson;
#[cfg(feature = "webhook")]
pub use posthaste_webhook as webhook;
