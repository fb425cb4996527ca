//! Servers for tests: a shared one found by address, and private ones that may be broken.
// Each test file uses a part of it.
#![allow(dead_code)]

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use posthaste_core::{Error, OutboxEvent, Payload, PublishResult};
use tokio::net::TcpStream;
use uuid::Uuid;

/// The shared NATS server, or `None` where there is none and that is allowed.
pub(crate) async fn shared_nats() -> Option<String> {
    let url = std::env::var("POSTHASTE_TEST_NATS_URL")
        .unwrap_or_else(|_| "nats://127.0.0.1:4222".to_owned());
    let address = url.rsplit(['/', '@']).next().unwrap_or_default().to_owned();
    if TcpStream::connect(&address).await.is_ok() {
        return Some(url);
    }
    absent(&format!("no NATS server at {address}"));
    None
}

/// Says why a test is skipped; fails where services are required.
pub(crate) fn absent(why: &str) {
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

/// A JetStream server of the test's own. Killed when dropped.
pub(crate) struct PrivateNats {
    port: u16,
    store: tempfile::TempDir,
    config: Option<PathBuf>,
    child: Option<Child>,
}

impl PrivateNats {
    /// Starts one with `config` as further lines of its configuration file.
    pub(crate) async fn start(config: &str) -> Option<Self> {
        let store = tempfile::tempdir().unwrap();
        let path = store.path().join("nats.conf");
        std::fs::write(&path, config).unwrap();
        let mut server = Self { port: free_port(), store, config: Some(path), child: None };
        if server.spawn().is_err() {
            absent("no nats-server binary in PATH or /usr/sbin");
            return None;
        }
        server.wait().await;
        Some(server)
    }

    pub(crate) fn url(&self) -> String {
        format!("nats://127.0.0.1:{}", self.port)
    }

    /// As a power cut would.
    pub(crate) fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }

    /// The same server with the same data, again.
    pub(crate) async fn restart(&mut self) {
        self.kill();
        self.spawn().unwrap();
        self.wait().await;
    }

    /// Stops and continues the process without closing its connections.
    pub(crate) fn signal(&self, name: &str) {
        let id = self.child.as_ref().unwrap().id().to_string();
        assert!(Command::new("kill").args([name, &id]).status().unwrap().success());
    }

    fn spawn(&mut self) -> std::io::Result<()> {
        let data: &Path = self.store.path();
        let start = |binary: &str| {
            let mut command = Command::new(binary);
            command.args(["-a", "127.0.0.1", "-js", "-p", &self.port.to_string()]).arg("-sd");
            command.arg(data.join("data"));
            if let Some(config) = &self.config {
                command.arg("-c").arg(config);
            }
            command.stdout(Stdio::null()).stderr(Stdio::null()).spawn()
        };
        self.child = Some(start("nats-server").or_else(|_| start("/usr/sbin/nats-server"))?);
        Ok(())
    }

    async fn wait(&self) {
        for _ in 0..500 {
            if TcpStream::connect(("127.0.0.1", self.port)).await.is_ok() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        panic!("the private NATS server does not listen");
    }
}

impl Drop for PrivateNats {
    fn drop(&mut self) {
        self.kill();
    }
}

/// The configuration of a stream.
#[cfg(feature = "nats")]
pub(crate) fn stream_config(
    name: &str,
    subjects: &[&str],
) -> async_nats::jetstream::stream::Config {
    async_nats::jetstream::stream::Config {
        name: name.to_owned(),
        subjects: subjects.iter().map(|subject| (*subject).to_owned()).collect(),
        ..Default::default()
    }
}

/// An event of its own key.
pub(crate) fn event(number: usize) -> OutboxEvent {
    OutboxEvent::new(Uuid::now_v7(), "numbered", &number).unwrap()
}

/// An event of `length` bytes.
pub(crate) fn bytes_event(length: usize) -> OutboxEvent {
    let payload = Payload::bytes(vec![0xfe; length], "application/octet-stream").unwrap();
    OutboxEvent::builder(Uuid::now_v7(), "large").payload(payload).build().unwrap()
}

/// The error of a result that must be one.
pub(crate) fn error(result: &PublishResult) -> &Error {
    result.as_ref().expect_err("published, though it must not be")
}
