//! NATS JetStream.
//!
//! An event is acknowledged when JetStream answers that a stream stored it (`PubAck`). Every
//! message carries the event's id as `Nats-Msg-Id`, so a stream drops a repeated delivery within
//! its duplicate window (2 minutes unless configured otherwise).
//!
//! # Order
//!
//! Where `stream` names a stream that allows batches (`allow_batched`, nats-server 2.14 or later),
//! the events of a call go as one batch, of which a failure can only hit a suffix; so it may hold many
//! events of one key. Elsewhere a call pipelines its events and therefore takes one event of a key at
//! a time: a key then moves on at one event in a round trip.
//!
//! First deliveries of a key stay in order either way: what follows is sent only after what
//! precedes it was acknowledged, or behind it in the same batch. A publish whose answer was lost may
//! reach the stream late, since the client keeps what it could not send and sends it after it
//! connected again; such a late copy is a *repeat* of an event that was sent again and acknowledged,
//! and the stream drops it by its id. Only a copy later than the duplicate window shows up as a
//! repeated event, behind its successors.
//!
//! # What an error means
//!
//! | what happened | kind | status |
//! |---|---|---|
//! | not connected, connection lost, JetStream without leader | `Unreachable` | unavailable |
//! | no acknowledgement in time | `Timeout` | unavailable |
//! | credentials or rights refused | `Unauthorized` | unavailable |
//! | no stream covers the subject | `DestinationMissing` | unavailable; transient where only *this* event's subject is not covered (below) |
//! | stream full (discard new), out of storage or resources | `Throttled` | unavailable |
//! | over the server's `max_payload` or the stream's `max_msg_size` | `TooLarge` | permanent |
//! | a subject or header NATS cannot carry | `Malformed` | permanent |
//! | anything else JetStream answers | `Failed` | transient |
//!
//! One event with a subject nobody thought of must not stop all others. Where subjects differ from
//! event to event (a template with placeholders, or an event's own topic), and the stream evidently
//! serves (another event of the call was acknowledged, or the configured stream is there), the
//! missing subject is that event's own and costs it an attempt. In all other cases it is the
//! destination that is missing, and no event loses an attempt.

mod acknowledgement;
mod bus;
mod check;
mod config;
mod connection;
mod fast_ingest;
mod subject;

pub use bus::NatsBus;
pub use config::{NatsAuth, NatsConfig, NatsTls};
