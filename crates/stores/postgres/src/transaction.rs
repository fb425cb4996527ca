//! The binding of [`UnitOfWork`](posthaste_core::UnitOfWork) to sqlx.

use async_trait::async_trait;
use posthaste_core::{OutboxEvent, OutboxTransaction, Result};
use sqlx::{PgConnection, Postgres, Transaction};

use crate::error::failed;
use crate::outbox::PostgresOutbox;
use crate::store::store;

/// An open transaction that events can be stored in. Dropping it rolls back.
pub struct PostgresTransaction {
    transaction: Transaction<'static, Postgres>,
    outbox: PostgresOutbox,
    stored: bool,
}

impl PostgresTransaction {
    pub(crate) const fn new(
        transaction: Transaction<'static, Postgres>,
        outbox: PostgresOutbox,
    ) -> Self {
        Self { transaction, outbox, stored: false }
    }
}

#[async_trait]
impl OutboxTransaction for PostgresTransaction {
    type Connection = PgConnection;

    fn connection(&mut self) -> &mut PgConnection {
        &mut self.transaction
    }

    async fn store(&mut self, events: &[OutboxEvent]) -> Result<()> {
        store(&mut self.transaction, events, self.outbox.is_pooled())
            .await
            .map_err(|error| self.outbox.locate(error))?;
        self.stored |= !events.is_empty();
        Ok(())
    }

    async fn commit(mut self) -> Result<()> {
        if !self.stored {
            // PostgreSQL ends a transaction in which a statement failed by a rollback, whatever it
            // is asked to do, and calls that a success. Storing events would have met the failure.
            let alive = sqlx::raw_sql("select 1").execute(&mut *self.transaction).await;
            alive.map_err(failed("commit")).map_err(|error| self.outbox.locate(error))?;
        }
        let result = self.transaction.commit().await.map_err(failed("commit"));
        if self.stored && result.is_ok() {
            self.outbox.notify();
        }
        result.map_err(|error| self.outbox.locate(error))
    }

    async fn rollback(self) -> Result<()> {
        let result = self.transaction.rollback().await.map_err(failed("roll back"));
        result.map_err(|error| self.outbox.locate(error))
    }
}

impl std::fmt::Debug for PostgresTransaction {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PostgresTransaction").field("stored", &self.stored).finish_non_exhaustive()
    }
}
