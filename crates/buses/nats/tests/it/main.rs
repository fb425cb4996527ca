//! The NATS bus on a server: shared, or of a test's own where it is broken.
// Helpers are test code too; clippy only knows the test functions.
#![allow(clippy::unwrap_used)]

mod access;
mod arriving;
mod conformance;
mod limits;
mod outage;
mod pipelining;
mod stream;
mod streams;
mod support;
