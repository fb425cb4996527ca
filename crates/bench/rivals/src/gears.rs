//! The outbox of `cf-gears-toolkit-db`: a sequencer numbers what was stored within each partition, a
//! processor of each partition hands batches to a handler and then moves the partition's cursor.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, Result, ensure};
use async_trait::async_trait;
use bytes::Bytes;
use jiff::Timestamp;
use serde::Deserialize;
use serde_json::value::RawValue;
use sqlx::Connection as _;
use sqlx::postgres::PgConnection;
use tokio::io::{AsyncBufReadExt as _, BufReader};
use toolkit_db::migration_runner::run_migrations_for_testing;
use toolkit_db::outbox::{
    Batch, HandlerResult, LeasedHandler, Outbox, OutboxMessage, OutboxProfile, Partitions, Records,
    WorkerTuning, in_transaction, outbox_migrations,
};
use toolkit_db::{ConnectOpts, Db, connect_db};
use uuid::Uuid;

use crate::Work;
use crate::progress::Progress;
use crate::stream::{Message, PAGE_EVENTS, Stream, Window};

const QUEUE: &str = "events";
const EVENT_TYPE: &str = "account.changed";

/// The application's connections.
const WRITERS: u32 = 24;

/// How fast it is told to be.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Tuning {
    /// Its defaults, and one event under way in each partition, as its handler of single messages
    /// has it.
    Default,
    /// Its profile `high_throughput` with 8 processors, as its own benchmark has it; a batch is under
    /// way together.
    HighThroughput,
    /// The same without pauses, with batches of 1,000.
    Fastest,
    /// Its profile `low_latency`; a batch is under way together.
    LowLatency,
}

impl Tuning {
    pub(crate) fn from_name(name: &str) -> Option<Self> {
        Some(match name {
            "default" => Self::Default,
            "high-throughput" => Self::HighThroughput,
            "fastest" => Self::Fastest,
            "low-latency" => Self::LowLatency,
            _ => return None,
        })
    }
}

/// A message has a number in its partition and no identifier, so that and the key are in its payload.
#[derive(Deserialize)]
struct Body<'p> {
    id: Uuid,
    key: Uuid,
    #[serde(borrow)]
    data: &'p RawValue,
}

/// Publishes batches. The cursor moves after a batch was handled and before the next one of the
/// partition is, which is when events are counted as done.
struct Handler {
    stream: Stream,
    window: usize,
    progress: Arc<Progress>,
    handled: Arc<Mutex<Handled>>,
}

/// By partition, what is handled and of which is not known yet whether the cursor has moved.
#[derive(Default)]
struct Handled {
    events: usize,
    open: HashMap<i64, usize>,
}

#[async_trait]
impl LeasedHandler for Handler {
    async fn handle(&self, batch: &mut Batch<'_>) -> HandlerResult {
        match self.publish(batch).await {
            Ok(()) => HandlerResult::Success,
            Err(error) => HandlerResult::Retry { reason: format!("{error:#}") },
        }
    }
}

impl Handler {
    async fn publish(&self, batch: &mut Batch<'_>) -> Result<()> {
        let count = batch.len();
        let messages = batch.next_chunk(count);
        let Some(partition) = messages.first().map(|message| message.partition_id) else {
            return Ok(());
        };
        if let Some(done) = self.handled.lock().ok().context("poisoned")?.open.remove(&partition) {
            self.progress.add(done)?;
        }
        let mut window = Window::new(&self.stream, self.window);
        for message in messages {
            window.send((), decode(message)?).await?;
        }
        window.rest().await?;
        batch.ack_chunk(u32::try_from(count)?);
        let mut handled = self.handled.lock().ok().context("poisoned")?;
        handled.events += count;
        handled.open.insert(partition, count);
        Ok(())
    }
}

fn decode(message: &OutboxMessage) -> Result<Message> {
    let body: Body<'_> = serde_json::from_slice(&message.payload)?;
    Ok(Message {
        id: body.id,
        key: body.key,
        event_type: message.payload_type.clone(),
        created_at: Timestamp::from_microsecond(message.created_at.timestamp_micros())?,
        body: Bytes::copy_from_slice(body.data.get().as_bytes()),
    })
}

/// Makes its tables and its partitions.
pub(crate) async fn prepare(database: &str, partitions: u16) -> Result<()> {
    let db = connect_db(database, ConnectOpts::default()).await?;
    run_migrations_for_testing(&db, outbox_migrations()).await?;
    let outbox = Outbox::builder(db.clone()).start().await?;
    outbox.outbox().register_queue(&db, QUEUE, partitions).await?;
    outbox.stop().await;
    Ok(())
}

/// Delivers until it is killed.
pub(crate) async fn run(
    database: &str,
    stream: Stream,
    progress: Arc<Progress>,
    work: Work,
    partitions: u16,
    tuning: Tuning,
) -> Result<()> {
    let processors = if tuning == Tuning::Default { 4 } else { 8 };
    let writers = if matches!(work, Work::Coming) { WRITERS } else { 0 };
    let max_conns = Some(processors + 10 + writers);
    let db = connect_db(database, ConnectOpts { max_conns, ..ConnectOpts::default() }).await?;
    let mut builder = Outbox::builder(db.clone());
    builder = match tuning {
        Tuning::Default => builder,
        Tuning::LowLatency => builder.profile(OutboxProfile::low_latency()).processors(8),
        Tuning::HighThroughput | Tuning::Fastest => {
            builder.profile(OutboxProfile::high_throughput()).processors(8)
        }
    };
    if tuning == Tuning::Fastest {
        let fast = |tuning: WorkerTuning| {
            tuning.min_interval(Duration::ZERO).active_interval(Duration::ZERO)
        };
        builder = builder
            .processor_tuning(fast(WorkerTuning::processor_high_throughput()).batch_size(1_000))
            .sequencer_tuning(fast(WorkerTuning::sequencer_high_throughput()));
    }
    let handled = Arc::<Mutex<Handled>>::default();
    let handler = Handler {
        stream,
        window: if tuning == Tuning::Default { 1 } else { PAGE_EVENTS },
        progress: Arc::clone(&progress),
        handled: Arc::clone(&handled),
    };
    let running = builder.queue(QUEUE, Partitions::of(partitions)).leased(handler).start().await?;
    let all = match work {
        Work::Waiting(events) => events,
        Work::Coming => return store_what_comes(db, running.outbox(), partitions).await,
    };
    while handled.lock().ok().context("poisoned")?.events < all {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    // No batch follows that would tell that the cursors have moved for the last time.
    let mut connection = PgConnection::connect(database).await?;
    let query = "select coalesce(sum(processed_seq), 0)::bigint from toolkit_outbox_processor";
    loop {
        let moved: i64 = sqlx::query_scalar(query).fetch_one(&mut connection).await?;
        if moved >= i64::try_from(all)? {
            break;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let handled = handled.lock().ok().context("poisoned")?;
    ensure!(handled.events == all, "{} of {all} events were handled", handled.events);
    progress.add(handled.open.values().sum())?;
    drop(handled);
    std::future::pending().await
}

/// A transaction that the bench asks for.
#[derive(Deserialize)]
struct Transaction {
    number: u64,
    events: Vec<Box<RawValue>>,
}

/// Stores what the bench asks for on standard input, and says when the commit returned. What is stored by
/// another process it would only find after minutes.
async fn store_what_comes(db: Db, outbox: &Arc<Outbox>, partitions: u16) -> Result<()> {
    let mut lines = BufReader::new(tokio::io::stdin()).lines();
    while let Some(line) = lines.next_line().await? {
        let (db, outbox) = (db.clone(), Arc::clone(outbox));
        tokio::spawn(async move {
            if let Err(error) = store(db, outbox, partitions, &line).await {
                eprintln!("{error:#}");
                std::process::exit(1);
            }
        });
    }
    std::future::pending().await
}

async fn store(db: Db, outbox: Arc<Outbox>, partitions: u16, line: &str) -> Result<()> {
    let transaction: Transaction = serde_json::from_str(line)?;
    in_transaction(&db, move |txn| {
        Box::pin(async move {
            let mut records = Records::to(QUEUE).payload_type(EVENT_TYPE);
            for event in transaction.events {
                let body: Body<'_> = serde_json::from_str(event.get())?;
                let partition = u32::try_from(body.key.as_u128() % u128::from(partitions))?;
                records = records.push(partition, event.get().as_bytes().to_vec());
            }
            let wake = outbox.enqueue_batch(txn, records.build()?).await?;
            anyhow::Ok(((), wake))
        })
    })
    .await?;
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?;
    println!("{} {}", transaction.number, now.as_micros());
    Ok(())
}
