//! The database file and whether it is still the one that is open.
//!
//! An open file lives on under no name when another is put in its place: a restore by copy, a deploy
//! that moves folders. Who has it open would go on with what nobody else sees.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Mutex as StdMutex, PoisonError};
use std::time::{Duration, Instant};

use posthaste_core::{Error, ErrorKind, Result};
use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{ConnectOptions, SqliteConnection};
use tokio::sync::{Mutex, MutexGuard};

use crate::error::database;

/// How often a file is opened that is replaced by another meanwhile.
const OPENINGS_MAX: u32 = 5;

/// A database file that is watched by its identity.
pub(crate) struct DatabaseFile {
    path: PathBuf,
    /// Creates nothing.
    connect: SqliteConnectOptions,
    /// `None` when the outbox was closed.
    anchor: Mutex<Option<Anchor>>,
    /// When another file was found in its place.
    replaced_at: StdMutex<Option<Instant>>,
    /// Counts what makes all that was read before worthless.
    incarnation: AtomicI64,
}

/// A connection that stays open, so that SQLite never takes its log away by itself.
pub(crate) struct Anchor {
    pub(crate) connection: SqliteConnection,
    /// The database without symbolic links: its log is beside that.
    real_path: PathBuf,
    files: Files,
}

impl DatabaseFile {
    /// Keeps the file at `path` in view. It exists.
    pub(crate) async fn open(
        path: PathBuf,
        connect: SqliteConnectOptions,
    ) -> Result<Self, sqlx::Error> {
        let anchor = Anchor::open(&path, &connect).await?;
        Ok(Self {
            path,
            connect,
            anchor: Mutex::new(Some(anchor)),
            replaced_at: StdMutex::default(),
            incarnation: AtomicI64::new(0),
        })
    }

    /// That connections go to the file that has the name now. Another file in its place is opened
    /// anew.
    ///
    /// # Errors
    /// [`ErrorKind::Unreachable`] where there is none, or where its log was taken away.
    pub(crate) async fn confirm(&self, operation: &'static str) -> Result<()> {
        self.confirmed(operation).await.map(drop)
    }

    /// As [`confirm`](Self::confirm), with the anchor's connection.
    pub(crate) async fn confirmed(
        &self,
        operation: &'static str,
    ) -> Result<MutexGuard<'_, Option<Anchor>>> {
        let fail = |why: &str| {
            Error::new(ErrorKind::Unreachable, operation, why)
                .with_context("path", self.path.display())
        };
        let mut guard = self.anchor.lock().await;
        let Some(anchor) = &mut *guard else { return Err(fail("the outbox was closed")) };
        let files = Files::of(&anchor.real_path, &self.path).map_err(|error| {
            fail("the database file is gone; put it back, or stop the relay").with_source(error)
        })?;
        if files.database != anchor.files.database {
            *anchor = Anchor::open(&self.path, &self.connect).await.map_err(|error| {
                database(operation, error).with_context("path", self.path.display())
            })?;
            tracing::warn!(
                path = %self.path.display(),
                "another file is in the place of the database; it was opened, and is read from the start"
            );
            let mut replaced_at = self.replaced_at.lock().unwrap_or_else(PoisonError::into_inner);
            *replaced_at = Some(Instant::now());
            self.begin_incarnation();
        } else if files.log != anchor.files.log {
            return Err(fail(
                "its -wal or -shm was removed or replaced while it is in use, and with it what was \
                 committed last; stop every program that uses the database, check it with \
                 `pragma integrity_check`, then start again",
            ));
        }
        Ok(guard)
    }

    /// Whether a connection of this age goes to the file.
    pub(crate) fn is_current(&self, age: Duration) -> bool {
        let replaced_at = *self.replaced_at.lock().unwrap_or_else(PoisonError::into_inner);
        replaced_at.is_none_or(|at| age < at.elapsed())
    }

    pub(crate) fn incarnation(&self) -> i64 {
        self.incarnation.load(Ordering::Acquire)
    }

    /// What is known of the database may be wrong.
    pub(crate) fn begin_incarnation(&self) {
        self.incarnation.fetch_add(1, Ordering::AcqRel);
    }

    pub(crate) async fn close(&self) {
        if let Some(anchor) = self.anchor.lock().await.take() {
            // Nothing was written on it, so nothing can be lost.
            let _ = sqlx::Connection::close(anchor.connection).await;
        }
    }
}

impl Anchor {
    async fn open(path: &Path, connect: &SqliteConnectOptions) -> Result<Self, sqlx::Error> {
        let mut left = OPENINGS_MAX;
        loop {
            let real_path = path.canonicalize()?;
            let before = Files::of(&real_path, path)?;
            let mut connection = connect.connect().await?;
            // The first read opens the log.
            sqlx::query("select 1 from sqlite_master limit 1")
                .fetch_optional(&mut connection)
                .await?;
            let files = Files::of(&real_path, path)?;
            left -= 1;
            if before.database == files.database || left == 0 {
                return Ok(Self { connection, real_path, files });
            }
        }
    }
}

/// Which files have the names of a database, and of its log and the log's index.
#[derive(Debug, PartialEq, Eq)]
struct Files {
    database: Identity,
    log: [Option<Identity>; 2],
}

impl Files {
    fn of(real_path: &Path, path: &Path) -> io::Result<Self> {
        let beside = |ending: &str| {
            let mut name = real_path.as_os_str().to_owned();
            name.push(ending);
            identity(Path::new(&name)).ok()
        };
        Ok(Self { database: identity(path)?, log: ["-wal", "-shm"].map(beside) })
    }
}

/// What tells a file from another one that gets its name.
pub(crate) type Identity = (u64, u64);

#[cfg(unix)]
pub(crate) fn identity(path: &Path) -> io::Result<Identity> {
    path.metadata().map(|metadata| identity_of(&metadata))
}

#[cfg(unix)]
pub(crate) fn identity_of(metadata: &std::fs::Metadata) -> Identity {
    use std::os::unix::fs::MetadataExt;
    (metadata.dev(), metadata.ino())
}

/// What a second name of the file (a hard link) leads to, where it has one. SQLite keeps its log beside the
/// name by which a file was opened (<https://www.sqlite.org/howtocorrupt.html>, "multiple links").
pub(crate) fn second_name(path: &Path) -> Option<&'static str> {
    const DANGER: &str = "the database file has another name, a hard link: who opens it by that one has a log \
         and a relay's lock of its own, which damages the file and sends events twice";
    names(path).is_some_and(|names| names > 1).then_some(DANGER)
}

#[cfg(unix)]
fn names(path: &Path) -> Option<u64> {
    path.metadata().ok().map(|metadata| std::os::unix::fs::MetadataExt::nlink(&metadata))
}

#[cfg(not(unix))]
fn names(_path: &Path) -> Option<u64> {
    None
}

/// Windows neither moves nor removes an open file.
#[cfg(not(unix))]
pub(crate) fn identity(_path: &Path) -> io::Result<Identity> {
    Ok((0, 0))
}

#[cfg(not(unix))]
pub(crate) fn identity_of(_metadata: &std::fs::Metadata) -> Identity {
    (0, 0)
}
