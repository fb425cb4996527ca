//! The bus that writes lines to a file.
// Helpers are test code too; clippy only knows the test functions.
#![allow(clippy::unwrap_used)]

mod conformance;
mod ndjson;
