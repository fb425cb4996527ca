//! The application layer: [`OutboxProcessor`] reads pending events, publishes them in order per
//! key, retries, dead-letters and settles.
//!
//! It knows [`OutboxRepository`](posthaste_core::OutboxRepository) and
//! [`EventBus`](posthaste_core::EventBus), never a database or a broker. Decisions are taken by a
//! pure state machine (`machine`); a thin tokio shell carries them out.

mod builder;
mod chores;
mod clock;
mod destination_state;
mod fine_timer;
mod machine;
mod processor;
mod rates;
mod routes;
mod run;
mod settings;
mod shared;
mod shell;
mod statistics;
mod telemetry;

pub use builder::OutboxProcessorBuilder;
pub use destination_state::{DestinationState, UncountedKey};
pub use posthaste_core::Pattern;
pub use processor::OutboxProcessor;
pub use routes::{DeadHeadPolicy, Destination, Route, RouteTable, Routed, UnknownDestination};
pub use settings::ProcessorSettings;
pub use statistics::{NotRecorded, ProcessorStatistics, RelayState, StopReport};
