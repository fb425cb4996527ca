//! Telling relays that there is something to read: NOTIFY after the commit, LISTEN on the side; and for
//! writers that send no NOTIFY, a [`Watch`].
//!
//! All are hints, each on a connection of its own. NOTIFY inside the writer's transaction would
//! serialise all commits of the cluster, so it follows the commit, and many commits share one.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use sqlx::postgres::{PgConnectOptions, PgListener, PgPoolOptions};
use sqlx::{ConnectOptions, Connection, PgConnection};
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
/// A NOTIFY or LISTEN that takes longer has failed.
const ANSWER_WITHIN: Duration = Duration::from_secs(10);
/// First and longest wait before LISTEN, or a watch, is tried again.
const HEAR_RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));

/// Wakes relays here and elsewhere, and is woken by them. Its tasks end with it.
pub(crate) struct Waker {
    options: PgConnectOptions,
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
        options: PgConnectOptions,
        notifies: bool,
        listens: bool,
        watch_interval: Option<Duration>,
    ) -> Self {
        let watch = watch_interval.map(|interval| Source::Watch { interval });
        Self {
            options,
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
            let (options, stored) = (self.options.clone(), Arc::clone(&self.stored));
            tasks.notifier = Some(tokio::spawn(notify_after_commits(options, stored)));
        }
    }

    /// Completes when there may be news: also what came between two calls.
    pub(crate) async fn wait(&self) {
        self.hear_of_others();
        self.news.wait().await;
    }

    fn hear_of_others(&self) {
        let mut tasks = self.tasks.lock().unwrap_or_else(PoisonError::into_inner);
        // They end together, with the runtime they were spawned on.
        if tasks.hearing.iter().all(JoinHandle::is_finished) {
            let hear = |source: &Source| {
                tokio::spawn(hear(self.options.clone(), *source, Arc::clone(&self.news)))
            };
            tasks.hearing = self.sources.iter().map(hear).collect();
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
        if self.waiting.load(Ordering::SeqCst) > 0 {
            self.notify.notify_waiters();
        } else {
            self.notify.notify_one();
        }
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

async fn notify_after_commits(options: PgConnectOptions, stored: Arc<Notify>) {
    let mut connection: Option<PgConnection> = None;
    loop {
        if tokio::time::timeout(NOTIFY_IDLE, stored.notified()).await.is_err() {
            if let Some(idle) = connection.take() {
                let _ = idle.close().await;
            }
            stored.notified().await;
        }
        let sent = tokio::time::timeout(ANSWER_WITHIN, notify(&options, connection.take())).await;
        match sent {
            Ok(Ok(live)) => connection = Some(live),
            Ok(Err(error)) => {
                tracing::debug!(%error, "NOTIFY failed; relays find events by polling")
            }
            Err(_) => tracing::debug!("NOTIFY took too long; relays find events by polling"),
        }
        tokio::time::sleep(NOTIFY_PAUSE).await;
    }
}

async fn notify(
    options: &PgConnectOptions,
    connection: Option<PgConnection>,
) -> Result<PgConnection, sqlx::Error> {
    let mut connection = match connection {
        Some(connection) => connection,
        None => options.connect().await?,
    };
    sqlx::raw_sql(NOTIFY).execute(&mut connection).await?;
    Ok(connection)
}

async fn hear(options: PgConnectOptions, source: Source, news: Arc<News>) {
    let mut delay = HEAR_RETRY.0;
    let mut reported = false;
    loop {
        match Ear::open(&options, source).await {
            Ok(mut ear) => {
                delay = HEAR_RETRY.0;
                reported = false;
                // Whatever came while nobody listened.
                news.announce();
                while ear.next().await.is_ok() {
                    news.announce();
                }
                tracing::debug!(?source, "a connection for wake-ups is lost; it is opened again");
            }
            Err(error) => {
                if !reported {
                    tracing::warn!(%error, ?source, "no wake-ups: new events are found later");
                    reported = true;
                }
            }
        }
        tokio::time::sleep(delay).await;
        delay = (delay * 2).min(HEAR_RETRY.1);
    }
}

/// A source that is open.
enum Ear {
    Listen(PgListener),
    Watch(Watch),
}

impl Ear {
    async fn open(options: &PgConnectOptions, source: Source) -> sqlx::Result<Self> {
        Ok(match source {
            Source::Listen => Self::Listen(subscribe(options).await?),
            Source::Watch { interval } => Self::Watch(Watch::open(options, interval).await?),
        })
    }

    /// Completes when there are news, or it is lost.
    async fn next(&mut self) -> sqlx::Result<()> {
        match self {
            Self::Listen(listener) => match listener.try_recv().await? {
                Some(_) => Ok(()),
                None => Err(sqlx::Error::PoolClosed),
            },
            Self::Watch(watch) => watch.next().await,
        }
    }
}

async fn subscribe(options: &PgConnectOptions) -> Result<PgListener, sqlx::Error> {
    // A pool of its own, since the listener keeps its connection for ever.
    let pool = PgPoolOptions::new()
        .max_connections(1)
        .max_lifetime(None)
        .idle_timeout(None)
        .acquire_timeout(ANSWER_WITHIN)
        .connect_lazy_with(options.clone());
    let mut listener = PgListener::connect_with(&pool).await?;
    listener.eager_reconnect(false);
    listener.listen(NOTIFY_CHANNEL).await?;
    Ok(listener)
}
