//! Odd rows: whatever stands in the table, nothing else waits for it, and what waits has a reason
//! that shows.
//!
//! Each seed plays against a real database. Rows within and beyond what the columns allow are
//! inserted, edited and locked by plain SQL beside a relay, whose bus answers by key: it takes
//! events, takes them after some failures, never, or refuses them. In the end every event that can
//! be delivered is; everything else is dead with a reason, scheduled, or behind such a one; a key
//! that was left alone was never late. What a seed stores and edits is the same each time, when it
//! meets the relay is not.
//!
//! `cargo xtask odd-rows --seeds N --from S` runs as many as one likes.

mod bus;
mod checker;
mod database;
mod play;
mod rows;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::{Result, ensure};
use futures_util::{StreamExt as _, stream};

use crate::common::TestDatabase;
use database::Place;

/// Which seeds, and how many at once.
struct Seeds {
    from: u64,
    count: u64,
    at_once: usize,
}

impl Seeds {
    fn of_environment() -> Self {
        let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse().ok());
        if std::env::var_os("POSTHASTE_ODD_ROWS_TRACE").is_some() {
            let _ = tracing_subscriber::fmt().with_max_level(tracing::Level::INFO).try_init();
        }
        Self {
            from: number("POSTHASTE_ODD_ROWS_SEED").unwrap_or(0),
            count: number("POSTHASTE_ODD_ROWS_SEEDS").unwrap_or(6),
            at_once: number("POSTHASTE_ODD_ROWS_AT_ONCE").unwrap_or(3) as usize,
        }
    }

    /// Plays them all side by side; fails with what each of those that failed found.
    async fn play(&self, place: &Place) -> Result<()> {
        let failed = Arc::new(AtomicUsize::new(0));
        let seeds = self.from..self.from + self.count;
        stream::iter(seeds)
            .for_each_concurrent(self.at_once, |seed| {
                let failed = Arc::clone(&failed);
                async move {
                    if let Err(why) = play::play(seed, place).await {
                        failed.fetch_add(1, Ordering::Relaxed);
                        println!("seed {seed} on {}: {why:#}\n", place.name());
                    }
                }
            })
            .await;
        let failed = failed.load(Ordering::Relaxed);
        ensure!(failed == 0, "{failed} of {} seeds failed on {}", self.count, place.name());
        println!("{} seeds on {}: none stuck, none silent", self.count, place.name());
        Ok(())
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_odd_row_on_postgres_stops_the_rest_or_waits_without_a_reason() -> Result<()> {
    let Some(database) = TestDatabase::create().await? else { return Ok(()) };
    let place = Place::Postgres { url: database.url().to_owned() };
    let outcome = Seeds::of_environment().play(&place).await;
    database.drop().await?;
    outcome
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_odd_row_on_sqlite_stops_the_rest_or_waits_without_a_reason() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let place = Place::Sqlite { folder: folder.path().to_owned() };
    Seeds::of_environment().play(&place).await
}
