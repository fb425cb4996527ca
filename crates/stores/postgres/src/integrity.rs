//! Whether the outbox's tables are what migrations made: other tools drop, replace and alter them, test
//! suites empty them, and dumps leave out what is in them.

use posthaste_core::{Error, ErrorKind, Result};
use sqlx::Row;

use crate::error::failed;
use crate::outbox::PostgresOutbox;
use crate::session::Session;

/// What is not there, and whether nothing works without it.
const MISSING: &str = "\
    select what, needed from ( \
        select 'table ' || name as what, true as needed from unnest(array['outbox_events', \
            'outbox_events_pending', 'outbox_events_processed', 'outbox_events_processed_default', \
            'outbox_signal', 'outbox_relays', 'outbox_shards']) as name where to_regclass(name) is null \
        union all \
        select format('partition %s of %s', part, whole), true from unnest( \
            array['outbox_events_pending', 'outbox_events_processed', 'outbox_events_processed_default'], \
            array['outbox_events', 'outbox_events', 'outbox_events_processed']) as wanted (part, whole) \
        where to_regclass(part) is not null and to_regclass(whole) is not null \
            and not exists (select from pg_inherits \
                where inhrelid = to_regclass(part) and inhparent = to_regclass(whole)) \
        union all \
        select 'sequence outbox_events_seq', true where to_regclass('outbox_events_seq') is null \
        union all \
        select 'index ' || name, false from unnest(array['outbox_events_pending_seq_key', \
            'outbox_events_pending_id_key', 'outbox_events_pending_dead', \
            'outbox_events_processed_id']) as name where to_regclass(name) is null \
        union all \
        select 'function ' || name, name = 'outbox_shard(text)' from unnest(array['outbox_shard(text)', \
            'outbox_signal_bump()', 'outbox_event_as_meant()']) as name where to_regprocedure(name) is null \
        union all \
        select 'trigger ' || name, false from unnest( \
            array['outbox_events_revived', 'outbox_events_dead_removed', 'outbox_events_as_meant', \
                'outbox_events_undelivered'], \
            array['outbox_events_pending', 'outbox_events_pending', 'outbox_events_pending', \
                'outbox_events_processed']) as wanted (name, on_table) \
        where not exists (select from pg_trigger where tgrelid = to_regclass(on_table) and tgname = name) \
        union all \
        select 'check ' || name, false from unnest( \
            array['outbox_events_seq_is_positive', 'outbox_events_id_is_given', \
                'outbox_events_processed_at_is_real'], \
            array['outbox_events_pending', 'outbox_events_pending', \
                'outbox_events_processed']) as wanted (name, on_table) \
        where not exists (select from pg_constraint \
            where conrelid = to_regclass(on_table) and conname = name) \
        union all \
        select 'default of the column ' || attname, attname in ('seq', 'id') from pg_attribute \
        where attrelid = to_regclass('outbox_events') and not atthasdef and not attisdropped \
            and attname in ('seq', 'id', 'created_at', 'retry_count', 'max_retries') \
    ) missing";

/// Rows that are always there.
const MISSING_ROWS: &str = "\
    select what from ( \
        select format('%s of the 64 rows of outbox_shards', 64 - count(*)) as what \
        from outbox_shards where shard between 0 and 63 having count(*) < 64 \
        union all \
        select 'the row of outbox_signal' where not exists (select from outbox_signal)) missing";

/// Names and types of the columns there are. Types without quotes: `quote_all_identifiers` adds them.
const COLUMNS: &str = "\
    select attname::text, replace(format_type(atttypid, null), '\"', '') from pg_attribute \
    where attrelid = to_regclass('outbox_events') and attnum > 0 and not attisdropped";

const TEXT: &[&str] = &["character varying", "text"];
const TIME: &[&str] = &["timestamp with time zone"];

/// The columns of `outbox_events` and the types that relays and triggers can work with, the made one
/// first. Others may stand beside them.
pub(crate) const EXPECTED: [(&str, &[&str]); 20] = [
    ("seq", &["bigint"]),
    ("id", &["uuid"]),
    ("aggregate_id", &["uuid"]),
    ("event_type", TEXT),
    ("event_data", &["jsonb", "json"]),
    ("created_at", TIME),
    ("processed_at", TIME),
    ("retry_count", &["integer"]),
    ("max_retries", &["integer"]),
    ("error_message", &["text", "character varying"]),
    ("aggregate_type", TEXT),
    ("partition_key", &["text", "character varying"]),
    ("destination", TEXT),
    ("topic", TEXT),
    ("headers", &["jsonb"]),
    ("payload", &["bytea"]),
    ("content_type", TEXT),
    ("available_at", TIME),
    ("dead_at", TIME),
    ("dead_reason", TEXT),
];

/// A part of the schema that is not there.
pub(crate) struct Missing {
    pub(crate) what: String,
    /// Whether nothing is delivered without it.
    pub(crate) is_needed: bool,
}

/// What is not there of the tables and all that belongs to them, rows that are always there included.
pub(crate) async fn missing(
    session: &mut Session,
    operation: &'static str,
) -> Result<Vec<Missing>> {
    let statement = session.statement(MISSING);
    let rows = statement.fetch_all(session.connection()).await.map_err(failed(operation))?;
    let read = |row: &sqlx::postgres::PgRow| {
        Ok(Missing { what: row.try_get(0)?, is_needed: row.try_get(1)? })
    };
    let mut missing: Vec<Missing> =
        rows.iter().map(read).collect::<Result<_, _>>().map_err(failed(operation))?;
    if missing.iter().all(|missing| !missing.what.starts_with("table ")) {
        let statement = session.statement(MISSING_ROWS);
        let rows = statement.fetch_all(session.connection()).await.map_err(failed(operation))?;
        for row in &rows {
            let what = row.try_get(0).map_err(failed(operation))?;
            missing.push(Missing { what, is_needed: true });
        }
    }
    Ok(missing)
}

/// Columns of `outbox_events` that are missing, or have types that no relay can read.
pub(crate) async fn column_faults(
    session: &mut Session,
    operation: &'static str,
) -> Result<Vec<String>> {
    let statement = session.statement(COLUMNS);
    let rows = statement.fetch_all(session.connection()).await.map_err(failed(operation))?;
    let read =
        |row: &sqlx::postgres::PgRow| Ok::<(String, String), _>((row.try_get(0)?, row.try_get(1)?));
    let found: Vec<_> =
        rows.iter().map(read).collect::<Result<_, _>>().map_err(failed(operation))?;
    Ok(faults_of(&found))
}

fn faults_of(found: &[(String, String)]) -> Vec<String> {
    let fault = |(name, allowed): &(&str, &[&str])| {
        let column = found.iter().find(|(column, _)| column == name);
        match column {
            None => Some(format!("column {name} ({}) is missing", allowed[0])),
            Some((_, kind)) if !allowed.contains(&kind.as_str()) => {
                Some(format!("column {name} is {kind}, not {}", allowed[0]))
            }
            Some(_) => None,
        }
    };
    EXPECTED.iter().filter_map(fault).collect()
}

/// Refuses an outbox that lacks what nothing works without, or whose columns are not of the types that
/// they have to be.
pub(crate) async fn check(session: &mut Session, operation: &'static str) -> Result<()> {
    let refuse = |why: String| Err(Error::new(ErrorKind::Schema, operation, why));
    let missing = missing(session, operation).await?;
    let needed: Vec<&str> = missing
        .iter()
        .filter(|missing| missing.is_needed)
        .map(|missing| missing.what.as_str())
        .collect();
    if !needed.is_empty() {
        return refuse(format!(
            "the outbox is not whole: missing are {}; run `posthaste migrate up`, which makes them \
             again",
            needed.join(", ")
        ));
    }
    let faults = column_faults(session, operation).await?;
    if faults.is_empty() {
        return Ok(());
    }
    refuse(format!(
        "the table outbox_events was altered: {}; undo it with `alter table outbox_events alter \
         column … type …`, and keep the tool that did it away from tables outbox_*",
        faults.join("; ")
    ))
}

impl PostgresOutbox {
    /// What is wrong with the columns of `outbox_events`: which are missing, and which have a type that
    /// is not the expected one, in words. Empty for a table that is in order; columns of the owner's are
    /// no fault.
    ///
    /// # Errors
    /// Those of the connection.
    pub async fn column_faults(&self) -> Result<Vec<String>> {
        const OPERATION: &str = "look at the columns";
        self.bounded(OPERATION, async {
            let mut session = self.session(OPERATION).await?;
            let faults = column_faults(&mut session, OPERATION).await?;
            session.finish().await?;
            Ok(faults)
        })
        .await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_column_that_is_missing_or_widened_is_named_and_one_of_the_owners_is_not() {
        let mut found: Vec<(String, String)> = EXPECTED
            .iter()
            .map(|(name, types)| ((*name).to_owned(), types[0].to_owned()))
            .collect();
        found.push(("tenant".into(), "text".into()));
        assert!(faults_of(&found).is_empty());
        found[7].1 = "bigint".into();
        found.remove(0);
        assert_eq!(
            faults_of(&found),
            ["column seq (bigint) is missing", "column retry_count is bigint, not integer"]
        );
    }
}
