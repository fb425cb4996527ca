//! How a store's schema comes to be.

use async_trait::async_trait;

use crate::Result;

/// Creates and upgrades a store's schema. Every durable store keeps this.
#[async_trait]
pub trait OutboxMigrations: Send + Sync {
    /// What the database has and what this version wants.
    ///
    /// # Errors
    /// `Unreachable` and the like. An empty or a foreign schema is an answer, not an error.
    async fn migration_status(&self) -> Result<MigrationStatus>;

    /// Applies what is missing and returns it. Safe when several processes start at once: one
    /// applies, the others wait and find nothing to do. Each migration is atomic.
    ///
    /// # Errors
    /// [`ErrorKind::Schema`](crate::ErrorKind::Schema) where the database is newer than this
    /// version, or holds a table of that name which is not ours.
    async fn migrate(&self) -> Result<Vec<Migration>>;

    /// All migrations as SQL, for alembic, Flyway and reviewers. Running it on an empty database
    /// gives what [`migrate`](Self::migrate) gives, bookkeeping included.
    fn migration_sql(&self) -> String;
}

/// One step of a schema.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Migration {
    /// Counts from 1.
    pub version: u32,
    /// What it does, in a few words.
    pub name: &'static str,
}

/// What the database has and what this version wants.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MigrationStatus {
    /// The version of the database; 0 where there is no outbox.
    pub current: u32,
    /// The version this program was built for.
    pub wanted: u32,
    /// What `migrate` would apply.
    pub pending: Vec<Migration>,
    /// Where there is no outbox: other schemas of the database that have one. It may be one of these that
    /// is meant.
    pub elsewhere: Vec<String>,
}

impl MigrationStatus {
    /// Whether the database was migrated by a later version of posthaste.
    #[must_use]
    pub const fn is_newer_than_program(&self) -> bool {
        self.current > self.wanted
    }
}
