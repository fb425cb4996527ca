//! The engine of a relay: which events are read, sent, tried again and recorded, and when.
//!
//! A [`Machine`] is told what has happened ([`Input`]) and says what is to be done ([`Command`]). No clock,
//! I/O, task or randomness is inside: the time is an argument, random numbers come from a seed, and what a
//! bus can do is asked of the caller. Equal inputs give equal commands, so a seed of the simulator replays
//! any run. `posthaste-processor` is the shell that carries the commands out.
//!
//! | room | decides |
//! |---|---|
//! | `share` | which shards this relay delivers, and until when |
//! | `read` | what is asked of the store: forward, gaps, heads that wait, dead letters |
//! | `keys` | what is in memory of each key, and which keys may go |
//! | `send` | which events go to which destination now |
//! | `verdict` | what an answer says of an event, a key, a destination |
//! | `record` | how outcomes get into the store |

mod database;
mod keys;
mod machine;
mod progress;
mod protocol;
mod read;
mod record;
mod routes;
mod send;
mod settings;
mod share;
#[cfg(test)]
mod simulation;
mod verdict;

pub use machine::{Counts, Machine};
pub use progress::NotRecorded;
pub use protocol::{Command, FetchTicket, Input, Report, Summary};
pub use routes::{DeadHeadPolicy, DestinationRules, Route, RouteTable, Routed, UnknownDestination};
pub use send::in_flight::CallId;
pub use settings::ProcessorSettings;
pub use verdict::outage::{Failing, UncountedKey};
pub use verdict::outcomes::storable;
