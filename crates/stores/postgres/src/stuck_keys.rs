//! Keys that wait, found at a cost that does not grow with the backlog.

use std::collections::HashMap;

use posthaste_core::{Result, Seq, StuckBy, StuckKey, StuckKeyPage, StuckKeyQuery};
use sqlx::Row;
use sqlx::postgres::PgRow;

use crate::error::failed;
use crate::outbox::PostgresOutbox;
use crate::repository::sql_limit;
use crate::row::{StoredEvent, has_failed};
use crate::session::Session;

const STUCK: &str = "list stuck keys";

/// Pending events that one page looks at: for retries, which no index knows, and to count what
/// waits behind a key.
const WALK_MAX: i64 = 100_000;

/// Dead letters that are looked at to find the first of each key. The relay holds all of them in
/// memory: more than these is nothing it could run with.
const DEAD_MAX: i64 = 1_000_000;

/// The columns of an event without its body and headers, where [`StoredEvent::read`] expects them.
macro_rules! head_columns {
    () => {
        "event.seq, id, aggregate_id, aggregate_type, event_type, 'null'::text, left(partition_key, 1024), \
         destination, topic, null::text, null::bytea, content_type, created_at, available_at, \
         processed_at, dead_at, dead_reason, retry_count, max_retries, left(error_message, 2000), \
         clock_timestamp()"
    };
}

/// After those columns.
const WALKED: usize = 21;

/// `$1`: after which place; `$2`: how many; `$3`: how many rows to look at. `materialized`, the
/// limit in a `select` and the conditions on `dead_at` are those of fetching, for the same reason.
/// The last two columns say how far was looked, and are there though no key is found.
macro_rules! heads {
    ($looked_at:literal, $heads:literal) => {
        concat!(
            "with looked_at as materialized (select seq, nullif(partition_key, '') as partition_key, aggregate_id, ",
            has_failed!(),
            " as failed, available_at from outbox_events_pending where ",
            $looked_at,
            " order by seq limit (select $3::bigint)), head as (select min(seq) as seq from looked_at ",
            $heads,
            " order by 1 limit (select $2::bigint)) select ",
            head_columns!(),
            ", walk.rows, walk.last from (select count(*) as rows, max(seq) as last from looked_at) \
             walk left join outbox_events_pending event on event.seq = any(array(select seq from head)) \
             order by event.seq"
        )
    };
}

const DEAD: &str = heads!(
    "dead_at >= '-infinity' and seq > 0",
    "group by partition_key, case when partition_key is null then aggregate_id end \
     having min(seq) > $1"
);

const RETRYING: &str = heads!(
    "(dead_at >= '-infinity') is not true and seq > $1",
    "where failed and available_at > now() \
     group by partition_key, case when partition_key is null then aggregate_id end"
);

/// What waits behind each of these heads, in one walk for all of them.
const WAITING: &str = "\
    with walked as materialized ( \
        select seq, coalesce(nullif(partition_key, ''), aggregate_id::text) as key, \
            nullif(partition_key, '') is not null as named \
        from outbox_events_pending \
        where (dead_at >= '-infinity') is not true and seq > $1 \
        order by seq limit (select $2::bigint) \
    ) \
    select head.seq, count(walked.seq), (select count(*) from walked) \
    from unnest($3::bigint[], $4::text[], $5::boolean[]) as head (seq, key, named) \
    left join walked on walked.key = head.key and walked.named = head.named \
        and walked.seq > head.seq \
    group by head.seq";

pub(crate) async fn stuck_keys(
    outbox: &PostgresOutbox,
    query: &StuckKeyQuery,
) -> Result<StuckKeyPage> {
    let mut session = outbox.session_along_indexes(STUCK).await?;
    let (sql, rows_max) = match query.by {
        StuckBy::DeadLetter => (DEAD, DEAD_MAX),
        StuckBy::Retry => (RETRYING, WALK_MAX),
    };
    // One more than asked for tells whether there are more.
    let limit = sql_limit(query.limit).saturating_add(1);
    let statement = session.statement(sql).bind(query.after).bind(limit).bind(rows_max);
    let rows = statement.fetch_all(session.connection()).await.map_err(failed(STUCK))?;
    let mut page = read(&rows, query, rows_max)?;
    count_waiting(&mut session, &mut page.keys).await?;
    session.finish().await?;
    Ok(page)
}

fn read(rows: &[PgRow], query: &StuckKeyQuery, rows_max: i64) -> Result<StuckKeyPage> {
    let mut page = StuckKeyPage::default();
    for row in rows {
        let found: Option<Seq> = row.try_get(0).map_err(failed(STUCK))?;
        if found.is_some() {
            let head = StoredEvent::read(row, STUCK)?;
            page.keys.push(StuckKey::new(head.seq, head.record));
        }
    }
    if page.keys.len() > query.limit {
        page.keys.truncate(query.limit);
        page.next = Some(page.keys.last().map_or(query.after, |last| last.seq));
    } else if query.by == StuckBy::Retry
        && let Some(row) = rows.first()
    {
        let looked_at: i64 = row.try_get(WALKED).map_err(failed(STUCK))?;
        let last: Option<Seq> = row.try_get(WALKED + 1).map_err(failed(STUCK))?;
        page.next = last.filter(|_| looked_at >= rows_max);
    }
    Ok(page)
}

async fn count_waiting(session: &mut Session, keys: &mut [StuckKey]) -> Result<()> {
    let Some(first) = keys.first() else { return Ok(()) };
    let places: Vec<Seq> = keys.iter().map(|key| key.seq).collect();
    let names: Vec<String> = keys.iter().map(|key| key.key.to_string()).collect();
    let named: Vec<bool> = keys.iter().map(|key| key.key.as_named().is_some()).collect();
    let statement = session.statement(WAITING).bind(first.seq).bind(WALK_MAX);
    let statement = statement.bind(places).bind(names).bind(named);
    let rows = statement.fetch_all(session.connection()).await.map_err(failed(STUCK))?;
    let count = |row: &PgRow| Ok((row.try_get(0)?, (row.try_get(1)?, row.try_get(2)?)));
    let counts = rows.iter().map(count).collect::<Result<HashMap<Seq, (i64, i64)>, _>>();
    let counts = counts.map_err(failed(STUCK))?;
    for key in keys {
        let (waiting, walked) = counts.get(&key.seq).copied().unwrap_or_default();
        key.waiting = waiting.cast_unsigned();
        key.waiting_is_minimum = walked >= WALK_MAX;
    }
    Ok(())
}
