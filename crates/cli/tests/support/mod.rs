//! What the tests of the promises and of the faults share: databases, streams, writers, the relay,
//! and the verdict.

#![allow(dead_code, unused_imports, reason = "each test binary uses its own part of this")]

mod database;
mod deliveries;
mod figures;
mod receiver;
mod relay;
mod stream;
mod tap;
mod verdict;
mod writers;

use std::time::{Duration, Instant};

pub(crate) use database::Database;
pub(crate) use deliveries::{Delivery, raw_messages, read_back};
pub(crate) use figures::Figures;
pub(crate) use receiver::{Receiver, Reply};
pub(crate) use relay::{Answer, Relay, RelayConfig};
pub(crate) use stream::{Stream, connect};
pub(crate) use tap::Tap;
pub(crate) use verdict::Verdict;
pub(crate) use writers::{Plan, Written, account_id, create_accounts, write};

/// Whether the sizes and times that the project states are wanted.
pub(crate) fn is_long() -> bool {
    std::env::var("POSTHASTE_PROMISES").as_deref() == Ok("long")
}

/// The one of two that this run takes.
pub(crate) fn sized<T>(short: T, long: T) -> T {
    if is_long() { long } else { short }
}

/// Waits until `condition` holds. A limit only so that a broken promise fails instead of hanging.
pub(crate) async fn eventually<F: AsyncFnMut() -> bool>(what: &str, mut condition: F) {
    let limit = sized(Duration::from_secs(60), Duration::from_secs(600));
    let begun = Instant::now();
    while !condition().await {
        assert!(begun.elapsed() < limit, "waited {limit:?} for: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
