//! What README.md and docs/operating.md say in SQL is so.

use std::collections::BTreeSet;

use crate::common::TestDatabase;
use anyhow::{Context as _, Result};
use posthaste::memory::MemoryBus;
use posthaste::postgres::{PostgresOptions, PostgresOutbox};
use posthaste::{BusCapabilities, EventBus, OutboxEvent, PublishResult};
use posthaste::{Error, ErrorKind, OutboxMigrations as _, OutboxProcessor};
use sqlx::AssertSqlSafe;

/// The first SQL block of a page that holds `words`.
fn sql_of(page: &str, words: &str) -> Result<String> {
    let text = std::fs::read_to_string(crate::common::root().join(page))?;
    let mut blocks = text.split("```sql\n").skip(1).filter_map(|rest| rest.split("```").next());
    let block = blocks.find(|block| block.contains(words));
    block.map(str::to_owned).with_context(|| format!("{page} has no SQL with {words:?}"))
}

async fn run(outbox: &PostgresOutbox, sql: impl Into<String>) -> Result<()> {
    sqlx::raw_sql(AssertSqlSafe(sql.into())).execute(outbox.pool()).await?;
    Ok(())
}

#[tokio::test]
async fn the_plain_sql_writer_of_the_readme_stores_an_event_that_is_delivered() -> Result<()> {
    let Some(database) = TestDatabase::create().await? else { return Ok(()) };
    let outbox = PostgresOutbox::connect(&PostgresOptions::from_url(database.url())).await?;
    outbox.migrate().await?;
    run(&outbox, "create table orders (id uuid primary key, total integer not null)").await?;
    run(&outbox, sql_of("README.md", "insert into outbox_events")?).await?;
    let bus = MemoryBus::new();
    let processor = OutboxProcessor::builder(outbox.clone()).bus(bus.clone()).build()?;
    assert_eq!(processor.process_events().await?, 1);
    assert_eq!(bus.published()[0].event_type(), "order.placed");
    outbox.pool().close().await;
    database.drop().await
}

#[tokio::test]
async fn the_readme_names_every_column_and_no_other() -> Result<()> {
    let Some(database) = TestDatabase::create().await? else { return Ok(()) };
    let outbox = PostgresOutbox::connect(&PostgresOptions::from_url(database.url())).await?;
    outbox.migrate().await?;
    let columns = "select column_name::text from information_schema.columns \
                   where table_schema = 'public' and table_name = 'outbox_events'";
    let columns: Vec<String> = sqlx::query_scalar(columns).fetch_all(outbox.pool()).await?;
    outbox.pool().close().await;
    database.drop().await?;

    let contract = sql_of("README.md", "outbox_events (\n")?;
    let contract = contract.lines().filter_map(|line| line.strip_prefix("    "));
    let mut named: BTreeSet<String> =
        contract.filter_map(|line| line.split(' ').next()).map(str::to_owned).collect();
    let readme = std::fs::read_to_string(crate::common::root().join("README.md"))?;
    let (_, added) = readme.split_once("| added column |").context("a table of columns")?;
    for line in added.lines().skip(2).take_while(|line| line.starts_with('|')) {
        let cell = line.split('|').nth(1).context("a first cell")?;
        named.extend(cell.split('`').skip(1).step_by(2).map(str::to_owned));
    }
    assert_eq!(named, columns.into_iter().collect());
    Ok(())
}

/// Takes an event only when it is offered for the second time.
#[derive(Default)]
struct RefusesOnce(std::sync::atomic::AtomicBool);

#[async_trait::async_trait]
impl EventBus for RefusesOnce {
    fn capabilities(&self) -> BusCapabilities {
        BusCapabilities::new("refuses once")
    }

    async fn publish(&self, events: &[OutboxEvent]) -> Vec<PublishResult> {
        let refused_before = self.0.swap(true, std::sync::atomic::Ordering::SeqCst);
        let answer = |_| match refused_before {
            true => Ok(()),
            false => Err(Error::new(ErrorKind::Rejected, "publish", "not today")),
        };
        events.iter().map(answer).collect()
    }
}

#[tokio::test]
async fn a_dead_letter_is_revived_by_the_sql_for_operators() -> Result<()> {
    let Some(database) = TestDatabase::create().await? else { return Ok(()) };
    let outbox = PostgresOutbox::connect(&PostgresOptions::from_url(database.url())).await?;
    outbox.migrate().await?;
    let event = OutboxEvent::new(uuid::Uuid::now_v7(), "order.placed", &42)?;
    let mut work = outbox.begin().await?;
    work.add_event(event.clone());
    work.commit().await?;
    let processor = OutboxProcessor::builder(outbox.clone()).bus(RefusesOnce::default()).build()?;
    assert_eq!(processor.process_events().await?, 0);
    assert_eq!(processor.get_failed_events(10).await?.len(), 1);

    let revive = sql_of("docs/operating.md", "set dead_at = null")?;
    run(&outbox, revive.replace("0198c5f2-…", &event.id().to_string())).await?;
    assert_eq!(processor.get_failed_events(10).await?.len(), 0);
    assert_eq!(processor.process_events().await?, 1);
    outbox.pool().close().await;
    database.drop().await
}
