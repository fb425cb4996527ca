//! Tells a relay that there may be new events, whichever process wrote them.

use std::time::Duration;

use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{ConnectOptions, SqliteConnection};
use tokio::sync::{Mutex, watch};

/// How often other processes' commits are looked for. The question costs microseconds: the answer
/// is in memory that all connections share.
const POLL_INTERVAL: Duration = Duration::from_millis(50);

/// Wakes waiters: at once for commits of this process, soon for those of others.
pub(crate) struct Wake {
    connect: SqliteConnectOptions,
    stores: watch::Sender<u64>,
    watcher: Mutex<Option<Watcher>>,
}

/// The connection that watches the file, and what it saw last.
struct Watcher {
    connection: SqliteConnection,
    data_version: Option<i64>,
    signature: Option<(i64, i64)>,
}

impl Wake {
    pub(crate) fn new(connect: SqliteConnectOptions) -> Self {
        Self { connect, stores: watch::Sender::new(0), watcher: Mutex::new(None) }
    }

    /// This process committed events, or revived some.
    pub(crate) fn notify(&self) {
        self.stores.send_modify(|stores| *stores = stores.wrapping_add(1));
    }

    /// Completes when events were stored or revived since it last completed.
    pub(crate) async fn wait(&self) {
        let mut stores = self.stores.subscribe();
        loop {
            // An error shows in the next fetch, which can report it.
            if self.has_changed().await.unwrap_or(false) {
                return;
            }
            let _ = tokio::time::timeout(POLL_INTERVAL, stores.changed()).await;
        }
    }

    async fn has_changed(&self) -> Result<bool, sqlx::Error> {
        let mut guard = self.watcher.lock().await;
        if guard.is_none() {
            let connection = self.connect.connect().await?;
            *guard = Some(Watcher { connection, data_version: None, signature: None });
        }
        let Some(watcher) = guard.as_mut() else { return Ok(false) };
        let changed = watcher.look().await;
        if changed.is_err() {
            *guard = None;
        }
        changed
    }

    pub(crate) async fn close(&self) {
        if let Some(watcher) = self.watcher.lock().await.take() {
            // Nothing was written on it, so nothing can be lost.
            let _ = sqlx::Connection::close(watcher.connection).await;
        }
    }
}

impl Watcher {
    async fn look(&mut self) -> Result<bool, sqlx::Error> {
        // Changes with every commit of any other connection, settlements included.
        let data_version: i64 =
            sqlx::query_scalar("pragma data_version").fetch_one(&mut self.connection).await?;
        if self.data_version == Some(data_version) {
            return Ok(false);
        }
        let signature = sqlx::query_as::<_, (i64, i64)>(crate::fetch::WATERMARK)
            .fetch_one(&mut self.connection)
            .await?;
        // Only now: a caller that gives up in between must not lose the change.
        self.data_version = Some(data_version);
        let changed = self.signature != Some(signature);
        self.signature = Some(signature);
        Ok(changed)
    }
}
