//! The webhook bus and servers that answer it.
// Helpers are test code too; clippy only knows the test functions.
#![allow(clippy::unwrap_used)]

mod conformance;
mod tls;
mod webhook;
