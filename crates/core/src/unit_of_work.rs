//! Events collected during a unit of work and stored as the last thing before commit.

use async_trait::async_trait;

use crate::{OutboxEvent, Result};

/// A database transaction that events can be stored in: one binding per database client.
#[async_trait]
pub trait OutboxTransaction: Send + Sized {
    /// What the application runs its own statements on.
    type Connection: ?Sized + Send;

    /// The transaction's connection, for the application's own statements.
    fn connection(&mut self) -> &mut Self::Connection;

    /// Stores all events in one statement, within the transaction.
    async fn store(&mut self, events: &[OutboxEvent]) -> Result<()>;

    /// Commits. After an error of status `Unavailable` the outcome is unknown.
    async fn commit(self) -> Result<()>;

    /// Rolls back; so does dropping.
    async fn rollback(self) -> Result<()>;
}

/// Collects events and stores them with the data: all of them, or, on rollback, none.
///
/// The events go to the database in one statement just before `COMMIT`. By then the transaction
/// holds every row lock of the aggregates it changed, so numbers are drawn in the order in which
/// transactions held the aggregate: that is what makes the order per key right ("append last").
/// Dropping it without a commit rolls back.
#[derive(Debug)]
#[must_use = "dropped without a commit, it rolls back"]
pub struct UnitOfWork<T: OutboxTransaction> {
    transaction: T,
    events: Vec<OutboxEvent>,
}

impl<T: OutboxTransaction> UnitOfWork<T> {
    /// A unit of work over an open transaction.
    pub const fn new(transaction: T) -> Self {
        Self { transaction, events: Vec::new() }
    }

    /// The connection, for the application's own statements.
    pub fn connection(&mut self) -> &mut T::Connection {
        self.transaction.connection()
    }

    /// Adds an event, to be stored at [`commit`](Self::commit) in the order of adding.
    pub fn add_event(&mut self, event: OutboxEvent) {
        self.events.push(event);
    }

    /// The events added so far.
    #[must_use]
    pub fn events(&self) -> &[OutboxEvent] {
        &self.events
    }

    /// Stores the events and commits.
    ///
    /// # Errors
    /// When storing fails, the transaction is rolled back: neither data nor events remain. When
    /// the commit itself fails with status `Unavailable`, the outcome is unknown, for both alike.
    pub async fn commit(mut self) -> Result<()> {
        if !self.events.is_empty()
            && let Err(error) = self.transaction.store(&self.events).await
        {
            // The first error tells the cause; a failed rollback ends with the connection.
            let _ = self.transaction.rollback().await;
            return Err(error);
        }
        self.transaction.commit().await
    }

    /// Rolls back: nothing is stored.
    ///
    /// # Errors
    /// When the connection is lost, the database rolls back by itself.
    pub async fn rollback(self) -> Result<()> {
        self.transaction.rollback().await
    }
}
