//! The promises of the README, kept or broken by the real program between real servers.
//!
//! Each test writes events, breaks something while the relay delivers them to JetStream, reads the
//! whole stream back and compares it with what was committed. `POSTHASTE_PROMISES=long` takes the
//! sizes and times that the project states; without it they are short enough for every run of the
//! tests. Each test prints one line of figures. `cargo xtask promises` runs them one after the
//! other and shows the figures together.

#![allow(clippy::unwrap_used, reason = "a failed expectation should panic there")]

#[path = "../common/mod.rs"]
mod common;
#[path = "../support/mod.rs"]
mod support;

mod backlog;
mod bad_input;
mod broker_outage;
mod crashes;
mod database_restart;
mod open_transaction;
mod poison;
mod python_writer;
mod restore;
mod shutdown;
