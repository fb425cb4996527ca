//! Counts for operators, at a cost that does not grow with the backlog.

use std::time::Duration;

use posthaste_core::{Backlog, Result, Seq};
use sqlx::Row;

use crate::error::failed;
use crate::outbox::PostgresOutbox;
use crate::session::Begin;
use crate::timestamp::Instant;

const BACKLOG: &str = "count the backlog";

/// Counts are exact up to here.
const SAMPLE: i64 = 10_000;

/// A gauge that takes longer has no right to load the database.
const PATIENCE: Duration = Duration::from_secs(5);

/// `$1`: from where; `$2`: how many rows to look at. The estimates use what VACUUM and ANALYZE
/// last saw, scaled to the table's present size, and the span of numbers as an upper bound. The
/// conditions on `dead_at` are those of fetching, for the same reason.
const COUNT: &str = "\
    with sample as materialized ( \
        select created_at, retry_count, coalesce(available_at <= now(), true) as due, seq \
        from outbox_events_pending \
        where (dead_at >= '-infinity') is not true and seq > $1 \
        order by seq limit (select $2::bigint) \
    ), dead as ( \
        select count(*) as dead from ( \
            select from outbox_events_pending \
            where dead_at >= '-infinity' and seq > 0 order by seq limit (select $2::bigint) \
        ) counted \
    ), oldest as ( \
        select coalesce(created_at, now()) as created_at from sample where due \
        order by seq limit 1 \
    ) \
    select count(*), \
        count(*) filter (where coalesce(retry_count, 0) > 0), \
        count(*) filter (where coalesce(retry_count, 0) <= 0 and not due), \
        (select dead from dead), \
        (select created_at from oldest), \
        now(), \
        (select last_value from outbox_events_seq) - $1, \
        (select (reltuples / greatest(relpages, 1) \
                * (pg_relation_size(oid) / current_setting('block_size')::int))::bigint \
            from pg_class where oid = to_regclass('outbox_events_pending')), \
        (select reltuples::bigint from pg_class \
            where oid = to_regclass('outbox_events_pending_dead')) \
    from sample";

pub(crate) async fn backlog(outbox: &PostgresOutbox, from: Seq) -> Result<Backlog> {
    let begin = Begin::within(Some(PATIENCE)).along_indexes();
    let mut session = outbox.begin_session(begin, BACKLOG).await?;
    let statement = session.statement(COUNT).bind(from).bind(SAMPLE + 1);
    let row = statement.fetch_one(session.connection()).await.map_err(failed(BACKLOG))?;
    session.finish().await?;
    read(&row).map_err(failed(BACKLOG))
}

fn read(row: &sqlx::postgres::PgRow) -> Result<Backlog, sqlx::Error> {
    let sampled: i64 = row.try_get(0)?;
    let retrying: i64 = row.try_get(1)?;
    let scheduled: i64 = row.try_get(2)?;
    let dead: i64 = row.try_get(3)?;
    let oldest: Option<Instant> = row.try_get(4)?;
    let now: Instant = row.try_get(5)?;
    let span: i64 = row.try_get(6)?;
    let rows = row.try_get::<Option<i64>, _>(7)?.unwrap_or(-1);
    let dead_seen = row.try_get::<Option<i64>, _>(8)?.unwrap_or(-1);

    let dead = if dead > SAMPLE { dead_seen.max(dead) } else { dead };
    let mut backlog = Backlog {
        ready: (sampled - retrying - scheduled).cast_unsigned(),
        retrying: retrying.cast_unsigned(),
        scheduled: scheduled.cast_unsigned(),
        dead: dead.cast_unsigned(),
        oldest_pending_at: oldest.map(|oldest| oldest.0),
        oldest_pending_age: oldest
            .and_then(|oldest| Duration::try_from(now.0.duration_since(oldest.0)).ok())
            .unwrap_or_default(),
    };
    if sampled > SAMPLE {
        // Never below what was seen, and in the proportions of what was seen.
        let estimate = if rows > 0 { span.min(rows - dead) } else { span }.max(sampled);
        let scale = estimate as f64 / sampled as f64;
        let scaled = |part: u64| (part as f64 * scale) as u64;
        backlog.retrying = scaled(backlog.retrying);
        backlog.scheduled = scaled(backlog.scheduled);
        backlog.ready =
            estimate.cast_unsigned().saturating_sub(backlog.retrying + backlog.scheduled);
    }
    Ok(backlog)
}
