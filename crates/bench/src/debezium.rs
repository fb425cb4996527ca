//! Debezium reads what was stored from the server's log, which must say more than it does otherwise
//! (`wal_level=logical`): so it has a server of its own, that runs only meanwhile.

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
}

impl DebeziumSettings {
    pub(crate) const DEFAULT: Self = Self { max_batch_size: 2_048, max_queue_size: 8_192 };
    /// What was fastest here.
    pub(crate) const LARGE: Self = Self { max_batch_size: 8_192, max_queue_size: 32_768 };
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
    let class_path = std::env::var_os(CLASS_PATH).with_context(|| {
        format!("{CLASS_PATH} does not say where it is; `cargo xtask bench` installs it")
    })?;
    let mut server_settings = POSTGRES_SETTINGS.to_vec();
    server_settings.push("wal_level=logical");
    let server = PostgresServer::start(&server_settings).await.context("no PostgreSQL")?;
    let url = server.url("postgres");
    let mut connection = connect(&url).await?;
    let measured = WARM_UP_EVENTS..WARM_UP_EVENTS + workload.events;
    let events = measured.end + RUN_OUT_EVENTS;
    let workload = Workload { events, ..workload.clone() };
    fill(&mut connection, &workload).await.context("fill database")?;
    let folder = tempfile::tempdir()?;
    let DebeziumSettings { max_batch_size, max_queue_size } = settings;
    let mut command = Command::new("java");
    command.arg("-cp").arg(class_path).args(["Outbox", &url, &stream.url, &stream.name]);
    command.arg(if stream.takes_batches { "batches" } else { "single" }).arg(folder.path());
    command.arg(format!("max.batch.size={max_batch_size}"));
    command.arg(format!("max.queue.size={max_queue_size}"));
    let drained = child::drain(command, events, measured).await?;
    let delivered = stream.messages().await?;
    anyhow::ensure!(delivered == events, "the stream holds {delivered} events");
    Ok(drained)
}

/// Stores the events behind the slot's beginning, so that all of them wait in the log.
async fn fill(connection: &mut PgConnection, workload: &Workload) -> Result<()> {
    run(connection, TABLE.to_owned()).await?;
    let slot = "select pg_create_logical_replication_slot('bench', 'pgoutput')";
    run(connection, slot.to_owned()).await?;
    run(connection, "set synchronous_commit = off".to_owned()).await?;
    let mut events = workload.events().peekable();
    while events.peek().is_some() {
        let insert = "\
            insert into outboxevent (id, aggregatetype, aggregateid, type, payload) \
            select id, 'account', key::text, $1, data::jsonb \
            from unnest($2::uuid[], $3::uuid[], $4::text[]) as event (id, key, data)";
        rival_tables::store(connection, insert, events.by_ref().take(TRANSACTION_EVENTS)).await?;
    }
    run(connection, "checkpoint".to_owned()).await
}
