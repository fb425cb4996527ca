//! Tells a relay that there may be new events, whichever process wrote them.

use std::sync::Arc;
use std::time::Duration;

use posthaste_core::Result;
use tokio::sync::{Mutex, watch};

use crate::database_file::DatabaseFile;
use crate::error::database;

/// How often other processes' commits are looked for. The question costs microseconds: the answer
/// is in memory that all connections share.
const POLL_INTERVAL: Duration = Duration::from_millis(50);

const OPERATION: &str = "watch database";

/// Wakes waiters: at once for commits of this process, soon for those of others.
pub(crate) struct Wake {
    file: Arc<DatabaseFile>,
    stores: watch::Sender<u64>,
    seen: Mutex<Seen>,
}

/// What was seen last.
#[derive(Default)]
struct Seen {
    incarnation: i64,
    data_version: Option<i64>,
    signature: Option<(i64, i64)>,
}

impl Wake {
    pub(crate) fn new(file: Arc<DatabaseFile>) -> Self {
        Self { file, stores: watch::Sender::new(0), seen: Mutex::default() }
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

    async fn has_changed(&self) -> Result<bool> {
        let fail = |error| database(OPERATION, error);
        let mut seen = self.seen.lock().await;
        let mut anchor = self.file.confirmed(OPERATION).await?;
        let Some(anchor) = &mut *anchor else { return Ok(false) };
        let incarnation = self.file.incarnation();
        if seen.incarnation != incarnation {
            *seen = Seen { incarnation, ..Seen::default() };
        }
        // Changes with every commit of any other connection, settlements included.
        let data_version: i64 = sqlx::query_scalar("pragma data_version")
            .fetch_one(&mut anchor.connection)
            .await
            .map_err(fail)?;
        if seen.data_version == Some(data_version) {
            return Ok(false);
        }
        let signature = sqlx::query_as::<_, (i64, i64)>(crate::fetch::WATERMARK)
            .fetch_one(&mut anchor.connection)
            .await
            .map_err(fail)?;
        // Only now: a caller that gives up in between must not lose the change.
        seen.data_version = Some(data_version);
        let changed = seen.signature != Some(signature);
        seen.signature = Some(signature);
        Ok(changed)
    }
}
