//! The suites can pass and can fail, and servers and faults do what they say.

#![allow(clippy::unwrap_used, reason = "a failed expectation should panic there")]

mod defective_bus;
mod defective_repository;

mod defects;
mod faults;
mod memory;
mod proxy;
mod servers;
