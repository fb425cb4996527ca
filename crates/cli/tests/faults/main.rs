//! Relays of one outbox, under load, while something breaks: processes, servers, connections, disks,
//! clocks and events.
//!
//! Each test breaks one thing while writers commit and relays deliver, mends it, waits until all
//! that waited is delivered, reads the stream back and compares it with what the database holds as
//! committed: nothing lost, nothing invented, first deliveries of a key in order, and no more
//! repeats than the fault explains. `POSTHASTE_PROMISES=long` takes greater sizes and longer times.
//! Each test prints one line of figures, from which `cargo xtask faults` makes a report.

#![allow(clippy::unwrap_used, reason = "a failed expectation should panic there")]

#[path = "../common/mod.rs"]
mod common;
#[path = "../support/mod.rs"]
mod support;

mod rig;
mod witness;

mod brokers;
mod clocks;
mod clusters;
mod databases;
mod destinations;
mod disks;
mod incarnations;
mod networks;
mod poison;
mod relays;
mod transactions;
