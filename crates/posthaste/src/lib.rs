//! A transactional outbox. A service stores its events in the same database transaction as its
//! data; posthaste delivers each of them to a broker at least once, in order per key, however
//! often anything crashes.
//!
//! # Quick start
//!
//! An outbox and a bus in memory, as a service's own tests would use them.
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
//! [`MemoryBus::strict`](memory::MemoryBus::strict) also refuses what one of the real brokers cannot
//! carry.
//!
//! # With PostgreSQL
//!
//! ```no_run
//! # #[cfg(all(feature = "postgres", feature = "nats"))]
//! # async fn service(order: uuid::Uuid) -> posthaste::Result<()> {
//! use posthaste::buses::nats::{NatsBus, NatsConfig};
//! use posthaste::postgres::{PostgresOptions, PostgresOutbox};
//! use posthaste::{OutboxEvent, OutboxMigrations, OutboxProcessor};
//!
//! let outbox = PostgresOutbox::connect(&PostgresOptions::default()).await?;
//! outbox.migrate().await?;
//! let bus = NatsBus::connect(NatsConfig::new("nats://127.0.0.1:4222", "events.{event_type}")).await?;
//! let relay = OutboxProcessor::builder(outbox.clone()).bus(bus).build()?;
//! relay.start().await?;
//!
//! let mut work = outbox.begin().await?;
//! // … the service's own statements, on work.connection() …
//! work.add_event(OutboxEvent::new(order, "order.placed", "any value that serde serialises")?);
//! work.commit().await?;
//!
//! relay.shutdown().await;
//! # Ok(())
//! # }
//! ```
//!
//! In a transaction of the service's own, `postgres::store_events(&mut transaction, &[event])` is
//! the last thing before its commit.
//!
//! # With SQLite
//!
//! ```
//! # #[cfg(feature = "sqlite")]
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let (folder, order) = (tempfile::tempdir()?, uuid::Uuid::now_v7());
//! # let path = folder.path().join("shop.db");
//! use posthaste::memory::MemoryBus;
//! use posthaste::sqlite::SqliteOutbox;
//! use posthaste::{OutboxEvent, OutboxMigrations, OutboxProcessor};
//!
//! let outbox = SqliteOutbox::open(&path).await?;
//! outbox.migrate().await?;
//!
//! let mut work = outbox.begin().await?;
//! // … the service's own statements, on work.connection() …
//! work.add_event(OutboxEvent::new(order, "order.placed", &[1, 2, 3])?);
//! work.commit().await?;
//!
//! // One relay at a time: an error where another process delivers from this file.
//! let processor = OutboxProcessor::builder(outbox).bus(MemoryBus::new()).build()?;
//! assert_eq!(processor.process_events().await?, 1);
//! # Ok(())
//! # }
//! # #[cfg(not(feature = "sqlite"))]
//! # fn main() {}
//! ```
//!
//! # A relay that lives in a service
//!
//! [`OutboxProcessor::start`] delivers in the background, also when the database is away at first.
//! [`OutboxProcessor::shutdown`] ends it and closes its buses; [`OutboxProcessor::stop`] ends it so
//! that it can be started again. [`OutboxProcessor::ended`] completes when it ends, also when it
//! died: wait for it beside the service's other work. [`ProcessorStatistics::unhealthy_because`] is
//! what a health check shows. Metrics go to the recorder of the [`metrics`] crate that the service
//! installs; where it has several outboxes, [`OutboxProcessorBuilder::name`] tells them apart. Or
//! the program `posthaste run` delivers, and the service only writes.
//!
//! [`metrics`]: https://docs.rs/metrics
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
//! | `sqlx`, `jiff`, `uuid`, `async_trait`, of the versions that stand in signatures | here, at the root |
//! | NATS JetStream, webhooks, files and standard output | `buses` (features `nats`, `webhook`, `ndjson`) |
//! | what a bus of your own is made of: envelope, topic, secrets | `buses::kit` (feature `kit`) |
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

// Crates that stand in signatures: of these versions, no others.
pub use async_trait::async_trait;
#[cfg(any(feature = "postgres", feature = "sqlite"))]
pub use sqlx;
pub use {jiff, uuid};

pub use posthaste_core::*;
pub use posthaste_processor::*;

#[cfg(feature = "kit")]
pub mod buses;
#[cfg(feature = "postgres")]
pub use posthaste_postgres as postgres;
#[cfg(feature = "sqlite")]
pub use posthaste_sqlite as sqlite;
