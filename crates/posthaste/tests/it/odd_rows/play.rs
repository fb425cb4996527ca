//! One seed, from an empty outbox to the verdict.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use posthaste::{OutboxProcessor, ProcessorSettings, RetryPolicy};
use rand::RngExt as _;
use uuid::Uuid;

use super::bus::{KeyedBus, Nature};
use super::checker::{waits_without_a_reason, wrong_with_plain};
use super::database::{Database, Place, Plain};
use super::rows::{ALIVE, Dialect, KEYS, Step, Writer};

/// Any change of a waiting row, by any means, is noticed within ten seconds; the rest is for the
/// machine that is busy with other seeds.
const NOTICED_WITHIN: Duration = Duration::from_secs(20);
/// How late an event may be whose key has nothing odd, however odd its neighbours are. Locks that
/// the seed holds are in it.
const ALIVE_WITHIN: Duration = Duration::from_secs(8);
const STEPS: usize = 90;

pub(crate) async fn play(seed: u64, place: &Place) -> Result<()> {
    let database = place.create(seed).await?;
    let mut writer = Writer::new(seed, database.dialect);
    let bus = KeyedBus::new(natures(&mut writer));
    let relay = OutboxProcessor::builder_shared(database.repository.clone())
        .bus(bus.clone())
        .settings(settings())
        .build()?;
    relay.start().await?;
    let mut story = Story { database: &database, bus, log: Vec::new(), alive: Vec::new() };
    let outcome = story.tell(&mut writer).await;
    let statistics = relay.statistics();
    let report = relay.stop().await;
    let failed = outcome.is_err();
    if failed {
        println!("-- what seed {seed} did:\n{}", story.log.join("\n"));
        println!("-- the relay: {statistics:?}");
    }
    database.remove().await?;
    outcome?;
    if let Some(failure) = report.failure {
        bail!("the relay died: {failure}");
    }
    Ok(())
}

fn settings() -> ProcessorSettings {
    ProcessorSettings {
        batch_size: 20,
        poll_interval: Duration::from_millis(50),
        max_concurrent_events: 16,
        retry_policy: RetryPolicy {
            base_delay: Duration::from_millis(20),
            max_delay: Duration::from_millis(200),
            ..RetryPolicy::default()
        },
        shutdown_timeout: Duration::from_secs(5),
        lease_ttl: Duration::from_secs(2),
        retention: None,
        ..ProcessorSettings::default()
    }
}

fn natures(writer: &mut Writer) -> HashMap<String, Nature> {
    let mut nature = || match writer.random().random_range(0..10) {
        0..5 => Nature::Good,
        5 | 6 => Nature::FailsFirst(writer.random().random_range(1..3)),
        7 => Nature::Slow(Duration::from_millis(writer.random().random_range(1..100))),
        8 => Nature::Poison,
        _ => Nature::Rejected,
    };
    KEYS.iter().map(|key| ((*key).to_owned(), nature())).collect()
}

struct Story<'d> {
    database: &'d Database,
    bus: KeyedBus,
    log: Vec<String>,
    /// Events that nothing may hold back, and when each was stored.
    alive: Vec<(Uuid, Instant)>,
}

impl Story<'_> {
    async fn tell(&mut self, writer: &mut Writer) -> Result<()> {
        let mut plain = self.database.plain().await?;
        let mut lock: Option<(Plain, Instant)> = None;
        for step in 0..STEPS {
            if step % 10 == 0 {
                self.beat(writer, &mut plain, lock.is_some()).await?;
            }
            // SQLite has one writer: nobody else writes while it is locked.
            if let Some((holder, until)) = &mut lock
                && (Instant::now() >= *until || self.database.dialect == Dialect::Sqlite)
            {
                tokio::time::sleep_until((*until).into()).await;
                let end = if writer.random().random_bool(0.5) { "commit" } else { "rollback" };
                holder.run(end).await?;
                lock = None;
            }
            match writer.next() {
                Step::Plain { sql, .. } | Step::Odd(sql) => {
                    // Nobody waits for a lock of ours here: the next step may end it.
                    if lock.is_none() {
                        self.run(&mut plain, &sql).await;
                    }
                }
                Step::Lock { sql, milliseconds } if lock.is_none() => {
                    let mut holder = self.database.plain().await?;
                    self.run(&mut holder, &sql).await;
                    lock = Some((holder, Instant::now() + Duration::from_millis(milliseconds)));
                }
                Step::Lock { .. } => {}
                Step::Pause { milliseconds } => {
                    tokio::time::sleep(Duration::from_millis(milliseconds)).await;
                }
            }
        }
        drop(lock);
        self.check(writer, &mut plain).await
    }

    async fn run(&mut self, plain: &mut Plain, sql: &str) {
        let refused = match plain.run(sql).await {
            Ok(()) => String::new(),
            Err(error) => format!("  -- refused: {error}"),
        };
        self.log.push(format!("{};{refused}", sql.replace('\n', "\\n")));
    }

    /// Stores an event that nothing may hold back.
    async fn beat(&mut self, writer: &mut Writer, plain: &mut Plain, locked: bool) -> Result<()> {
        if let (Step::Plain { id, sql }, false) = (writer.plain(ALIVE), locked) {
            plain.run(&sql).await?;
            self.alive.push((id, Instant::now()));
        }
        Ok(())
    }

    /// Waits until nothing waits without a reason, and tells what still does.
    async fn check(&mut self, writer: &mut Writer, plain: &mut Plain) -> Result<()> {
        let begun = Instant::now();
        let (mut looks, mut pause) = (0, Duration::from_millis(5));
        loop {
            if looks % 4 == 0 {
                self.beat(writer, plain, false).await?;
            }
            looks += 1;
            let rows = plain.rows().await?;
            let wrong = wrong_with_plain(&rows, &self.bus);
            if !wrong.is_empty() {
                bail!("{}", wrong.join("\n"));
            }
            let late = self.late();
            if !late.is_empty() {
                bail!("held back though nothing of their key is odd: {late:?}");
            }
            let waiting = waits_without_a_reason(&rows);
            if waiting.is_empty() && self.all_alive_taken() {
                return Ok(());
            }
            if begun.elapsed() > NOTICED_WITHIN {
                let all: Vec<&str> = rows.iter().map(|row| &*row.text).collect();
                println!("-- what stands there:\n{}", all.join("\n"));
                let texts: Vec<&str> = waiting.iter().map(|row| &*row.text).collect();
                bail!("{} wait without a reason:\n{}", texts.len(), texts.join("\n"));
            }
            tokio::time::sleep(pause).await;
            pause = Duration::from_millis(250).min(pause * 2);
        }
    }

    fn all_alive_taken(&self) -> bool {
        let taken = self.bus.taken();
        self.alive.iter().all(|(id, _)| taken.iter().any(|(other, _)| other == id))
    }

    /// How long each took that took too long.
    fn late(&self) -> Vec<Duration> {
        let taken: HashMap<Uuid, Instant> = self.bus.taken().into_iter().collect();
        let age = |(id, stored): &(Uuid, Instant)| {
            taken.get(id).map_or_else(|| stored.elapsed(), |at| at.duration_since(*stored))
        };
        self.alive.iter().map(age).filter(|age| *age > ALIVE_WITHIN).collect()
    }
}
