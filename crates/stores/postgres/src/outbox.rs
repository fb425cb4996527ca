//! The store: a pool, its settings, and the operations that are no part of a contract.

use std::fmt;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use posthaste_core::{Error, ErrorKind, OutboxEvent, Reminder, Result, UnitOfWork};
use sqlx::{ConnectOptions as _, Connection as _, PgConnection, PgPool};

use crate::damage::Damage;
use crate::error::{failed, is_pool_timeout};
use crate::locks::with_holders;
use crate::options::{PostgresOptions, address, may_use_tls};
use crate::servers::Servers;
use crate::session::{Begin, Session};
use crate::store::{require_transaction, store};
use crate::transaction::PostgresTransaction;
use crate::waker::Waker;
use crate::warm::WarmConnections;

/// How much longer than the server's own limit we wait for its answer, before we take the network
/// for dead.
const ANSWER_GRACE: Duration = Duration::from_secs(5);

/// How long a server is asked why there is no connection.
const ASKED_WITHIN: Duration = Duration::from_secs(1);

/// An outbox in PostgreSQL. Clones share one pool.
///
/// Its tables are those the connection's `search_path` finds. A producer needs the right to insert
/// into `outbox_events` and nothing else. A relay that is not the tables' owner needs `select`,
/// `update` and, to discard events, `delete` on `outbox_events` and `outbox_events_pending`;
/// `select` and `update` on `outbox_signal` and `outbox_shards`; `select`, `insert`, `update` and
/// `delete` on `outbox_relays`; `select` on `outbox_migrations`, `outbox_events_seq`
/// and `outbox_events_processed`. Creating and dropping days of the history is the owner's alone.
#[derive(Clone)]
pub struct PostgresOutbox(Arc<Inner>);

struct Inner {
    pool: PgPool,
    pooler: bool,
    statement_timeout: Duration,
    connect_timeout: Duration,
    address: String,
    /// See `Address::own_user`.
    own_user: Option<String>,
    may_use_tls: bool,
    waker: Waker,
    /// Whether a subscription fills the outbox, as far as is known.
    subscribes: AtomicBool,
    /// Whether the database's encoding was found to lack characters that error texts hold.
    ascii_only: AtomicBool,
    /// What is odd at the start of a relay, and does not keep it from starting.
    oddity: Reminder,
    /// What keeps a relay from joining.
    cannot_join: Reminder,
    /// Places of the table that the server cannot read.
    damage: Damage,
    /// For what a relay does without end.
    warm: Arc<WarmConnections>,
    /// Where one of several servers has to be found, or made sure of.
    servers: Option<Arc<Servers>>,
}

impl PostgresOutbox {
    /// Connects, so that a wrong address, password or database shows at once.
    ///
    /// # Errors
    /// `Config` for a bad URL or a database that does not exist, `Unauthorized`, `Unreachable`.
    pub async fn connect(options: &PostgresOptions) -> Result<Self> {
        const CONNECT: &str = "connect to PostgreSQL";
        let outbox = Self::connect_lazy(options)?;
        outbox
            .bounded(CONNECT, async {
                if let Some(servers) = &outbox.0.servers {
                    servers.find().await?;
                }
                let session = outbox.session(CONNECT).await?;
                session.finish().await
            })
            .await?;
        Ok(outbox)
    }

    /// Opens connections when they are needed: for a relay that starts before its database.
    /// Must be called within a tokio runtime.
    ///
    /// # Errors
    /// `Config` for a bad URL.
    pub fn connect_lazy(options: &PostgresOptions) -> Result<Self> {
        let (options, mut address) = options.read_address()?;
        let pool = options.pool_options();
        if address.must_write {
            let servers = Servers::new(pool, address.servers, options.connect_timeout);
            let pool = servers.pool().clone();
            return Ok(Self::over(pool, &options, Some(Arc::new(servers)), address.own_user));
        }
        // There is one at least.
        let server = address.servers.swap_remove(0);
        Ok(Self::over(pool.connect_lazy_with(server), &options, None, address.own_user))
    }

    /// Uses the application's own pool, with default options. Reading and recording have the pool's own
    /// time limits, a change of hands, migrations and the backlog those of the options.
    ///
    /// A relay has connections beside the pool, too ([`PostgresOptions::max_connections`]); those for
    /// LISTEN and NOTIFY know nothing of the pool's hooks. Of a pool whose connections lead to a pooler in
    /// transaction mode, say so with [`from_pool_with`](Self::from_pool_with): what is set on the
    /// connections of a relay would reach other clients.
    #[must_use]
    pub fn from_pool(pool: PgPool) -> Self {
        Self::from_pool_with(pool, &PostgresOptions::default())
    }

    /// Uses the application's own pool. Of the options, those of the connection are not used.
    #[must_use]
    pub fn from_pool_with(pool: PgPool, options: &PostgresOptions) -> Self {
        Self::over(pool, options, None, None)
    }

    fn over(
        pool: PgPool,
        options: &PostgresOptions,
        servers: Option<Arc<Servers>>,
        own_user: Option<String>,
    ) -> Self {
        let changed = servers.as_ref().map(|servers| servers.last_change()).unwrap_or_default();
        let connect_options = pool.connect_options().as_ref().clone();
        // Through a transaction pooler, LISTEN reports success and never delivers.
        let listens = options.listen && !options.transaction_pooler;
        Self(Arc::new(Inner {
            pooler: options.transaction_pooler,
            statement_timeout: options.statement_timeout,
            connect_timeout: options.connect_timeout,
            address: address(&connect_options),
            own_user,
            may_use_tls: may_use_tls(&connect_options),
            subscribes: AtomicBool::new(false),
            ascii_only: AtomicBool::new(false),
            oddity: Reminder::default(),
            cannot_join: Reminder::default(),
            damage: Damage::default(),
            waker: Waker::new(pool.clone(), options.notify, listens, options.watch_interval),
            warm: Arc::new(WarmConnections::new(pool.clone(), changed)),
            servers,
            pool,
        }))
    }

    pub(crate) fn oddity(&self) -> &Reminder {
        &self.0.oddity
    }

    pub(crate) fn cannot_join(&self) -> &Reminder {
        &self.0.cannot_join
    }

    /// The pool.
    #[must_use]
    pub fn pool(&self) -> &PgPool {
        &self.0.pool
    }

    /// Begins a unit of work: the application's statements, then its events, then the commit.
    ///
    /// # Errors
    /// Those of the connection.
    pub async fn begin(&self) -> Result<UnitOfWork<PostgresTransaction>> {
        Ok(UnitOfWork::new(self.begin_transaction().await?))
    }

    /// Begins a transaction without the collecting of a [`UnitOfWork`].
    ///
    /// # Errors
    /// Those of the connection.
    pub async fn begin_transaction(&self) -> Result<PostgresTransaction> {
        let begun = self.0.pool.begin().await;
        let transaction = begun.map_err(failed("begin")).map_err(|error| self.locate(error))?;
        Ok(PostgresTransaction::new(transaction, self.clone()))
    }

    /// As [`store_events`](crate::store_events), with this outbox's settings: behind a pooler in
    /// transaction mode, without named prepared statements. `connection` must be in a transaction.
    ///
    /// # Errors
    /// As [`store_events`](crate::store_events).
    pub async fn store_in(
        &self,
        connection: &mut PgConnection,
        events: &[OutboxEvent],
    ) -> Result<()> {
        require_transaction(connection).await.map_err(|error| self.locate(error))?;
        store(connection, events, self.0.pooler).await.map_err(|error| self.locate(error))
    }

    /// Tells relays that events were committed: one NOTIFY in the background, shared by commits
    /// that come close together. A hint that costs the caller nothing; call it after a commit of
    /// one's own. Must be called within a tokio runtime.
    pub fn notify(&self) {
        self.0.waker.wake();
    }

    pub(crate) fn is_pooled(&self) -> bool {
        self.0.pooler
    }

    pub(crate) fn may_use_tls(&self) -> bool {
        self.0.may_use_tls
    }

    pub(crate) fn takes_ascii_only(&self) -> bool {
        self.0.ascii_only.load(Ordering::Relaxed)
    }

    pub(crate) fn take_ascii_only(&self) {
        self.0.ascii_only.store(true, Ordering::Relaxed);
    }

    /// Whether a subscription fills the outbox, and did not when this was asked last.
    pub(crate) fn first_hears_of_subscription(&self, subscribes: bool) -> bool {
        !self.0.subscribes.swap(subscribes, Ordering::Relaxed) && subscribes
    }

    pub(crate) fn damage(&self) -> &Damage {
        &self.0.damage
    }

    pub(crate) fn waker(&self) -> &Waker {
        &self.0.waker
    }

    /// What an operation of a statement or two runs on: in autocommit where it can be.
    pub(crate) async fn session(&self, operation: &'static str) -> Result<Session> {
        if self.0.pooler {
            return self.transaction(self.0.statement_timeout, operation).await;
        }
        Session::open(&self.0.pool, operation).await
    }

    /// What a relay does without end, with kept [plans](crate::plans) where it can be.
    pub(crate) async fn warm_session(&self, operation: &'static str) -> Result<Session> {
        if !self.0.pooler
            && let Some(session) = Session::open_warm(&self.0.warm, operation).await?
        {
            return Ok(session);
        }
        self.session_along_indexes(operation).await
    }

    /// For statements that read in order what is pending.
    pub(crate) async fn session_along_indexes(&self, operation: &'static str) -> Result<Session> {
        // Where connections have a limit of their own, it is theirs.
        let limit = self.0.pooler.then_some(self.0.statement_timeout);
        self.begin_session(Begin::within(limit).along_indexes(), operation).await
    }

    /// A transaction in which each statement may take `statement_timeout`; zero for no limit.
    pub(crate) async fn transaction(
        &self,
        statement_timeout: Duration,
        operation: &'static str,
    ) -> Result<Session> {
        self.begin_session(Begin::within(Some(statement_timeout)), operation).await
    }

    /// A transaction that begins so.
    pub(crate) async fn begin_session(
        &self,
        begin: Begin,
        operation: &'static str,
    ) -> Result<Session> {
        Session::begin(&self.0.pool, self.0.pooler, begin, operation).await
    }

    pub(crate) fn statement_timeout(&self) -> Duration {
        self.0.statement_timeout
    }

    /// Adds the server and database to an error. Where there are other servers, one of them may do.
    pub(crate) fn locate(&self, error: Error) -> Error {
        if let Some(servers) = &self.0.servers {
            servers.look_elsewhere(&error);
        }
        let error = match &self.0.own_user {
            Some(user) if error.kind() == ErrorKind::Unauthorized => error
                .with_context("user", format!("{user}, as this process: the address names none")),
            _ => error,
        };
        error.with_context("database", &self.0.address)
    }

    /// Ends an operation that gets no answer: the server enforces its own limit, so silence past
    /// that means that the network is gone.
    pub(crate) async fn bounded<T>(
        &self,
        operation: &'static str,
        work: impl Future<Output = Result<T>> + Send,
    ) -> Result<T> {
        let limit = self.0.statement_timeout;
        let result = if limit.is_zero() {
            work.await
        } else {
            let limit = limit + self.0.connect_timeout + ANSWER_GRACE;
            tokio::time::timeout(limit, work).await.unwrap_or_else(|_| {
                let message = format!("no answer within {} s", limit.as_secs());
                Err(Error::new(ErrorKind::Timeout, operation, message))
            })
        };
        match result {
            Err(error) if is_pool_timeout(&error) => {
                Err(self.locate(self.why_no_connection(operation).await.unwrap_or(error)))
            }
            Err(error) => Err(self.locate(with_holders(self, error).await)),
            done => done,
        }
    }

    /// What the server says to one who asks for a connection now. The pool tries again and again,
    /// and forgets why it could not.
    async fn why_no_connection(&self, operation: &'static str) -> Option<Error> {
        let options = self.0.pool.connect_options();
        match tokio::time::timeout(ASKED_WITHIN, options.connect()).await {
            Ok(Ok(connection)) => {
                let _ = connection.close().await;
                None
            }
            Ok(Err(error)) => Some(failed(operation)(error)),
            Err(_) => None,
        }
    }
}

impl fmt::Debug for PostgresOutbox {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PostgresOutbox")
            .field("database", &self.0.address)
            .field("transaction_pooler", &self.0.pooler)
            .finish_non_exhaustive()
    }
}
