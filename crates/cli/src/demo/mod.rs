//! `posthaste demo`: a small shop on an embedded outbox, broken on purpose, and a verdict on what
//! came of it.
//!
//! The shop writes orders and events in one transaction; some roll back. The broker is down for a
//! while, fails now and then, loses answers, and refuses one poison event. The relay is killed in
//! the middle. At the end the demo compares the shop's own records with what the broker received.

mod broker;
mod display;
mod relay;
mod shop;
mod verdict;

use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use posthaste_core::{EventFilter, EventState, OutboxAdmin, OutboxMigrations};
use posthaste_sqlite::SqliteOutbox;

use self::broker::Broker;
use self::display::Display;
use self::relay::Relay;
use self::shop::Shop;
use self::verdict::Verdict;
use crate::exit::Hint;
use crate::logs;
use crate::output::Output;

/// Options of `posthaste demo`.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct DemoArgs {
    /// How many orders the shop takes; each stores one to three events.
    #[arg(long, default_value_t = 3_000, value_parser = clap::value_parser!(u32).range(100..=1_000_000))]
    orders: u32,
    /// Customers who order at the same time.
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..=64))]
    writers: u32,
    /// Decides who orders what and what fails; equal seeds make equal shops.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Keeps the database in this folder instead of throwing it away.
    #[arg(long, value_name = "FOLDER")]
    keep: Option<std::path::PathBuf>,
}

/// How long the broker is down.
const OUTAGE: Duration = Duration::from_millis(1_500);
/// How long the demo waits for the end of delivery before it calls what is missing lost.
const PATIENCE: Duration = Duration::from_secs(60);

/// Runs the demo and reports its verdict.
pub(crate) async fn run(args: DemoArgs, output: Output) -> anyhow::Result<ExitCode> {
    // Holds the throwaway folder until the end.
    let mut throwaway = None;
    let folder = match &args.keep {
        Some(folder) => {
            std::fs::create_dir_all(folder)
                .with_context(|| format!("make the folder {}", folder.display()))?;
            folder.as_path()
        }
        None => throwaway.insert(throwaway_folder()?).path(),
    };
    let path = folder.join("posthaste-demo.db");
    anyhow::ensure!(!path.exists(), "{} is there already; remove it first", path.display());
    let outbox = SqliteOutbox::open(&path).await?;
    outbox.migrate().await?;

    let broker = Broker::new(args.seed);
    let shop = Arc::new(Shop::open(outbox.clone(), &args).await?);
    let display = Display::start(Arc::clone(&shop), broker.clone(), args.orders);
    let started = Instant::now();

    display.say("the shop opens; every order is stored together with its events");
    let relay = Relay::start(&outbox, &broker)?;
    let writers = Shop::serve(&shop, &args);

    wait_for(|| shop.progress() * 4 >= u64::from(args.orders)).await;
    display.say("the broker goes down; events wait, and none loses an attempt");
    broker.set_down(true);
    tokio::time::sleep(OUTAGE).await;
    broker.set_down(false);
    display.say("the broker is up again");

    wait_for(|| shop.progress() * 2 >= u64::from(args.orders)).await;
    display.say("the relay is killed in the middle of its work, and another one starts");
    relay.kill();
    let relay = Relay::start(&outbox, &broker)?;

    writers.await.context("a writer of the shop failed")??;
    display.say("the shop closes; the rest is delivered");
    let blocked = wait_for_deliveries(&shop, &broker, &outbox).await?;
    if blocked > 0 {
        display.say("one poison event is a dead letter and holds back its own key only");
        display.say("the operator has the consumer mended and retries it, at its old place");
        broker.accept_poison();
        outbox.retry_events(&EventFilter::in_state(EventState::Dead)).await?;
        wait_for_deliveries(&shop, &broker, &outbox).await?;
    }
    let took = started.elapsed();
    let statistics = relay.stop().await;
    display.finish();

    let verdict = Verdict::reach(&shop, &broker, &outbox, statistics, took).await?;
    output.write(&verdict, || verdict.to_string())?;
    if args.keep.is_some() {
        logs::say(&format!("the database is kept at {}", path.display()));
    }
    Ok(if verdict.is_good() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Among the system's temporary files, or here where there is no room for them.
fn throwaway_folder() -> anyhow::Result<tempfile::TempDir> {
    let made = tempfile::tempdir().or_else(|_| tempfile::tempdir_in("."));
    made.map_err(|error| {
        let hint = "name a folder that can be written to: --keep FOLDER, or TMPDIR".to_owned();
        let message = format!("cannot make a folder for the demo: {error}");
        Hint { message, hint }.into()
    })
}

async fn wait_for(condition: impl Fn() -> bool) {
    while !condition() {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Waits until the broker has everything that is not behind a dead letter, or patience ends.
/// Returns how many dead letters there are.
async fn wait_for_deliveries(
    shop: &Shop,
    broker: &Broker,
    outbox: &SqliteOutbox,
) -> anyhow::Result<u64> {
    let dead = EventFilter::in_state(EventState::Dead);
    let deadline = Instant::now() + PATIENCE;
    let (mut last, mut quiet_since) = (0, Instant::now());
    loop {
        let delivered = broker.distinct_events();
        if delivered >= shop.stored_events() {
            return Ok(0);
        }
        if delivered != last {
            (last, quiet_since) = (delivered, Instant::now());
        }
        let dead_letters = outbox.count_events(&dead, 1_000).await?;
        let at_rest = quiet_since.elapsed() > Duration::from_secs(2);
        if (at_rest && dead_letters > 0) || Instant::now() > deadline {
            return Ok(dead_letters);
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
