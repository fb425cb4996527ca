//! Connections kept at hand for what a relay does without end: reading and recording.
//!
//! sqlx's pool asks the server for a sign of life whenever a connection is taken and whenever it
//! comes back: three round trips for a statement that needs one. A connection that has just done its
//! work is alive.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use sqlx::pool::PoolConnection;
use sqlx::{PgPool, Postgres};

/// So long after its last statement, a connection is taken to be alive.
const TRUSTED_FOR: Duration = Duration::from_secs(1);
/// So long after it was taken from the pool, a connection goes back, which knows of its age.
const KEPT_FOR: Duration = Duration::from_secs(30);
/// One to read with, and one for each of two statements that record.
const KEPT_MAX: usize = 3;

/// Connections of a pool that are between two statements.
pub(crate) struct WarmConnections {
    pool: PgPool,
    /// Others need connections of the pool, too.
    max: usize,
    kept: Arc<Mutex<Vec<Kept>>>,
    watch: OnceLock<()>,
}

struct Kept {
    connection: WarmConnection,
    since: Instant,
}

/// A connection, and when it came from the pool.
pub(crate) struct WarmConnection {
    pub(crate) connection: PoolConnection<Postgres>,
    taken_at: Instant,
}

impl WarmConnections {
    pub(crate) fn new(pool: PgPool) -> Self {
        let others = pool.options().get_max_connections().saturating_sub(1) / 2;
        let max = usize::try_from(others).unwrap_or(KEPT_MAX).min(KEPT_MAX);
        Self { pool, max, kept: Arc::default(), watch: OnceLock::new() }
    }

    /// One that is at hand, or one of the pool.
    pub(crate) async fn acquire(&self) -> sqlx::Result<WarmConnection> {
        while let Some(Kept { connection, since }) = self.pop() {
            // The others go back to the pool, which looks whether they are alive.
            if since.elapsed() < TRUSTED_FOR && connection.taken_at.elapsed() < KEPT_FOR {
                return Ok(connection);
            }
        }
        let connection = self.pool.acquire().await?;
        Ok(WarmConnection { connection, taken_at: Instant::now() })
    }

    /// Keeps a connection whose last statement was answered.
    pub(crate) fn keep(&self, connection: WarmConnection) {
        // A pool that closes waits for all of its connections.
        self.watch.get_or_init(|| {
            let (closed, kept) = (self.pool.close_event(), Arc::downgrade(&self.kept));
            tokio::spawn(async move {
                closed.await;
                if let Some(kept) = kept.upgrade() {
                    lock(&kept).clear();
                }
            });
        });
        let mut kept = lock(&self.kept);
        if kept.len() < self.max && !self.pool.is_closed() {
            kept.push(Kept { connection, since: Instant::now() });
        }
    }

    fn pop(&self) -> Option<Kept> {
        lock(&self.kept).pop()
    }
}

impl Drop for WarmConnections {
    fn drop(&mut self) {
        // Going back to the pool takes a runtime, and there may be none any more.
        for Kept { connection, .. } in lock(&self.kept).drain(..) {
            drop(connection.connection.detach());
        }
    }
}

fn lock(kept: &Mutex<Vec<Kept>>) -> MutexGuard<'_, Vec<Kept>> {
    kept.lock().unwrap_or_else(PoisonError::into_inner)
}

impl fmt::Debug for WarmConnections {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WarmConnections").field("max", &self.max).finish_non_exhaustive()
    }
}
