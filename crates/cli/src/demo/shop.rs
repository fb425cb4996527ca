//! The application: takes orders, and stores their events in the same transaction.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use posthaste_core::{OutboxEvent, Payload};
use posthaste_sqlite::SqliteOutbox;
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};
use serde_json::json;
use sqlx::Row;
use tokio::task::JoinHandle;
use uuid::Uuid;

use super::DemoArgs;

/// Customers: the aggregates whose events must stay in order.
const CUSTOMERS: u128 = 200;
/// Between two orders of a customer: without it the shop would close during the outage.
const THINKING: Duration = Duration::from_millis(8);
/// The order whose event no consumer can digest comes after this part of all orders.
const POISON_AT: u32 = 3;

/// What the shop itself knows of its business.
pub(super) struct Shop {
    outbox: SqliteOutbox,
    taken: AtomicU64,
    stored_events: AtomicU64,
    rolled_back_orders: AtomicU64,
    rolled_back_events: AtomicU64,
}

impl Shop {
    pub(super) async fn open(outbox: SqliteOutbox, _: &DemoArgs) -> anyhow::Result<Self> {
        let mut unit = outbox.begin().await?;
        sqlx::raw_sql(
            "create table customers (id text primary key, events integer not null);
             create table orders (id text primary key, customer text not null, total integer not null);",
        )
        .execute(unit.connection())
        .await?;
        for customer in 0..CUSTOMERS {
            sqlx::query("insert into customers values (?, 0)")
                .bind(Uuid::from_u128(customer).to_string())
                .execute(unit.connection())
                .await?;
        }
        unit.commit().await?;
        Ok(Self {
            outbox,
            taken: AtomicU64::new(0),
            stored_events: AtomicU64::new(0),
            rolled_back_orders: AtomicU64::new(0),
            rolled_back_events: AtomicU64::new(0),
        })
    }

    /// Takes all orders, several at a time.
    pub(super) fn serve(shop: &Arc<Self>, args: &DemoArgs) -> JoinHandle<anyhow::Result<()>> {
        let shop = Arc::clone(shop);
        let DemoArgs { orders, writers, seed, .. } = args.clone();
        tokio::spawn(async move {
            let mut tasks = tokio::task::JoinSet::new();
            for writer in 0..writers {
                let shop = Arc::clone(&shop);
                tasks.spawn(async move {
                    let mut random = SmallRng::seed_from_u64(seed.wrapping_add(u64::from(writer)));
                    for order in (writer..orders).step_by(writers as usize) {
                        let poison = order == orders / POISON_AT;
                        shop.take_order(&mut random, poison).await?;
                        shop.taken.fetch_add(1, Ordering::Relaxed);
                        tokio::time::sleep(THINKING).await;
                    }
                    anyhow::Ok(())
                });
            }
            while let Some(done) = tasks.join_next().await {
                done??;
            }
            Ok(())
        })
    }

    /// One order: the row, its events, and now and then a change of mind.
    async fn take_order(&self, random: &mut SmallRng, poison: bool) -> anyhow::Result<()> {
        let customer = Uuid::from_u128(random.random_range(0..CUSTOMERS));
        let total: u32 = random.random_range(5..500);
        let events = random.random_range(1..=3_u64);
        let rolls_back = !poison && random.random_bool(0.15);

        let mut unit = self.outbox.begin().await?;
        sqlx::query("insert into orders values (?, ?, ?)")
            .bind(Uuid::now_v7().to_string())
            .bind(customer.to_string())
            .bind(total)
            .execute(unit.connection())
            .await?;
        // The row's own count of its events is what the verdict trusts, not the outbox.
        let last: i64 =
            sqlx::query("update customers set events = events + ? where id = ? returning events")
                .bind(i64::try_from(events)?)
                .bind(customer.to_string())
                .fetch_one(unit.connection())
                .await?
                .get(0);
        for number in (last - i64::try_from(events)? + 1)..=last {
            let event_type = if poison { "order.poisoned" } else { "order.placed" };
            let payload = Payload::json(&json!({ "number": number, "total": total }))?;
            unit.add_event(OutboxEvent::builder(customer, event_type).payload(payload).build()?);
        }
        if rolls_back {
            unit.rollback().await?;
            self.rolled_back_orders.fetch_add(1, Ordering::Relaxed);
            self.rolled_back_events.fetch_add(events, Ordering::Relaxed);
        } else {
            unit.commit().await?;
            self.stored_events.fetch_add(events, Ordering::Relaxed);
        }
        Ok(())
    }

    /// Orders dealt with so far.
    pub(super) fn progress(&self) -> u64 {
        self.taken.load(Ordering::Relaxed)
    }

    pub(super) fn stored_events(&self) -> u64 {
        self.stored_events.load(Ordering::Relaxed)
    }

    pub(super) fn rolled_back_events(&self) -> u64 {
        self.rolled_back_events.load(Ordering::Relaxed)
    }

    pub(super) fn rolled_back_orders(&self) -> u64 {
        self.rolled_back_orders.load(Ordering::Relaxed)
    }

    /// The events of each customer, as the shop's own table counts them.
    pub(super) async fn events_by_customer(&self) -> anyhow::Result<Vec<(Uuid, u64)>> {
        let mut unit = self.outbox.begin().await?;
        let rows =
            sqlx::query("select id, events from customers").fetch_all(unit.connection()).await?;
        unit.rollback().await?;
        rows.iter()
            .map(|row| {
                let id: String = row.get(0);
                let events: i64 = row.get(1);
                Ok((id.parse()?, u64::try_from(events)?))
            })
            .collect()
    }
}
