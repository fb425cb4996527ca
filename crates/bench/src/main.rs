//! Measures posthaste beside what database and broker can give, on private servers: run it as
//! `cargo xtask bench`. What the workloads are and how to read them is in docs/performance.md.

#![allow(
    clippy::cast_precision_loss,
    reason = "figures are shown with three digits; counts have fewer than fifteen"
)]

mod bed;
mod child;
mod debezium;
mod drain;
mod floor;
mod latency;
mod load;
mod null_relay;
mod page;
mod producer;
mod relay;
mod report;
mod rival_latency;
mod rival_tables;
mod rivals;
mod stream;
mod svg;
mod tax;
mod workload;

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result};
use clap::{Parser, Subcommand, ValueEnum};
use tokio::signal::unix::{SignalKind, signal};

use bed::Bed;
use debezium::DebeziumSettings;
use drain::{Contender, GearsTuning, Target};
use relay::RelaySettings;
use report::{RATE, Report};
use workload::{Keys, Workload};

#[derive(Parser)]
#[command(name = "posthaste-bench")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Runs workloads.
    Run(Run),
    /// Writes tables and plots of kept results into a page.
    Page {
        /// Where results are kept.
        results: PathBuf,
        /// The Markdown file; plots go into the folder of its name beside it.
        page: PathBuf,
    },
    /// Delivers into nothing: a part of `run`.
    #[command(hide = true)]
    NullRelay {
        url: String,
        batch_size: usize,
        max_concurrent_events: usize,
        #[arg(long)]
        no_history: bool,
    },
}

/// What nearly all workloads are measured with.
const PAYLOAD_BYTES: usize = 200;
/// Waiting events.
const EVENTS: u64 = 100_000;
/// And where relays join each other, who take a second or so to share the work.
const SCALE_OUT_EVENTS: u64 = 1_000_000;

#[derive(clap::Args)]
struct Run {
    /// Which workloads; all where none is named.
    #[arg(value_enum)]
    workloads: Vec<Name>,
    /// Small sizes and one round: shows that everything runs, not how fast.
    #[arg(long)]
    quick: bool,
    /// Ten million waiting events too: takes half an hour and 20 GB.
    #[arg(long)]
    long: bool,
    /// How often each contender runs.
    #[arg(long)]
    rounds: Option<usize>,
    /// Waiting events, where a workload has a backlog.
    #[arg(long)]
    events: Option<u64>,
    /// Of the contenders that drain, and of those whose latency is compared, only those whose name
    /// holds this.
    #[arg(long)]
    only: Option<String>,
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Bytes of an event's JSON; results of other sizes than 200 are kept apart.
    #[arg(long, default_value_t = PAYLOAD_BYTES)]
    payload_bytes: usize,
    #[arg(long, value_enum, default_value_t = Keys::Zipf)]
    keys: Keys,
    /// Another setting of PostgreSQL's, as `shared_buffers=8GB`, to see what it is good for.
    #[arg(long, value_name = "SETTING")]
    postgres: Vec<String>,
    /// Where results are kept.
    #[arg(long)]
    results: PathBuf,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Name {
    /// What PostgreSQL, NATS and a loop by hand over both can do.
    Floors,
    /// The relay beside the bare loop, with everything waiting.
    Drain,
    /// The relay with ever more waiting.
    Backlog,
    /// One, two and four relays.
    ScaleOut,
    /// Latency at fixed rates.
    Steady,
    /// One event a second, and none.
    Idle,
    /// What storing events costs the application.
    ProducerTax,
    /// Latency while another session holds a snapshot.
    OldSnapshot,
    /// Other outboxes.
    Rivals,
    /// How long an event takes with them.
    RivalsLatency,
}

fn main() -> Result<()> {
    let runtime = tokio::runtime::Runtime::new()?;
    runtime.block_on(async {
        match Arguments::parse().command {
            // Servers and relays end with the values that hold them: not when this process is ended.
            Command::Run(run) => tokio::select! {
                outcome = run.all() => outcome,
                outcome = ended() => outcome,
            },
            Command::Page { results, page } => page::write(&results, &page),
            Command::NullRelay { url, batch_size, max_concurrent_events, no_history } => {
                null_relay::run(&url, batch_size, max_concurrent_events, no_history).await
            }
        }
    })
}

/// Completes when somebody ends the bench.
async fn ended() -> Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    tokio::select! {
        outcome = tokio::signal::ctrl_c() => outcome?,
        _ = terminate.recv() => {}
    }
    anyhow::bail!("ended by a signal")
}

impl Run {
    async fn all(&self) -> Result<()> {
        let names =
            if self.workloads.is_empty() { Name::value_variants() } else { &self.workloads };
        for name in names {
            // Fresh servers: what one workload leaves behind is none of the next one's business.
            let bed = Bed::start(&self.postgres).await?;
            let mut report = match name {
                Name::Floors => self.floors(&bed).await,
                Name::Drain => self.drain(&bed).await,
                Name::Backlog => self.backlog(&bed).await,
                Name::ScaleOut => self.scale_out(&bed).await,
                Name::Steady => self.steady(&bed).await,
                Name::Idle => latency::idle(&bed, &self.workload(0), self.seconds(5, 60)).await,
                Name::ProducerTax => {
                    let (workload, lasts) = (self.workload(0), self.seconds(3, 15));
                    tax::producer_tax(&bed, &workload, lasts, self.rounds()).await
                }
                Name::OldSnapshot => {
                    latency::old_snapshot(&bed, &self.workload(0), self.seconds(5, 120)).await
                }
                Name::Rivals => self.rivals(&bed).await,
                Name::RivalsLatency => self.rivals_latency(&bed).await,
            }
            .with_context(|| format!("{name:?}"))?;
            self.describe(&bed, &mut report);
            if self.payload_bytes != PAYLOAD_BYTES {
                report.workload = format!("{}-{}", report.workload, self.payload_bytes);
            }
            // What is not a full result is never taken for one.
            let partial = self.quick || self.only.is_some() || !self.postgres.is_empty();
            let folder = if partial { self.results.join("partial") } else { self.results.clone() };
            report.save(&folder)?;
            println!("\n{}\n\n{}", report.workload, report.table());
        }
        Ok(())
    }

    fn describe(&self, bed: &Bed, report: &mut Report) {
        report.set("seed", self.seed);
        report.set("payload", format!("{} B", self.payload_bytes));
        report.set("keys", format!("10,000, {:?}", self.keys).to_lowercase());
        let settings = bed::POSTGRES_SETTINGS.into_iter();
        let settings: Vec<_> = settings.chain(self.postgres.iter().map(String::as_str)).collect();
        report.set("PostgreSQL", settings.join(", "));
        report.set("NATS", format!("{}, file storage, one replica, defaults", bed.nats_version));
        if self.quick {
            report.set("quick", "shows that it runs, not how fast");
        }
    }

    fn wants(&self, name: &str) -> bool {
        self.only.as_ref().is_none_or(|text| name.contains(text))
    }

    fn rounds(&self) -> usize {
        self.rounds.unwrap_or(if self.quick { 1 } else { 5 })
    }

    /// How long a part of a workload lasts.
    fn seconds(&self, quick: u64, full: u64) -> Duration {
        Duration::from_secs(if self.quick { quick } else { full })
    }

    async fn steady(&self, bed: &Bed) -> Result<Report> {
        let rates: &[f64] =
            if self.quick { &[500.0] } else { &[1_000.0, 2_000.0, 5_000.0, 10_000.0, 20_000.0] };
        let rounds = self.rounds().min(3);
        latency::steady(bed, &self.workload(0), rates, self.seconds(3, 20), rounds).await
    }

    /// The events of a workload with a backlog of `events` in a full run.
    fn workload(&self, events: u64) -> Workload {
        Workload {
            seed: self.seed,
            events: self.events.unwrap_or(if self.quick { 20_000 } else { events }),
            keys: 10_000,
            distribution: self.keys,
            payload_bytes: self.payload_bytes,
        }
    }

    async fn drain_report(
        &self,
        bed: &Bed,
        name: &str,
        caption: &str,
        contenders: &[Contender],
        events: u64,
    ) -> Result<Report> {
        let mut report = Report::new(name, caption, RATE);
        let workload = self.workload(events);
        report.set("events", workload.events);
        let wanted = |known: &Contender| self.wants(&known.name());
        let contenders: Vec<Contender> = contenders.iter().copied().filter(wanted).collect();
        drain::alternate(bed, &mut report, &workload, &contenders, self.rounds()).await?;
        Ok(report)
    }

    async fn floors(&self, bed: &Bed) -> Result<Report> {
        let contenders = [
            Contender::ReadOnly,
            Contender::bare_loop(Target::Null),
            Contender::flat_loop(Target::Null),
            Contender::BrokerOnly { into: Target::JetStream, window: 1 },
            Contender::BrokerOnly { into: Target::JetStream, window: 200 },
            Contender::BrokerOnly { into: Target::JetStream, window: 1_000 },
            Contender::BrokerOnly { into: Target::JetStreamBatches, window: 1_000 },
            Contender::bare_loop(Target::JetStream),
            Contender::bare_loop(Target::JetStreamBatches),
            Contender::flat_loop(Target::JetStream),
        ];
        let caption = "What database and broker give to a loop that does nothing else";
        let mut report = self.drain_report(bed, "floors", caption, &contenders, EVENTS).await?;
        for target in [Target::Null, Target::JetStream] {
            let (of, to) = (Contender::bare_loop(target), Contender::flat_loop(target));
            report.add_ratio("÷ flat table", RATE, &of.name(), &to.name());
        }
        Ok(report)
    }

    async fn drain(&self, bed: &Bed) -> Result<Report> {
        let relays = [
            Contender::relay(RelaySettings::DEFAULT, Target::Null),
            Contender::relay(RelaySettings::SMALL, Target::Null),
            Contender::relay(RelaySettings::DEFAULT, Target::Lines),
            Contender::relay(RelaySettings::DEFAULT, Target::JetStream),
            Contender::relay(RelaySettings::DEFAULT, Target::JetStreamBatches),
            Contender::relay(RelaySettings::SMALL, Target::JetStreamBatches),
            Contender::relay(RelaySettings::NO_HISTORY, Target::Null),
            Contender::relay(RelaySettings::NO_HISTORY, Target::JetStreamBatches),
        ];
        let mut contenders = vec![
            Contender::ReadOnly,
            Contender::bare_loop(Target::Null),
            Contender::bare_loop(Target::JetStream),
            Contender::bare_loop(Target::JetStreamBatches),
            Contender::flat_loop(Target::Null),
            Contender::flat_loop(Target::JetStream),
        ];
        contenders.extend(relays);
        let caption = "The relay beside the bare loop, with everything waiting";
        let mut report = self.drain_report(bed, "drain", caption, &contenders, EVENTS).await?;
        for relay in relays {
            let Contender::Relay { into, .. } = relay else { continue };
            let target = match into {
                Target::Lines => Target::Null,
                // Whatever the stream takes: the loop that everybody would write.
                Target::JetStreamBatches => Target::JetStream,
                into => into,
            };
            let base = Contender::bare_loop(target).name();
            report.add_ratio("÷ bare loop", RATE, &relay.name(), &base);
            if into == Target::JetStreamBatches {
                let base = Contender::bare_loop(into).name();
                report.add_ratio("÷ bare loop with batches", RATE, &relay.name(), &base);
            }
        }
        for target in [Target::Null, Target::JetStream] {
            let (of, to) = (Contender::bare_loop(target), Contender::flat_loop(target));
            report.add_ratio("÷ flat table", RATE, &of.name(), &to.name());
        }
        Ok(report)
    }

    async fn backlog(&self, bed: &Bed) -> Result<Report> {
        let caption = "The relay with ever more waiting, into nothing and into JetStream";
        let mut report = Report::new("backlog", caption, RATE);
        let sizes: &[u64] = match (self.quick, self.long) {
            (true, _) => &[10_000, 40_000],
            (false, false) => &[100_000, 1_000_000],
            (false, true) => &[100_000, 1_000_000, 10_000_000],
        };
        // What the database itself takes longer for, the bare loop shows.
        let contenders = [Target::Null, Target::JetStreamBatches].map(|target| {
            [Contender::bare_loop(target), Contender::relay(RelaySettings::DEFAULT, target)]
        });
        let waiting = |events: u64, contender: Contender| {
            format!("{} waiting, {}", report::number(events as f64), contender.name())
        };
        for round in 1..=self.rounds().min(3) {
            eprintln!("backlog: round {round}");
            for events in sizes {
                let workload = Workload { events: *events, ..self.workload(*events) };
                for contender in contenders.concat() {
                    let figures = contender.run(bed, &workload).await?;
                    report.add(&waiting(*events, contender), figures);
                }
            }
        }
        for events in sizes {
            for [bare_loop, relay] in contenders {
                let names = [relay, bare_loop].map(|contender| waiting(*events, contender));
                report.add_ratio("÷ bare loop", RATE, &names[0], &names[1]);
            }
        }
        Ok(report)
    }

    async fn scale_out(&self, bed: &Bed) -> Result<Report> {
        let contenders: Vec<Contender> =
            [Target::Null, Target::JetStream, Target::JetStreamBatches]
                .into_iter()
                .flat_map(|into| {
                    [1, 2, 4].map(|processes| Contender::Relay {
                        settings: RelaySettings::DEFAULT,
                        into,
                        processes,
                    })
                })
                .collect();
        let caption = "Several relays on one outbox, all on one machine";
        let mut report =
            self.drain_report(bed, "scale-out", caption, &contenders, SCALE_OUT_EVENTS).await?;
        for group in contenders.chunks(3) {
            for several in group {
                report.add_ratio("÷ one relay", RATE, &several.name(), &group[0].name());
            }
        }
        Ok(report)
    }

    async fn rivals(&self, bed: &Bed) -> Result<Report> {
        let into = Target::JetStream;
        let contenders = [
            Contender::relay(RelaySettings::DEFAULT, Target::JetStreamBatches),
            Contender::relay(RelaySettings::DEFAULT, into),
            Contender::Poller { into, workers: 1, batch: 1 },
            Contender::Poller { into, workers: 4, batch: 1 },
            Contender::Poller { into, workers: 4, batch: 100 },
            // The ticker's default, and batches as large as posthaste's.
            Contender::PgQ { into, tick: 500 },
            Contender::PgQ { into: Target::JetStreamBatches, tick: 5_000 },
            // As most rivals are used: what is sent is gone.
            Contender::relay(RelaySettings::NO_HISTORY, Target::JetStreamBatches),
            // Of each of the others first its defaults, last what was fastest here.
            Contender::OutboxCore { managers: 1, batch: 100 },
            Contender::OutboxCore { managers: 16, batch: 1_000 },
            Contender::Gears { into, partitions: 4, tuning: GearsTuning::Default },
            Contender::Gears { into, partitions: 64, tuning: GearsTuning::HighThroughput },
            Contender::Gears { into, partitions: 4, tuning: GearsTuning::Fastest },
            Contender::Gears {
                into: Target::JetStreamBatches,
                partitions: 4,
                tuning: GearsTuning::Fastest,
            },
            Contender::Debezium { into, settings: DebeziumSettings::DEFAULT },
            Contender::Debezium { into, settings: DebeziumSettings::LARGE },
            Contender::Debezium {
                into: Target::JetStreamBatches,
                settings: DebeziumSettings::LARGE,
            },
        ];
        let caption = "Other outboxes into JetStream, on the same servers";
        let mut report = self.drain_report(bed, "rivals", caption, &contenders, EVENTS).await?;
        for rival in contenders {
            report.add_ratio("÷ posthaste", RATE, &rival.name(), &contenders[0].name());
        }
        Ok(report)
    }

    async fn rivals_latency(&self, bed: &Bed) -> Result<Report> {
        let rounds = self.rounds().min(3);
        let wants = |name: &str| self.wants(name);
        rival_latency::compare(bed, &self.workload(0), self.seconds(3, 20), rounds, wants).await
    }
}
