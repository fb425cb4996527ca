//! Counts for operators, at a cost that does not grow with the backlog.

use std::time::Duration;

use posthaste_core::{Backlog, Result, Seq};
use sqlx::Row;

use crate::error::failed;
use crate::outbox::PostgresOutbox;
use crate::row::has_failed;
use crate::session::Begin;
use crate::timestamp::Instant;

const BACKLOG: &str = "count the backlog";

/// Counts are exact up to here.
const SAMPLE: i64 = 10_000;

/// A gauge that takes longer has no right to load the database.
const PATIENCE: Duration = Duration::from_secs(5);

/// `$1`: from where; `$2`: how many rows to look at. The estimate of what is pending counts on as
/// many of the numbers above those rows as of the latest ones, and so moves with what is delivered and
/// stored; the one of dead letters is what VACUUM and ANALYZE last saw. The conditions on `dead_at` are those of fetching, for the same reason.
const COUNT: &str = concat!(
    "with sample as materialized (select created_at, ",
    has_failed!(),
    " as failed, \
            coalesce(available_at <= now(), true) as due, seq \
        from outbox_events_pending \
        where (dead_at >= '-infinity') is not true and seq > $1 \
        order by seq limit (select $2::bigint) \
    ), dead as ( \
        select count(*) as dead from ( \
            select from outbox_events_pending \
            where dead_at >= '-infinity' and seq > 0 order by seq limit (select $2::bigint) \
        ) counted \
    ), tail as ( \
        select count(*) as rows, min(seq) as first from ( \
            select seq from outbox_events_pending \
            where (dead_at >= '-infinity') is not true and seq > $1 \
            order by seq desc limit (select $2::bigint / 4) \
        ) last_ones \
    ), oldest as ( \
        select coalesce(created_at, now()) as created_at from sample where due \
        order by seq limit 1 \
    ) \
    select count(*), \
        count(*) filter (where failed), \
        count(*) filter (where failed is not true and not due), \
        (select dead from dead), \
        (select created_at from oldest), \
        now(), \
        (select last_value from outbox_events_seq) - (select max(seq) from sample), \
        (select rows::float8 / greatest((select last_value from outbox_events_seq) - first + 1, 1) \
            from tail), \
        (select reltuples::bigint from pg_class \
            where oid = to_regclass('outbox_events_pending_dead')) \
    from sample"
);

/// All that is asked here, to be tried beforehand.
pub(crate) const STATEMENTS: &[&str] = &[COUNT];

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
    let numbers_above: i64 = row.try_get::<Option<i64>, _>(6)?.unwrap_or_default();
    let density = row.try_get::<Option<f64>, _>(7)?.unwrap_or_default().clamp(0.0, 1.0);
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
        is_estimated: sampled > SAMPLE,
    };
    if sampled > SAMPLE {
        // What was counted, and of the numbers above that as many as of the latest ones are pending; in
        // the proportions of what was seen. The first ones may be few among many that are delivered
        // already, of keys that wait or of other relays; so they tell nothing of the rest.
        let estimate = sampled + (numbers_above.max(0) as f64 * density) as i64;
        let scale = estimate as f64 / sampled as f64;
        let scaled = |part: u64| (part as f64 * scale) as u64;
        backlog.retrying = scaled(backlog.retrying);
        backlog.scheduled = scaled(backlog.scheduled);
        backlog.ready =
            estimate.cast_unsigned().saturating_sub(backlog.retrying + backlog.scheduled);
    }
    Ok(backlog)
}
