//! A service under load: transactions that lock accounts, change them and store their events.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use posthaste_core::{OutboxEvent, OutboxTransaction as _};
use posthaste_postgres::{PostgresOptions, PostgresOutbox};
use rand::rngs::SmallRng;
use rand::{RngExt as _, SeedableRng as _};
use serde_json::json;
use tokio::task::JoinHandle;
use uuid::Uuid;

use super::Database;

/// What is written.
#[derive(Clone)]
pub(crate) struct Plan {
    /// Stops after so many committed events.
    pub(crate) events: u64,
    /// Accounts: the keys.
    pub(crate) accounts: u128,
    /// Transactions at a time.
    pub(crate) writers: u64,
    /// Between two transactions of a writer.
    pub(crate) pause: Duration,
    /// Set it to stop earlier.
    pub(crate) stop: Arc<AtomicBool>,
}

impl Plan {
    pub(crate) fn of(events: u64) -> Self {
        let stop = Arc::default();
        Self { events, accounts: 100, writers: 4, pause: Duration::ZERO, stop }
    }
}

/// What the service itself knows of its transactions.
#[derive(Default)]
pub(crate) struct Written {
    /// The events of committed transactions, and when each commit had returned.
    pub(crate) committed: Vec<(Uuid, SystemTime)>,
    /// The events that were stored in transactions that rolled back.
    pub(crate) rolled_back: Vec<Uuid>,
    /// Transactions that failed, so that their outcome may be unknown.
    pub(crate) failed: u64,
}

/// The data that the events tell of.
pub(crate) async fn create_accounts(database: &Database, accounts: u128) {
    let rows: Vec<String> =
        (0..accounts).map(|account| format!("('{}', 0)", account_id(account))).collect();
    let insert = format!("insert into accounts values {}", rows.join(","));
    let create = "create table accounts (id uuid primary key, version bigint not null)";
    database.run(&format!("{create}; {insert}")).await;
}

fn account_id(account: u128) -> Uuid {
    Uuid::from_u128(account + 1)
}

/// Writes as planned, in the background, on connections of its own.
pub(crate) fn write(database: &Database, plan: &Plan) -> JoinHandle<Written> {
    let options = PostgresOptions {
        max_connections: u32::try_from(plan.writers).unwrap(),
        application_name: "a service".into(),
        ..PostgresOptions::from_url(database.url())
    };
    let plan = plan.clone();
    tokio::spawn(async move {
        let outbox = PostgresOutbox::connect(&options).await.unwrap();
        let committed = Arc::new(AtomicU64::new(0));
        let writers: Vec<_> = (0..plan.writers)
            .map(|seed| {
                let random = SmallRng::seed_from_u64(seed);
                tokio::spawn(one_writer(outbox.clone(), plan.clone(), committed.clone(), random))
            })
            .collect();
        let mut written = Written::default();
        for writer in writers {
            let one = writer.await.unwrap();
            written.committed.extend(one.committed);
            written.rolled_back.extend(one.rolled_back);
            written.failed += one.failed;
        }
        outbox.pool().close().await;
        written
    })
}

async fn one_writer(
    outbox: PostgresOutbox,
    plan: Plan,
    committed: Arc<AtomicU64>,
    mut random: SmallRng,
) -> Written {
    let mut written = Written::default();
    while committed.load(Ordering::Relaxed) < plan.events && !plan.stop.load(Ordering::Relaxed) {
        match transaction(&outbox, &plan, &mut random).await {
            Ok((ids, true)) => {
                committed.fetch_add(ids.len() as u64, Ordering::Relaxed);
                let now = SystemTime::now();
                written.committed.extend(ids.into_iter().map(|id| (id, now)));
            }
            Ok((ids, false)) => written.rolled_back.extend(ids),
            Err(_) => {
                written.failed += 1;
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
        if !plan.pause.is_zero() {
            tokio::time::sleep(plan.pause).await;
        }
    }
    written
}

/// Locks some accounts, changes them, stores the events last; a sixth roll back with their events
/// stored, and a few stay open for a while before or after that. Returns the ids, and whether it
/// committed.
async fn transaction(
    outbox: &PostgresOutbox,
    plan: &Plan,
    random: &mut SmallRng,
) -> posthaste_core::Result<(Vec<Uuid>, bool)> {
    let mut accounts: Vec<u128> = (0..random.random_range(1..=3_u32))
        .map(|_| random.random_range(0..plan.accounts))
        .collect();
    // In one order everywhere, so that no two transactions wait for each other.
    accounts.sort_unstable();
    let mut transaction = outbox.begin_transaction().await?;
    let mut events = Vec::new();
    for account in accounts {
        let number: i64 = sqlx::query_scalar(
            "update accounts set version = version + 1 where id = $1 returning version",
        )
        .bind(account_id(account))
        .fetch_one(transaction.connection())
        .await
        .map_err(|error| {
            let kind = posthaste_core::ErrorKind::Failed;
            posthaste_core::Error::new(kind, "change account", "refused").with_source(error)
        })?;
        let data = json!({ "number": number, "note": "grüße" });
        events.push(OutboxEvent::new(account_id(account), "account.changed", &data)?);
    }
    let pause = Duration::from_millis(random.random_range(10..200));
    let pauses_before = random.random_bool(0.02);
    let pauses_after = random.random_bool(0.02);
    if pauses_before {
        tokio::time::sleep(pause).await;
    }
    transaction.store(&events).await?;
    if pauses_after {
        tokio::time::sleep(pause).await;
    }
    let ids = events.iter().map(OutboxEvent::id).collect();
    let commits = !random.random_bool(1.0 / 6.0);
    if commits {
        transaction.commit().await?;
    } else {
        transaction.rollback().await?;
    }
    Ok((ids, commits))
}
