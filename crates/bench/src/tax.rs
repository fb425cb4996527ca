//! What storing an event costs the application's own transactions.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::Result;
use rand::SeedableRng as _;
use rand::rngs::SmallRng;
use sqlx::Connection as _;

use crate::bed::{Bed, Layout, connect, run};
use crate::load::quantile;
use crate::relay::{Relay, RelaySettings, Sink};
use crate::report::{Figures, Report};
use crate::stream::Stream;
use crate::workload::{EVENT_TYPE, KeyChoice, Workload, payload};

/// Connections of the application.
const WRITERS: u64 = 8;

const RATE: &str = "transactions/s";

const ACCOUNT: &str = "insert into accounts (aggregate_id, data) values ($1, $2::jsonb)";

const ACCOUNT_AND_EVENT: &str = "\
    with account as (\
        insert into accounts (aggregate_id, data) values ($1, $2::jsonb) returning aggregate_id) \
    insert into outbox_events (aggregate_id, event_type, event_data) \
    select aggregate_id, $3, $4::jsonb from account";

/// What a transaction holds besides its row of domain data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Second {
    Nothing,
    /// A row of the outbox's columns in an unpartitioned table with the same indexes.
    Twin,
    Event,
    /// An event that the statement of the domain row stores, too.
    InOneStatement,
    /// An event, and a relay that delivers it meanwhile.
    Relayed,
}

impl Second {
    const ALL: [Self; 5] =
        [Self::Nothing, Self::Twin, Self::Event, Self::InOneStatement, Self::Relayed];

    const fn name(self) -> &'static str {
        match self {
            Self::Nothing => "domain row only",
            Self::Twin => "and an equal row in a plain table",
            Self::Event => "and an event",
            Self::InOneStatement => "and an event, in one statement",
            Self::Relayed => "and an event, posthaste delivering",
        }
    }

    /// The statement of its own that stores it.
    const fn insert(self) -> Option<&'static str> {
        match self {
            Self::Nothing | Self::InOneStatement => None,
            Self::Twin => Some(
                "insert into twin (aggregate_id, event_type, event_data) values ($1, $2, $3::jsonb)",
            ),
            Self::Event | Self::Relayed => Some(
                "insert into outbox_events (aggregate_id, event_type, event_data) \
                 values ($1, $2, $3::jsonb)",
            ),
        }
    }
}

pub(crate) async fn producer_tax(
    bed: &Bed,
    workload: &Workload,
    lasts: Duration,
    rounds: usize,
) -> Result<Report> {
    let caption = "Transactions of an application that stores one event with one row of its own";
    let mut report = Report::new("producer-tax", caption, RATE);
    report.set("seconds", lasts.as_secs());
    report.set("writers", WRITERS);
    for round in 1..=rounds {
        eprintln!("producer-tax: round {round} of {rounds}");
        for second in Second::ALL {
            let figures = measure(bed, workload, second, lasts).await?;
            report.add(second.name(), figures);
        }
    }
    for second in &Second::ALL[1..] {
        report.add_ratio("÷ domain row only", RATE, second.name(), Second::Nothing.name());
    }
    for second in &Second::ALL[2..] {
        report.add_ratio("÷ plain table", RATE, second.name(), Second::Twin.name());
    }
    Ok(report)
}

async fn measure(
    bed: &Bed,
    workload: &Workload,
    second: Second,
    lasts: Duration,
) -> Result<Figures> {
    let empty = Workload { events: 0, ..workload.clone() };
    let database = bed.database(Layout::Partitioned, &empty).await?;
    let mut connection = connect(&database.url).await?;
    let create = "create table accounts (id bigint generated always as identity primary key, \
                  aggregate_id uuid not null, data jsonb not null, changed_at timestamptz default now()); \
                  create table twin (like outbox_events_pending including defaults including indexes)";
    run(&mut connection, create.to_owned()).await?;
    connection.close().await?;
    let mut delivery = None;
    if second == Second::Relayed {
        let stream = Stream::create(bed.nats.url(), true).await?;
        let relay = Relay::start(&database, &Sink::Stream(&stream), RelaySettings::DEFAULT)?;
        delivery = Some((stream, relay));
    }
    let stop = Arc::new(AtomicBool::new(false));
    let writers: Vec<_> = (0..WRITERS)
        .map(|writer| {
            tokio::spawn(write(
                database.url.clone(),
                Workload { seed: workload.seed + writer, ..workload.clone() },
                second,
                stop.clone(),
            ))
        })
        .collect();
    tokio::time::sleep(lasts).await;
    stop.store(true, Ordering::Relaxed);
    let mut latencies = Vec::new();
    for writer in writers {
        latencies.extend(writer.await??);
    }
    latencies.sort_by(f64::total_cmp);
    if let Some((stream, relay)) = delivery {
        drop(relay);
        stream.delete().await?;
    }
    bed.drop_database(database).await?;
    Ok(Figures::default()
        .with(RATE, latencies.len() as f64 / lasts.as_secs_f64())
        .with("p50 ms", quantile(&latencies, 0.5))
        .with("p99 ms", quantile(&latencies, 0.99)))
}

/// One transaction after the other; how long each took, in milliseconds.
async fn write(
    url: String,
    workload: Workload,
    second: Second,
    stop: Arc<AtomicBool>,
) -> Result<Vec<f64>> {
    let mut random = SmallRng::seed_from_u64(workload.seed);
    let keys = KeyChoice::new(workload.keys, workload.distribution);
    let mut connection = connect(&url).await?;
    // An application keeps its plans.
    run(&mut connection, "set plan_cache_mode = auto".to_owned()).await?;
    let mut latencies = Vec::new();
    while !stop.load(Ordering::Relaxed) {
        let key = keys.draw(&mut random);
        let data = payload(&mut random, latencies.len() as u64, workload.payload_bytes);
        let begun = Instant::now();
        let mut transaction = connection.begin().await?;
        let both = second == Second::InOneStatement;
        let domain = sqlx::query(if both { ACCOUNT_AND_EVENT } else { ACCOUNT });
        let domain = domain.bind(key).bind(&data);
        let domain = if both { domain.bind(EVENT_TYPE).bind(&data) } else { domain };
        domain.execute(&mut *transaction).await?;
        if let Some(insert) = second.insert() {
            let insert = sqlx::query(insert).bind(key).bind(EVENT_TYPE).bind(&data);
            insert.execute(&mut *transaction).await?;
        }
        transaction.commit().await?;
        latencies.push(begun.elapsed().as_secs_f64() * 1e3);
    }
    Ok(latencies)
}
