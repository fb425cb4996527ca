use std::fmt;
use std::future::Future;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

use posthaste_core::{Claim, Result, UnitOfWork};
use sqlx::pool::PoolConnection;
use sqlx::sqlite::SqlitePoolOptions;
use sqlx::{Connection, Sqlite, SqlitePool, Transaction};

use crate::database_file::{DatabaseFile, second_name};
use crate::error::{database, is_busy};
use crate::relay_lock::RelayLock;
use crate::wake::Wake;
use crate::{SqliteOptions, SqliteTransaction};

/// An outbox in an SQLite file. Clones share its connections.
#[derive(Clone)]
pub struct SqliteOutbox {
    options: Arc<SqliteOptions>,
    /// One connection: SQLite has one writer, and waiting for it here is fair and costs nothing.
    pub(crate) writer: SqlitePool,
    pub(crate) readers: SqlitePool,
    pub(crate) wake: Arc<Wake>,
    file: Arc<DatabaseFile>,
    /// What this process was given of the right to deliver.
    claimed: Arc<Mutex<Weak<RelayLock>>>,
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
        options.create_file()?;
        let fail =
            |error| database("open database", error).with_context("path", options.path.display());
        let connect = options.connect_options();
        let file = until_not_busy(options.busy_timeout, || {
            DatabaseFile::open(options.path.clone(), connect.clone())
        });
        let file = Arc::new(file.await.map_err(fail)?);
        let pool = |connections| {
            let file = Arc::clone(&file);
            SqlitePoolOptions::new()
                .max_connections(connections)
                .acquire_timeout(options.busy_timeout + Duration::from_secs(1))
                .idle_timeout(None)
                .max_lifetime(None)
                // A file does not go away as a server does.
                .test_before_acquire(false)
                .before_acquire(move |connection, metadata| {
                    // After a commit or rollback that failed (a full disk), the client takes a
                    // transaction for open that SQLite has ended, and begins no other.
                    let usable = !connection.is_in_transaction() && file.is_current(metadata.age);
                    Box::pin(async move { Ok(usable) })
                })
        };
        Ok(Self {
            writer: pool(1).connect_lazy_with(connect.clone()),
            readers: pool(options.readers_max.max(1))
                .connect_lazy_with(connect.pragma("query_only", "on")),
            wake: Arc::new(Wake::new(Arc::clone(&file))),
            file,
            claimed: Arc::default(),
            options: Arc::new(options),
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
        let transaction = self.begin_write("begin unit of work").await?;
        Ok(UnitOfWork::new(SqliteTransaction::new(transaction, Arc::clone(&self.wake))))
    }

    /// A connection for reading from the file that has the name now.
    pub(crate) async fn reader(&self, operation: &'static str) -> Result<PoolConnection<Sqlite>> {
        self.file.confirm(operation).await?;
        self.readers.acquire().await.map_err(|error| database(operation, error))
    }

    /// The connection for writing to the file that has the name now.
    pub(crate) async fn writing(&self, operation: &'static str) -> Result<PoolConnection<Sqlite>> {
        self.file.confirm(operation).await?;
        self.writer.acquire().await.map_err(|error| database(operation, error))
    }

    /// The write transaction of the file that has the name now.
    pub(crate) async fn begin_write(
        &self,
        operation: &'static str,
    ) -> Result<Transaction<'static, Sqlite>> {
        self.file.confirm(operation).await?;
        let begun = self.writer.begin_with("begin immediate").await;
        begun.map_err(|error| database(operation, error))
    }

    /// Takes the right to deliver from this file.
    pub(crate) fn take_claim(&self) -> Result<Claim> {
        let lock = Arc::new(RelayLock::acquire(self.path())?);
        if let Some(danger) = second_name(self.path()) {
            tracing::warn!(path = %self.path().display(), "{danger}");
        }
        *self.claimed.lock().unwrap_or_else(PoisonError::into_inner) = Arc::downgrade(&lock);
        Ok(Claim::new(lock))
    }

    /// That the right to deliver is still this process's, where it was taken.
    pub(crate) fn confirm_claim(&self) -> Result<()> {
        let claimed = self.claimed.lock().unwrap_or_else(PoisonError::into_inner).upgrade();
        if let Some(lock) = claimed
            && lock.confirm()?
        {
            // Somebody may have had it in between.
            self.file.begin_incarnation();
        }
        Ok(())
    }

    /// Counts the incarnations of the database that were noticed.
    pub(crate) fn incarnation(&self) -> i64 {
        self.file.incarnation()
    }

    /// Closes all connections after what runs on them. Every later call fails.
    pub async fn close(&self) {
        self.readers.close().await;
        self.writer.close().await;
        self.file.close().await;
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
