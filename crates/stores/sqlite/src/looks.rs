//! What `posthaste doctor` looks at in a file. Each look is by itself, and changes nothing.

use std::future::Future;

use posthaste_core::{ErrorKind, Finding, Result, Severity};
use sqlx::Row;
use sqlx::sqlite::SqliteRow;

use crate::SqliteOutbox;
use crate::database_file::second_name;
use crate::error::database;
use crate::integrity;

const LOOK: &str = "look at the outbox";

/// Of the rows that wait and of the dead letters the first `?1` are looked at, of the history the first and
/// the last by time. A body is asked for its form where it is small.
const ODD: &str = "\
with waiting as (
    select seq, created_at, available_at
    from outbox_events indexed by outbox_events_pending
    where processed_at is null and dead_at is null order by seq limit ?1
), dead as (
    select seq, dead_reason from outbox_events indexed by outbox_events_dead
    where processed_at is null and dead_at is not null limit ?1
), delivered as (
    select processed_at from outbox_events indexed by outbox_events_processed
    where processed_at is not null and (processed_at < '2000' or processed_at > ?2) limit ?1
)
select
    (select count(*) from waiting where seq <= 0),
    (select count(*) from waiting where julianday(available_at) > julianday('now', '+1 year')),
    (select min(seq) from waiting where julianday(available_at) > julianday('now', '+1 year')),
    (select count(*) from waiting where julianday(created_at) > julianday('now', '+1 day')),
    (select min(seq) from waiting where julianday(created_at) > julianday('now', '+1 day')),
    (select count(*) from delivered),
    (select count(*) from dead where dead_reason in ('corrupt', 'too_large')),
    (select min(seq) from dead where dead_reason in ('corrupt', 'too_large')),
    (select count(*) from (
        select event_data, payload from outbox_events indexed by outbox_events_pending
        where processed_at is null and dead_at is null order by seq desc limit 100)
    where payload is null and length(event_data) <= 2000
        and json_valid(event_data) and json_type(event_data) = 'text'
        and json_valid(json_extract(event_data, '$'))
        and json_type(json_extract(event_data, '$')) in ('object', 'array'))";

/// So many of each sort.
const LOOKED_AT_MAX: i64 = 10_000;

pub(crate) async fn diagnose(outbox: &SqliteOutbox) -> Vec<Finding> {
    let writes = one("writes", look_at_writes(outbox)).await;
    let schema = one("schema", look_at_schema(outbox)).await;
    vec![look_at_file(outbox), writes, schema, one("rows", look_at_rows(outbox)).await]
}

async fn one(about: &'static str, look: impl Future<Output = Result<Finding>>) -> Finding {
    look.await.unwrap_or_else(|error| Finding::unknown(about, &error))
}

fn look_at_file(outbox: &SqliteOutbox) -> Finding {
    const ABOUT: &str = "file";
    match second_name(outbox.path()) {
        None => Finding::fine(ABOUT, "has one name"),
        Some(danger) => Finding::new(ABOUT, Severity::Warning, danger)
            .with_hint("`find DIRECTORY -samefile FILE` shows its names: remove all but one"),
    }
}

/// Takes SQLite's one write lock and gives it back: nothing is written.
async fn look_at_writes(outbox: &SqliteOutbox) -> Result<Finding> {
    let transaction = outbox.begin_write(LOOK).await?;
    transaction.rollback().await.map_err(|error| database(LOOK, error))?;
    Ok(Finding::fine("writes", "the file takes writes, and nobody holds its lock for long"))
}

async fn look_at_schema(outbox: &SqliteOutbox) -> Result<Finding> {
    const ABOUT: &str = "schema";
    if let Err(error) = outbox.check_schema().await {
        if error.kind() != ErrorKind::Schema {
            return Err(error);
        }
        return Ok(Finding::new(ABOUT, Severity::Error, error.report())
            .with_hint("`posthaste migrate up` makes what is missing"));
    }
    let missing = integrity::missing(&mut *outbox.reader(LOOK).await?, LOOK).await?;
    if missing.is_empty() {
        return Ok(Finding::fine(ABOUT, "all there"));
    }
    let message = format!("missing are {}", integrity::list(&missing));
    Ok(Finding::new(ABOUT, Severity::Warning, message)
        .with_hint("`posthaste migrate up` makes them again"))
}

async fn look_at_rows(outbox: &SqliteOutbox) -> Result<Finding> {
    const ABOUT: &str = "rows";
    let fail = |error| database(LOOK, error);
    let tomorrow = jiff::Timestamp::now() + std::time::Duration::from_secs(86_400);
    let mut connection = outbox.reader(LOOK).await?;
    let statement = sqlx::query(ODD).bind(LOOKED_AT_MAX).bind(crate::time::to_text(tomorrow));
    let row = statement.fetch_one(&mut *connection).await.map_err(fail)?;
    let (what, hints) = told(&row).map_err(fail)?;
    if what.is_empty() {
        return Ok(Finding::fine(ABOUT, "none is odd of those looked at"));
    }
    Ok(Finding::new(ABOUT, Severity::Warning, what.join("; ")).with_hint(hints.join("; ")))
}

/// What to say, and what to do.
fn told(row: &SqliteRow) -> sqlx::Result<(Vec<String>, Vec<&'static str>)> {
    // How many, the place of the first where that helps, and what they are.
    let sorts = [
        (
            0,
            None,
            "with seq of 0 or less, which is never read",
            "give each a seq above all others: `posthaste migrate up` does so for tables of version 1",
        ),
        (
            1,
            Some(2),
            "with available_at over a year ahead: the key waits as long",
            "`posthaste events release` makes them due",
        ),
        (
            3,
            Some(4),
            "with created_at in the future: ages and latencies are wrong",
            "a writer sets created_at by a wrong clock: leave it to the default",
        ),
        (
            5,
            None,
            "with a processed_at that no relay set: they count as delivered",
            "a writer sets processed_at: leave it out, and set it to null where it was never sent",
        ),
        (
            6,
            Some(7),
            "that could not be read as an event",
            "dead letters: `posthaste events list --state dead` says why",
        ),
        (
            8,
            None,
            "with JSON within a JSON string as the body",
            "a driver serialised the body once more than meant: see docs/languages.md",
        ),
    ];
    let (mut what, mut hints) = (Vec::new(), Vec::new());
    for (index, first, text, hint) in sorts {
        let count: i64 = row.try_get(index)?;
        if count == 0 {
            continue;
        }
        let first: Option<i64> = first.map(|first| row.try_get(first)).transpose()?.flatten();
        let first = first.map(|seq| format!(" (first at place {seq})")).unwrap_or_default();
        let plural = if count == 1 { "" } else { "s" };
        what.push(format!("{count} row{plural} {text}{first}"));
        hints.push(hint);
    }
    Ok((what, hints))
}
