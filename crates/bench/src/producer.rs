//! How an application stores events: each call is a transaction.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::SystemTime;

use anyhow::{Context as _, Result};
use posthaste_core::{OutboxEvent, OutboxTransaction as _, Payload};
use posthaste_postgres::{PostgresOptions, PostgresOutbox};
use serde::Serialize;
use serde_json::value::RawValue;
use sqlx::PgPool;
use sqlx::postgres::PgPoolOptions;
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::process::{ChildStdin, ChildStdout};
use tokio::sync::{mpsc, oneshot};
use uuid::Uuid;

use crate::bed;
use crate::load::{WRITERS, micros};
use crate::rival_tables;
use crate::workload::{EVENT_TYPE, Event};

/// Whose transactions they are.
#[derive(Clone)]
pub(crate) enum Producer {
    /// posthaste's own.
    Outbox(PostgresOutbox),
    /// Of anybody, with a statement that [`rival_tables`] knows.
    Statement { pool: PgPool, insert: &'static str },
    /// Of a rival that has to know what it has stored.
    Rival(Arc<RivalApplication>),
}

impl Producer {
    /// posthaste's own; a wake-up follows each commit where it `notifies`.
    pub(crate) async fn outbox(url: &str, notifies: bool) -> Result<Self> {
        let options = PostgresOptions {
            max_connections: WRITERS,
            application_name: "a service".into(),
            notify: notifies,
            ..PostgresOptions::from_url(url)
        };
        Ok(Self::Outbox(PostgresOutbox::connect(&options).await?))
    }

    pub(crate) async fn statement(url: &str, insert: &'static str) -> Result<Self> {
        let pool = PgPoolOptions::new().max_connections(WRITERS).test_before_acquire(false);
        let pool = pool.connect_with(bed::options(url)?).await?;
        Ok(Self::Statement { pool, insert })
    }

    /// Stores events, and returns when their commit did: microseconds since 1970.
    pub(crate) async fn store(&self, events: Vec<Event>) -> Result<u64> {
        match self {
            Self::Outbox(outbox) => {
                let event = |event: Event| {
                    let builder = OutboxEvent::builder(event.key, EVENT_TYPE).id(event.id);
                    builder.payload(Payload::json_text(event.data)?).build()
                };
                let events = events.into_iter().map(event);
                let events = events.collect::<posthaste_core::Result<Vec<_>>>()?;
                let mut transaction = outbox.begin_transaction().await?;
                transaction.store(&events).await?;
                transaction.commit().await?;
            }
            Self::Statement { pool, insert } => {
                let mut transaction = pool.begin().await?;
                rival_tables::store(&mut transaction, insert, events.into_iter()).await?;
                transaction.commit().await?;
            }
            Self::Rival(application) => return application.store(events).await,
        }
        Ok(micros(SystemTime::now()))
    }

    /// Ends its connections.
    pub(crate) async fn close(self) {
        match self {
            Self::Outbox(outbox) => outbox.pool().close().await,
            Self::Statement { pool, .. } => pool.close().await,
            Self::Rival(_) => {}
        }
    }
}

/// A rival's program that stores events when told so: a line of JSON for each transaction on its standard
/// input, and one on its standard output with the transaction's number and when its commit returned.
pub(crate) struct RivalApplication {
    transactions: mpsc::UnboundedSender<String>,
    open: Arc<Mutex<Open>>,
}

/// Transactions that were asked for.
#[derive(Default)]
struct Open {
    count: u64,
    answers: HashMap<u64, oneshot::Sender<u64>>,
}

#[derive(Serialize)]
struct Transaction {
    number: u64,
    events: Vec<RivalEvent>,
}

#[derive(Serialize)]
struct RivalEvent {
    id: Uuid,
    key: Uuid,
    data: Box<RawValue>,
}

impl RivalApplication {
    pub(crate) fn new(mut input: ChildStdin, output: ChildStdout) -> Arc<Self> {
        let (transactions, mut asked) = mpsc::unbounded_channel::<String>();
        tokio::spawn(async move {
            while let Some(line) = asked.recv().await {
                if input.write_all(line.as_bytes()).await.is_err() {
                    return;
                }
            }
        });
        let open = Arc::<Mutex<Open>>::default();
        let answered = Arc::clone(&open);
        tokio::spawn(async move {
            let mut lines = BufReader::new(output).lines();
            while let Ok(Some(line)) = lines.next_line().await {
                let Some((number, at)) = line.split_once(' ') else { continue };
                let (Ok(number), Ok(at)) = (number.parse::<u64>(), at.parse()) else { continue };
                let answer = answered.lock().ok().and_then(|mut open| open.answers.remove(&number));
                if let Some(answer) = answer {
                    _ = answer.send(at);
                }
            }
            // It has ended: nobody waits any longer.
            if let Ok(mut open) = answered.lock() {
                open.answers.clear();
            }
        });
        Arc::new(Self { transactions, open })
    }

    async fn store(&self, events: Vec<Event>) -> Result<u64> {
        let events = events.into_iter().map(|Event { id, key, data }| {
            Ok(RivalEvent { id, key, data: RawValue::from_string(data)? })
        });
        let events = events.collect::<Result<_>>()?;
        let (answer, answered) = oneshot::channel();
        let number = {
            let mut open = self.open.lock().ok().context("poisoned")?;
            open.count += 1;
            let number = open.count;
            open.answers.insert(number, answer);
            number
        };
        let mut line = serde_json::to_string(&Transaction { number, events })?;
        line.push('\n');
        self.transactions.send(line).ok().context("the rival is gone")?;
        answered.await.context("the rival did not store what it was told to")
    }
}
