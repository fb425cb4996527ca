//! A repository and a bus in memory, for users' own tests.
//!
//! They keep the same contracts as the real ones and pass the same conformance suites; nothing
//! survives the process.

mod admin;
mod bus;
mod limits;
mod repository;
mod strict;
mod stuck_keys;
mod transaction;

pub use bus::MemoryBus;
pub use repository::MemoryRepository;
pub use transaction::MemoryTransaction;
