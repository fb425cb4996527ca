//! NATS servers and streams.

use std::process::{Child, Command, Stdio};
use std::time::Duration;

use async_nats::jetstream::{self, stream};
use tokio::net::TcpStream;
use uuid::Uuid;

use super::{free_port, skip};

/// The shared server; `None` (after saying so) where there is none.
pub(crate) async fn shared_nats() -> Option<String> {
    let url = std::env::var("POSTHASTE_TEST_NATS_URL")
        .unwrap_or_else(|_| "nats://127.0.0.1:4222".to_owned());
    let address = url.rsplit(['/', '@']).next().unwrap_or_default().to_owned();
    if TcpStream::connect(&address).await.is_ok() {
        return Some(url);
    }
    skip(&format!("no NATS server at {address}"));
    None
}

/// A stream of one test's own, deleted at the end.
pub(crate) struct Stream {
    pub(crate) url: String,
    pub(crate) name: String,
}

impl Stream {
    /// A name; the stream is yet to be made.
    pub(crate) fn named(url: &str) -> Self {
        let name = format!("PROMISES_{}", Uuid::now_v7().simple());
        Self { url: url.to_owned(), name }
    }

    /// A stream that drops what it has seen already, as JetStream's streams do.
    pub(crate) async fn create(url: &str) -> Self {
        let stream = Self::named(url);
        stream.make(stream::Config::default()).await;
        stream
    }

    /// A stream that keeps repeated deliveries, so that they can be counted: a tenth of a second
    /// is the shortest memory a stream can have. Whoever restarts a relay must wait longer.
    pub(crate) async fn create_forgetful(url: &str) -> Self {
        let stream = Self::named(url);
        let duplicate_window = Duration::from_millis(100);
        stream.make(stream::Config { duplicate_window, ..Default::default() }).await;
        stream
    }

    pub(crate) async fn make(&self, config: stream::Config) {
        let name = self.name.clone();
        let subjects = vec![format!("{name}.>")];
        let config = stream::Config { name, subjects, ..config };
        self.jetstream().await.create_stream(config).await.unwrap();
    }

    /// Where the relay sends events.
    pub(crate) fn subject(&self) -> String {
        format!("{}.{{event_type}}", self.name)
    }

    pub(crate) async fn jetstream(&self) -> jetstream::Context {
        jetstream::new(async_nats::connect(&self.url).await.unwrap())
    }

    /// How many messages it holds. For a loop, take the context once.
    pub(crate) async fn messages(&self, jetstream: &jetstream::Context) -> u64 {
        jetstream.get_stream(&self.name).await.unwrap().cached_info().state.messages
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        let (url, name) = (self.url.clone(), self.name.clone());
        // A thread of its own: `drop` cannot wait within the test's runtime.
        let deleted = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.unwrap().block_on(async {
                if let Ok(client) = async_nats::connect(url).await {
                    let _ = jetstream::new(client).delete_stream(name).await;
                }
            });
        });
        let _ = deleted.join();
    }
}

/// A JetStream server of the test's own, to break. Killed when dropped.
pub(crate) struct PrivateNats {
    port: u16,
    store: tempfile::TempDir,
    child: Option<Child>,
}

impl PrivateNats {
    /// With `config` in its configuration file; `None` (after saying so) where there is no
    /// nats-server.
    pub(crate) async fn start(config: &str) -> Option<Self> {
        let store = tempfile::tempdir().unwrap();
        std::fs::write(store.path().join("nats.conf"), config).unwrap();
        let mut server = Self { port: free_port(), store, child: None };
        if server.spawn().is_err() {
            skip("no nats-server binary in PATH or /usr/sbin");
            return None;
        }
        server.wait().await;
        Some(server)
    }

    pub(crate) fn url(&self) -> String {
        format!("nats://127.0.0.1:{}", self.port)
    }

    /// `kill -9`.
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

    /// Leaves the process and its connections in place, and lets it do nothing.
    pub(crate) fn freeze(&self) {
        self.signal("-STOP");
    }

    pub(crate) fn thaw(&self) {
        self.signal("-CONT");
    }

    fn signal(&self, name: &str) {
        let id = self.child.as_ref().unwrap().id().to_string();
        assert!(Command::new("kill").args([name, &id]).status().unwrap().success());
    }

    fn spawn(&mut self) -> std::io::Result<()> {
        let start = |binary: &str| {
            let mut command = Command::new(binary);
            command.args(["-a", "127.0.0.1", "-js", "-p", &self.port.to_string()]);
            command.arg("-sd").arg(self.store.path().join("data"));
            command.arg("-c").arg(self.store.path().join("nats.conf"));
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
