//! Private servers, and databases that are all alike: each run gets a copy of one template.

use std::time::Duration;

use anyhow::{Context as _, Result};
use posthaste_core::{OutboxMigrations as _, OutboxRepository as _};
use posthaste_postgres::{PostgresOptions, PostgresOutbox};
use posthaste_testkit::servers::{NatsServer, PostgresServer};
use sqlx::postgres::{PgConnectOptions, PgConnection};
use sqlx::{AssertSqlSafe, ConnectOptions as _, Connection as _, Row as _};

use crate::report::{Figures, RATE};
use crate::rival_tables;
use crate::workload::{EVENT_TYPE, Event, Workload};

/// PostgreSQL's settings for every run. Durable: `fsync` is on, whatever tests do. The rest keeps a
/// checkpoint from falling into one run and not into the next.
pub(crate) const POSTGRES_SETTINGS: [&str; 7] = [
    "fsync=on",
    "shared_buffers=1GB",
    "max_wal_size=8GB",
    "checkpoint_timeout=30min",
    "max_connections=200",
    "shared_preload_libraries=pg_stat_statements",
    "pg_stat_statements.track=all",
];

/// Where events are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Layout {
    /// posthaste's own: split by whether an event is delivered.
    Partitioned,
    /// One table with an index of what waits, as most outboxes have it.
    Flat,
    /// A queue of PgQ with a tick behind every so many events.
    PgQ { tick: usize },
    /// The table of `outbox-postgres`.
    OutboxCore,
    /// The tables of `cf-gears-toolkit-db`, with so many partitions.
    Gears { partitions: u16 },
}

impl Layout {
    fn name(self) -> String {
        match self {
            Self::Partitioned => "partitioned".to_owned(),
            Self::Flat => "flat".to_owned(),
            Self::PgQ { tick } => format!("pgq_{tick}"),
            Self::OutboxCore => "outbox_core".to_owned(),
            Self::Gears { partitions } => format!("gears_{partitions}"),
        }
    }
}

/// The table that most outboxes have: the columns of the contract and a number to order by.
const FLAT: &str = "\
    create table outbox_events (
        seq           bigint generated always as identity,
        id            uuid primary key default gen_random_uuid(),
        aggregate_id  uuid not null,
        event_type    varchar(100) not null,
        event_data    jsonb not null,
        created_at    timestamptz default now(),
        processed_at  timestamptz,
        retry_count   integer default 0,
        max_retries   integer default 3,
        error_message text
    );
    create index outbox_events_waiting on outbox_events (seq) where processed_at is null";

/// Copies whose pages go through the log stay in memory; larger ones are copied as files.
const EVENTS_COPIED_IN_MEMORY: u64 = 300_000;

/// Notes when each statement began that deleted events: its own time, as `processed_at` is.
const NOTE_DELETIONS: &str = "\
    create table deletions (at timestamptz not null); \
    create function note_deletion() returns trigger language plpgsql as \
        $$ begin insert into deletions values (now()); return null; end $$; \
    create trigger note_deletion after delete on outbox_events \
        for each statement execute function note_deletion()";

/// The servers of one run of the bench.
pub(crate) struct Bed {
    postgres: PostgresServer,
    pub(crate) nats: NatsServer,
    pub(crate) nats_version: String,
    copies: std::cell::Cell<u32>,
}

/// A database of one run.
pub(crate) struct Database {
    pub(crate) name: String,
    pub(crate) url: String,
}

impl Bed {
    /// PostgreSQL has `more` settings, which go before its usual ones.
    pub(crate) async fn start(more: &[String]) -> Result<Self> {
        let more = more.iter().map(String::as_str);
        let settings: Vec<&str> = POSTGRES_SETTINGS.into_iter().chain(more).collect();
        let postgres = PostgresServer::start(&settings).await.context("no PostgreSQL")?;
        let nats = NatsServer::start_recent("max_payload: 8MB").await.context("no NATS server")?;
        let client = async_nats::connect(nats.url()).await?;
        let nats_version = client.server_info().version;
        let bed = Self { postgres, nats, nats_version, copies: std::cell::Cell::new(0) };
        let mut admin = bed.admin().await?;
        sqlx::raw_sql("create extension pg_stat_statements").execute(&mut admin).await?;
        Ok(bed)
    }

    /// A connection to a database that no run uses.
    pub(crate) async fn admin(&self) -> Result<PgConnection> {
        connect(&self.postgres.url("postgres")).await
    }

    /// A copy of the database that holds the events of `workload`, which is made where it is
    /// missing.
    pub(crate) async fn database(&self, layout: Layout, workload: &Workload) -> Result<Database> {
        let template = format!("bench_{}_{}", layout.name(), workload.name());
        let mut admin = self.admin().await?;
        let known = sqlx::query("select from pg_database where datname = $1")
            .bind(&template)
            .fetch_optional(&mut admin)
            .await?;
        if known.is_none() {
            run(&mut admin, format!("create database {template}")).await?;
            fill(&self.postgres.url(&template), layout, workload).await.context("fill database")?;
        }
        let number = self.copies.get() + 1;
        self.copies.set(number);
        let name = format!("run_{number}");
        let strategy =
            if workload.events <= EVENTS_COPIED_IN_MEMORY { "wal_log" } else { "file_copy" };
        run(&mut admin, format!("create database {name} template {template} strategy {strategy}"))
            .await?;
        run(&mut admin, "checkpoint".to_owned()).await?;
        Ok(Database { url: self.postgres.url(&name), name })
    }

    pub(crate) async fn drop_database(&self, database: Database) -> Result<()> {
        let mut admin = self.admin().await?;
        run(&mut admin, format!("drop database {} with (force)", database.name)).await
    }

    /// Bytes that the server ever wrote to its log, and statements it ever ran in `database`.
    pub(crate) async fn counters(&self, database: &Database) -> Result<Counters> {
        let mut admin = self.admin().await?;
        let row = sqlx::query(
            "select (pg_current_wal_lsn() - '0/0')::float8, \
                coalesce((select sum(calls) from pg_stat_statements s \
                    join pg_database d on d.oid = s.dbid \
                    where datname = $1 and query not like '%order by seq desc%' \
                        and query not like 'insert into deletions%'), 0)::float8",
        )
        .bind(&database.name)
        .fetch_one(&mut admin)
        .await?;
        Ok(Counters { wal_bytes: row.try_get(0)?, statements: row.try_get(1)? })
    }
}

/// What the server counts.
pub(crate) struct Counters {
    pub(crate) wal_bytes: f64,
    pub(crate) statements: f64,
}

impl Database {
    /// Waits until nothing is pending. Asks from the end: the front of the index is full of entries
    /// of what is delivered.
    pub(crate) async fn wait_until_empty(&self, layout: Layout) -> Result<()> {
        let mut connection = connect(&self.url).await?;
        let query = match layout {
            Layout::Partitioned => "select 1 from outbox_events_pending order by seq desc limit 1",
            _ => "select 1 from outbox_events where processed_at is null order by seq desc limit 1",
        };
        while sqlx::query(query).fetch_optional(&mut connection).await?.is_some() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        connection.close().await?;
        Ok(())
    }

    /// When each tenth of `events` was completed, in seconds since the first completion, and how
    /// many the first completion had. The database's own times: nothing has to watch meanwhile.
    pub(crate) async fn completions(&self) -> Result<Completions> {
        let mut connection = connect(&self.url).await?;
        let rows = sqlx::query(
            "select extract(epoch from processed_at)::float8, count(*) from outbox_events \
             where processed_at is not null group by processed_at order by processed_at",
        )
        .fetch_all(&mut connection)
        .await?;
        let steps = rows.iter().map(|row| Ok((row.try_get(0)?, row.try_get(1)?)));
        Ok(Completions { steps: steps.collect::<sqlx::Result<_>>()? })
    }

    /// For a contender that leaves no row behind: notes one for each of its statements from now on,
    /// which is work that others do not have.
    pub(crate) async fn note_deletions(&self) -> Result<()> {
        let mut connection = connect(&self.url).await?;
        run(&mut connection, NOTE_DELETIONS.to_owned()).await?;
        Ok(connection.close().await?)
    }

    /// When statements deleted `events`, as many in each as in the others: counting them would take
    /// the database longer than noting the time. Of a hundred statements one is left out of the
    /// rate, so that is wrong by less than a hundredth.
    pub(crate) async fn deletions(&self, events: u64) -> Result<Completions> {
        let mut connection = connect(&self.url).await?;
        let rows = sqlx::query("select extract(epoch from at)::float8 from deletions order by at");
        let rows = rows.fetch_all(&mut connection).await?;
        anyhow::ensure!(!rows.is_empty(), "no statement was noted");
        let (events, statements) = (i64::try_from(events)?, i64::try_from(rows.len())?);
        let until = |number: i64| events * number / statements;
        let steps = (0..).zip(&rows);
        let steps =
            steps.map(|(number, row)| Ok((row.try_get(0)?, until(number + 1) - until(number))));
        Ok(Completions { steps: steps.collect::<sqlx::Result<_>>()? })
    }
}

/// Times and counts of transactions that completed events, in order.
#[derive(Default)]
pub(crate) struct Completions {
    steps: Vec<(f64, i64)>,
}

impl Completions {
    pub(crate) const fn of(steps: Vec<(f64, i64)>) -> Self {
        Self { steps }
    }

    /// Events a second, from the first completion to the last. What was done before the first is
    /// nobody's measured time, so its events do not count.
    fn rate(&self) -> f64 {
        let Some(((begun, first), (ended, _))) = self.steps.first().zip(self.steps.last()) else {
            return 0.0;
        };
        let events: i64 = self.steps.iter().map(|(_, count)| count).sum();
        (events - first) as f64 / (ended - begun).max(1e-6)
    }

    /// As figures of a contender.
    pub(crate) fn figures(&self) -> Figures {
        Figures { deciles: self.deciles(), ..Figures::default() }.with(RATE, self.rate())
    }

    /// The rate within each tenth of the events.
    fn deciles(&self) -> Vec<f64> {
        let total: i64 = self.steps.iter().map(|(_, count)| count).sum();
        let mut rates = Vec::new();
        let (mut done, mut from) = (0, (0, self.steps.first().map_or(0.0, |step| step.0)));
        for (time, count) in &self.steps {
            done += count;
            let tenth = i64::try_from(rates.len()).unwrap_or(0) + 1;
            if done * 10 >= total * tenth && *time > from.1 {
                rates.push((done - from.0) as f64 / (time - from.1));
                from = (done, *time);
            }
        }
        rates
    }
}

async fn fill(url: &str, layout: Layout, workload: &Workload) -> Result<()> {
    let mut connection = connect(url).await?;
    match layout {
        Layout::PgQ { tick } => {
            return rival_tables::fill_queue(&mut connection, workload, tick).await;
        }
        Layout::OutboxCore => {
            return rival_tables::fill_outbox_core(&mut connection, url, workload).await;
        }
        Layout::Gears { partitions } => {
            return rival_tables::fill_gears(&mut connection, url, workload, partitions).await;
        }
        Layout::Flat => run(&mut connection, FLAT.to_owned()).await?,
        Layout::Partitioned => {
            let outbox = PostgresOutbox::connect(&PostgresOptions::from_url(url)).await?;
            outbox.migrate().await?;
            outbox.maintain().await?;
            outbox.pool().close().await;
        }
    }
    let statement = "copy outbox_events (id, aggregate_id, event_type, event_data) from stdin";
    let line =
        |event: Event| format!("{}\t{}\t{EVENT_TYPE}\t{}\n", event.id, event.key, event.data);
    copy(&mut connection, statement, workload.events().map(line)).await?;
    // Every copy then begins with the same statistics, and no row has to be marked as committed.
    run(&mut connection, "vacuum (freeze, analyze) outbox_events".to_owned()).await?;
    connection.close().await?;
    Ok(())
}

/// Copies lines in.
pub(crate) async fn copy(
    connection: &mut PgConnection,
    statement: &str,
    lines: impl Iterator<Item = String>,
) -> Result<()> {
    let mut copy = connection.copy_in_raw(statement).await?;
    let mut text = String::new();
    for line in lines {
        text.push_str(&line);
        if text.len() > 1 << 20 {
            copy.send(std::mem::take(&mut text).into_bytes()).await?;
        }
    }
    copy.send(text.into_bytes()).await?;
    copy.finish().await?;
    Ok(())
}

/// A connection with the settings of posthaste's own.
pub(crate) async fn connect(url: &str) -> Result<PgConnection> {
    options(url)?.connect().await.with_context(|| format!("connect to {url}"))
}

/// The settings of posthaste's own connections.
pub(crate) fn options(url: &str) -> Result<PgConnectOptions> {
    let options: PgConnectOptions = url.parse()?;
    Ok(options
        .ssl_mode(sqlx::postgres::PgSslMode::Disable)
        .disable_statement_logging()
        .extra_float_digits(None)
        .options([("plan_cache_mode", "force_custom_plan")]))
}

pub(crate) async fn run(connection: &mut PgConnection, sql: String) -> Result<()> {
    sqlx::raw_sql(AssertSqlSafe(sql.clone())).execute(connection).await.context(sql)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_leave_out_the_first_completion_and_deciles_cover_the_rest() {
        let steps = (0..=10).map(|step| (f64::from(step), 100)).collect();
        let completions = Completions { steps };
        assert!((completions.rate() - 100.0).abs() < 1e-6);
        let deciles = completions.deciles();
        assert_eq!(deciles.len(), 10);
        assert!(deciles[1..].iter().all(|rate| (rate - 100.0).abs() < 12.0), "{deciles:?}");
    }
}
