//! One operation's hold on the database: a connection, or a transaction where a pooler asks for it.

use std::sync::Arc;
use std::time::Duration;

use posthaste_core::Result;
use sqlx::pool::PoolConnection;
use sqlx::postgres::PgArguments;
use sqlx::query::Query;
use sqlx::{AssertSqlSafe, PgConnection, PgPool, Postgres, SqlSafeStr, Transaction};

use crate::error::failed;
use crate::plans;
use crate::warm::{WarmConnection, WarmConnections};

/// Prepares once per connection, or anew each time where a pooler may switch connections.
///
/// Behind a pooler, sqlx's two messages "parse" and "bind" may only be told apart from other
/// sessions' within a transaction: [`Session`] sees to that.
pub(crate) fn statement<'q>(
    sql: impl SqlSafeStr,
    pooler: bool,
) -> Query<'q, Postgres, PgArguments> {
    sqlx::query(sql).persistent(!pooler)
}

/// The longest pause between two statements of a transaction, after which the server ends it: a process
/// that stands still there must not hold its locks against everyone else.
const IDLE_TIMEOUT: Duration = Duration::from_secs(5);

/// How a transaction begins: in one round trip, and one message, so that a pooler keeps all of it on
/// one connection.
pub(crate) struct Begin(String);

impl Begin {
    /// With a time limit for each of its statements, zero for none; or the connection's own.
    pub(crate) fn within(statement_timeout: Option<Duration>) -> Self {
        // Read committed, whatever the default is: whoever waited for a lock must see what was done
        // under it.
        let mut begin = format!(
            "begin isolation level read committed; \
             set local idle_in_transaction_session_timeout = {}",
            IDLE_TIMEOUT.as_millis()
        );
        if let Some(limit) = statement_timeout {
            begin += &format!("; set local statement_timeout = {}", limit.as_millis());
        }
        Self(begin)
    }

    /// And with [plans along indexes](plans).
    pub(crate) fn along_indexes(self) -> Self {
        Self(format!("{}; {}", self.0, plans::for_transaction()))
    }
}

/// What one operation runs its statements on. Nothing lasts before [`finish`](Self::finish).
pub(crate) struct Session {
    link: Link,
    pooler: bool,
    operation: &'static str,
}

enum Link {
    Direct(PoolConnection<Postgres>),
    Warm(WarmConnection, Arc<WarmConnections>),
    Transaction(Transaction<'static, Postgres>),
}

impl Session {
    /// A connection in autocommit.
    pub(crate) async fn open(pool: &PgPool, operation: &'static str) -> Result<Self> {
        let connection = pool.acquire().await.map_err(failed(operation))?;
        Ok(Self { link: Link::Direct(connection), pooler: false, operation })
    }

    /// A connection in autocommit that is kept, where there is one. Not behind a pooler.
    pub(crate) async fn open_warm(
        connections: &Arc<WarmConnections>,
        operation: &'static str,
    ) -> Result<Option<Self>> {
        let connection = connections.acquire().await.map_err(failed(operation))?;
        Ok(connection.map(|connection| {
            let link = Link::Warm(connection, Arc::clone(connections));
            Self { link, pooler: false, operation }
        }))
    }

    /// A transaction.
    pub(crate) async fn begin(
        pool: &PgPool,
        pooler: bool,
        begin: Begin,
        operation: &'static str,
    ) -> Result<Self> {
        let begun = pool.begin_with(AssertSqlSafe(begin.0)).await;
        let link = Link::Transaction(begun.map_err(failed(operation))?);
        Ok(Self { link, pooler, operation })
    }

    pub(crate) fn connection(&mut self) -> &mut PgConnection {
        match &mut self.link {
            Link::Direct(connection) => connection,
            Link::Warm(warm, _) => &mut warm.connection,
            Link::Transaction(transaction) => transaction,
        }
    }

    pub(crate) fn statement<'q>(&self, sql: impl SqlSafeStr) -> Query<'q, Postgres, PgArguments> {
        statement(sql, self.pooler)
    }

    /// Makes the effects last. Dropping instead rolls a transaction back.
    pub(crate) async fn finish(self) -> Result<()> {
        match self.link {
            Link::Direct(_) => Ok(()),
            Link::Warm(connection, connections) => {
                connections.keep(connection);
                Ok(())
            }
            Link::Transaction(transaction) => {
                transaction.commit().await.map_err(failed(self.operation))
            }
        }
    }
}
