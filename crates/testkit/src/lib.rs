//! What every adapter of posthaste must pass, and the faults to break it with.
//!
//! | for | implement | run |
//! |---|---|---|
//! | a store | [`RepositoryHarness`] | [`repository_suite`] |
//! | a store's transactions | [`TransactionHarness`] | [`transaction_suite`] |
//! | a bus | [`BusHarness`] | [`bus_suite`] |
//!
//! A suite runs all its checks, prints `ok`, `skipped` or `FAILED` for each, and returns a
//! [`Report`]; end the test with [`Report::assert_passed`]. Suites want a tokio runtime.
//!
//! ```
//! use posthaste_core::memory::MemoryRepository;
//! use posthaste_testkit::{RepositoryHarness, repository_suite};
//!
//! struct Memory;
//!
//! #[async_trait::async_trait]
//! impl RepositoryHarness for Memory {
//!     type Repository = MemoryRepository;
//!
//!     async fn fresh(&self) -> anyhow::Result<MemoryRepository> {
//!         Ok(MemoryRepository::new())
//!     }
//! }
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() {
//! repository_suite(&Memory).await.assert_passed();
//! # }
//! ```
//!
//! [`faults`] wraps a bus or a repository so that it fails on purpose; [`servers`] are real ones,
//! to test against and to break; [`events`] is what a bus's own tests begin with.

mod bus;
pub mod events;
pub mod faults;
mod report;
mod repository;
mod samples;
pub mod servers;
mod transaction;

pub use bus::{BusHarness, Received, bus_suite};
pub use report::{Check, Outcome, Report, skip};
pub use repository::{RepositoryHarness, repository_suite};
pub use transaction::{TransactionHarness, transaction_suite};
