//! What `OutboxProcessor` promises, through its public API, on repositories and buses that fail on
//! purpose.
//!
//! Time is paused in nearly every test: a clock that jumps to the next deadline makes hours of an
//! outage pass at once, and makes no test depend on how fast the machine is.

#![allow(clippy::unwrap_used, reason = "a test may fail where it stands")]

mod answers;
mod endings;
mod failures;
mod health;
mod hooked;
mod leases;
mod lifecycle;
mod limits;
mod metrics;
mod ordering;
mod outages;
mod routing;
mod storage;
mod support;
mod told;
mod verdicts;
