//! Everything waits already: how fast does the outbox become empty?

use anyhow::{Context as _, Result};

use crate::bed::{Bed, Layout};
use crate::floor::{self, PAGE_EVENTS};
use crate::relay::{Relay, RelaySettings, Sink, Usage};
use crate::report::{Figures, Report};
use crate::rivals;
use crate::stream::Stream;
use crate::workload::Workload;

pub(crate) const RATE: &str = "events/s";

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
                format!("{several}posthaste {sizes} → {}", into.name())
            }
            Self::PgQ { into, tick } => format!("PgQ, batches of {tick} → {}", into.name()),
            Self::Poller { into, workers, batch } => {
                format!("poller, {workers} workers of {batch} → {}", into.name())
            }
        }
    }

    fn layout(self) -> Layout {
        match self {
            Self::Loop { layout, .. } => layout,
            Self::Poller { .. } => Layout::Flat,
            Self::PgQ { tick, .. } => Layout::PgQ { tick },
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
            | Self::PgQ { into, .. } => into,
        }
    }

    fn workload(self, workload: &Workload) -> Workload {
        let slow = matches!(self, Self::Poller { .. } | Self::BrokerOnly { window: 1, .. });
        let events = if slow { workload.events.min(EVENTS_OF_THE_SLOW) } else { workload.events };
        Workload { events, ..workload.clone() }
    }

    /// Runs it once, on a database and a stream of its own.
    pub(crate) async fn run(self, bed: &Bed, workload: &Workload) -> Result<Figures> {
        let workload = self.workload(workload);
        let target = self.target();
        let stream = if target.is_stream() {
            Some(Stream::create(bed, target == Target::JetStreamBatches).await?)
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
        let database = bed.database(self.layout(), workload).await?;
        if self == Self::ReadOnly {
            let rate = floor::read_only(&database, Layout::Partitioned).await?;
            bed.drop_database(database).await?;
            return Ok(Figures::default().with(RATE, rate));
        }
        let before = bed.counters(&database).await?;
        let (own, mut usages) = (Usage::own()?, Vec::new());
        let mut completions = None;
        match self {
            Self::PgQ { .. } => {
                let stream = stream.context("PgQ's consumer needs a stream")?;
                completions = Some(rivals::pgq_consumer(&database, stream).await?);
            }
            Self::Loop { layout, .. } => {
                floor::bare_loop(&database, layout, stream, PAGE_EVENTS).await?;
            }
            Self::Poller { workers, batch, .. } => {
                rivals::skip_locked_poller(&database, stream, workers, batch).await?;
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
            Self::ReadOnly | Self::BrokerOnly { .. } => {}
        }
        let own = Usage::own()?.cpu - own.cpu;
        let after = bed.counters(&database).await?;
        let completions = match completions {
            Some(completions) => completions,
            None => database.completions().await?,
        };
        let delivered = match stream {
            Some(stream) => Some(stream.messages().await?),
            None => None,
        };
        bed.drop_database(database).await?;
        if let Some(delivered) = delivered {
            anyhow::ensure!(delivered == workload.events, "the stream holds {delivered} events");
        }
        let events = workload.events as f64;
        let mut figures = Figures { deciles: completions.deciles(), ..Figures::default() }
            .with(RATE, completions.rate());
        if usages.is_empty() {
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

/// Each contender once a round, so that what else the machine does falls upon all of them.
pub(crate) async fn alternate(
    bed: &Bed,
    report: &mut Report,
    workload: &Workload,
    contenders: &[Contender],
    rounds: usize,
) -> Result<()> {
    for round in 1..=rounds {
        eprintln!("{}: round {round} of {rounds}", report.workload);
        for contender in contenders {
            let figures = contender.run(bed, workload).await?;
            report.add(&contender.name(), figures);
        }
    }
    Ok(())
}
