//! Waiting for locks: only for so long, and with the names of those who hold them.

use std::borrow::Cow;
use std::future::Future;
use std::time::{Duration, Instant};

use posthaste_core::{Error, ErrorKind, Result};
use sqlx::Row;
use sqlx::error::DatabaseError;

use crate::error::failed;
use crate::outbox::PostgresOutbox;
use crate::server_error::ServerError;

/// How long one statement of a change to the schema waits. Whoever comes after it in the queue, writers
/// among them, waits behind it.
pub(crate) const LOCK_TIMEOUT: &str = "set local lock_timeout = '2s'";
/// Between two tries, so that the queue moves on.
const PAUSE: Duration = Duration::from_millis(500);

/// Who holds a lock on one of the outbox's tables, the longest first. Of other users' sessions a role
/// without `pg_read_all_stats` sees number, name and application.
const HOLDERS: &str = "\
    select coalesce(string_agg(who, '; ' order by since nulls last), '') from ( \
        select case when pid is null then 'a prepared transaction (see pg_prepared_xacts)' \
            else 'pid ' || pid || coalesce(', user ' || usename, '') \
                || coalesce(', ' || nullif(application_name, ''), '') \
                || coalesce(', ' || state || coalesce(' for ' \
                    || extract(epoch from clock_timestamp() - state_change)::int || ' s', ''), '') \
            end as who, since \
        from ( \
            select held.pid, activity.usename, activity.application_name, activity.state, \
                activity.state_change, min(activity.xact_start) as since \
            from pg_locks held left join pg_stat_activity activity on activity.pid = held.pid \
            where held.locktype = 'relation' and held.granted \
                and held.pid is distinct from pg_backend_pid() \
                and ($1::text[] is null or held.mode = any($1)) \
                and held.database = (select oid from pg_database where datname = current_database()) \
                and held.relation in (select oid from pg_class \
                    where relname like 'outbox\\_%' and relkind in ('r', 'p') and relnamespace = ( \
                        select relnamespace from pg_class where oid = coalesce( \
                            to_regclass('outbox_migrations'), to_regclass('outbox_events')))) \
            group by held.pid, activity.usename, activity.application_name, activity.state, \
                activity.state_change \
            order by min(activity.xact_start) nulls last limit 3 \
        ) holder \
    ) named";

/// Locks on a table that stand in the way of reading or recording.
const STRONG: [&str; 4] =
    ["ShareLock", "ShareRowExclusiveLock", "ExclusiveLock", "AccessExclusiveLock"];
/// An error waits no longer for names.
const NAMED_WITHIN: Duration = Duration::from_secs(1);

/// Repeats `work` while another session holds a lock that it needs: as long as a statement may take by
/// the options, and without an end where that is zero. `work` waits by [`LOCK_TIMEOUT`].
pub(crate) async fn patiently<T, F: Future<Output = Result<T>> + Send>(
    outbox: &PostgresOutbox,
    operation: &'static str,
    work: impl Fn() -> F,
) -> Result<T> {
    let limit = outbox.statement_timeout();
    let started = Instant::now();
    let mut is_told = false;
    loop {
        let error = match work().await {
            Err(error) if is_locked_out(&error) => error,
            done => return done,
        };
        let held_by = holders(outbox, operation).await.unwrap_or_default();
        if !limit.is_zero() && started.elapsed() >= limit {
            let waited = started.elapsed().as_secs();
            let message = format!(
                "other sessions hold locks on the outbox's tables; gave up after {waited} s"
            );
            return Err(Error::new(ErrorKind::Conflict, operation, message)
                .with_context("held_by", held_by)
                .with_source(error));
        }
        if !is_told {
            tracing::warn!(held_by, "{operation}: waits for a lock on the outbox's tables");
            is_told = true;
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// A read-only database is a conflict, too, and one that waiting does not end.
fn is_locked_out(error: &Error) -> bool {
    error.kind() == ErrorKind::Conflict && code_of(error).as_deref() != Some("25006")
}

/// The server's code for it.
fn code_of(error: &Error) -> Option<Cow<'_, str>> {
    let source = std::error::Error::source(error)?;
    let said = &source.downcast_ref::<ServerError>()?.0;
    said.as_database_error().and_then(DatabaseError::code)
}

/// An error, with the names of those who lock a whole table where a lock was not to be had in time.
pub(crate) async fn with_holders(outbox: &PostgresOutbox, error: Error) -> Error {
    if code_of(&error).as_deref() != Some("55P03") {
        return error;
    }
    let holders = modes_held(outbox, error.operation(), Some(&STRONG));
    match tokio::time::timeout(NAMED_WITHIN, holders).await {
        Ok(Ok(holders)) if !holders.is_empty() => error.with_context("held_by", holders),
        _ => error,
    }
}

/// Who holds locks on the outbox's tables, for a message.
async fn holders(outbox: &PostgresOutbox, operation: &'static str) -> Result<String> {
    modes_held(outbox, operation, None).await
}

async fn modes_held(
    outbox: &PostgresOutbox,
    operation: &'static str,
    modes: Option<&[&str]>,
) -> Result<String> {
    let mut session = outbox.session(operation).await?;
    let statement = session.statement(HOLDERS).bind(modes);
    let row = statement.fetch_one(session.connection()).await;
    let holders = row.and_then(|row| row.try_get(0)).map_err(failed(operation))?;
    session.finish().await?;
    Ok(holders)
}
