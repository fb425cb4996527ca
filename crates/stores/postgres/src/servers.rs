//! Which of several servers is the one that takes writes: at the start, and after a failover.
//!
//! libpq tries the hosts of an address in turn for each connection. A pool of the driver's knows one
//! server, so that one is looked for here, and the pool is told.

use std::fmt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use posthaste_core::{Error, ErrorKind, Result};
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sqlx::{ConnectOptions as _, Connection as _, PgPool};

use crate::error::failed;
use crate::options::address;

/// Between two looks.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);
const FIND: &str = "find the server that takes writes";
const READ_ONLY: &str =
    "select pg_is_in_recovery() or current_setting('transaction_read_only')::bool";

/// When the server changed: connections from before lead elsewhere.
#[derive(Debug, Default)]
pub(crate) struct LastChange(Mutex<Option<Instant>>);

impl LastChange {
    /// Whether a connection of this age is from before.
    pub(crate) fn outdates(&self, age: Duration) -> bool {
        let changed = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        changed.is_some_and(|changed| age > changed.elapsed())
    }

    fn is_now(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
    }
}

/// The servers of an address of which one takes writes.
pub(crate) struct Servers {
    pool: PgPool,
    all: Vec<PgConnectOptions>,
    /// Which one the pool leads to.
    current: AtomicUsize,
    patience: Duration,
    changed: Arc<LastChange>,
    /// When one last looked; held while one does.
    looked: tokio::sync::Mutex<Option<Instant>>,
}

impl Servers {
    /// Of these servers, at least one, with a pool that will lead to the right one. Each gets so long to
    /// answer.
    pub(crate) fn new(
        options: PgPoolOptions,
        all: Vec<PgConnectOptions>,
        patience: Duration,
    ) -> Self {
        let changed = Arc::new(LastChange::default());
        let outdated = Arc::clone(&changed);
        let options = options.before_acquire(move |_, connection| {
            let keep = !outdated.outdates(connection.age);
            Box::pin(std::future::ready(Ok(keep)))
        });
        let pool = options.connect_lazy_with(all[0].clone());
        let (current, looked) = (AtomicUsize::new(0), tokio::sync::Mutex::default());
        Self { pool, all, current, patience, changed, looked }
    }

    /// The pool that leads to the right server.
    pub(crate) fn pool(&self) -> &PgPool {
        &self.pool
    }

    /// When that was another one last.
    pub(crate) fn last_change(&self) -> Arc<LastChange> {
        Arc::clone(&self.changed)
    }

    /// Looks for the server in the background, after a failure that another one may not have. Not
    /// more often than once a second, and once at a time.
    pub(crate) fn look_elsewhere(self: &Arc<Self>, error: &Error) {
        let elsewhere = matches!(
            error.kind(),
            ErrorKind::Unreachable | ErrorKind::Timeout | ErrorKind::Conflict
        );
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
        if !elsewhere {
            return;
        }
        let servers = Arc::clone(self);
        runtime.spawn(async move {
            let Ok(mut looked) = servers.looked.try_lock() else { return };
            if looked.is_some_and(|looked| looked.elapsed() < LOOK_INTERVAL) {
                return;
            }
            let found = servers.find().await;
            *looked = Some(Instant::now());
            if let Err(error) = found {
                tracing::debug!(error = error.report(), "no server takes writes");
            }
        });
    }

    /// Finds the server, beginning with the one that was it last, and leads the pool there.
    ///
    /// # Errors
    /// `Unreachable`, with what each of them said.
    pub(crate) async fn find(&self) -> Result<()> {
        let current = self.current.load(Ordering::Relaxed);
        let mut reasons = Vec::new();
        for position in (current..self.all.len()).chain(0..current) {
            let options = &self.all[position];
            let asked = tokio::time::timeout(self.patience, is_read_only(options)).await;
            let why = match asked {
                Ok(Ok(false)) => {
                    if position != current {
                        tracing::info!(
                            server = address(options),
                            "the database has another server"
                        );
                        self.pool.set_connect_options(options.clone());
                        self.changed.is_now();
                        self.current.store(position, Ordering::Relaxed);
                    }
                    return Ok(());
                }
                Ok(Ok(true)) => "takes no writes".to_owned(),
                // A wrong password or name is wrong everywhere, most likely: it is not waited for.
                Ok(Err(error)) if error.kind() != ErrorKind::Unreachable => return Err(error),
                Ok(Err(error)) => error.report(),
                Err(_) => format!("no answer within {} s", self.patience.as_secs()),
            };
            reasons.push(format!("{}: {why}", address(options)));
        }
        Err(Error::new(ErrorKind::Unreachable, FIND, reasons.join("; ")))
    }
}

async fn is_read_only(options: &PgConnectOptions) -> Result<bool> {
    let asked = async {
        let mut connection = options.connect().await?;
        let read_only = sqlx::query_scalar::<_, bool>(READ_ONLY).persistent(false);
        let read_only = read_only.fetch_one(&mut connection).await?;
        connection.close().await?;
        sqlx::Result::Ok(read_only)
    };
    asked.await.map_err(failed(FIND))
}

impl fmt::Debug for Servers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Servers").field("count", &self.all.len()).finish_non_exhaustive()
    }
}
