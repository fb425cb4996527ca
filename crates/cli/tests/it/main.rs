//! The program as a user runs it. What is about promises and faults has binaries of its own.

#![allow(clippy::unwrap_used, reason = "a failed expectation should panic there")]

#[path = "../common/mod.rs"]
mod common;

mod alembic;
mod bad_input;
mod doctor;
mod keys;
mod migrate_sql;
mod monitoring;
mod odd_files;
mod open_transactions;
mod operate;
mod ops;
mod relay;
mod screen;
mod services;
mod subscriber;
mod webhook;
