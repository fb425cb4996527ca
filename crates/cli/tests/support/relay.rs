//! The real program, delivering to a stream.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use posthaste_testkit::servers::free_port;

use super::{Database, Stream, eventually};
use crate::common::{Cli, Running};

/// What a test says about the relay; the rest are defaults.
#[derive(Clone)]
pub(crate) struct RelayConfig {
    pub(crate) batch_size: usize,
    pub(crate) max_concurrent_events: usize,
    /// Lines of `[relay]`.
    pub(crate) relay: &'static str,
    /// Lines of `[ops]`.
    pub(crate) ops: &'static str,
    /// Lines of the destination.
    pub(crate) destination: &'static str,
    /// Whole tables.
    pub(crate) more: String,
    /// Where it finds the database, if not where the test does.
    pub(crate) database_url: Option<String>,
    /// Where it finds the broker, if not where the test does.
    pub(crate) broker_url: Option<String>,
    /// Variables of its environment.
    pub(crate) environment: Vec<(&'static str, String)>,
}

impl Default for RelayConfig {
    fn default() -> Self {
        Self {
            batch_size: 100,
            max_concurrent_events: 100,
            relay: "",
            ops: "",
            destination: "",
            more: String::new(),
            database_url: None,
            broker_url: None,
            environment: Vec::new(),
        }
    }
}

impl RelayConfig {
    /// The most events that one crash can deliver twice: all that the relay may hold. It holds
    /// `2 * batch_size + 2 * max_concurrent_events` at most, waiting, in flight and acknowledged
    /// but not yet recorded together; only the last two kinds can be repeated.
    pub(crate) const fn repeats_per_crash_max(&self) -> usize {
        2 * self.batch_size + 2 * self.max_concurrent_events
    }
}

/// A relay that is started, broken and started again. Killed when dropped.
pub(crate) struct Relay {
    pub(crate) cli: Cli,
    address: SocketAddr,
    running: Option<Running>,
}

/// What an HTTP request met.
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) body: String,
    pub(crate) took: Duration,
}

impl Relay {
    /// Not started yet.
    pub(crate) fn new(database: &Database, stream: &Stream, config: &RelayConfig) -> Self {
        let RelayConfig {
            batch_size, max_concurrent_events, relay, ops, destination, more, ..
        } = config;
        let text = |address| {
            format!(
                "[database]\nurl = \"{}\"\n\
             [relay]\nbatch_size = {batch_size}\nmax_concurrent_events = {max_concurrent_events}\n\
             {relay}\n\
             [ops]\nlisten = \"{address}\"\n{ops}\n\
             [destinations.default]\ntype = \"nats\"\nurl = \"{}\"\nstream = \"{}\"\n\
             subject = \"{}\"\n{destination}\n{more}",
                config.database_url.clone().unwrap_or_else(|| database.url()),
                config.broker_url.as_ref().unwrap_or(&stream.url),
                stream.name,
                stream.subject(),
            )
        };
        let relay = Self::configured(text);
        let environment = config.environment.iter();
        let cli = environment.fold(relay.cli, |cli, (name, value)| cli.env(name, value));
        Self { cli, ..relay }
    }

    /// With a configuration that is told where the ops listener is to be. Not started yet.
    pub(crate) fn configured(text: impl FnOnce(SocketAddr) -> String) -> Self {
        let address = SocketAddr::from(([127, 0, 0, 1], free_port()));
        let cli = Cli::new();
        cli.write("posthaste.toml", text(address));
        Self { cli, address, running: None }
    }

    pub(crate) fn start(&mut self) -> &Running {
        self.running.insert(self.cli.start(&["run"]))
    }

    pub(crate) fn started(database: &Database, stream: &Stream, config: &RelayConfig) -> Self {
        let mut relay = Self::new(database, stream, config);
        relay.start();
        relay
    }

    pub(crate) fn running(&self) -> &Running {
        self.running.as_ref().expect("a relay that was started")
    }

    /// `kill -9`, in whatever it is doing.
    pub(crate) fn kill(&mut self) {
        self.running = None;
    }

    /// Whether it was started and not killed or asked to stop since.
    pub(crate) fn is_started(&self) -> bool {
        self.running.is_some()
    }

    /// Stops it in whatever it is doing, and returns when each of its threads has stopped.
    pub(crate) async fn freeze(&self) {
        let running = self.running();
        running.signal("STOP");
        let id = running.child.id();
        eventually("a relay that is frozen", async || {
            let threads = std::fs::read_dir(format!("/proc/{id}/task")).unwrap().flatten();
            threads
                .filter_map(|thread| std::fs::read_to_string(thread.path().join("stat")).ok())
                .all(|status| {
                    status.rsplit_once(") ").is_none_or(|(_, state)| state.starts_with('T'))
                })
        })
        .await;
    }

    /// Ends a [`freeze`](Self::freeze).
    pub(crate) fn thaw(&self) {
        self.running().signal("CONT");
    }

    /// Asks it to stop; returns its exit code and how long it took.
    pub(crate) async fn terminate(&mut self) -> (Option<i32>, Duration) {
        let mut running = self.running.take().expect("a relay that was started");
        let begun = Instant::now();
        running.signal("TERM");
        while begun.elapsed() < Duration::from_secs(60) {
            if let Some(status) = running.child.try_wait().unwrap() {
                return (status.code(), begun.elapsed());
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        panic!("the relay did not end within a minute of SIGTERM");
    }

    /// Whether it has ended by itself.
    pub(crate) fn has_ended(&mut self) -> bool {
        let running = self.running.as_mut().expect("a relay that was started");
        running.child.try_wait().unwrap().is_some()
    }

    /// Asks the ops listener; `None` while it does not listen.
    pub(crate) async fn get(&self, path: &str) -> Option<Answer> {
        let begun = Instant::now();
        let answer = reqwest::get(format!("http://{}{path}", self.address)).await.ok()?;
        let status = answer.status().as_u16();
        let body = answer.text().await.ok()?;
        Some(Answer { status, body, took: begun.elapsed() })
    }

    /// Whether it says that events are being delivered.
    pub(crate) async fn is_ready(&self) -> bool {
        self.get("/readyz").await.is_some_and(|answer| answer.status == 200)
    }

    /// The most memory it has ever held in RAM, in MB (10^6 bytes).
    pub(crate) fn peak_memory_mb(&self) -> f64 {
        let id = self.running().child.id();
        let status = std::fs::read_to_string(format!("/proc/{id}/status")).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
        let kibibytes: f64 = line.trim().trim_end_matches(" kB").parse().unwrap();
        kibibytes * 1024.0 / 1e6
    }
}
