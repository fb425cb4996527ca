//! How long an event takes with other outboxes, at the same rates.

use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, Result};
use posthaste_testkit::servers::PostgresServer;
use sqlx::postgres::PgConnectOptions;
use tempfile::TempDir;
use tokio::process::{Child, Command};
use tokio::task::JoinHandle;

use crate::bed::{Bed, Database, Layout, connect, run};
use crate::child;
use crate::debezium::{self, DebeziumSettings};
use crate::drain::GearsTuning;
use crate::load::{Load, Outcome};
use crate::producer::{Producer, RivalApplication};
use crate::relay::{Relay, RelaySettings, Sink, Usage};
use crate::report::{Figures, Report, number};
use crate::rival_tables::{INSERT_DEBEZIUM, INSERT_FLAT, INSERT_OUTBOX_CORE, INSERT_QUEUE};
use crate::rivals;
use crate::stream::Stream;
use crate::workload::Workload;

/// Workers of the poller, and its batches: the fastest of its settings in the drain.
const POLLER_WORKERS: usize = 4;
const POLLER_BATCH: usize = 100;

/// Partitions of cf-gears: its default.
const GEARS_PARTITIONS: u16 = 4;

/// Who delivers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Contender {
    Posthaste,
    Poller { pause: Duration },
    PgQ(PgQPace),
    OutboxCore { managers: usize },
    Gears(GearsTuning),
    Debezium(DebeziumSettings),
}

/// How often PgQ looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct PgQPace {
    /// Of pgqd, for each tick.
    ticker_period: Duration,
    /// Of the queue: a tick follows an event after so long at most.
    ticker_max_lag: Duration,
    /// Of the consumer, where there is no batch.
    loop_delay: Duration,
}

impl PgQPace {
    /// Those of pgqd, of a queue and of skytools' consumers.
    const DEFAULT: Self = Self {
        ticker_period: Duration::from_secs(1),
        ticker_max_lag: Duration::from_secs(3),
        loop_delay: Duration::from_secs(1),
    };
    /// What took the shortest time for an event here.
    const PROMPT: Self = Self {
        ticker_period: Duration::from_millis(5),
        ticker_max_lag: Duration::from_millis(1),
        loop_delay: Duration::from_millis(2),
    };
}

/// Of each but posthaste and the poller first its defaults, then what took the shortest time here.
const CONTENDERS: [Contender; 11] = [
    Contender::Posthaste,
    Contender::Poller { pause: Duration::from_millis(100) },
    Contender::Poller { pause: Duration::from_millis(5) },
    Contender::PgQ(PgQPace::DEFAULT),
    Contender::PgQ(PgQPace::PROMPT),
    Contender::OutboxCore { managers: 1 },
    Contender::OutboxCore { managers: 4 },
    Contender::Gears(GearsTuning::Default),
    Contender::Gears(GearsTuning::LowLatency),
    Contender::Debezium(DebeziumSettings::DEFAULT),
    Contender::Debezium(DebeziumSettings::PROMPT),
];

/// Events a second, and of a transaction.
const RATES: [(f64, u64); 3] = [(1.0, 1), (1_000.0, 1), (5_000.0, 10)];

/// What runs until it is dropped.
enum Delivery {
    Relay(Relay),
    Program { child: Child, _beside: Option<(PostgresServer, TempDir)> },
    Task { task: JoinHandle<()>, _beside: Option<(Child, TempDir)> },
}

impl Drop for Delivery {
    fn drop(&mut self) {
        if let Self::Task { task, .. } = self {
            task.abort();
        }
    }
}

impl Delivery {
    /// A loop of the bench's own.
    fn task(
        task: impl Future<Output = Result<()>> + Send + 'static,
        beside: Option<(Child, TempDir)>,
    ) -> Self {
        let task = tokio::spawn(async move {
            if let Err(error) = task.await {
                eprintln!("  it ended: {error:#}");
            }
        });
        Self::Task { task, _beside: beside }
    }

    /// What its process took until now, where it is one.
    fn usage(&mut self) -> Result<Option<Usage>> {
        match self {
            Self::Relay(relay) => relay.usage().map(Some),
            Self::Program { child, .. } => {
                let process = child.id().context("it ended by itself")?;
                Usage::of(&process.to_string()).map(Some)
            }
            Self::Task { .. } => Ok(None),
        }
    }
}

/// A delivery between an application and a stream.
struct Running {
    delivery: Delivery,
    producer: Producer,
    stream: Stream,
    database: Option<Database>,
}

impl Contender {
    fn name(self) -> String {
        match self {
            Self::Posthaste => "posthaste".to_owned(),
            Self::Poller { pause } => format!("poller, every {} ms", pause.as_millis()),
            Self::PgQ(pace) => format!(
                "PgQ, ticks every {} ms, asked every {} ms",
                pace.ticker_period.as_millis(),
                pace.loop_delay.as_millis()
            ),
            Self::OutboxCore { managers } => format!("outbox-core, {managers} managers"),
            Self::Gears(tuning) => format!("cf-gears, {}", tuning.name()),
            Self::Debezium(settings) => {
                format!("Debezium, every {} ms", settings.poll_interval.as_millis())
            }
        }
    }

    async fn start(self, bed: &Bed, workload: &Workload) -> Result<Running> {
        let stream = Stream::create(bed.nats.url(), false).await?;
        let empty = Workload { events: 0, ..workload.clone() };
        let database = async |layout| bed.database(layout, &empty).await;
        let (database, delivery, producer) = match self {
            Self::Posthaste => {
                let database = database(Layout::Partitioned).await?;
                let sink = Sink::Stream(&stream);
                let relay = Relay::start(&database, &sink, RelaySettings::DEFAULT)?;
                let producer = Producer::outbox(&database.url, true).await?;
                (Some(database), Delivery::Relay(relay), producer)
            }
            Self::Poller { pause } => {
                let database = database(Layout::Flat).await?;
                let producer = Producer::statement(&database.url, INSERT_FLAT).await?;
                let (url, stream) = (database.url.clone(), stream.again().await?);
                let poller = async move {
                    let (workers, batch) = (POLLER_WORKERS, POLLER_BATCH);
                    rivals::skip_locked_poller(&url, Some(&stream), workers, batch, Some(pause))
                        .await
                };
                (Some(database), Delivery::task(poller, None), producer)
            }
            Self::PgQ(pace) => {
                let database = database(Layout::PgQ { tick: 1 }).await?;
                let producer = Producer::statement(&database.url, INSERT_QUEUE).await?;
                let ticker = pgqd(&database, pace).await?;
                let (url, stream) = (database.url.clone(), stream.again().await?);
                let consumer = async move {
                    rivals::pgq_consumer(&url, &stream, Some(pace.loop_delay)).await.map(drop)
                };
                (Some(database), Delivery::task(consumer, Some(ticker)), producer)
            }
            Self::OutboxCore { managers } => {
                let database = database(Layout::OutboxCore).await?;
                let producer = Producer::statement(&database.url, INSERT_OUTBOX_CORE).await?;
                let mut command = serve(&database, &stream)?;
                command.args(["outbox-core", &managers.to_string(), "100"]);
                let child = spawn(command.stdin(Stdio::null()).stdout(Stdio::null()))?;
                (Some(database), Delivery::Program { child, _beside: None }, producer)
            }
            Self::Gears(tuning) => {
                let partitions = GEARS_PARTITIONS;
                let database = database(Layout::Gears { partitions }).await?;
                let mut command = serve(&database, &stream)?;
                command.args(["cf-gears", &partitions.to_string(), tuning.name()]);
                let mut child = spawn(command.stdin(Stdio::piped()).stdout(Stdio::piped()))?;
                let pipes = child.stdin.take().zip(child.stdout.take());
                let (input, output) = pipes.context("a program without pipes")?;
                let producer = Producer::Rival(RivalApplication::new(input, output));
                (Some(database), Delivery::Program { child, _beside: None }, producer)
            }
            Self::Debezium(settings) => {
                let (server, _) = debezium::start_server().await?;
                let (folder, url) = (tempfile::tempdir()?, server.url("postgres"));
                let producer = Producer::statement(&url, INSERT_DEBEZIUM).await?;
                let mut command = debezium::engine(&url, &stream, folder.path(), settings)?;
                let child = spawn(command.stdin(Stdio::null()).stdout(Stdio::null()))?;
                let beside = Some((server, folder));
                (None, Delivery::Program { child, _beside: beside }, producer)
            }
        };
        Ok(Running { delivery, producer, stream, database })
    }
}

impl Running {
    /// Runs a load, and says what a process took for each event of it.
    async fn load(&mut self, load: &Load, workload: &Workload) -> Result<(Outcome, Option<f64>)> {
        let before = self.delivery.usage()?;
        let outcome = load.run(&self.producer, &self.stream, workload).await?;
        let after = self.delivery.usage()?;
        anyhow::ensure!(outcome.missing == 0, "{} events never arrived", outcome.missing);
        let events = load.events_per_second * load.lasts.as_secs_f64();
        let cpu = before
            .zip(after)
            .map(|(before, after)| (after.cpu - before.cpu).as_secs_f64() * 1e6 / events);
        Ok((outcome, cpu))
    }

    async fn end(self, bed: &Bed) -> Result<()> {
        drop(self.delivery);
        self.producer.close().await;
        self.stream.delete().await?;
        match self.database {
            Some(database) => bed.drop_database(database).await,
            None => Ok(()),
        }
    }
}

/// The call of a rival's program that delivers until it is killed.
fn serve(database: &Database, stream: &Stream) -> Result<Command> {
    let mut command = child::rivals()?;
    command.args(["serve", &database.url, &stream.url, &stream.name]);
    command.arg(if stream.takes_batches { "batches" } else { "single" });
    Ok(command)
}

fn spawn(command: &mut Command) -> Result<Child> {
    command.kill_on_drop(true).spawn().with_context(|| format!("start {command:?}"))
}

/// The ticker of PgQ, which makes batches.
async fn pgqd(database: &Database, pace: PgQPace) -> Result<(Child, TempDir)> {
    let mut connection = connect(&database.url).await?;
    let lag = pace.ticker_max_lag.as_millis();
    let configure = format!("select pgq.set_queue_config('events', 'ticker_max_lag', '{lag} ms')");
    run(&mut connection, configure).await?;
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("pgqd.ini");
    let server: PgConnectOptions = database.url.parse()?;
    let text = format!(
        "[pgqd]\npidfile = {folder}/pgqd.pid\nlogfile = {folder}/pgqd.log\n\
         base_connstr = host={host} port={port} user={user}\n\
         initial_database = {name}\ndatabase_list = {name}\nticker_period = {period}\n",
        folder = folder.path().display(),
        host = server.get_host(),
        port = server.get_port(),
        user = server.get_username(),
        name = database.name,
        period = pace.ticker_period.as_secs_f64(),
    );
    std::fs::write(&file, text)?;
    let mut command = Command::new("pgqd");
    command.arg("-q").arg(&file).stdin(Stdio::null()).stdout(Stdio::null());
    Ok((spawn(&mut command)?, folder))
}

/// Each contender whose name is wanted at each rate, one after the other. A rival that does not run
/// is named as such.
pub(crate) async fn compare(
    bed: &Bed,
    workload: &Workload,
    lasts: Duration,
    rounds: usize,
    wants: impl Fn(&str) -> bool,
) -> Result<Report> {
    let caption = "Latency of other outboxes at fixed rates, into JetStream on the same server";
    let mut report = Report::new("rivals-latency", caption, "commit → ack p50 ms");
    report.set("seconds", lasts.as_secs());
    let mut broken: Vec<String> = Vec::new();
    for round in 1..=rounds {
        eprintln!("rivals-latency: round {round} of {rounds}");
        for (events_per_second, events_per_transaction) in RATES {
            let load =
                Load { events_per_second, events_per_transaction, lasts, warm_up: lasts / 5 };
            for contender in CONTENDERS.into_iter().filter(|known| wants(&known.name())) {
                let name = format!("{}, {}/s", contender.name(), number(events_per_second));
                if broken.contains(&name) {
                    continue;
                }
                match measure(contender, bed, workload, &load).await {
                    Ok(figures) => report.add(&name, figures),
                    Err(error) if contender != Contender::Posthaste => {
                        eprintln!("  {name} did not run: {error:#}");
                        broken.push(name);
                    }
                    Err(error) => return Err(error.context(name)),
                }
            }
        }
    }
    if !broken.is_empty() {
        report.set("did not run", broken.join(", "));
    }
    Ok(report)
}

async fn measure(
    contender: Contender,
    bed: &Bed,
    workload: &Workload,
    load: &Load,
) -> Result<Figures> {
    let mut running = contender.start(bed, workload).await?;
    // Until all of these arrived: one that has to be compiled first has the time for it.
    let first = Load {
        events_per_second: 1_000.0,
        events_per_transaction: 10,
        lasts: Duration::from_secs(3),
        warm_up: Duration::ZERO,
    };
    running.load(&first, workload).await.context("its first events")?;
    let (outcome, cpu) = running.load(load, workload).await?;
    running.end(bed).await?;
    let mut figures = outcome.figures();
    if let Some(cpu) = cpu {
        figures = figures.with("CPU µs/event", cpu);
    }
    Ok(figures)
}
