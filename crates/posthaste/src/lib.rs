//! A transactional outbox. A service stores its events in the same database transaction as its
//! data; posthaste delivers each of them to a broker at least once, in order per key, however
//! often anything crashes.
//!
//! # Quick start
//!
//! An outbox and a bus in memory, as a service's own tests would use them. With PostgreSQL only
//! the first line differs: `PostgresOutbox::connect(&PostgresOptions::default()).await?`.
//!
//! ```
//! use posthaste::memory::{MemoryBus, MemoryRepository};
//! use posthaste::{OutboxEvent, OutboxProcessor};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> posthaste::Result<()> {
//! let outbox = MemoryRepository::new();
//!
//! // In the service: one unit of work, both or neither.
//! let order = uuid::Uuid::now_v7();
//! let mut work = outbox.begin();
//! // … the service's own statements, on work.connection() …
//! work.add_event(OutboxEvent::new(order, "order.placed", &serde_json::json!({ "total": 42 }))?);
//! work.commit().await?;
//!
//! // Beside it, in this process or in another: the processor.
//! let bus = MemoryBus::new();
//! let processor = OutboxProcessor::builder(outbox).bus(bus.clone()).build()?;
//! processor.process_events().await?;
//!
//! assert_eq!(bus.published()[0].event_type(), "order.placed");
//! # Ok(())
//! # }
//! ```
//!
//! In a service that lives on, [`OutboxProcessor::start`] delivers in the background and
//! [`OutboxProcessor::stop`] ends it; or the program `posthaste run` delivers, and the service
//! only writes.
//!
//! # What is where
//!
//! | part | where |
//! |---|---|
//! | events, retry policy, errors, the contracts of stores and buses | here, at the root |
//! | [`OutboxProcessor`], its settings and routes | here, at the root |
//! | an outbox and a bus for tests | [`memory`] |
//! | PostgreSQL | `postgres` (feature `postgres`) |
//! | SQLite | `sqlite` (feature `sqlite`) |
//! | NATS JetStream, webhooks, files and standard output | `buses` (features `nats`, `webhook`, `ndjson`) |
//!
//! All features are on by default. A service that wants less names what it uses:
//!
//! ```toml
//! posthaste = { version = "0.1", default-features = false, features = ["postgres", "nats"] }
//! ```
//!
//! # TLS
//!
//! Databases and brokers are reached through rustls with the aws-lc-rs provider. A program that
//! also compiles another provider must choose one before its first connection, by
//! `CryptoProvider::install_default`.

pub use posthaste_core::*;
pub use posthaste_processor::*;

#[cfg(any(feature = "ndjson", feature = "nats", feature = "webhook"))]
pub use posthaste_buses as buses;
#[cfg(feature = "postgres")]
pub use posthaste_postgres as postgres;
#[cfg(feature = "sqlite")]
pub use posthaste_sqlite as sqlite;
