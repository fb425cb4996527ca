//! Faults on purpose: wrappers that make a bus or a repository fail as real ones do.
//!
//! ```
//! use posthaste_core::memory::MemoryBus;
//! use posthaste_core::{EventBus, OutboxEvent};
//! use posthaste_testkit::faults::{Fault, FaultyBus};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> posthaste_core::Result<()> {
//! let inner = MemoryBus::new();
//! let bus = FaultyBus::new(inner.clone());
//! bus.script().fail_next(1, Fault::FailAfterWrite);
//!
//! let event = OutboxEvent::new(uuid::Uuid::now_v7(), "order.placed", &1)?;
//! assert!(bus.publish(&[event.clone()]).await[0].is_err());
//! assert!(bus.publish(&[event.clone()]).await[0].is_ok());
//! // It was written both times: that is at-least-once.
//! assert_eq!(inner.published().len(), 2);
//! # Ok(())
//! # }
//! ```

mod bus;
mod hold;
mod repository;

pub use bus::{BusScript, FaultyBus};
pub use repository::{FaultyRepository, Operation, RepositoryScript};

/// A way to fail, named for what it does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Fault {
    /// Nothing is written; the error is the event's own and may pass.
    FailBeforeWrite,
    /// It is written, and the answer is lost: the outbox's defining fault.
    FailAfterWrite,
    /// It is written, and the answer comes when the test releases it.
    HoldResponse,
    /// Nothing is written, now and for ever.
    RejectPermanently,
    /// Nothing is written: the broker or database cannot be reached.
    Unavailable,
}

impl Fault {
    /// Whether the write takes place.
    #[must_use]
    pub const fn writes(self) -> bool {
        matches!(self, Self::FailAfterWrite | Self::HoldResponse)
    }
}
