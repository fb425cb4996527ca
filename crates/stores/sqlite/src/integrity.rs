//! Whether the outbox's tables, indexes and triggers are all there: other tools drop them, or rebuild a
//! table and forget what belongs to it.

use posthaste_core::{Error, ErrorKind, Result};
use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{AssertSqlSafe, ConnectOptions, Connection, SqliteConnection};

use crate::SqliteOutbox;
use crate::error::database;
use crate::migration::{OPERATION, STEPS};

/// What is there of the outbox, in the order in which it can be made.
const PARTS: &str = "\
select type, name, tbl_name, sql from sqlite_master where sql is not null and name glob 'outbox_*'
order by case type when 'table' then 0 when 'index' then 1 else 2 end, rowid";

const HAS_SIGNAL: &str = "select exists (select 1 from outbox_signal where id = 1)";

const SIGNAL: &str = "insert or ignore into outbox_signal (id, revision) values (1, 0)";

/// The row without which a relay reads no watermark.
const SIGNAL_ROW: &str = "the row of outbox_signal";

/// The comment that migration 1 has in the table's text aside.
const NUMBERS_PLACES: &str = "\
select replace(sql, '-- autoincrement', '') like '%autoincrement%' from sqlite_master
where type = 'table' and name = 'outbox_events'";

/// A table, an index or a trigger.
struct Part {
    kind: String,
    name: String,
    table: String,
    sql: String,
}

/// A part of the schema that is not there.
pub(crate) struct Missing {
    pub(crate) what: String,
    /// Whether nothing is delivered without it: statements name their indexes.
    pub(crate) is_needed: bool,
    /// What makes it again.
    sql: String,
}

/// What is not there of what migrations make: they are asked, in a database in memory.
pub(crate) async fn missing(
    connection: &mut SqliteConnection,
    operation: &'static str,
) -> Result<Vec<Missing>> {
    let fail = |error| database(operation, error);
    let there = parts(connection).await.map_err(fail)?;
    let is_there = |part: &Part| {
        there.iter().any(|other| {
            (&other.kind, &other.name, &other.table) == (&part.kind, &part.name, &part.table)
        })
    };
    let wanted = wanted().await.map_err(fail)?;
    let lost = wanted.into_iter().filter(|part| !is_there(part));
    let mut missing: Vec<Missing> = lost.map(Missing::of).collect();
    let has_signal = there.iter().any(|part| part.kind == "table" && part.name == "outbox_signal");
    if !has_signal
        || !sqlx::query_scalar(HAS_SIGNAL).fetch_one(&mut *connection).await.map_err(fail)?
    {
        let (what, sql) = (SIGNAL_ROW.into(), SIGNAL.into());
        missing.push(Missing { what, is_needed: true, sql });
    }
    Ok(missing)
}

impl Missing {
    fn of(Part { kind, name, sql, .. }: Part) -> Self {
        // One of that name went along with a table that was given another name.
        let room =
            if kind == "table" { String::new() } else { format!("drop {kind} if exists {name};") };
        Self {
            what: format!("{kind} {name}"),
            is_needed: kind != "trigger",
            sql: format!("{room}\n{sql}"),
        }
    }
}

async fn parts(connection: &mut SqliteConnection) -> sqlx::Result<Vec<Part>> {
    let rows = sqlx::query_as(PARTS).persistent(false).fetch_all(connection).await?;
    Ok(rows.into_iter().map(|(kind, name, table, sql)| Part { kind, name, table, sql }).collect())
}

async fn wanted() -> sqlx::Result<Vec<Part>> {
    let mut memory = SqliteConnectOptions::new().in_memory(true).connect().await?;
    for step in STEPS {
        sqlx::raw_sql(step.sql).execute(&mut memory).await?;
    }
    let parts = parts(&mut memory).await?;
    memory.close().await?;
    Ok(parts)
}

/// Refuses an outbox that lacks what nothing works without, or whose table gives places anew.
pub(crate) async fn check(
    connection: &mut SqliteConnection,
    operation: &'static str,
) -> Result<()> {
    let missing = missing(connection, operation).await?;
    if missing.iter().any(|missing| missing.is_needed) {
        let what = list(&missing);
        let message = format!(
            "the outbox is not whole: missing are {what}; run `posthaste migrate up`, which makes them \
             again"
        );
        return Err(Error::new(ErrorKind::Schema, operation, message));
    }
    let numbers: bool = sqlx::query_scalar(NUMBERS_PLACES)
        .fetch_one(connection)
        .await
        .map_err(|error| database(operation, error))?;
    if numbers {
        return Ok(());
    }
    Err(Error::new(
        ErrorKind::Schema,
        operation,
        "the table outbox_events was rebuilt without autoincrement, and its places say nothing any \
         more; rename it, run `posthaste migrate up`, and insert its rows that are pending into the \
         new table",
    ))
}

/// Names them.
pub(crate) fn list(missing: &[Missing]) -> String {
    missing.iter().map(|missing| missing.what.as_str()).collect::<Vec<_>>().join(", ")
}

impl SqliteOutbox {
    /// Makes again what is missing; what is there stays as it is.
    pub(crate) async fn mend(&self) -> Result<()> {
        let fail = |error| database(OPERATION, error);
        // Looks before it locks: an outbox that is whole waits for nobody's write lock.
        if missing(&mut *self.reader(OPERATION).await?, OPERATION).await?.is_empty() {
            return Ok(());
        }
        let mut transaction = self.begin_write(OPERATION).await?;
        let missing = missing(&mut transaction, OPERATION).await?;
        for Missing { what, sql, .. } in &missing {
            let statement = sqlx::raw_sql(AssertSqlSafe(sql.clone()));
            let made = statement.execute(&mut *transaction).await;
            made.map_err(|error| fail(error).with_context("part", what))?;
        }
        transaction.commit().await.map_err(fail)?;
        if !missing.is_empty() {
            tracing::warn!(missing = list(&missing), "made again what was missing");
        }
        Ok(())
    }
}
