//! How long an event takes: at fixed rates, when nothing else happens, and while a transaction stays
//! open.

use std::time::Duration;

use anyhow::Result;
use sqlx::{Connection as _, Row as _};

use crate::bed::{Bed, Database, Layout, connect, run};
use crate::load::Load;
use crate::producer::Producer;
use crate::relay::{Relay, RelaySettings, Sink};
use crate::report::{Figures, Report};
use crate::stream::Stream;
use crate::workload::Workload;

/// An empty outbox, a stream, and a relay between them.
struct Running {
    database: Database,
    producer: Producer,
    stream: Stream,
    relay: Relay,
}

impl Running {
    /// With a writer that wakes the relay where it `notifies`.
    async fn start(bed: &Bed, workload: &Workload, notifies: bool) -> Result<Self> {
        let empty = Workload { events: 0, ..workload.clone() };
        let database = bed.database(Layout::Partitioned, &empty).await?;
        let stream = Stream::create(bed.nats.url(), true).await?;
        let relay = Relay::start(&database, &Sink::Stream(&stream), RelaySettings::DEFAULT)?;
        // The first event says that it is there.
        let first = Load {
            events_per_second: 10.0,
            events_per_transaction: 1,
            lasts: Duration::from_millis(100),
            warm_up: Duration::ZERO,
        };
        let producer = Producer::outbox(&database.url, notifies).await?;
        first.run(&producer, &stream, workload).await?;
        Ok(Self { database, producer, stream, relay })
    }

    async fn end(self, bed: &Bed) -> Result<()> {
        drop(self.relay);
        self.producer.close().await;
        self.stream.delete().await?;
        bed.drop_database(self.database).await
    }
}

/// Fixed rates, one and a hundred events a transaction.
pub(crate) async fn steady(
    bed: &Bed,
    workload: &Workload,
    rates: &[f64],
    lasts: Duration,
    rounds: usize,
) -> Result<Report> {
    let caption = "Latency at fixed rates, from the commit's return to JetStream and to a consumer";
    let mut report = Report::new("steady", caption, "commit → ack p99 ms");
    report.set("seconds", lasts.as_secs());
    for round in 1..=rounds {
        eprintln!("steady: round {round} of {rounds}");
        for events_per_transaction in [1, 100] {
            for rate in rates {
                let load = Load {
                    events_per_second: *rate,
                    events_per_transaction,
                    lasts,
                    warm_up: lasts / 5,
                };
                let mut running = Running::start(bed, workload, true).await?;
                let before = running.relay.usage()?;
                let outcome = load.run(&running.producer, &running.stream, workload).await?;
                let cpu = running.relay.usage()?.cpu - before.cpu;
                running.end(bed).await?;
                let events = rate * lasts.as_secs_f64();
                let figures =
                    outcome.figures().with("CPU µs/event", cpu.as_secs_f64() * 1e6 / events);
                let rate = crate::report::number(*rate);
                report.add(
                    &format!("posthaste, {rate}/s, {events_per_transaction} a transaction"),
                    figures,
                );
            }
        }
    }
    Ok(report)
}

/// One event a second, and nothing at all.
pub(crate) async fn idle(bed: &Bed, workload: &Workload, lasts: Duration) -> Result<Report> {
    let caption = "One event a second, and nothing at all";
    let mut report = Report::new("idle", caption, "commit → ack p50 ms");
    report.set("seconds", lasts.as_secs());
    for (writer, notifies) in [("writer that wakes the relay", true), ("plain SQL writer", false)] {
        let load = Load {
            events_per_second: 1.0,
            events_per_transaction: 1,
            lasts,
            warm_up: Duration::ZERO,
        };
        let running = Running::start(bed, workload, notifies).await?;
        let outcome = load.run(&running.producer, &running.stream, workload).await?;
        running.end(bed).await?;
        report.add(&format!("posthaste, one event a second, {writer}"), outcome.figures());
    }
    let mut running = Running::start(bed, workload, true).await?;
    let (before, counted) = (running.relay.usage()?, bed.counters(&running.database).await?);
    tokio::time::sleep(lasts).await;
    let (after, counters) = (running.relay.usage()?, bed.counters(&running.database).await?);
    running.end(bed).await?;
    let seconds = lasts.as_secs_f64();
    let cpu = (after.cpu - before.cpu).as_secs_f64() / seconds * 100.0;
    let figures = Figures::default()
        .with("relay CPU %", cpu)
        .with("statements/s", (counters.statements - counted.statements) / seconds)
        .with("WAL bytes/s", (counters.wal_bytes - counted.wal_bytes) / seconds)
        .with("peak MB", after.peak_mb);
    report.add("posthaste, no event", figures);
    Ok(report)
}

/// 2,000 events a second while another session holds a snapshot, before and after.
pub(crate) async fn old_snapshot(
    bed: &Bed,
    workload: &Workload,
    lasts: Duration,
) -> Result<Report> {
    let caption = "2,000 events a second while another session holds a snapshot";
    let mut report = Report::new("old-snapshot", caption, "commit → ack p99 ms");
    report.set("seconds each", lasts.as_secs());
    let load =
        Load { events_per_second: 2_000.0, events_per_transaction: 10, lasts, warm_up: lasts / 10 };
    let running = Running::start(bed, workload, true).await?;
    let mut holder = connect(&running.database.url).await?;
    for phase in ["before", "held", "after"] {
        if phase == "held" {
            let hold = "begin isolation level repeatable read; select count(*) from outbox_signal";
            run(&mut holder, hold.to_owned()).await?;
        }
        let outcome = load.run(&running.producer, &running.stream, workload).await?;
        let (dead, size) = dead_rows(&running.database).await?;
        if phase == "held" {
            run(&mut holder, "rollback".to_owned()).await?;
        }
        let figures =
            outcome.figures().with("dead rows", dead).with("pending table and indexes MB", size);
        report.add(&format!("posthaste, {phase}"), figures);
    }
    holder.close().await?;
    running.end(bed).await?;
    Ok(report)
}

/// Rows of the pending table that are dead, as the server knows, and its size with its indexes.
async fn dead_rows(database: &Database) -> Result<(f64, f64)> {
    let mut connection = connect(&database.url).await?;
    let row = sqlx::query(
        "select n_dead_tup::float8, pg_total_relation_size(relid)::float8 / 1e6 \
         from pg_stat_user_tables where relname = 'outbox_events_pending'",
    )
    .fetch_one(&mut connection)
    .await?;
    connection.close().await?;
    Ok((row.try_get(0)?, row.try_get(1)?))
}
