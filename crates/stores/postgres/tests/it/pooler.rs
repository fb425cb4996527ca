//! Nothing on the hot path is bound to a session: all of it works through a transaction pooler.

use async_trait::async_trait;
use posthaste_core::{ErrorKind, ErrorStatus, OutboxMigrations, OutboxRepository, UnitOfWork};
use posthaste_postgres::{PostgresOptions, PostgresOutbox, PostgresTransaction};
use posthaste_testkit::servers::{PgBouncer, PostgresServer};
use posthaste_testkit::{
    RepositoryHarness, TransactionHarness, repository_suite, transaction_suite,
};
use sqlx::{AssertSqlSafe, ConnectOptions, PgConnection};
use std::collections::HashSet;
use std::time::Duration;
use uuid::Uuid;

use crate::common::{event, pending};

/// Outboxes behind a pooler, each in a database of its own: through a pooler, a session's
/// `search_path` is not its own.
struct Harness {
    server: PostgresServer,
    pooler: PgBouncer,
}

impl Harness {
    async fn start() -> Option<Self> {
        let server = PostgresServer::start(&["max_connections=400"]).await?;
        let pooler = PgBouncer::start(&server).await?;
        Some(Self { server, pooler })
    }

    fn options(&self, database: &str) -> PostgresOptions {
        PostgresOptions {
            transaction_pooler: true,
            notify: false,
            ..PostgresOptions::from_url(self.pooler.url(database))
        }
    }
}

#[async_trait]
impl RepositoryHarness for Harness {
    type Repository = PostgresOutbox;

    async fn fresh(&self) -> anyhow::Result<PostgresOutbox> {
        let name = format!("d{}", Uuid::now_v7().simple());
        let direct: sqlx::postgres::PgConnectOptions = self.server.url("postgres").parse()?;
        let mut connection = direct.connect().await?;
        let create = AssertSqlSafe(format!("create database {name}"));
        sqlx::raw_sql(create).execute(&mut connection).await?;
        let outbox = PostgresOutbox::connect(&self.options(&name)).await?;
        outbox.migrate().await?;
        sqlx::raw_sql("create table app_rows (id uuid primary key)").execute(outbox.pool()).await?;
        Ok(outbox)
    }

    async fn reopen(&self, outbox: &PostgresOutbox) -> anyhow::Result<Option<PostgresOutbox>> {
        let options = outbox.pool().connect_options();
        let database = options.get_database().unwrap_or_default();
        Ok(Some(PostgresOutbox::connect(&self.options(database)).await?))
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
        let insert = sqlx::query("insert into app_rows values ($1)").bind(id).persistent(false);
        insert.execute(connection).await?;
        Ok(())
    }

    async fn has_row(&self, outbox: &PostgresOutbox, id: Uuid) -> anyhow::Result<bool> {
        let mut transaction = outbox.pool().begin().await?;
        let find = sqlx::query("select from app_rows where id = $1").bind(id).persistent(false);
        Ok(find.fetch_optional(&mut *transaction).await?.is_some())
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn both_suites_pass_through_a_transaction_pooler_at_the_same_time() {
    let Some(harness) = Harness::start().await else { return };
    let (repository, transaction) =
        tokio::join!(repository_suite(&harness), transaction_suite(&harness));
    repository.assert_passed();
    transaction.assert_passed();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn more_sessions_than_server_connections_lose_nothing() {
    let Some(harness) = Harness::start().await else { return };
    let outbox = harness.fresh().await.unwrap();
    let database = outbox.pool().connect_options().get_database().unwrap().to_owned();
    let mut work = Vec::new();
    for _ in 0..6 {
        let outbox = PostgresOutbox::connect(&harness.options(&database)).await.unwrap();
        work.push(tokio::spawn(async move {
            let mut delivered = 0;
            for _ in 0..10 {
                let mut unit = outbox.begin().await.unwrap();
                unit.add_event(event(Uuid::now_v7()));
                unit.add_event(event(Uuid::now_v7()));
                unit.commit().await.unwrap();
                outbox.watermark().await.unwrap();
                let settlements: Vec<_> =
                    pending(&outbox).await.iter().take(2).map(crate::common::delivered).collect();
                delivered += outbox.settle(&settlements).await.unwrap();
            }
            delivered
        }));
    }
    let mut delivered = 0;
    for task in work {
        delivered += task.await.unwrap();
    }
    let left = pending(&outbox).await;
    let ids: HashSet<_> = left.iter().map(|found| found.event.id()).collect();
    assert_eq!(ids.len() as u64 + delivered, 120);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_the_setting_the_error_names_it() {
    let Some(harness) = Harness::start().await else { return };
    let options = PostgresOptions::from_url(harness.pooler.url("postgres"));
    let error = PostgresOutbox::connect(&options).await.unwrap_err();
    assert_eq!((error.kind(), error.status()), (ErrorKind::Config, ErrorStatus::Unavailable));
    assert!(error.report().contains("transaction_pooler"), "{}", error.report());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn plain_sql_is_noticed_through_a_pooler() {
    let Some(harness) = Harness::start().await else { return };
    let outbox = harness.fresh().await.unwrap();
    let woken = || tokio::time::timeout(Duration::from_secs(5), outbox.wait_for_events());
    woken().await.expect("the watch begins");
    for _ in 0..3 {
        sqlx::raw_sql(
            "insert into outbox_events (aggregate_id, event_type, event_data) \
             values (gen_random_uuid(), 't', '1')",
        )
        .execute(outbox.pool())
        .await
        .unwrap();
        woken().await.expect("an event");
    }
}
