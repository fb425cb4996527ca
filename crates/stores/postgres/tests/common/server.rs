//! A PostgreSQL of the test's own, to break or to configure, and a pooler before it.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use sqlx::postgres::PgConnectOptions;
use sqlx::{ConnectOptions, Connection};
use tempfile::TempDir;

use super::skip;

/// A server on a free port, killed and removed at the end.
pub struct PrivateServer {
    pub port: u16,
    bin: PathBuf,
    directory: TempDir,
    settings: Vec<String>,
    process: Option<Child>,
}

impl PrivateServer {
    /// `None` (after saying so) where PostgreSQL's programs are missing.
    pub async fn start(settings: &[&str]) -> Option<Self> {
        let bin = bin_directory()?;
        let directory = directory();
        let data = directory.path().join("data");
        run(&bin.join("initdb"), &["-A", "trust", "-U", "root", "-N", "-D", path(&data)]);
        let settings = settings.iter().map(|setting| (*setting).to_owned()).collect();
        let mut server = Self { port: free_port(), bin, directory, settings, process: None };
        server.launch().await;
        Some(server)
    }

    /// A standby of this server, on a port of its own.
    pub async fn standby(&self) -> Self {
        let directory = directory();
        let data = directory.path().join("data");
        let (port, primary) = (free_port(), self.port.to_string());
        let arguments = ["-h", "127.0.0.1", "-U", "root", "-R", "-X", "stream", "-c", "fast"];
        let place = ["-p", &primary, "-D", path(&data)];
        run(&self.bin.join("pg_basebackup"), &[&arguments[..], &place[..]].concat());
        let bin = self.bin.clone();
        let mut standby = Self { port, bin, directory, settings: Vec::new(), process: None };
        standby.launch().await;
        standby
    }

    pub fn url(&self, database: &str) -> String {
        format!("postgres://root@127.0.0.1:{}/{database}", self.port)
    }

    pub async fn kill_and_restart(&mut self) {
        self.kill();
        self.launch().await;
    }

    async fn launch(&mut self) {
        let port = self.port.to_string();
        let data = self.directory.path().join("data");
        let mut command = as_postgres(&self.bin.join("postgres"));
        command.args(["-D", path(&data), "-p", &port, "-c", "listen_addresses=127.0.0.1"]);
        command.args(["-c", "unix_socket_directories=", "-c", "fsync=off"]);
        for setting in &self.settings {
            command.args(["-c", setting]);
        }
        command.stdout(Stdio::null()).stderr(Stdio::null());
        self.process = Some(command.spawn().unwrap());
        wait_until_it_answers(&self.url("postgres")).await;
    }

    fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            // An immediate shutdown is a crash; the postmaster takes its children along.
            let _ = Command::new("kill").args(["-QUIT", &process.id().to_string()]).status();
            let _ = process.wait();
        }
    }
}

impl Drop for PrivateServer {
    fn drop(&mut self) {
        self.kill();
    }
}

/// A `PgBouncer` in transaction mode, two connections per database.
pub struct Pooler {
    pub port: u16,
    process: Child,
    _directory: TempDir,
}

impl Pooler {
    /// `None` (after saying so) where `PgBouncer` is missing.
    pub async fn start(server: &PrivateServer) -> Option<Self> {
        let program = ["/usr/sbin/pgbouncer", "/usr/bin/pgbouncer"]
            .into_iter()
            .map(Path::new)
            .find(|program| program.exists());
        let Some(program) = program else {
            skip("no pgbouncer");
            return None;
        };
        let (directory, port) = (directory(), free_port());
        let config = directory.path().join("pgbouncer.ini");
        let text = format!(
            "[databases]\n* = user=root host=127.0.0.1 port={}\n[pgbouncer]\nlisten_addr = 127.0.0.1\n\
             listen_port = {port}\nunix_socket_dir =\nauth_type = any\nadmin_users = root\n\
             pool_mode = transaction\ndefault_pool_size = 2\nmax_client_conn = 500\n",
            server.port
        );
        std::fs::write(&config, text).unwrap();
        let mut command = as_postgres(program);
        command.arg(path(&config)).stdout(Stdio::null()).stderr(Stdio::null());
        let pooler = Self { port, process: command.spawn().unwrap(), _directory: directory };
        wait_until_it_answers(&pooler.url("postgres")).await;
        Some(pooler)
    }

    /// `prefer` would ask for TLS first, which this one has not.
    pub fn url(&self, database: &str) -> String {
        format!("postgres://root@127.0.0.1:{}/{database}?sslmode=disable", self.port)
    }
}

impl Drop for Pooler {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

pub fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

fn bin_directory() -> Option<PathBuf> {
    let mut found: Vec<PathBuf> = std::fs::read_dir("/usr/lib/postgresql")
        .into_iter()
        .flatten()
        .flatten()
        .map(|version| version.path().join("bin"))
        .filter(|bin| bin.join("initdb").exists())
        .collect();
    found.sort();
    if found.is_empty() {
        skip("no PostgreSQL programs in /usr/lib/postgresql");
    }
    found.pop()
}

/// A directory that the user the programs run as may write to.
fn directory() -> TempDir {
    let directory = TempDir::new().unwrap();
    if is_root() {
        let owned = Command::new("chown").arg("postgres").arg(directory.path()).status().unwrap();
        assert!(owned.success());
    }
    directory
}

/// PostgreSQL's programs refuse to run as root. `setpriv` becomes the program, so that a signal
/// reaches it.
fn as_postgres(program: &Path) -> Command {
    if !is_root() {
        return Command::new(program);
    }
    let mut command = Command::new("setpriv");
    command.args(["--reuid=postgres", "--regid=postgres", "--clear-groups"]).arg(program);
    command.current_dir("/");
    command
}

fn is_root() -> bool {
    Command::new("id").arg("-u").output().is_ok_and(|output| output.stdout.starts_with(b"0\n"))
}

fn run(program: &Path, arguments: &[&str]) {
    let output = as_postgres(program).args(arguments).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

fn path(path: &Path) -> &str {
    path.to_str().unwrap()
}

async fn wait_until_it_answers(url: &str) {
    let options: PgConnectOptions = url.parse().unwrap();
    let options = options.extra_float_digits(None);
    let mut last = String::new();
    for _ in 0..200 {
        match options.connect().await {
            Ok(connection) => return connection.close().await.unwrap(),
            Err(error) => last = error.to_string(),
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("no server came up: {last}");
}
