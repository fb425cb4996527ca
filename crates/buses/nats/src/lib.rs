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
//! | met | kind | about |
//! |---|---|---|
//! | not connected, log-in refused | `Unreachable`, `Unauthorized` | connection |
//! | sent, and the connection was lost | `Unreachable` | destination |
//! | no acknowledgement in time | `Timeout` | destination |
//! | a stream covers the subject, and no server answers for it; JetStream without leader | `Unreachable` | destination |
//! | the stream is full (discard new), out of storage or resources | `Throttled` | destination |
//! | JetStream is not enabled, or the configured stream is not in the server's list | `DestinationMissing` | destination |
//! | no stream, or not the configured one, covers the subject | `DestinationMissing` | route |
//! | the right to publish to the subject is missing | `Unauthorized` | route |
//! | the stream is full for this subject (`discard_new_per_subject`) | `Throttled` | route |
//! | over the server's `max_payload`, asked for anew, or the stream's `max_msg_size` | `TooLarge` | event |
//! | a subject or header NATS cannot carry, or a topic that is not allowed | `Malformed` | event |
//! | anything else JetStream answers | `Failed` | event |
//!
//! Where all events have the same subject, what is about the route is about the destination. What
//! follows for the event, the relay decides from what others meet.
//!
//! A repeat that the stream dropped is told ([`posthaste_core::Outcomes::repeated`]), but for events that
//! go in a batch: the answer to a batch does not say it.
//!
//! # Whose subjects
//!
//! An event's own topic must be below the beginning of the configured subject before its first
//! placeholder (`events.` of `events.{event_type}`), or in `allow_topic`. Whoever writes a row publishes
//! with the relay's rights, so give the relay few: `permissions { publish = ["events.>",
//! "$JS.API.STREAM.INFO.EVENTS", "$JS.API.INFO"], subscribe = ["_INBOX.>"] }`. Where `stream` is set,
//! nothing is published that the stream does not store; where it is not, an acknowledgement counts if the
//! stream that it names stores the subject. So a program that listens to a subject, and answers, does not
//! pass for a stream. Both need the right to ask for the stream (`$JS.API.STREAM.INFO.…`); without it
//! the answer is believed.
//!
//! # Connection
//!
//! After 600 ms without a word the server is asked for one; a server that does not answer is left within
//! two seconds, and another one of the cluster is taken. Attempts to connect are 200 ms apart at most.

mod acknowledgement;
mod bus;
mod chains;
mod check;
mod config;
mod connection;
mod fast_ingest;
mod message;
mod pace;
mod pipelining;
mod reporter;
mod rounds;
mod settings;
mod slots;
mod streams;
mod subject;
mod verdict;

pub use bus::NatsBus;
pub use config::{NatsAuth, NatsConfig, NatsTls};
pub use settings::{NATS, NatsSettings};
