//! posthaste's store in PostgreSQL (14 or later).
//!
//! Events live in `outbox_events`, a table any program may insert into, partitioned by whether an
//! event is delivered: the pending partition stays small and hot, delivered events move to a
//! history of one partition a day.
//!
//! ```no_run
//! # async fn example() -> posthaste_core::Result<()> {
//! use posthaste_core::{OutboxEvent, OutboxMigrations};
//! use posthaste_postgres::{PostgresOptions, PostgresOutbox};
//!
//! let outbox = PostgresOutbox::connect(&PostgresOptions::default()).await?;
//! outbox.migrate().await?;
//!
//! let order = uuid::Uuid::now_v7();
//! let mut work = outbox.begin().await?;
//! // … the application's own statements, on `work.connection()` …
//! work.add_event(OutboxEvent::new(order, "order.placed", &serde_json::json!({ "total": 42 }))?);
//! work.commit().await?;
//! # Ok(())
//! # }
//! ```
//!
//! An application with transactions of its own calls [`store_events`] as the last thing before
//! its commit.

mod address;
mod admin;
mod adopt;
mod backlog;
mod damage;
mod error;
mod fetch;
mod heads;
mod history;
mod integrity;
mod lease;
mod locks;
mod looks;
mod migrations;
mod open_transactions;
mod options;
mod outbox;
mod plans;
mod relays;
mod repository;
mod rights;
mod row;
mod script;
mod server_error;
mod servers;
mod session;
mod settle;
mod shown;
mod signal;
mod standby;
mod store;
mod stuck_keys;
mod timestamp;
mod transaction;
mod waker;
mod warm;
mod watch;
mod watermark;

pub use adopt::AdoptReport;
pub use options::PostgresOptions;
pub use outbox::PostgresOutbox;
pub use rights::ROLES_SQL;
pub use script::{SCHEMA_VERSION, migration_sql, rollback_sql, statement_per_line};
pub use store::{lock_key, store_events};
pub use transaction::PostgresTransaction;
pub use waker::NOTIFY_CHANNEL;

/// What nearly every read and every settlement runs, for `cargo xtask bench`, which measures what
/// these statements alone cost. No part of the interface.
#[doc(hidden)]
pub mod statements {
    pub use crate::fetch::AHEAD;
    pub use crate::plans::for_session;
    pub use crate::settle::DELIVERED;
}
