//! Runs every example and checks what it prints.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::process::{Command, Output};

use crate::common::TestDatabase;
use anyhow::{Context as _, Result, ensure};
use posthaste::memory::MemoryBus;
use posthaste::postgres::{PostgresOptions, PostgresOutbox};
use posthaste::{OutboxMigrations as _, OutboxProcessor};
use uuid::Uuid;

/// The program that cargo built of an example, beside the tests; built now where it was not.
fn example(name: &str) -> Result<PathBuf> {
    let test = std::env::current_exe()?;
    let folder = test.ancestors().nth(2).context("tests are in a folder of the target folder")?;
    let program = folder.join("examples").join(name);
    if !program.exists() {
        // Only when this test was asked for by name.
        let arguments = ["build", "--quiet", "--package", "posthaste", "--example", name];
        let built = Command::new(env!("CARGO")).args(arguments).status()?;
        ensure!(built.success(), "example {name} does not build");
    }
    Ok(program)
}

/// Standard output, after a check that the program succeeded.
fn text(output: Output) -> Result<String> {
    let errors = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{}: {errors}", output.status);
    Ok(String::from_utf8(output.stdout)?)
}

#[test]
fn custom_bus_prints_what_it_takes_and_keeps_what_it_refuses() -> Result<()> {
    let printed = text(Command::new(example("custom_bus")?).output()?)?;
    assert_eq!(
        printed,
        "order.placed {\"total\":42}\n\
         order.paid {\"method\":\"card\"}\n\
         delivered: 2\n\
         dead: image.added (print: the body is not text)\n"
    );
    Ok(())
}

#[tokio::test]
async fn unit_of_work_delivers_orders_that_were_stored_and_no_others() -> Result<()> {
    let Some(database) = TestDatabase::create().await? else { return Ok(()) };
    let output =
        Command::new(example("unit_of_work")?).env("DATABASE_URL", database.url()).output()?;
    database.drop().await?;
    assert_eq!(
        text(output)?,
        "book: 201 Created\n\
         lamp: 422 Unprocessable Entity\n\
         chair: 201 Created\n\
         delivered order.placed: 1 book\n\
         delivered order.placed: 4 chair\n"
    );
    Ok(())
}

#[tokio::test]
async fn python_writer_events_that_were_committed_arrive_in_order_and_no_others() -> Result<()> {
    let Some(python) = crate::common::python()? else { return Ok(()) };
    let Some(database) = TestDatabase::create().await? else { return Ok(()) };
    let outbox = PostgresOutbox::connect(&PostgresOptions::from_url(database.url())).await?;
    outbox.migrate().await?;

    let script = crate::common::root().join("examples/python_writer.py");
    let arguments = ["--events", "400", "--seed", "7", "--database-url", database.url()];
    let printed = text(Command::new(python).arg(script).args(arguments).output()?)?;
    let bus = MemoryBus::new();
    let processor = OutboxProcessor::builder(outbox.clone()).bus(bus.clone()).build()?;
    processor.process_events().await?;
    outbox.pool().close().await;
    database.drop().await?;

    let printed: serde_json::Value = serde_json::from_str(&printed)?;
    let committed: BTreeSet<Uuid> = serde_json::from_value(printed["committed"].clone())?;
    let rolled_back = printed["rolled_back"].as_u64().context("a count")? as usize;
    assert!(rolled_back > 0, "the seed rolls some back");
    assert_eq!(committed.len() + rolled_back, 400);
    let delivered: BTreeSet<Uuid> = bus.published().iter().map(|event| event.id()).collect();
    assert_eq!(delivered, committed);
    assert_eq!(bus.published().len(), committed.len(), "each once");
    assert_numbers_ascend(&bus)
}

/// The writer numbers the committed events of each aggregate from 1.
fn assert_numbers_ascend(bus: &MemoryBus) -> Result<()> {
    let mut last: BTreeMap<Uuid, u64> = BTreeMap::new();
    for event in bus.published() {
        let data: serde_json::Value = serde_json::from_slice(event.payload().body())?;
        let number = data["number"].as_u64().context("a number")?;
        let expected = last.get(&event.aggregate_id()).copied().unwrap_or(0) + 1;
        assert_eq!(number, expected, "aggregate {}", event.aggregate_id());
        last.insert(event.aggregate_id(), number);
    }
    Ok(())
}
