//! The NATS bus on a running server: what each refusal means, and what arrives.
// Helpers are test code too; clippy only knows the test functions.
#![allow(clippy::unwrap_used)]

mod access;
mod arriving;
mod limits;
mod stream;
mod streams;
#[path = "../support/mod.rs"]
mod support;
