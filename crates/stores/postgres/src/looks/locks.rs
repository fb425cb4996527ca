//! Who stands in the way of rows that wait: sessions that hold locks on them, or on a table.

use std::time::Duration;

use posthaste_core::{Finding, Result, Severity};
use sqlx::Row;
use sqlx::postgres::PgRow;

use super::{LOOK, reading};
use crate::error::failed;
use crate::outbox::PostgresOutbox;

/// Relays and writers hold locks for moments.
const HELD_FOR_MIN: Duration = Duration::from_secs(2);

/// Sessions named, the oldest first.
const NAMED_MAX: usize = 5;

/// What shows of a session. A user without `pg_read_all_stats` sees no times of others.
macro_rules! session {
    () => {
        "activity.usename::text, nullif(activity.application_name, ''), activity.state, \
         extract(epoch from clock_timestamp() - activity.xact_start)::float8"
    };
}

/// Transactions whose numbers stand in rows that wait: they changed or locked them and have not ended. A
/// row that several hold at once names none of them.
const ON_ROWS: &str = concat!(
    "with waiting as materialized (select seq, xmax from outbox_events_pending \
        where seq > 0 and xmax <> '0'::xid order by seq limit 10000), \
     holder as materialized (select transactionid, min(pid) as pid from pg_locks \
        where locktype = 'transactionid' and granted and pid is distinct from pg_backend_pid() \
        group by 1) \
     select holder.transactionid::text, holder.pid, ",
    session!(),
    ", count(*), min(waiting.seq), (select gid from pg_prepared_xacts \
            where transaction = holder.transactionid) \
     from waiting join holder on holder.transactionid = waiting.xmax \
     left join pg_stat_activity activity on activity.pid = holder.pid \
     group by 1, 2, holder.transactionid, activity.usename, activity.application_name, \
        activity.state, activity.xact_start \
     order by activity.xact_start nulls last"
);

/// The same of what relays agree on: one whose row is held cannot renew its lease, and stops.
const ON_LEASES: &str = concat!(
    "with held as (select xmax, 'outbox_relays' as name from outbox_relays where xmax <> '0'::xid \
        union all select xmax, 'outbox_shards' from outbox_shards where xmax <> '0'::xid), \
     holder as materialized (select transactionid, min(pid) as pid from pg_locks \
        where locktype = 'transactionid' and granted and pid is distinct from pg_backend_pid() \
        group by 1) \
     select holder.transactionid::text || held.name, holder.pid, ",
    session!(),
    ", count(*), held.name \
     from held join holder on holder.transactionid = held.xmax \
     left join pg_stat_activity activity on activity.pid = holder.pid \
     group by 1, 2, held.name, activity.usename, activity.application_name, activity.state, \
        activity.xact_start \
     order by activity.xact_start nulls last"
);

/// Locks on a table that stand in the way of storing or recording, held or waited for: who waits for one
/// holds up all who come after.
const ON_TABLES: &str = concat!(
    "select held.relation::regclass::text || held.mode, held.pid, ",
    session!(),
    ", held.relation::regclass::text, held.mode, held.granted \
     from pg_locks held left join pg_stat_activity activity on activity.pid = held.pid \
     where held.locktype = 'relation' \
        and held.database = (select oid from pg_database where datname = current_database()) \
        and held.relation in (select to_regclass(name) from unnest(array['outbox_events', \
            'outbox_events_pending', 'outbox_events_processed', 'outbox_signal', 'outbox_relays', \
            'outbox_shards', 'outbox_events_seq']) as name) \
        and held.mode in ('ShareLock', 'ShareRowExclusiveLock', 'ExclusiveLock', \
            'AccessExclusiveLock') \
        and held.pid is distinct from pg_backend_pid() \
     order by activity.xact_start nulls last"
);

type OfRow = fn(&PgRow) -> sqlx::Result<Holder>;

/// A session and what it is in the way of.
struct Holder {
    /// Tells one lock from another.
    token: String,
    who: String,
    held_for: Option<Duration>,
    what: String,
    /// Whether a relay stands still for it.
    stops_relays: bool,
}

pub(super) async fn look(outbox: &PostgresOutbox) -> Result<Finding> {
    const ABOUT: &str = "locks";
    let mut found = holders(outbox).await?;
    // Whose age we may not see is as old as the time between two looks at least.
    if found.iter().any(|holder| holder.held_for.is_none()) {
        tokio::time::sleep(HELD_FOR_MIN).await;
        let before: Vec<String> = found.into_iter().map(|holder| holder.token).collect();
        found = holders(outbox).await?;
        found.retain(|holder| holder.held_for.is_some() || before.contains(&holder.token));
    }
    found.retain(|holder| holder.held_for.is_none_or(|time| time >= HELD_FOR_MIN));
    if found.is_empty() {
        return Ok(Finding::fine(ABOUT, "nobody holds rows that wait"));
    }
    let stops = found.iter().any(|holder| holder.stops_relays);
    let severity = if stops { Severity::Error } else { Severity::Warning };
    let more = found.len().saturating_sub(NAMED_MAX);
    let mut lines: Vec<String> = found
        .iter()
        .take(NAMED_MAX)
        .map(|holder| format!("{} {}", holder.who, holder.what))
        .collect();
    if more > 0 {
        lines.push(format!("and {more} more"));
    }
    Ok(Finding::new(ABOUT, severity, lines.join("; ")).with_hint(
        "what is held cannot be recorded or changed; end a forgotten session with \
         `select pg_terminate_backend(PID)`, which rolls it back",
    ))
}

async fn holders(outbox: &PostgresOutbox) -> Result<Vec<Holder>> {
    let mut session = reading(outbox).await?;
    let tables = session.statement(ON_TABLES).fetch_all(session.connection()).await;
    let tables = tables.map_err(failed(LOOK))?;
    let mut holders: Vec<Holder> =
        tables.iter().map(on_table).collect::<sqlx::Result<_>>().map_err(failed(LOOK))?;
    let of_rows: [(&'static str, OfRow); 2] = [(ON_LEASES, on_leases), (ON_ROWS, on_rows)];
    for (query, of_row) in of_rows {
        let rows = match session.statement(query).fetch_all(session.connection()).await {
            Ok(rows) => rows,
            // The table as a whole is locked, and by whom is known.
            Err(_) if !holders.is_empty() => return Ok(holders),
            Err(error) => return Err(failed(LOOK)(error)),
        };
        for row in &rows {
            holders.push(of_row(row).map_err(failed(LOOK))?);
        }
    }
    session.finish().await?;
    Ok(holders)
}

fn on_rows(row: &PgRow) -> sqlx::Result<Holder> {
    let (count, first): (i64, i64) = (row.try_get(6)?, row.try_get(7)?);
    let prepared: Option<String> = row.try_get(8)?;
    let rows =
        if count == 1 { "1 waiting event".into() } else { format!("{count} waiting events") };
    let mut holder = holder(row, format!("holds {rows}, the first at place {first}"))?;
    if let Some(name) = prepared {
        holder.who = format!("the prepared transaction {name:?}");
    }
    Ok(holder)
}

fn on_leases(row: &PgRow) -> sqlx::Result<Holder> {
    let (rows, table): (i64, String) = (row.try_get(6)?, row.try_get(7)?);
    let rows = if rows == 1 { "a row".into() } else { format!("{rows} rows") };
    let what = format!("holds {rows} of {table}, without which relays cannot keep their leases");
    Ok(Holder { stops_relays: true, ..holder(row, what)? })
}

fn on_table(row: &PgRow) -> sqlx::Result<Holder> {
    let (table, mode): (String, String) = (row.try_get(6)?, row.try_get(7)?);
    let does = if row.try_get(8)? { "holds" } else { "waits for, and so holds up others," };
    holder(row, format!("{does} {mode} on {table}"))
}

fn holder(row: &PgRow, what: String) -> sqlx::Result<Holder> {
    let pid: Option<i32> = row.try_get(1)?;
    let text = |index: usize| row.try_get::<Option<String>, _>(index);
    let seconds: Option<f64> = row.try_get(5)?;
    let held_for = seconds.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
    let pid = pid.map_or("a prepared transaction".into(), |pid| format!("pid {pid}"));
    let user = text(2)?.map(|user| format!(", user {user}")).unwrap_or_default();
    let application = text(3)?.map(|name| format!(", application {name}")).unwrap_or_default();
    let state = text(4)?.map(|state| format!(", {state}")).unwrap_or_default();
    let since = held_for.map_or(String::new(), |time| format!(" for {} s", time.as_secs()));
    let who = format!("{pid}{user}{application}{state}{since}");
    let token = format!("{} {pid}", text(0)?.unwrap_or_default());
    Ok(Holder { token, who, held_for, what, stops_relays: false })
}
