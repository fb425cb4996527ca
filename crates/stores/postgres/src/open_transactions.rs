//! Who holds events back: the open transactions that the watermark knows by number only.

use std::time::Duration;

use posthaste_core::{OpenTransaction, Result, SessionActivity, TransactionHolder};
use sqlx::Row;
use sqlx::postgres::PgRow;

use crate::error::failed;
use crate::outbox::PostgresOutbox;
use crate::repository::sql_limit;
use crate::watermark::is_holder;

const OPEN: &str = "list open transactions";

/// The holders are those of [`crate::watermark`]. A prepared transaction has no process; its lock
/// on its own number leads to its name. A role without `pg_read_all_stats` sees of other users'
/// sessions neither state nor age nor query: those are null (the query is a phrase).
const HOLDERS: &str = concat!(
    "\
    with holder as ( \
        select distinct virtualtransaction, pid from pg_locks where ",
    is_holder!(),
    "), open as ( \
        select holder.virtualtransaction as token, holder.pid, prepared.gid, \
            coalesce(activity.usename, prepared.owner)::text as usename, \
            nullif(activity.application_name, '') as application, \
            host(activity.client_addr) as client, activity.state, \
            extract(epoch from clock_timestamp() - activity.state_change)::float8 as state_for, \
            left(activity.query, 10000) as query, \
            extract(epoch from clock_timestamp() \
                - coalesce(activity.xact_start, prepared.prepared))::float8 as age \
        from holder \
        left join pg_stat_activity activity on activity.pid = holder.pid \
        left join pg_prepared_xacts prepared on holder.pid is null and prepared.transaction in ( \
            select own.transactionid from pg_locks own \
            where own.locktype = 'transactionid' and own.pid is null \
                and own.virtualtransaction = holder.virtualtransaction) \
        where activity.pid is not null or prepared.gid is not null \
    ) \
    select token, pid, gid, usename, application, client, state, state_for, query, age from open \
    where age >= $1 or age is null \
    order by age desc nulls last, token limit $2"
);

pub(crate) async fn open_transactions(
    outbox: &PostgresOutbox,
    older_than: Duration,
    limit: usize,
) -> Result<Vec<OpenTransaction>> {
    let mut session = outbox.session(OPEN).await?;
    let statement = session.statement(HOLDERS).bind(older_than.as_secs_f64());
    let rows = statement
        .bind(sql_limit(limit))
        .fetch_all(session.connection())
        .await
        .map_err(failed(OPEN))?;
    session.finish().await?;
    rows.iter().map(read).collect::<Result<_, _>>().map_err(failed(OPEN))
}

fn read(row: &PgRow) -> Result<OpenTransaction, sqlx::Error> {
    let text = |index: usize| -> Result<Option<Box<str>>, sqlx::Error> {
        Ok(row.try_get::<Option<&str>, _>(index)?.map(Box::from))
    };
    let holder = match row.try_get::<Option<i32>, _>(1)? {
        Some(pid) => TransactionHolder::Session {
            pid,
            application: text(4)?,
            client: text(5)?,
            activity: match text(6)? {
                None => None,
                Some(state) => Some(SessionActivity {
                    state,
                    state_for: seconds(row, 7)?.unwrap_or_default(),
                    query: text(8)?.unwrap_or_default(),
                }),
            },
        },
        None => TransactionHolder::Prepared { name: text(2)?.unwrap_or_default() },
    };
    let token = row.try_get::<&str, _>(0)?.into();
    Ok(OpenTransaction { token, holder, user: text(3)?, age: seconds(row, 9)? })
}

fn seconds(row: &PgRow, index: usize) -> Result<Option<Duration>, sqlx::Error> {
    let seconds: Option<f64> = row.try_get(index)?;
    Ok(seconds.map(|seconds| Duration::try_from_secs_f64(seconds.max(0.0)).unwrap_or_default()))
}
