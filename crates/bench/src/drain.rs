//! Everything waits already: how fast does the outbox become empty?

use anyhow::{Context as _, Result};

use tokio::process::Command;

use crate::bed::{Bed, Completions, Database, Layout};
use crate::child;
use crate::debezium::{self, DebeziumSettings};
use crate::floor;
use crate::relay::{Relay, RelaySettings, Sink, Usage};
use crate::report::{Figures, RATE, Report};
use crate::rivals;
use crate::stream::{PAGE_EVENTS, Stream};
use crate::workload::Workload;

/// Pollers and windows of one would take minutes over what others do in seconds.
const EVENTS_OF_THE_SLOW: u64 = 10_000;

/// Who drains.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Contender {
    ReadOnly,
    BrokerOnly { into: Target, window: usize },
    Loop { layout: Layout, into: Target },
    Relay { settings: RelaySettings, into: Target, processes: usize },
    Poller { into: Target, workers: usize, batch: usize },
    PgQ { into: Target, tick: usize },
    OutboxCore { managers: usize, batch: usize },
    Gears { into: Target, partitions: u16, tuning: GearsTuning },
    Debezium { into: Target, settings: DebeziumSettings },
}

/// How cf-gears' outbox is told to run; what that is in detail, `crates/bench/rivals` knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum GearsTuning {
    Default,
    HighThroughput,
    Fastest,
    /// For latency.
    LowLatency,
}

impl GearsTuning {
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Default => "default",
            Self::HighThroughput => "high-throughput",
            Self::Fastest => "fastest",
            Self::LowLatency => "low-latency",
        }
    }
}

/// Where to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Target {
    Null,
    Lines,
    JetStream,
    /// Into a stream that takes fast-ingest batches.
    JetStreamBatches,
}

impl Target {
    const fn is_stream(self) -> bool {
        matches!(self, Self::JetStream | Self::JetStreamBatches)
    }

    const fn name(self) -> &'static str {
        match self {
            Self::Null => "nothing",
            Self::Lines => "/dev/null as lines",
            Self::JetStream => "JetStream",
            Self::JetStreamBatches => "JetStream with batches",
        }
    }
}

impl Contender {
    pub(crate) const fn bare_loop(into: Target) -> Self {
        Self::Loop { layout: Layout::Partitioned, into }
    }

    pub(crate) const fn flat_loop(into: Target) -> Self {
        Self::Loop { layout: Layout::Flat, into }
    }

    pub(crate) const fn relay(settings: RelaySettings, into: Target) -> Self {
        Self::Relay { settings, into, processes: 1 }
    }

    pub(crate) fn name(self) -> String {
        match self {
            Self::ReadOnly => "PostgreSQL: read only".to_owned(),
            Self::BrokerOnly { into: Target::JetStreamBatches, .. } => {
                "NATS: publish only, batches".to_owned()
            }
            Self::BrokerOnly { window, .. } => format!("NATS: publish only, window {window}"),
            Self::Loop { layout: Layout::Partitioned, into } => {
                format!("bare loop → {}", into.name())
            }
            Self::Loop { into, .. } => {
                format!("bare loop, flat table → {}", into.name())
            }
            Self::Relay { settings, into, processes } => {
                let sizes = format!("{}/{}", settings.batch_size, settings.max_concurrent_events);
                let several =
                    if processes == 1 { String::new() } else { format!("{processes} × ") };
                let history = if settings.keeps_history { "" } else { ", retention 0" };
                format!("{several}posthaste {sizes}{history} → {}", into.name())
            }
            Self::PgQ { into, tick } => format!("PgQ, batches of {tick} → {}", into.name()),
            Self::Gears { into, partitions, tuning } => {
                let (tuning, into) = (tuning.name(), into.name());
                format!("cf-gears, {partitions} partitions, {tuning} → {into}")
            }
            Self::Debezium { into, settings } => {
                format!("Debezium, batches of {} → {}", settings.max_batch_size, into.name())
            }
            Self::OutboxCore { managers, batch } => {
                format!("outbox-core, {managers} managers of {batch} → JetStream")
            }
            Self::Poller { into, workers, batch } => {
                format!("poller, {workers} workers of {batch} → {}", into.name())
            }
        }
    }

    /// Whether it is a program that this project does not make.
    const fn is_foreign(self) -> bool {
        matches!(self, Self::OutboxCore { .. } | Self::Gears { .. } | Self::Debezium { .. })
    }

    fn layout(self) -> Layout {
        match self {
            Self::Loop { layout, .. } => layout,
            Self::Poller { .. } => Layout::Flat,
            Self::PgQ { tick, .. } => Layout::PgQ { tick },
            Self::OutboxCore { .. } => Layout::OutboxCore,
            Self::Gears { partitions, .. } => Layout::Gears { partitions },
            _ => Layout::Partitioned,
        }
    }

    fn target(self) -> Target {
        match self {
            Self::ReadOnly => Target::Null,
            Self::BrokerOnly { into, .. }
            | Self::Loop { into, .. }
            | Self::Relay { into, .. }
            | Self::Poller { into, .. }
            | Self::PgQ { into, .. }
            | Self::Gears { into, .. }
            | Self::Debezium { into, .. } => into,
            Self::OutboxCore { .. } => Target::JetStream,
        }
    }

    /// Whether what is done leaves rows with the time of it.
    fn keeps_history(self) -> bool {
        !matches!(self, Self::Relay { settings: RelaySettings { keeps_history: false, .. }, .. })
    }

    fn workload(self, workload: &Workload) -> Workload {
        let slow = matches!(
            self,
            Self::Poller { .. }
                | Self::BrokerOnly { window: 1, .. }
                | Self::OutboxCore { managers: 1, .. }
                | Self::Gears { tuning: GearsTuning::Default, .. }
        );
        let events = if slow { workload.events.min(EVENTS_OF_THE_SLOW) } else { workload.events };
        Workload { events, ..workload.clone() }
    }

    /// The program of a rival that is no part of this one.
    fn rival(self, database: &Database, stream: &Stream, workload: &Workload) -> Result<Command> {
        let mut command = child::rivals()?;
        let batches = if stream.takes_batches { "batches" } else { "single" };
        command.args(["run", &database.url, &stream.url, &stream.name, batches]);
        command.arg(workload.events.to_string());
        match self {
            Self::OutboxCore { managers, batch } => {
                command.args(["outbox-core", &managers.to_string(), &batch.to_string()]);
            }
            Self::Gears { partitions, tuning, .. } => {
                command.args(["cf-gears", &partitions.to_string(), tuning.name()]);
            }
            _ => anyhow::bail!("{} is no program of its own", self.name()),
        }
        Ok(command)
    }

    /// Runs it once, on a database and a stream of its own.
    pub(crate) async fn run(self, bed: &Bed, workload: &Workload) -> Result<Figures> {
        let workload = self.workload(workload);
        let target = self.target();
        let stream = if target.is_stream() {
            Some(Stream::create(bed.nats.url(), target == Target::JetStreamBatches).await?)
        } else {
            None
        };
        let outcome = self.measure(bed, &workload, stream.as_ref()).await;
        if let Some(stream) = stream {
            stream.delete().await?;
        }
        outcome
    }

    async fn measure(
        self,
        bed: &Bed,
        workload: &Workload,
        stream: Option<&Stream>,
    ) -> Result<Figures> {
        if let (Self::BrokerOnly { window, .. }, Some(stream)) = (self, stream) {
            let rate = floor::broker_only(stream, workload, window).await?;
            return Ok(Figures::default().with(RATE, rate));
        }
        if let (Self::Debezium { settings, .. }, Some(stream)) = (self, stream) {
            return Ok(debezium::drain(settings, stream, workload).await?.figures());
        }
        let database = bed.database(self.layout(), workload).await?;
        if self == Self::ReadOnly {
            let rate = floor::read_only(&database, Layout::Partitioned).await?;
            bed.drop_database(database).await?;
            return Ok(Figures::default().with(RATE, rate));
        }
        if !self.keeps_history() {
            database.note_deletions().await?;
        }
        let before = bed.counters(&database).await?;
        let (own, mut usages) = (Usage::own()?, Vec::new());
        let (mut completions, mut drained) = (None, None);
        match self {
            Self::OutboxCore { .. } | Self::Gears { .. } => {
                let stream = stream.context("rivals need a stream")?;
                let command = self.rival(&database, stream, workload)?;
                drained = Some(child::drain(command, workload.events, 0..workload.events).await?);
            }
            Self::PgQ { .. } => {
                let stream = stream.context("PgQ's consumer needs a stream")?;
                completions = Some(rivals::pgq_consumer(&database.url, stream, None).await?);
            }
            Self::Loop { layout, .. } => {
                floor::bare_loop(&database, layout, stream, PAGE_EVENTS).await?;
            }
            Self::Poller { workers, batch, .. } => {
                rivals::skip_locked_poller(&database.url, stream, workers, batch, None).await?;
            }
            Self::Relay { settings, into, processes } => {
                let sink = match (into, stream) {
                    (_, Some(stream)) => Sink::Stream(stream),
                    (Target::Lines, _) => Sink::Lines,
                    _ => Sink::Null,
                };
                let relays = (0..processes).map(|_| Relay::start(&database, &sink, settings));
                let mut relays = relays.collect::<Result<Vec<_>>>()?;
                database.wait_until_empty(Layout::Partitioned).await?;
                for relay in &mut relays {
                    usages.push(relay.usage()?);
                }
            }
            Self::ReadOnly | Self::BrokerOnly { .. } | Self::Debezium { .. } => {}
        }
        let own = Usage::own()?.cpu - own.cpu;
        let after = bed.counters(&database).await?;
        let completions = match (completions, &drained) {
            (Some(completions), _) => completions,
            (None, Some(_)) => Completions::default(),
            (None, None) if !self.keeps_history() => database.deletions(workload.events).await?,
            (None, None) => database.completions().await?,
        };
        bed.drop_database(database).await?;
        if let Some(stream) = stream {
            ensure_delivered(stream, workload).await?;
        }
        let events = workload.events as f64;
        let mut figures = completions.figures();
        if let Some(drained) = drained {
            figures = drained.figures();
        } else if usages.is_empty() {
            // The loop runs here.
            figures = figures.with("CPU µs/event", own.as_secs_f64() * 1e6 / events);
        } else {
            let cpu: f64 = usages.iter().map(|usage| usage.cpu.as_secs_f64()).sum();
            let peak = usages.iter().map(|usage| usage.peak_mb).fold(0.0, f64::max);
            figures = figures.with("CPU µs/event", cpu * 1e6 / events).with("peak MB", peak);
        }
        Ok(figures
            .with("statements/1000 events", (after.statements - before.statements) / events * 1e3)
            .with("WAL bytes/event", (after.wal_bytes - before.wal_bytes) / events))
    }
}

/// A drain that lost or doubled events is none.
async fn ensure_delivered(stream: &Stream, workload: &Workload) -> Result<()> {
    let delivered = stream.messages().await?;
    anyhow::ensure!(delivered == workload.events, "the stream holds {delivered} events");
    Ok(())
}

/// Each contender once a round, so that what else the machine does falls upon all of them. A rival
/// that does not run is named as such, and is not tried again.
pub(crate) async fn alternate(
    bed: &Bed,
    report: &mut Report,
    workload: &Workload,
    contenders: &[Contender],
    rounds: usize,
) -> Result<()> {
    let mut broken = Vec::new();
    for round in 1..=rounds {
        eprintln!("{}: round {round} of {rounds}", report.workload);
        for contender in contenders {
            if broken.contains(contender) {
                continue;
            }
            match contender.run(bed, workload).await {
                Ok(figures) => report.add(&contender.name(), figures),
                Err(error) if contender.is_foreign() => {
                    eprintln!("  {} did not run: {error:#}", contender.name());
                    broken.push(*contender);
                }
                Err(error) => return Err(error.context(contender.name())),
            }
        }
    }
    if !broken.is_empty() {
        let names: Vec<String> = broken.into_iter().map(Contender::name).collect();
        report.set("did not run", names.join(", "));
    }
    Ok(())
}
