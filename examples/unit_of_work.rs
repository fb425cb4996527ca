//! A service that places orders. An order and its event are stored in one transaction, and a
//! processor in the same service delivers the event.
//!
//! Run it with a PostgreSQL database of its own, given by `DATABASE_URL` or the `PG*` variables:
//! `cargo run -p posthaste --example unit_of_work`. It serves on a free port, places three orders
//! with itself, one of which fails, shows what was delivered, and ends.

use std::time::Duration;

use anyhow::{Context as _, Result};
use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::post;
use axum::{Json, Router};
use posthaste::memory::MemoryBus;
use posthaste::postgres::{PostgresOptions, PostgresOutbox};
use posthaste::{OutboxEvent, OutboxMigrations as _, OutboxProcessor};
use serde::{Deserialize, Serialize};
use tokio::net::TcpListener;
use uuid::Uuid;

#[derive(Deserialize, Serialize)]
struct Order {
    item: String,
    quantity: i32,
}

/// What this example is about: the order and its event, both or neither.
async fn store_order(outbox: &PostgresOutbox, order: &Order) -> Result<Uuid> {
    let id = Uuid::now_v7();
    let mut work = outbox.begin().await?;
    // Kept until the commit. However this function ends before it, nothing is stored.
    work.add_event(OutboxEvent::new(id, "order.placed", order)?);
    sqlx::query("insert into orders (id, item, quantity) values ($1, $2, $3)")
        .bind(id)
        .bind(&order.item)
        .bind(order.quantity)
        .execute(work.connection())
        .await?;
    work.commit().await?;
    Ok(id)
}

/// `POST /orders`. There is no broker here, so there is no failure of a broker to handle.
async fn place_order(
    State(outbox): State<PostgresOutbox>,
    Json(order): Json<Order>,
) -> (StatusCode, String) {
    match store_order(&outbox, &order).await {
        Ok(id) => (StatusCode::CREATED, id.to_string()),
        Err(error) => (StatusCode::UNPROCESSABLE_ENTITY, format!("{error:#}")),
    }
}

#[tokio::main]
async fn main() -> Result<()> {
    let options =
        PostgresOptions { url: std::env::var("DATABASE_URL").ok(), ..PostgresOptions::default() };
    let outbox = PostgresOutbox::connect(&options).await?;
    prepare_database(&outbox).await?;

    // A real service has a `NatsBus` here.
    let bus = MemoryBus::new();
    let processor = OutboxProcessor::builder(outbox.clone()).bus(bus.clone()).build()?;
    processor.start().await?;

    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    let routes = Router::new().route("/orders", post(place_order)).with_state(outbox);
    let server = tokio::spawn(async move { axum::serve(listener, routes).await });

    let url = format!("http://{address}/orders");
    for (item, quantity) in [("book", 1), ("lamp", 0), ("chair", 4)] {
        let order = Order { item: item.into(), quantity };
        let answer = reqwest::Client::new().post(&url).json(&order).send().await?;
        println!("{item}: {}", answer.status());
    }

    let delivered = wait_for_events(&bus, 2).await.context("wait for deliveries")?;
    for event in delivered {
        let order: Order = serde_json::from_slice(event.payload().body())?;
        println!("delivered {}: {} {}", event.event_type(), order.quantity, order.item);
    }

    // Stops fetching, waits for acknowledgements, leaves the rest pending.
    processor.stop().await;
    server.abort();
    Ok(())
}

async fn prepare_database(outbox: &PostgresOutbox) -> Result<()> {
    outbox.migrate().await?;
    sqlx::query(
        "create table if not exists orders (
             id uuid primary key,
             item text not null,
             quantity integer not null check (quantity > 0)
         )",
    )
    .execute(outbox.pool())
    .await?;
    Ok(())
}

/// What the bus got, as soon as there are `count` events.
async fn wait_for_events(bus: &MemoryBus, count: usize) -> Result<Vec<OutboxEvent>> {
    tokio::time::timeout(Duration::from_secs(20), async {
        while bus.published().len() < count {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        bus.published()
    })
    .await
    .map_err(|_| anyhow::anyhow!("{} of {count} events came", bus.published().len()))
}
