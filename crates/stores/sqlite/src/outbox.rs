use std::fmt;
use std::future::Future;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use posthaste_core::{Result, UnitOfWork};
use sqlx::SqlitePool;
use sqlx::sqlite::SqlitePoolOptions;

use crate::error::{database, is_busy};
use crate::wake::Wake;
use crate::{RelayLock, SqliteOptions, SqliteTransaction};

/// An outbox in an SQLite file. Clones share its connections.
#[derive(Clone)]
pub struct SqliteOutbox {
    options: Arc<SqliteOptions>,
    /// One connection: SQLite has one writer, and waiting for it here is fair and costs nothing.
    pub(crate) writer: SqlitePool,
    pub(crate) readers: SqlitePool,
    pub(crate) wake: Arc<Wake>,
}

impl SqliteOutbox {
    /// Opens the file at `path`, or creates it. Its schema is made by
    /// [`migrate`](posthaste_core::OutboxMigrations::migrate).
    ///
    /// # Errors
    /// [`Config`](posthaste_core::ErrorKind::Config), naming the path, where it cannot be opened;
    /// [`Schema`](posthaste_core::ErrorKind::Schema) where the file is not an SQLite database.
    pub async fn open(path: impl AsRef<Path>) -> Result<Self> {
        Self::open_with(SqliteOptions::new(path.as_ref())).await
    }

    /// Opens or creates a file.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub async fn open_with(options: SqliteOptions) -> Result<Self> {
        options.check_path()?;
        let connect = options.connect_options();
        let pool = || {
            SqlitePoolOptions::new()
                .acquire_timeout(options.busy_timeout + Duration::from_secs(1))
                .idle_timeout(None)
                .max_lifetime(None)
                // A file does not go away as a server does.
                .test_before_acquire(false)
        };
        let writer = until_not_busy(options.busy_timeout, || {
            pool().max_connections(1).connect_with(connect.clone())
        })
        .await
        .map_err(|error| {
            database("open database", error).with_context("path", options.path.display())
        })?;
        let readers = pool()
            .max_connections(options.readers_max.max(1))
            .connect_lazy_with(connect.clone().create_if_missing(false).pragma("query_only", "on"));
        Ok(Self {
            wake: Arc::new(Wake::new(connect.create_if_missing(false))),
            options: Arc::new(options),
            writer,
            readers,
        })
    }

    /// The database file.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.options.path
    }

    /// Starts a unit of work, and with it SQLite's one write transaction (`begin immediate`): keep
    /// it short, since every other writer and the relay wait for its end.
    ///
    /// # Errors
    /// [`Conflict`](posthaste_core::ErrorKind::Conflict) where another writer does not end within the busy timeout.
    pub async fn begin(&self) -> Result<UnitOfWork<SqliteTransaction>> {
        let transaction = self
            .writer
            .begin_with("begin immediate")
            .await
            .map_err(|error| database("begin unit of work", error))?;
        Ok(UnitOfWork::new(SqliteTransaction::new(transaction, Arc::clone(&self.wake))))
    }

    /// Takes the right to deliver from this file. Every relay takes it before its first fetch.
    ///
    /// # Errors
    /// [`Conflict`](posthaste_core::ErrorKind::Conflict) where another relay has it.
    pub fn try_lock_relay(&self) -> Result<RelayLock> {
        RelayLock::acquire(self.path())
    }

    /// Closes all connections after what runs on them. Every later call fails.
    pub async fn close(&self) {
        self.wake.close().await;
        self.readers.close().await;
        self.writer.close().await;
    }
}

/// Repeats while the database is locked: the switch to WAL, which only one of several processes
/// that create a file makes, fails at once instead of waiting.
async fn until_not_busy<T, F>(
    limit: Duration,
    mut open: impl FnMut() -> F,
) -> Result<T, sqlx::Error>
where
    F: Future<Output = Result<T, sqlx::Error>>,
{
    let start = Instant::now();
    loop {
        match open().await {
            Ok(opened) => return Ok(opened),
            Err(error) if is_busy(&error) && start.elapsed() < limit => {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            Err(error) => return Err(error),
        }
    }
}

impl fmt::Debug for SqliteOutbox {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SqliteOutbox").field("options", &self.options).finish_non_exhaustive()
    }
}
