//! `outbox-core` with `outbox-postgres`: managers, each of them fetches a batch with `for update skip
//! locked`, publishes one event after the other and marks the batch as sent.

use std::sync::Arc;

use anyhow::Result;
use async_trait::async_trait;
use bytes::Bytes;
use jiff::Timestamp;
use outbox_core::prelude::*;
use outbox_postgres::PostgresOutbox;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use sqlx::postgres::PgPoolOptions;
use tokio::sync::watch;
use uuid::Uuid;

use crate::progress::Progress;
use crate::stream::{Message, Stream};

/// The table has no column for the key, so it goes into the payload.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Body {
    key: Uuid,
    data: Box<RawValue>,
}

/// The crate's own store. It notes no time at which an event was sent, so this does.
struct Watched {
    inner: PostgresOutbox<Body>,
    progress: Arc<Progress>,
}

#[async_trait]
impl OutboxStorage<Body> for Watched {
    async fn fetch_next_to_process(&self, limit: u32) -> Result<Vec<Event<Body>>, OutboxError> {
        self.inner.fetch_next_to_process(limit).await
    }

    async fn update_status(&self, ids: &[EventId], status: EventStatus) -> Result<(), OutboxError> {
        self.inner.update_status(ids, status).await?;
        self.progress
            .add(ids.len())
            .map_err(|error| OutboxError::InfrastructureError(error.to_string()))
    }

    async fn delete_garbage(&self) -> Result<(), OutboxError> {
        self.inner.delete_garbage().await
    }

    async fn wait_for_notification(&self, channel: &str) -> Result<(), OutboxError> {
        self.inner.wait_for_notification(channel).await
    }
}

struct JetStream(Stream);

#[async_trait]
impl Transport<Body> for JetStream {
    /// One event; the manager has no other one under way meanwhile.
    async fn publish(&self, event: Event<Body>) -> Result<(), OutboxError> {
        let body = event.payload.as_value();
        let message = Message {
            id: event.id.as_uuid(),
            key: body.key,
            event_type: event.event_type.as_str().to_owned(),
            created_at: Timestamp::from_nanosecond(event.created_at.unix_timestamp_nanos())
                .unwrap_or_default(),
            body: Bytes::copy_from_slice(body.data.get().as_bytes()),
        };
        let broken = |error: String| OutboxError::BrokerError(error);
        let answer = self.0.send(message).await.map_err(|error| broken(error.to_string()))?;
        answer.await.map_err(|error| broken(error.to_string()))?;
        Ok(())
    }
}

/// Makes its table.
pub(crate) async fn prepare(database: &str) -> Result<()> {
    let pool = PgPoolOptions::new().connect(database).await?;
    sqlx::raw_sql(include_str!("../outbox_core.sql")).execute(&pool).await?;
    pool.close().await;
    Ok(())
}

/// Delivers until it is killed. Several managers are what several processes of it would be.
pub(crate) async fn run(
    database: &str,
    stream: Stream,
    progress: Arc<Progress>,
    managers: u32,
    batch_size: u32,
) -> Result<()> {
    let mut config = OutboxConfig::<Body>::default();
    config.batch_size = batch_size;
    let config = Arc::new(config);
    // Each manager listens on one connection and works on another; ten is the pool's default.
    let pool = PgPoolOptions::new().max_connections(10.max(2 * managers)).connect(database).await?;
    let transport = Arc::new(JetStream(stream));
    let (_stay, shutdown) = watch::channel(false);
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..managers {
        let inner = PostgresOutbox::new(pool.clone(), Arc::clone(&config));
        let manager = OutboxManagerBuilder::new()
            .storage(Arc::new(Watched { inner, progress: Arc::clone(&progress) }))
            .publisher(Arc::clone(&transport))
            .config(Arc::clone(&config))
            .shutdown_rx(shutdown.clone())
            .build()?;
        tasks.spawn(manager.run());
    }
    while let Some(ended) = tasks.join_next().await {
        ended??;
    }
    Ok(())
}
