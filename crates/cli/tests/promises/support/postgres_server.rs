//! A PostgreSQL of the test's own, to break.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use sqlx::{Connection as _, PgConnection};
use tempfile::TempDir;

use super::{free_port, skip};

/// A server on a free port, killed and removed at the end.
pub(crate) struct PrivatePostgres {
    port: u16,
    bin: PathBuf,
    directory: TempDir,
    process: Option<Child>,
}

impl PrivatePostgres {
    /// `None` (after saying so) where PostgreSQL's programs are missing.
    pub(crate) async fn start() -> Option<Self> {
        let bin = bin_directory()?;
        let directory = TempDir::new().unwrap();
        if is_root() {
            let owned = Command::new("chown").arg("postgres").arg(directory.path()).status();
            assert!(owned.unwrap().success());
        }
        let mut initdb = as_postgres(&bin.join("initdb"));
        initdb.args(["-A", "trust", "-U", "root", "-N", "-D"]).arg(directory.path().join("data"));
        let output = initdb.output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let mut server = Self { port: free_port(), bin, directory, process: None };
        server.launch().await;
        Some(server)
    }

    pub(crate) fn url(&self, database: &str) -> String {
        format!("postgres://root@127.0.0.1:{}/{database}", self.port)
    }

    /// What `pg_ctl stop -m immediate` does: no checkpoint, every connection cut.
    pub(crate) fn crash(&mut self) {
        if let Some(mut process) = self.process.take() {
            let _ = Command::new("kill").args(["-QUIT", &process.id().to_string()]).status();
            let _ = process.wait();
        }
    }

    /// Starts it on the data it has.
    pub(crate) async fn launch(&mut self) {
        let mut command = as_postgres(&self.bin.join("postgres"));
        command.arg("-D").arg(self.directory.path().join("data"));
        command.args(["-p", &self.port.to_string(), "-c", "listen_addresses=127.0.0.1"]);
        // The machine does not fail here: what the system has taken over survives.
        command.args(["-c", "unix_socket_directories=", "-c", "fsync=off"]);
        command.stdout(Stdio::null()).stderr(Stdio::null());
        self.process = Some(command.spawn().unwrap());
        let mut last = String::new();
        for _ in 0..400 {
            match PgConnection::connect(&self.url("postgres")).await {
                Ok(connection) => return connection.close().await.unwrap(),
                Err(error) => last = error.to_string(),
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        panic!("the private PostgreSQL does not answer: {last}");
    }
}

impl Drop for PrivatePostgres {
    fn drop(&mut self) {
        self.crash();
    }
}

fn bin_directory() -> Option<PathBuf> {
    let installed = std::fs::read_dir("/usr/lib/postgresql");
    let found = installed
        .into_iter()
        .flatten()
        .flatten()
        .map(|version| version.path().join("bin"))
        .filter(|bin| bin.join("initdb").exists())
        .max();
    if found.is_none() {
        skip("no PostgreSQL programs in /usr/lib/postgresql");
    }
    found
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
