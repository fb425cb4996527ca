//! The store keeps the contracts that every store keeps.

use std::time::Duration;

use async_trait::async_trait;
use posthaste_core::{OutboxMigrations, UnitOfWork};
use posthaste_postgres::{PostgresOutbox, PostgresTransaction};
use posthaste_testkit::{
    RepositoryHarness, TransactionHarness, repository_suite, transaction_suite,
};
use sqlx::{PgConnection, PgPool};
use uuid::Uuid;

use crate::common::TestDatabase;

/// Every outbox in a schema of its own: a database of its own costs a checkpoint.
struct Harness(TestDatabase);

impl Harness {
    async fn start() -> Option<Self> {
        TestDatabase::create().await.map(Self)
    }
}

#[async_trait]
impl RepositoryHarness for Harness {
    type Repository = PostgresOutbox;

    async fn fresh(&self) -> anyhow::Result<PostgresOutbox> {
        let schema = format!("outbox_{}", Uuid::now_v7().simple());
        self.0
            .run(&format!(
                "create schema {schema}; create table {schema}.app_rows (id uuid primary key)"
            ))
            .await;
        // The suite crashes no server, so nothing need wait for the disk.
        let options = self
            .0
            .connect_options()
            .options([("search_path", schema.as_str()), ("synchronous_commit", "off")]);
        let outbox = PostgresOutbox::from_pool(PgPool::connect_with(options).await?);
        outbox.migrate().await?;
        Ok(outbox)
    }

    async fn reopen(&self, outbox: &PostgresOutbox) -> anyhow::Result<Option<PostgresOutbox>> {
        let options = outbox.pool().connect_options().as_ref().clone();
        Ok(Some(PostgresOutbox::from_pool(PgPool::connect_with(options).await?)))
    }

    async fn age_delivered(&self, outbox: &PostgresOutbox, by: Duration) -> anyhow::Result<bool> {
        sqlx::query(
            "update outbox_events set processed_at = processed_at - $1 * interval '1 second' \
             where processed_at is not null",
        )
        .bind(by.as_secs_f64())
        .execute(outbox.pool())
        .await?;
        Ok(true)
    }
}

#[async_trait]
impl TransactionHarness for Harness {
    type Transaction = PostgresTransaction;

    async fn begin(
        &self,
        outbox: &PostgresOutbox,
    ) -> anyhow::Result<UnitOfWork<PostgresTransaction>> {
        Ok(outbox.begin().await?)
    }

    async fn write_row(&self, connection: &mut PgConnection, id: Uuid) -> anyhow::Result<()> {
        sqlx::query("insert into app_rows values ($1)").bind(id).execute(connection).await?;
        Ok(())
    }

    async fn has_row(&self, outbox: &PostgresOutbox, id: Uuid) -> anyhow::Result<bool> {
        let found = sqlx::query("select from app_rows where id = $1").bind(id);
        Ok(found.fetch_optional(outbox.pool()).await?.is_some())
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn postgres_keeps_the_contract_of_repositories() {
    let Some(harness) = Harness::start().await else { return };
    repository_suite(&harness).await.assert_passed();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn postgres_keeps_the_contract_of_transactions() {
    let Some(harness) = Harness::start().await else { return };
    transaction_suite(&harness).await.assert_passed();
}
