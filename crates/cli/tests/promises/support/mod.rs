//! What the tests of the promises share: servers, writers, the relay, and the verdict.

mod database;
mod deliveries;
mod figures;
mod nats;
mod postgres_server;
mod relay;
mod verdict;
mod writers;

use std::net::TcpListener;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

pub(crate) use database::Database;
pub(crate) use deliveries::{Delivery, raw_messages, read_back};
pub(crate) use figures::Figures;
pub(crate) use nats::{PrivateNats, Stream, shared_nats};
pub(crate) use postgres_server::PrivatePostgres;
pub(crate) use relay::{Answer, Relay, RelayConfig};
pub(crate) use verdict::Verdict;
pub(crate) use writers::{Plan, create_accounts, write};

/// Whether the sizes and times that the project states are wanted.
pub(crate) fn is_long() -> bool {
    std::env::var("POSTHASTE_PROMISES").as_deref() == Ok("long")
}

/// The one of two that this run takes.
pub(crate) fn sized<T>(short: T, long: T) -> T {
    if is_long() { long } else { short }
}

/// Says why a test is skipped; fails where services are required.
pub(crate) fn skip(why: &str) {
    assert!(
        std::env::var("POSTHASTE_TEST_REQUIRE_SERVICES").as_deref() != Ok("1"),
        "{why}, and POSTHASTE_TEST_REQUIRE_SERVICES=1"
    );
    eprintln!("skipped: {why}");
}

/// A port nobody listens on, never given out twice, below those that outgoing connections take.
pub(crate) fn free_port() -> u16 {
    static TAKEN: AtomicU32 = AtomicU32::new(0);
    loop {
        let taken = TAKEN.fetch_add(1, Ordering::Relaxed);
        let offset = (std::process::id().wrapping_mul(37) + taken) % 12_000;
        let port = u16::try_from(20_000 + offset).unwrap();
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
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
