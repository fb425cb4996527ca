use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use posthaste_core::{OutboxEvent, OutboxTransaction, Result};
use sqlx::{Sqlite, SqliteConnection, Transaction};

use crate::error::database;
use crate::store::store;
use crate::wake::Wake;

/// An open write transaction of a [`SqliteOutbox`](crate::SqliteOutbox).
pub struct SqliteTransaction {
    transaction: Transaction<'static, Sqlite>,
    wake: Arc<Wake>,
}

impl SqliteTransaction {
    pub(crate) const fn new(transaction: Transaction<'static, Sqlite>, wake: Arc<Wake>) -> Self {
        Self { transaction, wake }
    }
}

#[async_trait]
impl OutboxTransaction for SqliteTransaction {
    type Connection = SqliteConnection;

    fn connection(&mut self) -> &mut SqliteConnection {
        &mut self.transaction
    }

    async fn store(&mut self, events: &[OutboxEvent]) -> Result<()> {
        store(&mut self.transaction, events).await
    }

    async fn commit(self) -> Result<()> {
        let committed = self.transaction.commit().await;
        committed.map_err(|error| database("commit unit of work", error))?;
        self.wake.notify();
        Ok(())
    }

    async fn rollback(self) -> Result<()> {
        let rolled_back = self.transaction.rollback().await;
        rolled_back.map_err(|error| database("roll back unit of work", error))
    }
}

impl fmt::Debug for SqliteTransaction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SqliteTransaction").finish_non_exhaustive()
    }
}
