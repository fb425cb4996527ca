//! The store on files of SQLite.

#![allow(clippy::unwrap_used, reason = "a test states what it expects")]

mod support;

mod conformance;
#[cfg(unix)]
mod file_identity;
mod foreign_writers;
#[cfg(target_os = "linux")]
mod full_disk;
mod looks;
mod odd_columns;
mod own_transactions;
mod processes;
mod relays;
mod schema;
