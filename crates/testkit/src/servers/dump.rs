//! Dumps of a PostgreSQL database.

use std::path::{Path, PathBuf};
use std::process::Stdio;

use tempfile::TempDir;
use tokio::process::Command;

use super::postgres::find_programs;
use super::skip_test;

/// What `pg_dump` writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DumpFormat {
    /// SQL, restored by `psql`.
    Plain,
    /// An archive, restored by `pg_restore`.
    Custom,
}

/// A dump of one database, as `pg_dump` makes it: of one snapshot, while others write. Removed when
/// dropped.
#[derive(Debug)]
pub struct Dump {
    programs: PathBuf,
    format: DumpFormat,
    folder: TempDir,
}

impl Dump {
    /// Dumps the database at `url`. `None`, having said so, where `pg_dump` is missing.
    ///
    /// # Panics
    /// Where it fails, or is missing and required ([`skip_test`]).
    pub async fn take(url: &str, format: DumpFormat) -> Option<Self> {
        let Some(programs) = find_programs().filter(|folder| folder.join("pg_dump").exists())
        else {
            skip_test("no pg_dump");
            return None;
        };
        let folder = tempfile::tempdir().expect("a folder for a dump");
        let dump = Self { programs, format, folder };
        let format = match format {
            DumpFormat::Plain => "plain",
            DumpFormat::Custom => "custom",
        };
        // Another cluster may not have the same users.
        let mut command = dump.command("pg_dump");
        command.args(["--no-owner", "--format", format, "--dbname", url, "--file"]);
        run(command.arg(dump.file())).await;
        Some(dump)
    }

    /// Restores it into the empty database at `url`.
    ///
    /// # Panics
    /// At the first error.
    pub async fn restore(&self, url: &str) {
        let mut command = match self.format {
            DumpFormat::Plain => {
                let mut command = self.command("psql");
                command.args(["--no-psqlrc", "--quiet", "-v", "ON_ERROR_STOP=1"]);
                command.args(["--dbname", url, "--file"]);
                command
            }
            DumpFormat::Custom => {
                let mut command = self.command("pg_restore");
                command.args(["--no-owner", "--exit-on-error", "--dbname", url]);
                command
            }
        };
        run(command.arg(self.file())).await;
    }

    fn file(&self) -> PathBuf {
        self.folder.path().join("dump")
    }

    fn command(&self, program: &str) -> Command {
        Command::new(Path::new(&self.programs).join(program))
    }
}

async fn run(command: &mut Command) {
    let output = command.stdin(Stdio::null()).output().await;
    match output {
        Ok(output) if output.status.success() => {}
        Ok(output) => panic!("{command:?}: {}", String::from_utf8_lossy(&output.stderr)),
        Err(error) => panic!("{command:?}: {error}"),
    }
}
