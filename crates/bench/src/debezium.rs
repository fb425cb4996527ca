//! Debezium reads what was stored from the server's log, which must say more than it does otherwise
//! (`wal_level=logical`): so it has a server of its own, that runs only meanwhile.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result};
use posthaste_testkit::servers::PostgresServer;
use sqlx::postgres::PgConnection;
use tokio::process::Command;

use crate::bed::{POSTGRES_SETTINGS, connect, run};
use crate::child::{self, Drained};
use crate::rival_tables;
use crate::stream::Stream;
use crate::workload::Workload;

/// The class path of the compiled `crates/bench/debezium/Outbox.java` and of Debezium itself.
const CLASS_PATH: &str = "POSTHASTE_BENCH_DEBEZIUM";

/// Its own columns; all that its event router looks for by default.
const TABLE: &str = "\
    create table outboxevent (
        id            uuid primary key,
        aggregatetype varchar(255) not null,
        aggregateid   varchar(255) not null,
        type          varchar(255) not null,
        payload       jsonb
    );
    create publication bench for table outboxevent with (publish = 'insert')";

/// Events before those that count: until then Java is still compiling what it runs.
const WARM_UP_EVENTS: u64 = 100_000;

/// Events behind those that count: the engine waits half a second for a last batch to become full.
const RUN_OUT_EVENTS: u64 = 20_000;

/// Events of a transaction that stored them.
const TRANSACTION_EVENTS: usize = 100;

/// What it is told besides where everything is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct DebeziumSettings {
    pub(crate) max_batch_size: usize,
    pub(crate) max_queue_size: usize,
    pub(crate) poll_interval: Duration,
}

impl DebeziumSettings {
    pub(crate) const DEFAULT: Self = Self {
        max_batch_size: 2_048,
        max_queue_size: 8_192,
        poll_interval: Duration::from_millis(500),
    };
    /// What drained fastest here.
    pub(crate) const LARGE: Self =
        Self { max_batch_size: 8_192, max_queue_size: 32_768, ..Self::DEFAULT };
    /// What took the shortest time for an event here.
    pub(crate) const PROMPT: Self =
        Self { poll_interval: Duration::from_millis(1), ..Self::DEFAULT };
}

/// What it did.
///
/// # Errors
/// When it is not there, or does not run.
pub(crate) async fn drain(
    settings: DebeziumSettings,
    stream: &Stream,
    workload: &Workload,
) -> Result<Drained> {
    let (server, mut connection) = start_server().await?;
    let measured = WARM_UP_EVENTS..WARM_UP_EVENTS + workload.events;
    let events = measured.end + RUN_OUT_EVENTS;
    let workload = Workload { events, ..workload.clone() };
    fill(&mut connection, &workload).await.context("fill database")?;
    let folder = tempfile::tempdir()?;
    let command = engine(&server.url("postgres"), stream, folder.path(), settings)?;
    let drained = child::drain(command, events, measured).await?;
    let delivered = stream.messages().await?;
    anyhow::ensure!(delivered == events, "the stream holds {delivered} events");
    Ok(drained)
}

/// A server whose log Debezium can read, with its table and its slot.
pub(crate) async fn start_server() -> Result<(PostgresServer, PgConnection)> {
    let mut settings = POSTGRES_SETTINGS.to_vec();
    settings.push("wal_level=logical");
    let server = PostgresServer::start(&settings).await.context("no PostgreSQL")?;
    let mut connection = connect(&server.url("postgres")).await?;
    run(&mut connection, TABLE.to_owned()).await?;
    let slot = "select pg_create_logical_replication_slot('bench', 'pgoutput')";
    run(&mut connection, slot.to_owned()).await?;
    Ok((server, connection))
}

/// The engine, from the database at `url` into the stream; its offsets are in `folder`.
pub(crate) fn engine(
    url: &str,
    stream: &Stream,
    folder: &Path,
    settings: DebeziumSettings,
) -> Result<Command> {
    let class_path = std::env::var_os(CLASS_PATH).with_context(|| {
        format!("{CLASS_PATH} does not say where it is; `cargo xtask bench` installs it")
    })?;
    let DebeziumSettings { max_batch_size, max_queue_size, poll_interval } = settings;
    let mut command = Command::new("java");
    command.arg("-cp").arg(class_path).args(["Outbox", url, &stream.url, &stream.name]);
    command.arg(if stream.takes_batches { "batches" } else { "single" }).arg(folder);
    command.arg(format!("max.batch.size={max_batch_size}"));
    command.arg(format!("max.queue.size={max_queue_size}"));
    command.arg(format!("poll.interval.ms={}", poll_interval.as_millis()));
    Ok(command)
}

/// Stores the events behind the slot's beginning, so that all of them wait in the log.
async fn fill(connection: &mut PgConnection, workload: &Workload) -> Result<()> {
    run(connection, "set synchronous_commit = off".to_owned()).await?;
    let mut events = workload.events().peekable();
    while events.peek().is_some() {
        let events = events.by_ref().take(TRANSACTION_EVENTS);
        rival_tables::store(connection, rival_tables::INSERT_DEBEZIUM, events).await?;
    }
    run(connection, "checkpoint".to_owned()).await
}
