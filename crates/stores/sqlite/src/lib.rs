//! posthaste's store on SQLite: the outbox in the application's own database file.
//!
//! ```
//! use posthaste_core::{OutboxEvent, OutboxMigrations};
//! use posthaste_sqlite::SqliteOutbox;
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let directory = tempfile::tempdir()?;
//! # let path = directory.path().join("shop.db");
//! let outbox = SqliteOutbox::open(&path).await?;
//! outbox.migrate().await?;
//!
//! let mut unit = outbox.begin().await?;
//! sqlx::query("create table orders (id text)").execute(unit.connection()).await?;
//! let order = uuid::Uuid::now_v7();
//! unit.add_event(OutboxEvent::new(order, "order.placed", &42)?);
//! unit.commit().await?;
//! # Ok(())
//! # }
//! ```
//!
//! An application with a pool of its own stores with [`store_events`] in its own transaction.
//!
//! **Durability.** The file is in WAL mode with `synchronous=FULL`: what was committed survives
//! the loss of power. **Order.** SQLite has one writer at a time, so places are in the order of
//! commits and no event turns up late. **One relay.** Nothing leases keys here: the first processor
//! that starts has the outbox to itself until it stops, and another one's start fails with `Conflict`.
//! **The file.** One that is moved away is missed at once, and another in its place is opened; this and
//! the right to deliver are watched by what tells files apart on Unix.

mod admin;
mod database_file;
mod error;
mod fetch;
mod integrity;
mod looks;
mod migration;
mod options;
mod outbox;
#[cfg(test)]
mod plan;
mod relay_lock;
mod relays;
mod repository;
mod row;
mod settle;
mod store;
mod stuck_keys;
mod time;
mod transaction;
mod upkeep;
mod wake;

pub use migration::{SCHEMA_VERSION, migration_sql};
pub use options::SqliteOptions;
pub use outbox::SqliteOutbox;
pub use store::store_events;
pub use transaction::SqliteTransaction;
