//! One operation's hold on the database: a connection, or a transaction where a pooler asks for it.

use std::sync::Arc;
use std::time::Duration;

use posthaste_core::Result;
use sqlx::pool::PoolConnection;
use sqlx::postgres::PgArguments;
use sqlx::query::Query;
use sqlx::{AssertSqlSafe, PgConnection, PgPool, Postgres, SqlSafeStr, Transaction};

use crate::error::failed;
use crate::plans::{PlanScope, along_indexes};
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

/// Read committed, whatever the default is: whoever waited for a lock must see what was done under it. One
/// round trip, and one message, so that a pooler keeps all of it on one connection.
fn begin(statement_timeout: Duration) -> String {
    format!(
        "begin isolation level read committed; set local statement_timeout = {}; \
         set local idle_in_transaction_session_timeout = {}",
        statement_timeout.as_millis(),
        IDLE_TIMEOUT.as_millis()
    )
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
    /// A connection in autocommit; behind a pooler, a transaction.
    pub(crate) async fn open(
        pool: &PgPool,
        pooler: bool,
        statement_timeout: Duration,
        operation: &'static str,
    ) -> Result<Self> {
        if pooler {
            return Self::begin(pool, pooler, statement_timeout, operation).await;
        }
        let connection = pool.acquire().await.map_err(failed(operation))?;
        Ok(Self { link: Link::Direct(connection), pooler, operation })
    }

    /// For what is done again and again, with its plans [along indexes](along_indexes): a connection that
    /// is kept for it, or a transaction.
    pub(crate) async fn open_warm(
        connections: &Arc<WarmConnections>,
        pool: &PgPool,
        pooler: bool,
        statement_timeout: Duration,
        operation: &'static str,
    ) -> Result<Self> {
        if !pooler
            && let Some(connection) = connections.acquire().await.map_err(failed(operation))?
        {
            let link = Link::Warm(connection, Arc::clone(connections));
            return Ok(Self { link, pooler, operation });
        }
        Self::begin_along_indexes(pool, pooler, statement_timeout, operation).await
    }

    /// A transaction with a statement timeout of its own (zero for none).
    pub(crate) async fn begin(
        pool: &PgPool,
        pooler: bool,
        statement_timeout: Duration,
        operation: &'static str,
    ) -> Result<Self> {
        let begin = begin(statement_timeout);
        Self::begin_with(pool, pooler, begin, operation).await
    }

    /// The same, with plans along indexes.
    pub(crate) async fn begin_along_indexes(
        pool: &PgPool,
        pooler: bool,
        statement_timeout: Duration,
        operation: &'static str,
    ) -> Result<Self> {
        let plans = along_indexes(PlanScope::Transaction);
        let begin = format!("{}; {plans}", begin(statement_timeout));
        Self::begin_with(pool, pooler, begin, operation).await
    }

    async fn begin_with(
        pool: &PgPool,
        pooler: bool,
        begin: String,
        operation: &'static str,
    ) -> Result<Self> {
        let transaction = pool.begin_with(AssertSqlSafe(begin)).await.map_err(failed(operation))?;
        Ok(Self { link: Link::Transaction(transaction), pooler, operation })
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
