//! Connections kept for what a relay does without end: reading and recording.
//!
//! sqlx's pool asks the server for a sign of life whenever a connection is taken and whenever it
//! comes back: three round trips for a statement that needs one. A connection that has just done its
//! work is alive. And what was set on it and prepared (see `plans`) is there still.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use scopeguard::{ScopeGuard, guard};
use sqlx::pool::PoolConnection;
use sqlx::{AssertSqlSafe, Connection, PgConnection, PgPool, Postgres};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

use crate::plans;
use crate::servers::LastChange;

/// So long after its last statement, a connection is taken to be alive.
const TRUSTED_FOR: Duration = Duration::from_secs(1);
/// A connection that was taken from the pool so long ago is used no more: what the server keeps for a
/// session grows.
const KEPT_FOR: Duration = Duration::from_secs(600);
/// One to read with, and one for each of two statements that record.
const KEPT_MAX: usize = 3;

/// Connections of a pool that are between two statements.
pub(crate) struct WarmConnections {
    pool: PgPool,
    /// For how many there is room. Others need connections of the pool, too.
    places: Arc<Semaphore>,
    kept: Arc<Mutex<Vec<Kept>>>,
    /// What was connected before leads to a server that is no longer the one.
    changed: Arc<LastChange>,
    watch: OnceLock<()>,
}

struct Kept {
    connection: WarmConnection,
    since: Instant,
}

/// A connection, and when it came from the pool. It never goes back, with what is set on it.
pub(crate) struct WarmConnection {
    pub(crate) connection: ScopeGuard<PoolConnection<Postgres>, fn(PoolConnection<Postgres>)>,
    taken_at: Instant,
    _place: OwnedSemaphorePermit,
}

/// At once and without a word: anything else takes a runtime, and there may be none any more.
fn close(connection: PoolConnection<Postgres>) {
    drop(connection.detach());
}

impl WarmConnections {
    pub(crate) fn new(pool: PgPool, changed: Arc<LastChange>) -> Self {
        let others = pool.options().get_max_connections().saturating_sub(1) / 2;
        let max = usize::try_from(others).unwrap_or(KEPT_MAX).min(KEPT_MAX);
        Self {
            pool,
            places: Arc::new(Semaphore::new(max)),
            kept: Arc::default(),
            changed,
            watch: OnceLock::new(),
        }
    }

    /// One that is at hand, or a new one. `None` when as many are in use as there may be.
    pub(crate) async fn acquire(&self) -> sqlx::Result<Option<WarmConnection>> {
        lock(&self.kept).retain(|kept| {
            let age = kept.connection.taken_at.elapsed();
            age < KEPT_FOR && !self.changed.outdates(age)
        });
        // Not within the condition, which would hold the lock for as long as the block.
        let kept = lock(&self.kept).pop();
        if let Some(Kept { mut connection, since }) = kept {
            if since.elapsed() < TRUSTED_FOR || self.is_alive(&mut connection.connection).await {
                return Ok(Some(connection));
            }
            // The others were used before it.
            lock(&self.kept).clear();
        }
        let Ok(place) = Arc::clone(&self.places).try_acquire_owned() else { return Ok(None) };
        let connection = self.pool.acquire().await?;
        let mut connection = guard(connection, close as fn(PoolConnection<Postgres>));
        let settings = AssertSqlSafe(plans::for_session());
        sqlx::raw_sql(settings).execute(&mut **connection).await?;
        Ok(Some(WarmConnection { connection, taken_at: Instant::now(), _place: place }))
    }

    async fn is_alive(&self, connection: &mut PgConnection) -> bool {
        let patience = self.pool.options().get_acquire_timeout();
        tokio::time::timeout(patience, connection.ping()).await.is_ok_and(|answer| answer.is_ok())
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
        if !self.pool.is_closed() {
            kept.push(Kept { connection, since: Instant::now() });
        }
    }
}

fn lock(kept: &Mutex<Vec<Kept>>) -> MutexGuard<'_, Vec<Kept>> {
    kept.lock().unwrap_or_else(PoisonError::into_inner)
}

impl fmt::Debug for WarmConnections {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WarmConnections").finish_non_exhaustive()
    }
}
