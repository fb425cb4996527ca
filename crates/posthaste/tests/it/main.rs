//! What the facade offers, and what its examples and pages say.

#![allow(clippy::unwrap_used, reason = "a test states what it expects")]

mod common;

mod changed_rows;
mod examples;
mod migrating;
mod odd_rows;
mod one_relay;
mod readme;
