//! The suites of the testkit pass on SQLite.

use std::sync::Mutex;

use async_trait::async_trait;
use posthaste_core::{OutboxMigrations, UnitOfWork};
use posthaste_sqlite::{SqliteOutbox, SqliteTransaction};
use posthaste_testkit::{
    RepositoryHarness, TransactionHarness, repository_suite, transaction_suite,
};
use sqlx::{Connection, SqliteConnection};
use tempfile::TempDir;
use uuid::Uuid;

#[derive(Default)]
struct Sqlite {
    /// Removed at the end.
    directories: Mutex<Vec<TempDir>>,
}

#[async_trait]
impl RepositoryHarness for Sqlite {
    type Repository = SqliteOutbox;

    async fn fresh(&self) -> anyhow::Result<SqliteOutbox> {
        let directory = tempfile::tempdir()?;
        let outbox = SqliteOutbox::open(directory.path().join("outbox.db")).await?;
        outbox.migrate().await?;
        let mut unit = outbox.begin().await?;
        sqlx::query("create table own_rows (id text)").execute(unit.connection()).await?;
        unit.commit().await?;
        self.directories.lock().unwrap().push(directory);
        Ok(outbox)
    }

    async fn reopen(&self, outbox: &SqliteOutbox) -> anyhow::Result<Option<SqliteOutbox>> {
        outbox.close().await;
        Ok(Some(SqliteOutbox::open(outbox.path()).await?))
    }
}

#[async_trait]
impl TransactionHarness for Sqlite {
    type Transaction = SqliteTransaction;

    async fn begin(&self, outbox: &SqliteOutbox) -> anyhow::Result<UnitOfWork<SqliteTransaction>> {
        Ok(outbox.begin().await?)
    }

    fn concurrent_units(&self) -> bool {
        false
    }

    async fn write_row(&self, connection: &mut SqliteConnection, id: Uuid) -> anyhow::Result<()> {
        let row = sqlx::query("insert into own_rows (id) values (?1)").bind(id.to_string());
        row.execute(connection).await?;
        Ok(())
    }

    async fn has_row(&self, outbox: &SqliteOutbox, id: Uuid) -> anyhow::Result<bool> {
        let url = format!("sqlite://{}", outbox.path().display());
        let mut connection = SqliteConnection::connect(&url).await?;
        let query = "select count(*) > 0 from own_rows where id = ?1";
        Ok(sqlx::query_scalar(query).bind(id.to_string()).fetch_one(&mut connection).await?)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_sqlite_repository_passes() {
    repository_suite(&Sqlite::default()).await.assert_passed();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_sqlite_transaction_passes() {
    transaction_suite(&Sqlite::default()).await.assert_passed();
}
