//! A service under load: transactions that lock accounts, change them and store their events.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use posthaste_core::{OutboxEvent, OutboxTransaction as _};
use posthaste_postgres::{PostgresOptions, PostgresOutbox, PostgresTransaction};
use rand::rngs::SmallRng;
use rand::{RngExt as _, SeedableRng as _};
use serde_json::json;
use tokio::task::JoinHandle;
use uuid::Uuid;

use super::Database;

/// Accounts that late committers alone change: holding others' for seconds would stop everybody.
const LATE_ACCOUNTS: u128 = 8;

/// What is written.
#[derive(Clone)]
pub(crate) struct Plan {
    /// Stops after so many committed events.
    pub(crate) events: u64,
    /// Does not stop before so many, whatever `stop` says.
    pub(crate) events_min: u64,
    /// Accounts: the keys.
    pub(crate) accounts: u128,
    /// Transactions at a time.
    pub(crate) writers: u64,
    /// Between two transactions of a writer.
    pub(crate) pause: Duration,
    /// Set it to stop earlier.
    pub(crate) stop: Arc<AtomicBool>,
    /// The most accounts that a transaction changes.
    pub(crate) accounts_max: u32,
    /// The most events that a transaction stores for each account.
    pub(crate) events_per_account_max: u32,
    /// The share of transactions that change the first account, beside others.
    pub(crate) hot_share: f64,
    /// The share that stores events, and takes them back with a savepoint, before it goes on.
    pub(crate) savepoint_share: f64,
    /// The share whose connection is terminated while it commits.
    pub(crate) terminated_share: f64,
    /// Further writers, whose transactions store some events, stay open for seconds, and store more.
    pub(crate) late_writers: u64,
    /// The type of an event, by its account.
    pub(crate) event_types: [&'static str; 2],
}

impl Plan {
    pub(crate) fn of(events: u64) -> Self {
        Self {
            events,
            events_min: 0,
            accounts: 100,
            writers: 4,
            pause: Duration::ZERO,
            stop: Arc::default(),
            accounts_max: 3,
            events_per_account_max: 1,
            hot_share: 0.0,
            savepoint_share: 0.0,
            terminated_share: 0.0,
            late_writers: 0,
            event_types: ["account.changed"; 2],
        }
    }

    fn is_done(&self, committed: &AtomicU64) -> bool {
        let committed = committed.load(Ordering::Relaxed);
        committed >= self.events
            || self.stop.load(Ordering::Relaxed) && committed >= self.events_min
    }

    fn event_type(&self, account: u128) -> &'static str {
        self.event_types[usize::from(account % 2 == 1)]
    }
}

/// What the service itself knows of its transactions.
#[derive(Default)]
pub(crate) struct Written {
    /// The events of committed transactions, and when each commit had returned.
    pub(crate) committed: Vec<(Uuid, SystemTime)>,
    /// The events that were stored in transactions, or after savepoints, that rolled back.
    pub(crate) rolled_back: Vec<Uuid>,
    /// Transactions that failed, so that their outcome may be unknown.
    pub(crate) failed: u64,
}

impl Written {
    fn add(&mut self, other: Self) {
        self.committed.extend(other.committed);
        self.rolled_back.extend(other.rolled_back);
        self.failed += other.failed;
    }
}

/// The data that the events tell of.
pub(crate) async fn create_accounts(database: &Database, accounts: u128) {
    let rows: Vec<String> = (0..accounts + LATE_ACCOUNTS)
        .map(|account| format!("('{}', 0)", account_id(account)))
        .collect();
    let insert = format!("insert into accounts values {}", rows.join(","));
    let create = "create table accounts (id uuid primary key, version bigint not null)";
    database.run(&format!("{create}; {insert}")).await;
}

pub(crate) fn account_id(account: u128) -> Uuid {
    Uuid::from_u128(account + 1)
}

/// Writes as planned, in the background, on connections of its own.
pub(crate) fn write(database: &Database, plan: &Plan) -> JoinHandle<Written> {
    // One more than transactions, to terminate connections on.
    let connections = plan.writers + plan.late_writers + 1;
    let options = PostgresOptions {
        max_connections: u32::try_from(connections).unwrap(),
        application_name: "a service".into(),
        ..PostgresOptions::from_url(database.url())
    };
    let plan = plan.clone();
    tokio::spawn(async move {
        let outbox = PostgresOutbox::connect(&options).await.unwrap();
        let committed = Arc::new(AtomicU64::new(0));
        let writers: Vec<_> = (0..plan.writers + plan.late_writers)
            .map(|seed| {
                let writer = Writer {
                    outbox: outbox.clone(),
                    plan: plan.clone(),
                    committed: committed.clone(),
                    random: SmallRng::seed_from_u64(seed),
                    is_late: seed >= plan.writers,
                    written: Written::default(),
                };
                tokio::spawn(writer.run())
            })
            .collect();
        let mut written = Written::default();
        for writer in writers {
            written.add(writer.await.unwrap());
        }
        outbox.pool().close().await;
        written
    })
}

struct Writer {
    outbox: PostgresOutbox,
    plan: Plan,
    committed: Arc<AtomicU64>,
    random: SmallRng,
    is_late: bool,
    written: Written,
}

impl Writer {
    async fn run(mut self) -> Written {
        while !self.plan.is_done(&self.committed) {
            let ended =
                if self.is_late { self.late_transaction().await } else { self.transaction().await };
            if ended.is_err() {
                self.written.failed += 1;
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            if !self.plan.pause.is_zero() {
                tokio::time::sleep(self.plan.pause).await;
            }
        }
        self.written
    }

    /// Locks some accounts, changes them, stores the events last; a sixth roll back with their
    /// events stored, and a few stay open for a while before or after that.
    async fn transaction(&mut self) -> posthaste_core::Result<()> {
        let accounts = self.choose_accounts();
        let mut transaction = self.outbox.begin_transaction().await?;
        let events = self.change(&mut transaction, &accounts).await?;
        let pause = Duration::from_millis(self.random.random_range(10..200));
        let pauses_before = self.random.random_bool(0.02);
        let pauses_after = self.random.random_bool(0.02);
        if pauses_before {
            tokio::time::sleep(pause).await;
        }
        if self.random.random_bool(self.plan.savepoint_share) {
            self.store_in_vain(&mut transaction, &accounts).await?;
        }
        transaction.store(&events).await?;
        if pauses_after {
            tokio::time::sleep(pause).await;
        }
        self.end(transaction, &events).await
    }

    /// Stores events early and late, with seconds between, and holds its accounts all the time.
    async fn late_transaction(&mut self) -> posthaste_core::Result<()> {
        let begin = self.plan.accounts;
        let first = begin + self.random.random_range(0..LATE_ACCOUNTS - 1);
        let accounts = [first, first + 1];
        let hold = Duration::from_millis(self.random.random_range(500..3_000));
        let mut transaction = self.outbox.begin_transaction().await?;
        let mut events = self.change(&mut transaction, &accounts).await?;
        transaction.store(&events).await?;
        tokio::time::sleep(hold).await;
        let more = self.change(&mut transaction, &accounts).await?;
        transaction.store(&more).await?;
        events.extend(more);
        self.end(transaction, &events).await
    }

    /// In one order everywhere, so that no two transactions wait for each other.
    fn choose_accounts(&mut self) -> Vec<u128> {
        let count = self.random.random_range(1..=self.plan.accounts_max);
        let mut accounts: Vec<u128> =
            (0..count).map(|_| self.random.random_range(0..self.plan.accounts)).collect();
        if self.random.random_bool(self.plan.hot_share) {
            accounts.push(0);
        }
        accounts.sort_unstable();
        accounts
    }

    /// Changes each account; the events that tell of it are yet to be stored.
    async fn change(
        &mut self,
        transaction: &mut PostgresTransaction,
        accounts: &[u128],
    ) -> posthaste_core::Result<Vec<OutboxEvent>> {
        let mut events = Vec::new();
        for &account in accounts {
            let count = i64::from(self.random.random_range(1..=self.plan.events_per_account_max));
            let last: i64 = sqlx::query_scalar(
                "update accounts set version = version + $2 where id = $1 returning version",
            )
            .bind(account_id(account))
            .bind(count)
            .fetch_one(transaction.connection())
            .await
            .map_err(refused)?;
            for number in last - count + 1..=last {
                let data = json!({ "number": number, "note": "grüße" });
                let event_type = self.plan.event_type(account);
                events.push(OutboxEvent::new(account_id(account), event_type, &data)?);
            }
        }
        Ok(events)
    }

    /// Changes and events that a savepoint takes back, after their numbers were drawn.
    async fn store_in_vain(
        &mut self,
        transaction: &mut PostgresTransaction,
        accounts: &[u128],
    ) -> posthaste_core::Result<()> {
        run(transaction, "savepoint in_vain").await?;
        let events = self.change(transaction, accounts).await?;
        transaction.store(&events).await?;
        self.written.rolled_back.extend(events.iter().map(OutboxEvent::id));
        run(transaction, "rollback to savepoint in_vain").await
    }

    /// Commits, mostly. An error may leave unknown what became of the events.
    async fn end(
        &mut self,
        mut transaction: PostgresTransaction,
        events: &[OutboxEvent],
    ) -> posthaste_core::Result<()> {
        let ids = events.iter().map(OutboxEvent::id);
        if self.random.random_bool(1.0 / 6.0) {
            self.written.rolled_back.extend(ids);
            return transaction.rollback().await;
        }
        if self.random.random_bool(self.plan.terminated_share) {
            let process: i32 = sqlx::query_scalar("select pg_backend_pid()")
                .fetch_one(transaction.connection())
                .await
                .map_err(refused)?;
            let pool = self.outbox.pool().clone();
            // Near the commit in time: which one comes first is left open.
            tokio::spawn(async move {
                let terminate = sqlx::query("select pg_terminate_backend($1)").bind(process);
                let _ = terminate.execute(&pool).await;
            });
            let wait = Duration::from_micros(self.random.random_range(0..3_000));
            tokio::time::sleep(wait).await;
        }
        transaction.commit().await?;
        self.committed.fetch_add(events.len() as u64, Ordering::Relaxed);
        let now = SystemTime::now();
        self.written.committed.extend(ids.map(|id| (id, now)));
        Ok(())
    }
}

async fn run(
    transaction: &mut PostgresTransaction,
    sql: &'static str,
) -> posthaste_core::Result<()> {
    sqlx::raw_sql(sql).execute(transaction.connection()).await.map(drop).map_err(refused)
}

fn refused(error: sqlx::Error) -> posthaste_core::Error {
    let kind = posthaste_core::ErrorKind::Failed;
    posthaste_core::Error::new(kind, "change account", "refused").with_source(error)
}
