use std::fs::OpenOptions;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use posthaste_core::{Error, ErrorKind, Result};
use sqlx::ConnectOptions;
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqliteSynchronous};

/// The database holds what the application stores, so that other users of the machine cannot read it.
/// The process's umask can take away more. SQLite's own files get the rights of the database.
pub(crate) const FILE_MODE: u32 = 0o640;

/// How to open a database file.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct SqliteOptions {
    /// The database file. Its directory must exist and be writable: SQLite puts two more files
    /// beside it (`-wal`, `-shm`), and a relay a third (`.relay-lock`).
    pub path: PathBuf,
    /// Create the file where there is none: for its user, readable by its group, less what the
    /// umask takes away. Default on.
    pub create: bool,
    /// How long to wait for another writer, in this process or another. Default 10 s.
    pub busy_timeout: Duration,
    /// Connections for reading, at most. Default 4.
    pub readers_max: u32,
}

impl SqliteOptions {
    /// The defaults for the file at `path`.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self {
            path: path.into(),
            create: true,
            busy_timeout: Duration::from_secs(10),
            readers_max: 4,
        }
    }

    /// Whether to create the file where there is none.
    #[must_use]
    pub const fn create(mut self, create: bool) -> Self {
        self.create = create;
        self
    }

    /// How long to wait for another writer.
    #[must_use]
    pub const fn busy_timeout(mut self, timeout: Duration) -> Self {
        self.busy_timeout = timeout;
        self
    }

    /// Connections for reading, at most; 0 counts as 1.
    #[must_use]
    pub const fn readers_max(mut self, readers: u32) -> Self {
        self.readers_max = readers;
        self
    }

    /// What is wrong with the path, before SQLite says only "unable to open database file".
    pub(crate) fn check_path(&self) -> Result<()> {
        let refuse = |why: &str| {
            Err(Error::new(ErrorKind::Config, "open database", why)
                .with_context("path", self.path.display()))
        };
        if self.path.as_os_str().is_empty() {
            return refuse("the path is empty");
        }
        if self.path.is_dir() {
            return refuse("the path is a directory, not a file");
        }
        let parent = self.path.parent().filter(|parent| !parent.as_os_str().is_empty());
        if let Some(parent) = parent
            && !parent.is_dir()
        {
            return refuse("the directory does not exist; create it or correct the path");
        }
        if !self.create && !is_there(&self.path) {
            return refuse("there is no such database file");
        }
        Ok(())
    }

    /// Makes an empty file where there is none and one may be created; SQLite takes it for an empty
    /// database.
    pub(crate) fn create_file(&self) -> Result<()> {
        if !self.create || is_there(&self.path) {
            return Ok(());
        }
        let mut options = OpenOptions::new();
        options.write(true).create_new(true);
        #[cfg(unix)]
        std::os::unix::fs::OpenOptionsExt::mode(&mut options, FILE_MODE);
        match options.open(&self.path) {
            Ok(_) => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            Err(error) => Err(Error::new(
                kind_of(&error),
                "open database",
                "the file cannot be created; check the rights on its folder",
            )
            .with_context("path", self.path.display())
            .with_source(error)),
        }
    }

    /// For connections to a file that exists: one that was moved away is never made anew.
    pub(crate) fn connect_options(&self) -> SqliteConnectOptions {
        SqliteConnectOptions::new()
            .filename(&self.path)
            .create_if_missing(false)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Full)
            .busy_timeout(self.busy_timeout)
            .disable_statement_logging()
    }
}

fn kind_of(error: &io::Error) -> ErrorKind {
    match error.kind() {
        io::ErrorKind::PermissionDenied => ErrorKind::Unauthorized,
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => ErrorKind::Throttled,
        _ => ErrorKind::Config,
    }
}

fn is_there(path: &Path) -> bool {
    path.try_exists().unwrap_or(false)
}
