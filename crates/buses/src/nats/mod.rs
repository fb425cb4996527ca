//! NATS JetStream.
//!
//! An event is acknowledged when JetStream answers that a stream stored it (`PubAck`). Every
//! message carries the event's id as `Nats-Msg-Id`, so a stream drops a repeated delivery within
//! its duplicate window (2 minutes unless configured otherwise).
//!
//! # Order
//!
//! Where `stream` names the stream, the bus asks the server what it allows:
//!
//! | stream | on their way at once |
//! |---|---|
//! | allows batches (`allow_batched`, nats-server 2.14 or later) | all events of a call, as one batch, of which a failure can only hit a suffix |
//! | another one with a single replica, in an account without a storage limit | all events of a call; those of a key in a chain, each stored only directly behind the one before. Others that store much in the same stream, another relay for one, break chains: then as below, for a minute |
//! | any other, or `stream` does not name it | one event of each key: a key moves on at one event in a round trip |
//!
//! First deliveries of a key stay in order in each case: what follows is sent only after what
//! precedes it was acknowledged, or so that it is stored only behind it. A publish whose answer was lost may
//! reach the stream late, since the client keeps what it could not send and sends it after it
//! connected again; such a late copy is a *repeat* of an event that was sent again and acknowledged,
//! and the stream drops it by its id. Only a copy later than the duplicate window shows up as a
//! repeated event, behind its successors.
//!
//! All this is said of the stream. Who subscribes to its subjects without JetStream also gets what the
//! stream refused, and gets it again.
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
mod chains;
mod check;
mod config;
mod connection;
mod fast_ingest;
mod pipelining;
mod slots;
mod subject;

pub use bus::NatsBus;
pub use config::{NatsAuth, NatsConfig, NatsTls};
