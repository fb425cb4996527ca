//! The schema: embedded, versioned, applied under a lock.

use std::time::Duration;

use async_trait::async_trait;
use posthaste_core::{Error, ErrorKind, Migration, MigrationStatus, OutboxMigrations, Result};
use sqlx::error::DatabaseError;
use sqlx::{AssertSqlSafe, Row, SqlSafeStr};

use crate::error::failed;
use crate::locks::{LOCK_TIMEOUT, patiently};
use crate::outbox::PostgresOutbox;
use crate::session::Session;
use crate::{history, integrity, looks, rights, script, standby};

const MIGRATE: &str = "migrate the database";
const STATUS: &str = "read migration status";

/// A step and its SQL. Applied steps are never edited: a change is a new step.
pub(crate) struct Step {
    pub(crate) migration: Migration,
    pub(crate) sql: &'static str,
}

pub(crate) const STEPS: [Step; 3] = [
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

pub(crate) const BOOKKEEPING: &str = "\
create table if not exists outbox_migrations (
    version    integer primary key,
    name       text not null,
    applied_at timestamptz not null default now()
);
";

/// Nobody without rights to the bookkeeping can take it. It leaves readers alone.
const LOCK: &str = "lock table outbox_migrations in share row exclusive mode";

/// What is made or changed belongs to whom the outbox belongs, and nothing of that role's runs with the
/// rights of another one that migrates for it.
pub(crate) const AS_OWNER: &str = "\
do $$
declare
    owner name;
begin
    select r.rolname into owner from pg_class c join pg_roles r on r.oid = c.relowner
     where c.oid = to_regclass('outbox_migrations') and r.rolname <> current_user
       and has_schema_privilege(r.oid, c.relnamespace, 'create')
       and pg_has_role(current_user, r.oid, case
           when current_setting('server_version_num')::int >= 160000 then 'set' else 'member' end);
    if owner is not null then
        execute format('set local role %I', owner);
    end if;
end
$$";

/// What there is: bookkeeping, a table of our name and of which kind, and by what it has, of which
/// version of ours it is.
const FOUND: &str = "\
    select to_regclass('outbox_migrations') is not null, \
        coalesce((select relkind::text from pg_class where oid = to_regclass('outbox_events')), ''), \
        case when to_regclass('outbox_events_pending') is null then 0 \
            when to_regclass('outbox_relays') is null then 1 \
            when not exists (select from pg_attribute where attrelid = to_regclass('outbox_relays') \
                and attname = 'report' and not attisdropped) then 2 \
            else 3 end";

const VERSION: &str = "select coalesce(max(version), 0) from outbox_migrations";

/// Makes again what is missing, of a schema that has this program's version.
const MEND: &str =
    concat!(include_str!("../migrations/base.sql"), include_str!("../migrations/0003_guards.sql"));

/// The version this program was built for.
pub(crate) const WANTED: u32 = STEPS[STEPS.len() - 1].migration.version;

/// What the database holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Found {
    /// Neither bookkeeping nor a table.
    Nothing,
    /// A table `outbox_events` that no migration of ours made.
    Foreign,
    /// Ours, at this version.
    Version(u32),
    /// Ours by what it has, at this version, and the bookkeeping is empty: a dump without data.
    Unrecorded(u32),
}

#[async_trait]
impl OutboxMigrations for PostgresOutbox {
    async fn migration_status(&self) -> Result<MigrationStatus> {
        self.bounded(STATUS, async {
            let mut session = self.session(STATUS).await?;
            let found = match find(&mut session, STATUS).await {
                Ok(found) => found,
                Err(error) => {
                    drop(session);
                    return Err(all_that_is_missing(self, error).await);
                }
            };
            let (current, elsewhere) = match found {
                Found::Version(version) | Found::Unrecorded(version) => (version, Vec::new()),
                Found::Nothing => (0, looks::schemas_with_an_outbox(&mut session).await?),
                Found::Foreign => (0, Vec::new()),
            };
            session.finish().await?;
            let pending = missing(current).collect();
            Ok(MigrationStatus { current, wanted: WANTED, pending, elsewhere })
        })
        .await
    }

    async fn migrate(&self) -> Result<Vec<Migration>> {
        migrate(self).await.map_err(|error| self.locate(error))
    }

    fn migration_sql(&self) -> String {
        script::migration_sql(0)
    }
}

/// Of missing rights the server names the first one. Whoever lacks this one lacks others, too.
async fn all_that_is_missing(outbox: &PostgresOutbox, error: Error) -> Error {
    if error.kind() != ErrorKind::Unauthorized {
        return error;
    }
    match outbox.session(STATUS).await {
        Ok(mut session) => rights::check(&mut session, STATUS).await.err().unwrap_or(error),
        Err(_) => error,
    }
}

fn up_to(version: u32) -> impl Iterator<Item = Migration> {
    STEPS.iter().map(|step| step.migration.clone()).filter(move |step| step.version <= version)
}

fn missing(current: u32) -> impl Iterator<Item = Migration> {
    STEPS.iter().map(|step| step.migration.clone()).filter(move |step| step.version > current)
}

pub(crate) fn record(migration: &Migration) -> String {
    let Migration { version, name } = migration;
    format!(
        "insert into outbox_migrations (version, name) values ({version}, '{name}') \
         on conflict do nothing;"
    )
}

async fn migrate(outbox: &PostgresOutbox) -> Result<Vec<Migration>> {
    let applied = if is_whole(outbox).await? {
        Vec::new()
    } else {
        patiently(outbox, MIGRATE, || migrate_locked(outbox)).await?
    };
    // Whatever comes of it, events are delivered: the default partition takes them.
    if let Err(error) = history::maintain(outbox).await {
        tracing::warn!(error = error.report(), "days of the history could not be created ahead");
    }
    Ok(applied)
}

/// Looks before anything is locked: of those that start, nearly all find nothing to do.
async fn is_whole(outbox: &PostgresOutbox) -> Result<bool> {
    let mut session = outbox.session(MIGRATE).await?;
    standby::refuse(&mut session, MIGRATE).await?;
    let found = find(&mut session, MIGRATE).await?;
    let whole = found == Found::Version(WANTED)
        && integrity::missing(&mut session, MIGRATE).await?.is_empty();
    session.finish().await?;
    Ok(whole)
}

async fn migrate_locked(outbox: &PostgresOutbox) -> Result<Vec<Migration>> {
    let mut session = begin_locked(outbox, MIGRATE).await?;
    let current = match find(&mut session, MIGRATE).await? {
        Found::Nothing => 0,
        Found::Foreign => return Err(crate::adopt::explain(&mut session, MIGRATE).await?),
        Found::Unrecorded(version) => {
            for migration in up_to(version) {
                execute(&mut session, AssertSqlSafe(record(&migration)), MIGRATE).await?;
            }
            tracing::info!(version, "took over tables of posthaste's without bookkeeping");
            version
        }
        Found::Version(version) => version,
    };
    refuse_newer(current, MIGRATE)?;
    let missing =
        if current == 0 { Vec::new() } else { integrity::missing(&mut session, MIGRATE).await? };
    // What a later step makes is missing before it, too; version 1 had no relays and shards.
    if missing.iter().any(|missing| current == WANTED || (current > 1 && missing.is_needed)) {
        mend(&mut session, MIGRATE).await?;
        let missing: Vec<_> = missing.into_iter().map(|missing| missing.what).collect();
        tracing::warn!(missing = missing.join(", "), "made again what was missing");
    }
    let applied = apply(&mut session, current, MIGRATE).await?;
    session.finish().await?;
    Ok(applied)
}

/// A transaction without a time limit that holds the lock of all changes to the schema.
///
/// # Errors
/// `Conflict` where another session has what it needs: see [`patiently`].
pub(crate) async fn begin_locked(
    outbox: &PostgresOutbox,
    operation: &'static str,
) -> Result<Session> {
    let mut session = outbox.transaction(Duration::ZERO, operation).await?;
    standby::refuse(&mut session, operation).await?;
    execute(&mut session, LOCK_TIMEOUT, operation).await?;
    let statement = session.statement("select to_regclass('outbox_migrations') is not null");
    let row = statement.fetch_one(session.connection()).await;
    if row.and_then(|row| row.try_get(0)).map_err(failed(operation))? {
        execute(&mut session, AS_OWNER, operation).await?;
        execute(&mut session, LOCK, operation).await?;
    } else if let Err(error) = sqlx::raw_sql(BOOKKEEPING).execute(session.connection()).await {
        return Err(lost_the_race(error, operation));
    }
    Ok(session)
}

/// Another session has made the table at the same moment, and it will be there when we look again.
fn lost_the_race(error: sqlx::Error, operation: &'static str) -> Error {
    let code = error.as_database_error().and_then(DatabaseError::code);
    if matches!(code.as_deref(), Some("23505" | "42P07" | "42710")) {
        let message = "another session migrates at the same time";
        return Error::new(ErrorKind::Conflict, operation, message).with_source(error);
    }
    failed(operation)(error)
}

/// Makes again what is missing; what is there stays as it is.
async fn mend(session: &mut Session, operation: &'static str) -> Result<()> {
    execute(session, MEND, operation).await
}

/// Makes all there is to the schema, whatever of it exists, and records every step as done.
pub(crate) async fn make_whole(session: &mut Session, operation: &'static str) -> Result<()> {
    mend(session, operation).await?;
    for migration in up_to(WANTED) {
        execute(session, AssertSqlSafe(record(&migration)), operation).await?;
    }
    Ok(())
}

/// Applies every step after `current`.
async fn apply(
    session: &mut Session,
    current: u32,
    operation: &'static str,
) -> Result<Vec<Migration>> {
    let mut applied = Vec::new();
    for step in STEPS.iter().filter(|step| step.migration.version > current) {
        execute(session, step.sql, operation).await?;
        execute(session, AssertSqlSafe(record(&step.migration)), operation).await?;
        applied.push(step.migration.clone());
    }
    Ok(applied)
}

pub(crate) async fn execute(
    session: &mut Session,
    sql: impl SqlSafeStr,
    operation: &'static str,
) -> Result<()> {
    let done = sqlx::raw_sql(sql).execute(session.connection()).await;
    done.map(|_| ()).map_err(failed(operation))
}

pub(crate) async fn find(session: &mut Session, operation: &'static str) -> Result<Found> {
    let statement = session.statement(FOUND);
    let row = statement.fetch_one(session.connection()).await.map_err(failed(operation))?;
    let known: bool = row.try_get(0).map_err(failed(operation))?;
    let kind: String = row.try_get(1).map_err(failed(operation))?;
    let shape: i32 = row.try_get(2).map_err(failed(operation))?;
    let version = if known { version(session, operation).await? } else { 0 };
    Ok(match (version, kind.as_str(), u32::try_from(shape).unwrap_or(0)) {
        (0, "", _) => Found::Nothing,
        (0, "p", shape) if shape > 0 => Found::Unrecorded(shape),
        (version, "" | "p", _) if version > 0 => Found::Version(version),
        // Also where another tool has put a table of its own in the place of ours.
        _ => Found::Foreign,
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
        Found::Unrecorded(_) => refuse(
            "the outbox's tables are here, and the rows of outbox_migrations are not (a dump without \
             data?); run `posthaste migrate up`, which takes them over"
                .into(),
        ),
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
