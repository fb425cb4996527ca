//! Servers for tests: shared ones, found by their address, and private ones, to break.
//!
//! | for | shared | private |
//! |---|---|---|
//! | NATS JetStream | [`shared_nats`], [`NATS_URL`] | [`NatsServer`], [`NatsCluster`] |
//! | PostgreSQL | [`postgres_url`], [`POSTGRES_URL`] | [`PostgresServer`] |
//! | PostgreSQL's sessions through a pooler | | [`PgBouncer`] |
//! | the network before a server | | [`Proxy`] |
//! | a disk | | [`SmallDisk`] |
//!
//! Only a private server may be stopped, frozen or configured: others test against the shared ones
//! at the same time. Private servers run what is installed, listen on 127.0.0.1 alone, keep their
//! data in a folder of their own, and end with their value. Broken is what a test means to break:
//! a server that does not start, or not again, panics with what it logged.
//!
//! Where a server is not installed, the test prints why it is skipped and passes, or fails where
//! [`REQUIRE_SERVICES`] says so:
//!
//! ```
//! use posthaste_testkit::servers::NatsServer;
//! use tokio::net::TcpStream;
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() {
//! let Some(mut nats) = NatsServer::start("").await else { return };
//! assert!(TcpStream::connect(nats.address()).await.is_ok());
//! nats.kill();
//! assert!(TcpStream::connect(nats.address()).await.is_err());
//! nats.restart().await;
//! assert!(TcpStream::connect(nats.address()).await.is_ok());
//! # }
//! ```
//!
//! For Unix: signals are sent with `kill`.

mod cluster;
mod disk;
mod dump;
mod nats;
mod pgbouncer;
mod postgres;
mod process;
mod proxy;

use std::fs::File;
use std::net::TcpListener;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, PoisonError};

pub use cluster::NatsCluster;
pub use disk::SmallDisk;
pub use dump::{Dump, DumpFormat};
pub use nats::{NatsServer, nats_url, shared_nats};
pub use pgbouncer::PgBouncer;
pub use postgres::{PostgresServer, postgres_url};
pub use proxy::{Direction, Proxy};

/// The environment variable with the address of the shared PostgreSQL: of a database that exists,
/// and of a user who may create others.
pub const POSTGRES_URL: &str = "POSTHASTE_TEST_POSTGRES_URL";

/// The environment variable with the address of the shared NATS server, port included.
pub const NATS_URL: &str = "POSTHASTE_TEST_NATS_URL";

/// The environment variable that, being `1`, makes a test fail where it would be skipped.
pub const REQUIRE_SERVICES: &str = "POSTHASTE_TEST_REQUIRE_SERVICES";

/// Ports to give out: below those that outgoing connections take.
const PORTS_FIRST: u16 = 20_000;
const PORTS: u16 = 12_000;

/// Says on standard error why the test is skipped; the test then returns.
///
/// # Panics
/// Where [`REQUIRE_SERVICES`] is `1`.
#[track_caller]
pub fn skip_test(why: &str) {
    let required = std::env::var(REQUIRE_SERVICES).as_deref() == Ok("1");
    skip_unless(required, why);
}

#[track_caller]
fn skip_unless(required: bool, why: &str) {
    assert!(!required, "{why}, and {REQUIRE_SERVICES}=1");
    eprintln!("skipped: {why}");
}

/// A port of 127.0.0.1 that nobody listens on. No process gets it as long as this one runs, though the
/// server that listens there be down for a while; and no outgoing connection takes it, since it is below
/// the range that systems choose from.
///
/// # Panics
/// Where all those ports are taken.
#[must_use]
pub fn free_port() -> u16 {
    static TAKEN: AtomicU32 = AtomicU32::new(0);
    // Tests that run at the same time begin at different places.
    let begin = std::process::id().wrapping_mul(37);
    for _ in 0..PORTS {
        let taken = TAKEN.fetch_add(1, Ordering::Relaxed);
        let offset = begin.wrapping_add(taken) % u32::from(PORTS);
        let port = PORTS_FIRST + u16::try_from(offset).unwrap_or_default();
        if reserve(port) && TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
    panic!("no free port from {PORTS_FIRST} on");
}

/// Whether this process alone may use the port from now on. All users of the machine ask the same file.
fn reserve(port: u16) -> bool {
    static OURS: Mutex<Vec<File>> = Mutex::new(Vec::new());
    let folder = std::env::temp_dir().join("posthaste-test-ports");
    // Where there can be no such file, whoever listens tells.
    if std::fs::create_dir_all(&folder).is_err() {
        return true;
    }
    let Ok(file) = File::create(folder.join(port.to_string())) else { return true };
    if file.try_lock().is_err() {
        return false;
    }
    OURS.lock().unwrap_or_else(PoisonError::into_inner).push(file);
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_port_is_given_out_twice_or_while_somebody_listens() {
        let ports: std::collections::HashSet<u16> = (0..100).map(|_| free_port()).collect();
        assert_eq!(ports.len(), 100);
        let next = loop {
            // Another process may listen there; then the one after it.
            let next = free_port() + 1;
            if let Ok(listener) = TcpListener::bind(("127.0.0.1", next)) {
                break listener;
            }
        };
        assert_ne!(free_port(), next.local_addr().unwrap().port());
    }

    #[test]
    fn a_port_is_kept_for_its_process_while_nobody_listens() {
        let port = free_port();
        let path = std::env::temp_dir().join("posthaste-test-ports").join(port.to_string());
        let others = File::open(path).unwrap();
        assert!(others.try_lock().is_err());
    }

    #[test]
    fn a_missing_server_skips_the_test() {
        skip_unless(false, "no such server");
    }

    #[test]
    #[should_panic(expected = "no such server, and POSTHASTE_TEST_REQUIRE_SERVICES=1")]
    fn a_missing_server_fails_the_test_where_servers_are_required() {
        skip_unless(true, "no such server");
    }
}
