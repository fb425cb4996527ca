//! A pooler before a private PostgreSQL.

use std::path::Path;

use tempfile::TempDir;

use super::postgres::{PostgresServer, as_postgres, folder, is_answering};
use super::process::Process;
use super::{free_port, skip_test};

const PROGRAMS: [&str; 2] = ["/usr/sbin/pgbouncer", "/usr/bin/pgbouncer"];

/// A `PgBouncer` in transaction mode with two connections for each database: what a session leaves
/// behind is not there in the next transaction. Killed when dropped.
pub struct PgBouncer {
    port: u16,
    _process: Process,
    _folder: TempDir,
}

impl PgBouncer {
    /// Starts one before `server`. `None`, having said so, where `PgBouncer` is missing.
    ///
    /// # Panics
    /// Where it does not start, or is missing and required ([`skip_test`]).
    pub async fn start(server: &PostgresServer) -> Option<Self> {
        let Some(program) = PROGRAMS.into_iter().map(Path::new).find(|path| path.exists()) else {
            skip_test("no pgbouncer in /usr/sbin or /usr/bin");
            return None;
        };
        let (folder, port) = (folder(), free_port());
        let config = folder.path().join("pgbouncer.ini");
        let text = format!(
            "[databases]\n* = user=root host=127.0.0.1 port={}\n\
             [pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\nunix_socket_dir =\n\
             auth_type = any\nadmin_users = root\npool_mode = transaction\n\
             default_pool_size = 2\nmax_client_conn = 500\n",
            server.port()
        );
        std::fs::write(&config, text).expect("a configuration file for a private server");
        let log = folder.path().join("server.log");
        let mut process =
            Process::spawn(as_postgres(program).arg(config), &log).expect("pgbouncer can be run");
        process.wait_until(|| is_answering(server.programs(), port)).await;
        Some(Self { port, _process: process, _folder: folder })
    }

    /// The address of `database` through the pooler. It names `sslmode=disable`: clients that
    /// would rather have TLS ask for it first, and this one has none.
    #[must_use]
    pub fn url(&self, database: &str) -> String {
        format!("postgres://root@127.0.0.1:{}/{database}?sslmode=disable", self.port)
    }
}
