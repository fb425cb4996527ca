//! What posthaste's buses have in common, for buses of one's own as well.
//!
//! | question | answered by |
//! |---|---|
//! | where an event goes within a destination | [`TopicTemplate`] |
//! | what it looks like there | [`Envelope`], in an [`EnvelopeFormat`]; [`json_body`] where the message is one JSON object |
//! | whom a refusal is about | [`evidence::of_address`] |
//! | what must not be shown | [`Secret`], and [`Redactor`] for what others answer |
//! | what a program must know to offer the broker | [`BusKind`], one value; [`BusSettings`], with [`config`] |
//! | whom TLS trusts, and who we are | `tls` (feature `tls`) |
//!
//! Nothing here knows a broker, and nothing here connects to anything. The contract of a bus is
//! [`posthaste_core::EventBus`].

mod complaint;
mod encoded;
mod envelope;
pub mod evidence;
pub mod json_body;
mod kind;
mod redact;
#[cfg(feature = "tls")]
pub mod tls;
mod topic;

pub use complaint::Complaint;
pub use encoded::percent_decode;
pub use envelope::{Envelope, EnvelopeFormat, Message, SOURCE_DEFAULT};
pub use kind::{BusDestination, BusKind, BusSettings, Output};
pub use posthaste_config as config;
pub use posthaste_config::Secret;
pub use redact::Redactor;
pub use topic::{Topic, TopicTemplate};
