//! Rows that wait are changed in SQL, by every means and past every trigger, while a relay runs: it notices
//! within ten seconds.

use std::time::Duration;

use crate::common::TestDatabase;
use anyhow::{Result, ensure};
use posthaste::memory::MemoryBus;
use posthaste::postgres::{PostgresOptions, PostgresOutbox};
use posthaste::{Destination, OutboxMigrations as _, OutboxProcessor};
use sqlx::AssertSqlSafe;
use tokio::time::Instant;

const NOTICED_WITHIN: Duration = Duration::from_secs(10);

/// An event of a key; `columns` and `values` are its own.
fn insert(key: &str, event_type: &str, columns: &str, values: &str) -> String {
    format!(
        "insert into outbox_events (aggregate_id, partition_key, event_type, event_data{columns}) \
         values (gen_random_uuid(), '{key}', '{event_type}', '{{\"of\": \"{event_type}\"}}'{values});"
    )
}

fn delayed(key: &str) -> String {
    insert(key, "head", ", available_at", ", now() + interval '1 hour'")
}

fn dead(key: &str) -> String {
    insert(key, "head", ", dead_at, dead_reason", ", now(), 'rejected'")
}

struct Case {
    /// Names the key.
    key: &'static str,
    head: fn(&str) -> String,
    /// What is done to its head.
    change: &'static str,
    /// What is delivered then, in this order.
    expected: &'static [&'static str],
}

const CASES: [Case; 10] = [
    Case {
        key: "due",
        head: delayed,
        change: "update outbox_events set available_at = null where {head}",
        expected: &["head", "next"],
    },
    Case {
        key: "deleted",
        head: delayed,
        change: "delete from outbox_events where {head}",
        expected: &["next"],
    },
    Case {
        key: "delivered by hand",
        head: delayed,
        change: "update outbox_events set processed_at = now() where {head}",
        expected: &["next"],
    },
    Case {
        key: "sooner",
        head: delayed,
        change: "update outbox_events set available_at = now() + interval '1 second' where {head}",
        expected: &["head", "next"],
    },
    Case {
        key: "another key",
        head: delayed,
        change: "update outbox_events set partition_key = 'elsewhere' where {head}",
        expected: &["next"],
    },
    Case {
        key: "mended",
        head: delayed,
        change: "update outbox_events set event_data = '{\"of\": \"mended\"}', available_at = null \
                 where {head}",
        expected: &["mended", "next"],
    },
    Case {
        key: "dead, deleted past triggers",
        head: dead,
        change: "set session_replication_role = replica; delete from outbox_events where {head}",
        expected: &["next"],
    },
    Case {
        key: "dead, revived past triggers",
        head: dead,
        change: "set session_replication_role = replica; \
                 update outbox_events set dead_at = null where {head}",
        expected: &["head", "next"],
    },
    Case {
        key: "dead, of another key",
        head: dead,
        change: "update outbox_events set partition_key = 'nowhere' where {head}",
        expected: &["next"],
    },
    Case {
        key: "at a destination that is down",
        head: |key| insert(key, "head", ", destination", ", 'down'"),
        change: "update outbox_events set destination = null where {head}",
        expected: &["head", "next"],
    },
];

async fn run(outbox: &PostgresOutbox, sql: impl Into<String>) -> Result<()> {
    // A connection of its own: what is set on it is gone with it.
    let mut connection = outbox.pool().acquire().await?.detach();
    sqlx::raw_sql(AssertSqlSafe(sql.into())).execute(&mut connection).await?;
    Ok(())
}

/// Never takes anything, and says so.
struct Down;

#[async_trait::async_trait]
impl posthaste::EventBus for Down {
    fn capabilities(&self) -> posthaste::BusCapabilities {
        posthaste::BusCapabilities::new("down")
    }

    async fn publish(&self, events: &[posthaste::OutboxEvent]) -> Vec<posthaste::PublishResult> {
        let down = || posthaste::Error::new(posthaste::ErrorKind::Unreachable, "publish", "down");
        events.iter().map(|_| Err(down())).collect()
    }
}

/// What was delivered of a key: what each body says it is of.
fn delivered(bus: &MemoryBus, key: &str) -> Vec<String> {
    let of_key = |event: &&posthaste::OutboxEvent| event.order_key().to_string() == key;
    let of = |event: &posthaste::OutboxEvent| {
        let body: serde_json::Value = serde_json::from_slice(event.payload().body()).ok()?;
        Some(body["of"].as_str()?.to_owned())
    };
    bus.published().iter().filter(of_key).filter_map(of).collect()
}

/// An outbox and a relay that runs, to a bus that works and to one that does not.
async fn relay(database: &TestDatabase) -> Result<(PostgresOutbox, MemoryBus, OutboxProcessor)> {
    let outbox = PostgresOutbox::connect(&PostgresOptions::from_url(database.url())).await?;
    outbox.migrate().await?;
    let bus = MemoryBus::new();
    let processor = OutboxProcessor::builder(outbox.clone())
        .destination(Destination::new("up", std::sync::Arc::new(bus.clone())))
        .destination(Destination::new("down", std::sync::Arc::new(Down)))
        .build()?;
    Ok((outbox, bus, processor))
}

#[tokio::test]
async fn whatever_is_changed_of_a_head_that_waits_is_noticed() -> Result<()> {
    let Some(database) = TestDatabase::create().await? else { return Ok(()) };
    let (outbox, bus, processor) = relay(&database).await?;
    for Case { key, head, .. } in &CASES {
        let next = insert(key, "next", "", "");
        run(&outbox, format!("{}{next}", head(key))).await?;
    }
    processor.start().await?;
    tokio::time::sleep(Duration::from_secs(3)).await;
    for Case { key, change, .. } in &CASES {
        ensure!(delivered(&bus, key).is_empty(), "{key} did not wait");
        let head = format!("partition_key = '{key}' and event_type = 'head'");
        run(&outbox, change.replace("{head}", &head)).await?;
    }
    let changed = Instant::now();
    let mut late: Vec<&Case> = CASES.iter().collect();
    while !late.is_empty() && changed.elapsed() < NOTICED_WITHIN {
        late.retain(|case| delivered(&bus, case.key) != case.expected);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let late: Vec<_> = late.iter().map(|case| (case.key, delivered(&bus, case.key))).collect();
    ensure!(late.is_empty(), "unnoticed: {late:?}");
    processor.stop().await;
    database.drop().await
}

#[tokio::test]
async fn an_event_below_what_was_read_is_found() -> Result<()> {
    let Some(database) = TestDatabase::create().await? else { return Ok(()) };
    let (outbox, bus, processor) = relay(&database).await?;
    run(&outbox, "select setval('outbox_events_seq', 1000)").await?;
    run(&outbox, insert("high", "high", "", "")).await?;
    run(&outbox, delayed("waits")).await?;
    processor.start().await?;
    tokio::time::sleep(Duration::from_secs(2)).await;
    for (seq, key) in [(7, "low"), (9, "low"), (500, "waits")] {
        let kind = format!("n{seq}");
        run(&outbox, insert(key, &kind, ", seq", &format!(", {seq}"))).await?;
    }
    let stored = Instant::now();
    let found = || delivered(&bus, "low") == ["n7", "n9"] && delivered(&bus, "waits") == ["n500"];
    while !found() {
        ensure!(stored.elapsed() < 2 * NOTICED_WITHIN, "{:?}", bus.published());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    processor.stop().await;
    database.drop().await
}

/// The dead letter of a key is truncated away with all else, and the next event goes.
#[tokio::test]
async fn a_truncate_frees_what_waited() -> Result<()> {
    let Some(database) = TestDatabase::create().await? else { return Ok(()) };
    let (outbox, bus, processor) = relay(&database).await?;
    run(&outbox, format!("{}{}", dead("dead"), delayed("delayed"))).await?;
    processor.start().await?;
    tokio::time::sleep(Duration::from_secs(2)).await;
    run(&outbox, "truncate outbox_events").await?;
    for key in ["dead", "delayed"] {
        run(&outbox, insert(key, "next", "", "")).await?;
    }
    let truncated = Instant::now();
    while ["dead", "delayed"].iter().any(|key| delivered(&bus, key) != ["next"]) {
        ensure!(truncated.elapsed() < NOTICED_WITHIN, "{:?}", bus.published());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    processor.stop().await;
    database.drop().await
}
