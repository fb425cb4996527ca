//! Telling relays that there is something to read: NOTIFY after the commit, LISTEN on the side; and for
//! writers that send no NOTIFY, a [`Watch`].
//!
//! All are hints, each on a connection of its own. NOTIFY inside the writer's transaction would
//! serialise all commits of the cluster, so it follows the commit, and many commits share one.

use std::convert::Infallible;
use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use sqlx::postgres::{PgListener, PgPoolOptions};
use sqlx::{ConnectOptions, Connection, PgConnection, PgPool};
use tokio::sync::Notify;
use tokio::task::JoinHandle;

use crate::watch::Watch;

/// The channel of NOTIFY; no payload, no session.
pub const NOTIFY_CHANNEL: &str = "outbox_events";

/// NOTIFY writes a commit record like any change; nobody needs to wait for it to reach the disk.
const NOTIFY: &str = "begin; set local synchronous_commit = off; notify outbox_events; commit";

/// Commits within this time share a NOTIFY.
const NOTIFY_PAUSE: Duration = Duration::from_millis(5);
/// A NOTIFY connection that nobody needed for so long is closed.
const NOTIFY_IDLE: Duration = Duration::from_secs(60);
/// What takes longer has failed.
pub(crate) const ANSWER_WITHIN: Duration = Duration::from_secs(10);
/// First and longest wait before LISTEN, or a watch, is tried again.
const RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(10));
/// One that worked so long was in order.
const LASTING: Duration = Duration::from_secs(60);
/// A watch, which keeps the server busy, ends when nobody waits for so long.
const UNAWAITED: Duration = Duration::from_secs(1);

/// Wakes relays here and elsewhere, and is woken by them. Its tasks end with it.
pub(crate) struct Waker {
    pool: PgPool,
    notifies: bool,
    sources: Vec<Source>,
    /// Commits that no NOTIFY has followed yet.
    stored: Arc<Notify>,
    news: Arc<News>,
    tasks: Mutex<Tasks>,
}

#[derive(Default)]
struct Tasks {
    notifier: Option<JoinHandle<()>>,
    /// One for each source.
    hearing: Vec<JoinHandle<()>>,
}

/// How news of others are heard.
#[derive(Debug, Clone, Copy)]
enum Source {
    Listen,
    Watch { interval: Duration },
}

impl Waker {
    pub(crate) fn new(
        pool: PgPool,
        notifies: bool,
        listens: bool,
        watch_interval: Option<Duration>,
    ) -> Self {
        let watch = watch_interval.map(|interval| Source::Watch { interval });
        Self {
            pool,
            notifies,
            sources: listens.then_some(Source::Listen).into_iter().chain(watch).collect(),
            stored: Arc::default(),
            news: Arc::default(),
            tasks: Mutex::default(),
        }
    }

    /// Whether it hears of what is stored elsewhere.
    pub(crate) const fn hears(&self) -> bool {
        !self.sources.is_empty()
    }

    /// Says that events were committed. Never waits, never fails.
    pub(crate) fn wake(&self) {
        self.news.announce();
        if !self.notifies {
            return;
        }
        self.stored.notify_one();
        let mut tasks = self.tasks.lock().unwrap_or_else(PoisonError::into_inner);
        // A task lives as long as the runtime it was spawned on, which may be shorter than ours.
        if tasks.notifier.as_ref().is_none_or(JoinHandle::is_finished) {
            let (pool, stored) = (self.pool.clone(), Arc::clone(&self.stored));
            tasks.notifier = Some(tokio::spawn(notify_after_commits(pool, stored)));
        }
    }

    /// Completes when there may be news: also what came between two calls.
    pub(crate) async fn wait(&self) {
        self.hear_of_others();
        self.news.wait().await;
    }

    fn hear_of_others(&self) {
        let mut tasks = self.tasks.lock().unwrap_or_else(PoisonError::into_inner);
        // Their runtime may have ended before us, or a watch because nobody waited.
        if tasks.hearing.is_empty() || tasks.hearing.iter().any(JoinHandle::is_finished) {
            tasks.hearing.drain(..).for_each(|task| task.abort());
            tasks.hearing = self.sources.iter().map(|source| self.hear(*source)).collect();
        }
    }

    fn hear(&self, source: Source) -> JoinHandle<()> {
        let news = Arc::clone(&self.news);
        match source {
            Source::Listen => tokio::spawn(listen(self.pool.clone(), news)),
            Source::Watch { interval } => tokio::spawn(watch(self.pool.clone(), interval, news)),
        }
    }
}

impl Drop for Waker {
    fn drop(&mut self) {
        let tasks = self.tasks.get_mut().unwrap_or_else(PoisonError::into_inner);
        for task in tasks.notifier.iter().chain(&tasks.hearing) {
            task.abort();
        }
    }
}

/// News for those who wait in this process.
#[derive(Default)]
struct News {
    notify: Notify,
    waiting: AtomicUsize,
}

impl News {
    /// Wakes all who wait now, or else the next to come.
    fn announce(&self) {
        if self.is_awaited() {
            self.notify.notify_waiters();
        } else {
            self.notify.notify_one();
        }
    }

    fn is_awaited(&self) -> bool {
        self.waiting.load(Ordering::SeqCst) > 0
    }

    async fn wait(&self) {
        // In this order: whoever is counted is woken by `notify_waiters`.
        let notified = self.notify.notified();
        self.waiting.fetch_add(1, Ordering::SeqCst);
        let _counted = Counted(&self.waiting);
        notified.await;
    }
}

/// Counts down when the waiting ends, also when it is dropped.
struct Counted<'c>(&'c AtomicUsize);

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

async fn notify_after_commits(pool: PgPool, stored: Arc<Notify>) {
    let mut connection: Option<PgConnection> = None;
    loop {
        if tokio::time::timeout(NOTIFY_IDLE, stored.notified()).await.is_err() {
            if let Some(idle) = connection.take() {
                let _ = idle.close().await;
            }
            stored.notified().await;
        }
        let sent = tokio::time::timeout(ANSWER_WITHIN, notify(&pool, connection.take())).await;
        match sent {
            Ok(Ok(live)) => connection = Some(live),
            Ok(Err(error)) => {
                tracing::debug!(%error, "NOTIFY failed; relays find events by themselves")
            }
            Err(_) => tracing::debug!("NOTIFY took too long; relays find events by themselves"),
        }
        tokio::time::sleep(NOTIFY_PAUSE).await;
    }
}

async fn notify(
    pool: &PgPool,
    connection: Option<PgConnection>,
) -> Result<PgConnection, sqlx::Error> {
    let mut connection = match connection {
        Some(connection) => connection,
        None => pool.connect_options().connect().await?,
    };
    sqlx::raw_sql(NOTIFY).execute(&mut connection).await?;
    Ok(connection)
}

async fn listen(pool: PgPool, news: Arc<News>) {
    let mut retry = Retry::new("LISTEN");
    loop {
        let since = Instant::now();
        let Err(error) = listen_while_connected(&pool, &news).await;
        retry.after(since.elapsed(), &error).await;
    }
}

async fn listen_while_connected(pool: &PgPool, news: &News) -> sqlx::Result<Infallible> {
    let mut listener = within(ANSWER_WITHIN, subscribe(pool)).await?;
    // Whatever came while nobody listened.
    news.announce();
    while listener.try_recv().await?.is_some() {
        news.announce();
    }
    Err(sqlx::Error::Io(io::ErrorKind::ConnectionAborted.into()))
}

/// Ends when nobody waits any more.
async fn watch(pool: PgPool, interval: Duration, news: Arc<News>) {
    let mut retry = Retry::new("the watch for events without a NOTIFY");
    loop {
        let since = Instant::now();
        match watch_while_connected(&pool, interval, &news).await {
            Ok(()) | Err(sqlx::Error::PoolClosed) => return,
            Err(error) => retry.after(since.elapsed(), &error).await,
        }
    }
}

async fn watch_while_connected(pool: &PgPool, interval: Duration, news: &News) -> sqlx::Result<()> {
    let mut watch = within(ANSWER_WITHIN, Watch::open(pool, interval)).await?;
    let mut awaited_at = Instant::now();
    loop {
        if news.is_awaited() {
            awaited_at = Instant::now();
        } else if awaited_at.elapsed() > UNAWAITED {
            return Ok(());
        }
        if watch.look().await? {
            news.announce();
            Watch::rest().await;
        }
    }
}

/// What does not answer in time has failed.
pub(crate) async fn within<T>(
    limit: Duration,
    call: impl Future<Output = sqlx::Result<T>>,
) -> sqlx::Result<T> {
    let answer = tokio::time::timeout(limit, call).await;
    answer.unwrap_or_else(|_| Err(sqlx::Error::Io(io::ErrorKind::TimedOut.into())))
}

/// When to connect again.
struct Retry {
    what: &'static str,
    delay: Duration,
    reported: bool,
}

impl Retry {
    fn new(what: &'static str) -> Self {
        Self { what, delay: RETRY.0, reported: false }
    }

    /// Waits, after a connection that lasted so long: the longer, the shorter others did.
    async fn after(&mut self, lasted: Duration, error: &sqlx::Error) {
        if lasted > LASTING {
            *self = Self::new(self.what);
            tracing::debug!(%error, "{} is interrupted", self.what);
        } else if !self.reported {
            self.reported = true;
            tracing::warn!(%error, "{} fails; new events may be found later", self.what);
        }
        tokio::time::sleep(self.delay).await;
        self.delay = (self.delay * 2).min(RETRY.1);
    }
}

async fn subscribe(pool: &PgPool) -> Result<PgListener, sqlx::Error> {
    // A pool of its own, since the listener keeps its connection for ever.
    let own = PgPoolOptions::new()
        .max_connections(1)
        .max_lifetime(None)
        .idle_timeout(None)
        .acquire_timeout(ANSWER_WITHIN)
        // Where the pool leads now.
        .connect_lazy_with(pool.connect_options().as_ref().clone());
    let mut listener = PgListener::connect_with(&own).await?;
    listener.eager_reconnect(false);
    listener.listen(NOTIFY_CHANNEL).await?;
    Ok(listener)
}
