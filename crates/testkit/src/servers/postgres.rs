//! PostgreSQL: where the shared server is, and private ones.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use tempfile::TempDir;

use super::process::Process;
use super::{POSTGRES_URL, SmallDisk, free_port, skip_test};

/// Where Debian has a folder for each version.
const VERSIONS: &str = "/usr/lib/postgresql";

/// Where the shared PostgreSQL is looked for: [`POSTGRES_URL`], or database `test` and user `root`
/// on the default port of 127.0.0.1. Whether it is there, only a client of PostgreSQL can say.
#[must_use]
pub fn postgres_url() -> String {
    std::env::var(POSTGRES_URL).unwrap_or_else(|_| "postgres://root@127.0.0.1:5432/test".to_owned())
}

/// A PostgreSQL of one test's own, with superuser `root` and no passwords. Ended, and its data
/// removed, when dropped.
pub struct PostgresServer {
    port: u16,
    programs: PathBuf,
    settings: Vec<String>,
    process: Option<Process>,
    folder: TempDir,
    /// Where its data is: in its folder, or on a disk of a test's own.
    data: PathBuf,
}

impl PostgresServer {
    /// Makes a cluster and starts it with `settings`, such as `max_connections=400`. `None`,
    /// having said so, where PostgreSQL's programs are missing. Takes a second or two.
    ///
    /// # Panics
    /// Where the server does not start, or is missing and required ([`skip_test`]).
    pub async fn start(settings: &[&str]) -> Option<Self> {
        Self::start_with(settings, None).await
    }

    /// The same with all data but the log of transactions (`pg_wal`) on `disk`. Without room for that
    /// log the server would end instead of refusing a statement.
    ///
    /// # Panics
    /// As [`start`](Self::start).
    pub async fn start_on(disk: &SmallDisk, settings: &[&str]) -> Option<Self> {
        Self::start_with(settings, Some(disk)).await
    }

    async fn start_with(settings: &[&str], disk: Option<&SmallDisk>) -> Option<Self> {
        let Some(programs) = find_programs() else {
            skip_test(&format!("no PostgreSQL programs in {VERSIONS} or PATH"));
            return None;
        };
        let settings = settings.iter().map(|setting| (*setting).to_owned()).collect();
        let mut server = Self::new(programs, settings);
        let mut initdb = as_postgres(&server.programs.join("initdb"));
        if let Some(disk) = disk {
            server.data = disk.path().join("data");
            initdb.arg("-X").arg(server.folder.path().join("wal"));
        }
        initdb.args(["-A", "trust", "-U", "root", "-N", "-D"]).arg(&server.data);
        run(&mut initdb);
        server.restart().await;
        Some(server)
    }

    /// A standby that follows this server, with its settings, on a port of its own.
    ///
    /// # Panics
    /// Where this server is down or allows no replication, or the standby does not start.
    pub async fn standby(&self) -> Self {
        let mut standby = Self::new(self.programs.clone(), self.settings.clone());
        let mut backup = as_postgres(&self.programs.join("pg_basebackup"));
        backup.args(["-h", "127.0.0.1", "-U", "root", "-p", &self.port.to_string()]);
        backup.args(["-R", "-X", "stream", "-c", "fast", "-D"]).arg(&standby.data);
        run(&mut backup);
        standby.restart().await;
        standby
    }

    fn new(programs: PathBuf, settings: Vec<String>) -> Self {
        let folder = folder();
        let data = folder.path().join("data");
        Self { port: free_port(), programs, settings, process: None, folder, data }
    }

    /// The address of `database`, which need not exist; `postgres` does. The same after a restart.
    #[must_use]
    pub fn url(&self, database: &str) -> String {
        format!("postgres://root@127.0.0.1:{}/{database}", self.port)
    }

    /// Its port on 127.0.0.1.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// A crash, as `pg_ctl stop -m immediate` makes it: every connection is cut, nothing is
    /// written any more, and the next start recovers. What was committed stays. Nothing happens
    /// where it is not running.
    pub fn kill(&mut self) {
        if let Some(process) = self.process.take() {
            // Not SIGKILL: the processes of its connections would outlive it.
            process.signal("QUIT");
            process.wait();
        }
    }

    /// `kill -9` of the server and of the process behind each connection, none of which can do
    /// anything about it. Nothing happens where it is not running.
    pub fn kill_all(&mut self) {
        if let Some(process) = self.process.take() {
            process.kill_with_children();
        }
    }

    /// The same server with the same address and data again, killed before if it runs.
    ///
    /// # Panics
    /// Where it does not start.
    pub async fn restart(&mut self) {
        self.kill();
        let port = self.port.to_string();
        let mut command = as_postgres(&self.programs.join("postgres"));
        command.arg("-D").arg(&self.data).args(["-p", &port]);
        command.args(["-c", "listen_addresses=127.0.0.1", "-c", "unix_socket_directories="]);
        // The machine does not fail here: what the system has taken over survives.
        command.args(["-c", "fsync=off"]);
        for setting in &self.settings {
            command.args(["-c", setting]);
        }
        let log = self.folder.path().join("server.log");
        let started = Process::spawn(&mut command, &log).expect("postgres can be run");
        let process = self.process.insert(started);
        process.wait_until(|| is_answering(&self.programs, self.port)).await;
    }

    /// As [`restart`](Self::restart), at another port: where a server that is down has been, whose
    /// address then leads here.
    ///
    /// # Panics
    /// Where it does not start.
    pub async fn restart_at(&mut self, port: u16) {
        self.kill();
        self.port = port;
        self.restart().await;
    }

    /// Puts other bytes in the place of a page of `file` (as `pg_relation_filepath` names it), whose number
    /// is `page`, and returns those that were there: a disk that lies. For a server that is down, and was
    /// so after a checkpoint, or it repairs the page when it starts.
    ///
    /// # Panics
    /// Where there is no such page.
    pub fn overwrite_page(&self, file: &str, page: u64, bytes: &[u8; 8_192]) -> [u8; 8_192] {
        use std::io::{Read, Seek, SeekFrom, Write};
        let path = self.data.join(file);
        let mut file = std::fs::File::options().read(true).write(true).open(path).expect("a table");
        let (at, mut before) = (SeekFrom::Start(page * 8_192), [0; 8_192]);
        file.seek(at).and_then(|_| file.read_exact(&mut before)).expect("a page");
        file.seek(at).and_then(|_| file.write_all(bytes)).expect("room for a page");
        before
    }

    /// Makes a standby the primary that it followed, with a timeline of its own.
    ///
    /// # Panics
    /// Where it is none, or is down.
    pub fn promote(&self) {
        let mut promote = as_postgres(&self.programs.join("pg_ctl"));
        run(promote.args(["promote", "--wait", "--silent", "-D"]).arg(&self.data));
    }

    pub(super) fn programs(&self) -> &Path {
        &self.programs
    }
}

impl Drop for PostgresServer {
    fn drop(&mut self) {
        self.kill();
    }
}

/// The folder of the newest version there is.
pub(super) fn find_programs() -> Option<PathBuf> {
    let versions = std::fs::read_dir(VERSIONS).into_iter().flatten().flatten();
    let mut folders: Vec<PathBuf> = versions.map(|version| version.path().join("bin")).collect();
    folders.sort();
    folders.reverse();
    folders.extend(std::env::var_os("PATH").iter().flat_map(std::env::split_paths));
    folders.into_iter().find(|folder| folder.join("initdb").exists())
}

/// Whether a server, or a pooler before one, takes connections at `port`.
pub(super) async fn is_answering(programs: &Path, port: u16) -> bool {
    let mut command = tokio::process::Command::new(programs.join("pg_isready"));
    command.args(["-q", "-h", "127.0.0.1", "-p", &port.to_string(), "-U", "root"]);
    command.args(["-d", "postgres"]).stdout(Stdio::null()).stderr(Stdio::null());
    command.status().await.is_ok_and(|status| status.success())
}

/// A folder that the user whom the programs run as may write to.
pub(super) fn folder() -> TempDir {
    let folder = tempfile::tempdir().expect("a folder for a private server");
    if is_root() {
        run(Command::new("chown").arg("postgres").arg(folder.path()));
    }
    folder
}

/// PostgreSQL's programs refuse to run as root. `setpriv` becomes the program, so that a signal
/// reaches it.
pub(super) fn as_postgres(program: &Path) -> Command {
    if !is_root() {
        return Command::new(program);
    }
    let mut command = Command::new("setpriv");
    command.args(["--reuid=postgres", "--regid=postgres", "--clear-groups"]).arg(program);
    // It may not be allowed to read the folder of the test.
    command.current_dir("/");
    command
}

fn is_root() -> bool {
    Command::new("id").arg("-u").output().is_ok_and(|output| output.stdout.starts_with(b"0\n"))
}

fn run(command: &mut Command) {
    match command.output() {
        Ok(output) if output.status.success() => {}
        Ok(output) => panic!("{command:?}: {}", String::from_utf8_lossy(&output.stderr)),
        Err(error) => panic!("{command:?}: {error}"),
    }
}
