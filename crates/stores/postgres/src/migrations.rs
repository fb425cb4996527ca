//! The schema: embedded, versioned, applied under a lock.

use std::time::Duration;

use async_trait::async_trait;
use posthaste_core::{Error, ErrorKind, Migration, MigrationStatus, OutboxMigrations, Result};
use sqlx::{AssertSqlSafe, Row};

use crate::error::failed;
use crate::history::CREATE_AHEAD;
use crate::outbox::PostgresOutbox;
use crate::session::Session;
use crate::standby;

const MIGRATE: &str = "migrate the database";
const STATUS: &str = "read migration status";

/// A step and its SQL. Applied steps are never edited: a change is a new step.
struct Step {
    migration: Migration,
    sql: &'static str,
}

const STEPS: [Step; 3] = [
    Step {
        migration: Migration { version: 1, name: "outbox" },
        sql: include_str!("../migrations/0001_outbox.sql"),
    },
    Step {
        migration: Migration { version: 2, name: "relays" },
        sql: include_str!("../migrations/0002_relays.sql"),
    },
    Step {
        migration: Migration { version: 3, name: "guards" },
        sql: include_str!("../migrations/0003_guards.sql"),
    },
];

const BOOKKEEPING: &str = "\
create table if not exists outbox_migrations (
    version    integer primary key,
    name       text not null,
    applied_at timestamptz not null default now()
);
";

/// A transaction's lock, which works through poolers. Whoever waits for it finds the work done.
const LOCK: &str = "select pg_advisory_xact_lock(hashtext('posthaste.migrate'))";

/// What there is: bookkeeping, and a table of our name.
const FOUND: &str = "\
    select to_regclass('outbox_migrations') is not null, to_regclass('outbox_events') is not null";

const VERSION: &str = "select coalesce(max(version), 0) from outbox_migrations";

/// The version this program was built for.
const WANTED: u32 = STEPS[STEPS.len() - 1].migration.version;

/// What the database holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Found {
    /// Neither bookkeeping nor a table.
    Nothing,
    /// A table `outbox_events` that no migration of ours made.
    Foreign,
    /// Ours, at this version.
    Version(u32),
}

#[async_trait]
impl OutboxMigrations for PostgresOutbox {
    async fn migration_status(&self) -> Result<MigrationStatus> {
        self.bounded(STATUS, async {
            let mut session = self.session(STATUS).await?;
            let found = find(&mut session, STATUS).await?;
            session.finish().await?;
            let current = if let Found::Version(version) = found { version } else { 0 };
            Ok(MigrationStatus { current, wanted: WANTED, pending: missing(current).collect() })
        })
        .await
    }

    async fn migrate(&self) -> Result<Vec<Migration>> {
        migrate(self).await.map_err(|error| self.locate(error))
    }

    fn migration_sql(&self) -> String {
        let mut sql = format!(
            "-- posthaste's schema for PostgreSQL, version {WANTED}. Run it once, in one \
             transaction.\n\n{BOOKKEEPING}\n"
        );
        for step in &STEPS {
            sql.push_str(step.sql);
            sql.push_str(&format!("\n{}\n\n", record(&step.migration)));
        }
        sql.push_str(CREATE_AHEAD);
        sql
    }
}

fn missing(current: u32) -> impl Iterator<Item = Migration> {
    STEPS.iter().map(|step| step.migration.clone()).filter(move |step| step.version > current)
}

fn record(migration: &Migration) -> String {
    let Migration { version, name } = migration;
    format!("insert into outbox_migrations (version, name) values ({version}, '{name}');")
}

async fn migrate(outbox: &PostgresOutbox) -> Result<Vec<Migration>> {
    let mut session = begin_locked(outbox, MIGRATE).await?;
    let current = match find(&mut session, MIGRATE).await? {
        Found::Nothing => 0,
        Found::Foreign => return Err(crate::adopt::explain(&mut session, MIGRATE).await?),
        Found::Version(version) => version,
    };
    refuse_newer(current, MIGRATE)?;
    let applied = apply(&mut session, current, MIGRATE).await?;
    session.finish().await?;
    Ok(applied)
}

/// A transaction without a time limit that holds the lock of all changes to the schema.
pub(crate) async fn begin_locked(
    outbox: &PostgresOutbox,
    operation: &'static str,
) -> Result<Session> {
    let mut session = outbox.transaction(Duration::ZERO, operation).await?;
    standby::refuse(&mut session, operation).await?;
    sqlx::raw_sql(LOCK).execute(session.connection()).await.map_err(failed(operation))?;
    Ok(session)
}

/// Applies every step after `current`, and creates history partitions ahead.
pub(crate) async fn apply(
    session: &mut Session,
    current: u32,
    operation: &'static str,
) -> Result<Vec<Migration>> {
    let connection = session.connection();
    sqlx::raw_sql(BOOKKEEPING).execute(&mut *connection).await.map_err(failed(operation))?;
    let mut applied = Vec::new();
    for step in STEPS.iter().filter(|step| step.migration.version > current) {
        sqlx::raw_sql(step.sql).execute(&mut *connection).await.map_err(failed(operation))?;
        let record = AssertSqlSafe(record(&step.migration));
        sqlx::raw_sql(record).execute(&mut *connection).await.map_err(failed(operation))?;
        applied.push(step.migration.clone());
    }
    sqlx::raw_sql(CREATE_AHEAD).execute(&mut *connection).await.map_err(failed(operation))?;
    Ok(applied)
}

pub(crate) async fn find(session: &mut Session, operation: &'static str) -> Result<Found> {
    let statement = session.statement(FOUND);
    let row = statement.fetch_one(session.connection()).await.map_err(failed(operation))?;
    let known: bool = row.try_get(0).map_err(failed(operation))?;
    let exists: bool = row.try_get(1).map_err(failed(operation))?;
    let version = if known { version(session, operation).await? } else { 0 };
    Ok(match (version, exists) {
        (0, false) => Found::Nothing,
        (0, true) => Found::Foreign,
        (version, _) => Found::Version(version),
    })
}

async fn version(session: &mut Session, operation: &'static str) -> Result<u32> {
    let statement = session.statement(VERSION);
    let row = statement.fetch_one(session.connection()).await.map_err(failed(operation))?;
    let version: i32 = row.try_get(0).map_err(failed(operation))?;
    Ok(u32::try_from(version).unwrap_or(0))
}

/// Refuses every schema but the one this program was built for.
pub(crate) async fn check(session: &mut Session, operation: &'static str) -> Result<()> {
    let refuse = |why: String| Err(Error::new(ErrorKind::Schema, operation, why));
    match find(session, operation).await? {
        Found::Nothing => refuse("there is no outbox here; run `posthaste migrate up`".into()),
        Found::Foreign => Err(crate::adopt::explain(session, operation).await?),
        Found::Version(version) if version < WANTED => refuse(format!(
            "the schema is version {version}, this program needs {WANTED}; run `posthaste migrate up`"
        )),
        Found::Version(version) => refuse_newer(version, operation),
    }
}

fn refuse_newer(version: u32, operation: &'static str) -> Result<()> {
    if version > WANTED {
        return Err(Error::new(
            ErrorKind::Schema,
            operation,
            format!(
                "the schema is version {version}, made by a later posthaste; this program knows \
                 up to {WANTED}: upgrade it"
            ),
        ));
    }
    Ok(())
}
