//! The SQL in docs/migrating.md does what that page says.

use crate::common::TestDatabase;
use anyhow::{Context as _, Result};
use posthaste::memory::MemoryBus;
use posthaste::postgres::{PostgresOptions, PostgresOutbox};
use posthaste::{ErrorKind, OutboxEvent, OutboxMigrations as _, OutboxProcessor};
use sqlx::{AssertSqlSafe, Row as _};
use uuid::Uuid;

/// The SQL block of the page that holds `words`.
fn sql_of_page(words: &str) -> Result<String> {
    let page = std::fs::read_to_string(crate::common::root().join("docs/migrating.md"))?;
    page.split("```sql\n")
        .skip(1)
        .filter_map(|rest| rest.split("```").next())
        .find(|block| block.contains(words))
        .map(str::to_owned)
        .with_context(|| format!("the page has no SQL with {words:?}"))
}

async fn run(outbox: &PostgresOutbox, sql: impl Into<String>) -> Result<()> {
    sqlx::raw_sql(AssertSqlSafe(sql.into())).execute(outbox.pool()).await?;
    Ok(())
}

/// How many events are delivered, and how many are not.
async fn counts(outbox: &PostgresOutbox) -> Result<(i64, i64)> {
    let counts = "select count(processed_at), count(*) - count(processed_at) from outbox_events";
    let row = sqlx::query(counts).fetch_one(outbox.pool()).await?;
    Ok((row.try_get(0)?, row.try_get(1)?))
}

/// Two delivered rows, two that wait, one that used up its retries.
const OLD_ROWS: &str = "
    insert into outbox_events (aggregate_id, event_type, event_data, processed_at, retry_count)
    select gen_random_uuid(), 'old.' || n, '{}', case when n <= 2 then now() end,
           case when n = 5 then 3 else 0 end
      from generate_series(1, 5) n";

#[tokio::test]
async fn a_hand_written_outbox_is_adopted_and_given_back_with_what_happened_since() -> Result<()> {
    let Some(database) = TestDatabase::create().await? else { return Ok(()) };
    let outbox = PostgresOutbox::connect(&PostgresOptions::from_url(database.url())).await?;
    run(&outbox, sql_of_page("create table outbox_events (")?).await?;
    run(&outbox, OLD_ROWS).await?;
    let refused = outbox.migrate().await.expect_err("it is not ours");
    assert_eq!(refused.kind(), ErrorKind::Schema);

    let adopted = outbox.adopt_table().await?;
    assert_eq!((adopted.pending, adopted.dead, adopted.delivered), (2, 1, 2));
    let bus = MemoryBus::new();
    let processor = OutboxProcessor::builder(outbox.clone()).bus(bus.clone()).build()?;
    assert_eq!(processor.process_events().await?, 2);
    let types: Vec<String> = bus.published().iter().map(|e| e.event_type().to_owned()).collect();
    assert_eq!(types.len(), 2, "the dead letter is not sent unasked: {types:?}");
    let mut work = outbox.begin().await?;
    work.add_event(OutboxEvent::new(Uuid::now_v7(), "new.1", &1)?);
    work.commit().await?;

    run(&outbox, sql_of_page("rename to outbox_events_posthaste")?).await?;
    assert_eq!(counts(&outbox).await?, (4, 2), "one dead letter and the new event wait");
    let again = outbox.adopt_table().await?;
    assert_eq!((again.pending, again.dead, again.delivered), (1, 1, 4));
    outbox.pool().close().await;
    database.drop().await
}

#[tokio::test]
async fn old_delivered_rows_are_deleted_in_chunks_before() -> Result<()> {
    let Some(database) = TestDatabase::create().await? else { return Ok(()) };
    let outbox = PostgresOutbox::connect(&PostgresOptions::from_url(database.url())).await?;
    run(&outbox, sql_of_page("create table outbox_events (")?).await?;
    run(&outbox, OLD_ROWS).await?;
    run(&outbox, sql_of_page("delete from outbox_events")?).await?;
    assert_eq!(counts(&outbox).await?, (0, 3));
    outbox.pool().close().await;
    database.drop().await
}
