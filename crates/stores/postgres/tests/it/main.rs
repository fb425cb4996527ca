//! The store on a PostgreSQL server: shared, or of a test's own where it is broken.

#![allow(clippy::unwrap_used, reason = "a test states what it expects")]

mod common;

mod conformance;
mod damaged_page;
mod foreign_writers;
mod guards;
mod history;
mod isolation;
mod lease;
mod locks;
mod looks;
mod mend;
mod open_transactions;
mod outage;
mod own_transactions;
mod plans;
mod pooler;
mod relays;
mod rights;
mod schema;
mod several_servers;
mod shown;
mod wake;
mod warm;
mod watermark;
