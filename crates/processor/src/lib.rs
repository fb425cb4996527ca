//! The application layer: [`OutboxProcessor`] reads pending events, publishes them in order per
//! key, retries, dead-letters and settles.
//!
//! It knows [`OutboxRepository`](posthaste_core::OutboxRepository) and
//! [`EventBus`](posthaste_core::EventBus), never a database or a broker. Decisions are taken by a
//! pure state machine ([`posthaste_engine`]); a thin tokio shell carries them out.

mod builder;
mod chores;
mod clock;
mod destination_state;
mod destinations;
mod fine_timer;
mod processor;
mod rates;
mod run;
mod shared;
mod shell;
mod statistics;
mod telemetry;

pub use builder::OutboxProcessorBuilder;
pub use destination_state::DestinationState;
pub use destinations::Destination;
pub use posthaste_core::Pattern;
pub use posthaste_engine::{
    DeadHeadPolicy, DestinationRules, NotRecorded, ProcessorSettings, Route, RouteTable, Routed,
    UncountedKey, UnknownDestination,
};
pub use processor::OutboxProcessor;
pub use statistics::{ProcessorStatistics, RelayState, StopReport};
