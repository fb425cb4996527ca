//! Delivered events: a partition a day, created ahead and dropped as a whole.

use std::time::Duration;

use jiff::civil::{Date, Time};
use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};
use posthaste_core::{ErrorKind, Result};
use sqlx::{AssertSqlSafe, Row};

use crate::error::failed;
use crate::locks::LOCK_TIMEOUT;
use crate::migrations::{AS_OWNER, execute};
use crate::outbox::PostgresOutbox;
use crate::session::Session;
use crate::timestamp::Instant;

/// Creates today's partition and those of the seven days after it.
pub(crate) const CREATE_AHEAD: &str = include_str!("../migrations/history_ahead.sql");

const MAINTAIN: &str = "create history partitions";
const CLEAN_UP: &str = "clean up delivered events";

/// How often a drop is tried in one cleanup; the next cleanup tries again.
const DROP_TRIES: usize = 5;
/// Pages of a partition searched by one statement: some 10,000 events of ordinary size.
const CHUNK_PAGES: i64 = 500;
/// A partition that was never analysed is counted so far; beyond, the number is a lower bound.
const COUNT_MAX: i64 = 100_000;

/// Keeps two cleanups, or two upkeeps, out of each other's way, and out of that of a migration; ends with
/// the transaction. Only whoever may change the bookkeeping can take it.
const TRY_LOCK: &str = "lock table outbox_migrations in share update exclusive mode nowait";

const MISSING: &str = "\
    select count(*) from generate_series(0, 7) as ahead \
    where not exists (select from pg_inherits i join pg_class c on c.oid = i.inhrelid \
        where i.inhparent = to_regclass('outbox_events_processed') \
            and c.relname = 'outbox_events_processed_' || to_char( \
                (now() at time zone 'UTC')::date + ahead, '\"y\"YYYY\"m\"MM\"d\"DD'))";

/// The partitions, oldest day first, the default one last. One that another relay drops meanwhile
/// still has a row, and no size.
const PARTITIONS: &str = "\
    select name, relname, bytes / current_setting('block_size')::int, now() \
    from ( \
        select c.oid::regclass::text as name, c.relname::text as relname, \
            pg_relation_size(c.oid) as bytes, \
            pg_get_expr(c.relpartbound, c.oid) = 'DEFAULT' as is_default \
        from pg_inherits i join pg_class c on c.oid = i.inhrelid \
        where i.inhparent = to_regclass('outbox_events_processed') \
    ) partition \
    where bytes is not null \
    order by is_default, relname";

/// A partition of the history.
struct Partition {
    /// Quoted and, where needed, qualified: ready for use in a statement.
    table: String,
    /// Its UTC day; none for the default partition and for what someone else attached.
    day: Option<Date>,
    pages: i64,
}

pub(crate) async fn maintain(outbox: &PostgresOutbox) -> Result<()> {
    let mut session = outbox.session(MAINTAIN).await?;
    let statement = session.statement(MISSING);
    let missing: i64 = statement
        .fetch_one(session.connection())
        .await
        .and_then(|row| row.try_get(0))
        .map_err(failed(MAINTAIN))?;
    session.finish().await?;
    if missing == 0 {
        return Ok(());
    }
    let mut session = outbox.transaction(outbox.statement_timeout(), MAINTAIN).await?;
    match try_lock(&mut session, MAINTAIN).await {
        // A relay may run with rights that do not include DDL; the default partition catches all.
        Err(error) if error.kind() == ErrorKind::Unauthorized => {
            tracing::warn!(
                error = error.report(),
                "history partitions are missing and this user may not create them; \
                 run `posthaste migrate up` as the tables' owner",
            );
            return Ok(());
        }
        locked => {
            if !locked? {
                return Ok(());
            }
        }
    }
    execute(&mut session, CREATE_AHEAD, MAINTAIN).await?;
    session.finish().await
}

/// Locks and limits the wait for further locks. `false` where another one is at work.
async fn try_lock(session: &mut Session, operation: &'static str) -> Result<bool> {
    execute(session, LOCK_TIMEOUT, operation).await?;
    execute(session, AS_OWNER, operation).await?;
    match execute(session, TRY_LOCK, operation).await {
        Err(error) if error.kind() == ErrorKind::Conflict => Ok(false),
        done => done.map(|()| true),
    }
}

async fn partitions(
    session: &mut Session,
    operation: &'static str,
) -> Result<(Vec<Partition>, Timestamp)> {
    let statement = session.statement(PARTITIONS);
    let rows = statement.fetch_all(session.connection()).await.map_err(failed(operation))?;
    let mut now = Timestamp::UNIX_EPOCH;
    let mut partitions = Vec::with_capacity(rows.len());
    for row in &rows {
        let read = || {
            Ok::<_, sqlx::Error>((
                Partition {
                    table: row.try_get(0)?,
                    day: day_of(row.try_get(1)?),
                    pages: row.try_get(2)?,
                },
                row.try_get::<Instant, _>(3)?.0,
            ))
        };
        let (partition, at) = read().map_err(failed(operation))?;
        now = at;
        partitions.push(partition);
    }
    Ok((partitions, now))
}

/// Spans of time that together are all of it, latest first, none wider than a partition that
/// already has events: what is read span by span need not be sorted as a whole. Each is
/// `from <= processed_at < until`.
pub(crate) async fn spans(
    session: &mut Session,
    operation: &'static str,
) -> Result<Vec<(Option<Timestamp>, Option<Timestamp>)>> {
    let (partitions, now) = partitions(session, operation).await?;
    let days = partitions.iter().filter_map(|partition| partition.day);
    let ends = days.flat_map(|day| [Some(day), day.tomorrow().ok()]).flatten().filter_map(start_of);
    let mut ends: Vec<Timestamp> = ends.filter(|end| *end <= now).collect();
    ends.sort_unstable();
    ends.dedup();
    let mut spans = Vec::with_capacity(ends.len() + 1);
    let mut until = None;
    for from in ends.into_iter().rev() {
        spans.push((Some(from), until));
        until = Some(from);
    }
    spans.push((None, until));
    Ok(spans)
}

/// The day in a partition's name, `outbox_events_processed_y2026m01d31`.
fn day_of(name: &str) -> Option<Date> {
    let day = name.strip_prefix("outbox_events_processed_")?;
    Date::strptime("y%Ym%md%d", day).ok()
}

pub(crate) async fn clean_up(outbox: &PostgresOutbox, older_than: Duration) -> Result<u64> {
    let mut session = outbox.session(CLEAN_UP).await?;
    let (partitions, now) = partitions(&mut session, CLEAN_UP).await?;
    session.finish().await?;
    let Some(before) =
        SignedDuration::try_from(older_than).ok().and_then(|age| now.checked_sub(age).ok())
    else {
        return Ok(0);
    };
    let mut removed = 0;
    for partition in &partitions {
        let ends = partition.day.and_then(|day| day.tomorrow().ok()).and_then(start_of);
        let starts = partition.day.and_then(start_of);
        removed += if ends.is_some_and(|ends| ends <= before) {
            drop_partition(outbox, partition).await?
        } else if starts.is_none_or(|starts| starts < before) {
            delete_from(outbox, partition, before).await?
        } else {
            0
        };
    }
    Ok(removed)
}

fn start_of(day: Date) -> Option<Timestamp> {
    TimeZone::UTC.to_timestamp(day.to_datetime(Time::midnight())).ok()
}

/// Dropping needs a moment alone with the history; where it does not get one, it steps aside and
/// tries again, so that settlements never queue for longer than the lock timeout.
async fn drop_partition(outbox: &PostgresOutbox, partition: &Partition) -> Result<u64> {
    for _ in 0..DROP_TRIES {
        let mut session = outbox.transaction(Duration::ZERO, CLEAN_UP).await?;
        if !try_lock(&mut session, CLEAN_UP).await? {
            return Ok(0);
        }
        let removed = match count_rows(&mut session, partition).await {
            // Another cleanup was faster.
            Err(error) if error.kind() == ErrorKind::Schema => return Ok(0),
            counted => counted?,
        };
        let drop = format!("drop table {}", partition.table);
        match sqlx::raw_sql(AssertSqlSafe(drop)).execute(session.connection()).await {
            Ok(_) => {
                session.finish().await?;
                return Ok(removed);
            }
            Err(error) => {
                let error = failed(CLEAN_UP)(error);
                if error.kind() != ErrorKind::Conflict {
                    return Err(error);
                }
            }
        }
    }
    tracing::warn!(partition = partition.table, "not dropped now: the history is in use");
    Ok(0)
}

async fn count_rows(session: &mut Session, partition: &Partition) -> Result<u64> {
    let sql = format!(
        "select case when reltuples >= 0 then reltuples::bigint else \
            (select count(*) from (select from {table} limit {COUNT_MAX}) counted) end \
         from pg_class where oid = '{literal}'::regclass",
        table = partition.table,
        literal = partition.table.replace('\'', "''"),
    );
    let statement = session.statement(AssertSqlSafe(sql));
    let row = statement.persistent(false).fetch_one(session.connection()).await;
    let count: i64 = row.and_then(|row| row.try_get(0)).map_err(failed(CLEAN_UP))?;
    Ok(count.cast_unsigned())
}

/// Walks the partition once, page range by page range, each in a transaction of its own.
async fn delete_from(
    outbox: &PostgresOutbox,
    partition: &Partition,
    before: Timestamp,
) -> Result<u64> {
    let mut removed = 0;
    let mut page = 0;
    while page < partition.pages {
        let sql = format!(
            "delete from {} where processed_at < $1 and ctid >= $2::text::tid and ctid < $3::text::tid",
            partition.table
        );
        let mut session = outbox.session(CLEAN_UP).await?;
        let statement = session
            .statement(AssertSqlSafe(sql))
            .persistent(false)
            .bind(Instant(before))
            .bind(format!("({page},0)"))
            .bind(format!("({},0)", page + CHUNK_PAGES));
        match statement.execute(session.connection()).await.map_err(failed(CLEAN_UP)) {
            Ok(done) => {
                session.finish().await?;
                removed += done.rows_affected();
            }
            // Dropped by another cleanup in the meantime.
            Err(error) if error.kind() == ErrorKind::Schema => return Ok(removed),
            Err(error) => return Err(error),
        }
        page += CHUNK_PAGES;
    }
    Ok(removed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_partition_tells_its_day_by_its_name() {
        let day = day_of("outbox_events_processed_y2026m01d31").unwrap();
        assert_eq!(day.to_string(), "2026-01-31");
        assert!(day_of("outbox_events_processed_default").is_none());
        assert!(day_of("outbox_events_processed_y2026m13d31").is_none());
    }
}
