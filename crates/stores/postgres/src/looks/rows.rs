//! Rows that wait for ever, or not at all as their writers meant.

use posthaste_core::{Finding, Result, Severity};
use sqlx::Row;
use sqlx::postgres::PgRow;

use super::{LOOK, reading};
use crate::error::failed;
use crate::outbox::PostgresOutbox;

/// Of the rows that wait and of the dead letters the first `$1` are looked at; of the history those that
/// lie in no day, and some of today's. A body's form is asked of small ones only: JSON of a few kilobytes
/// can be a gigabyte of text, and `jsonb_typeof` makes none of it.
const ODD: &str = "\
    with waiting as materialized ( \
        select seq, created_at, available_at from outbox_events_pending \
        where (dead_at >= '-infinity') is not true and seq > 0 order by seq limit (select $1::bigint) \
    ), dead as materialized ( \
        select seq, dead_reason from outbox_events_pending \
        where dead_at >= '-infinity' and seq > 0 order by seq limit (select $1::bigint) \
    ), undated as materialized ( \
        select processed_at from outbox_events_processed_default limit (select $1::bigint) \
    ), bodies as materialized ( \
        (select event_data::jsonb as body from outbox_events_pending \
            where seq > 0 and payload is null and pg_column_size(event_data) <= 2000 \
            order by seq desc limit 100) \
        union all \
        (select event_data::jsonb from outbox_events_processed \
            where processed_at >= date_trunc('day', now()) and payload is null \
                and pg_column_size(event_data) <= 2000 limit 100) \
    ) \
    select \
        (select count(*) from (select from outbox_events_pending where seq <= 0 \
            limit (select $1::bigint)) low), \
        (select count(*) from waiting where available_at > now() + interval '1 year'), \
        (select min(seq) from waiting where available_at > now() + interval '1 year'), \
        (select count(*) from waiting where created_at > now() + interval '1 day'), \
        (select min(seq) from waiting where created_at > now() + interval '1 day'), \
        (select count(*) from undated \
            where processed_at < '2000-01-01' or processed_at > now() + interval '8 days'), \
        (select count(*) from dead where dead_reason in ('corrupt', 'too_large')), \
        (select min(seq) from dead where dead_reason in ('corrupt', 'too_large')), \
        (select count(*) from bodies where jsonb_typeof(body) = 'string' \
            and (body #>> '{}') ~ '^\\s*[{[]'), \
        (select count(*) from bodies)";

/// So many of each sort.
const LOOKED_AT_MAX: i64 = 10_000;

pub(super) async fn look(outbox: &PostgresOutbox) -> Result<Finding> {
    const ABOUT: &str = "rows";
    let mut session = reading(outbox).await?;
    let statement = session.statement(ODD).bind(LOOKED_AT_MAX);
    let row = statement.fetch_one(session.connection()).await.map_err(failed(LOOK))?;
    session.finish().await?;
    let odd = Odd::read(&row).map_err(failed(LOOK))?;
    let (what, hints) = odd.told();
    if what.is_empty() {
        return Ok(Finding::fine(ABOUT, "none is odd of those looked at"));
    }
    Ok(Finding::new(ABOUT, Severity::Warning, what.join("; ")).with_hint(hints.join("; ")))
}

/// How many rows are odd, and the place of the first.
struct Odd {
    low: i64,
    delayed: (i64, Option<i64>),
    early: (i64, Option<i64>),
    undated: i64,
    unreadable: (i64, Option<i64>),
    text_bodies: i64,
    bodies: i64,
}

impl Odd {
    fn read(row: &PgRow) -> sqlx::Result<Self> {
        Ok(Self {
            low: row.try_get(0)?,
            delayed: (row.try_get(1)?, row.try_get(2)?),
            early: (row.try_get(3)?, row.try_get(4)?),
            undated: row.try_get(5)?,
            unreadable: (row.try_get(6)?, row.try_get(7)?),
            text_bodies: row.try_get(8)?,
            bodies: row.try_get(9)?,
        })
    }

    /// What to say, and what to do.
    fn told(&self) -> (Vec<String>, Vec<&'static str>) {
        let first =
            |seq: Option<i64>| seq.map_or(String::new(), |seq| format!(" (first at place {seq})"));
        let sorts = [
            (
                self.low,
                format!("{} with seq of 0 or less, which is never read", rows(self.low)),
                "`update outbox_events_pending set seq = nextval('outbox_events_seq') where seq <= 0`",
            ),
            (
                self.delayed.0,
                format!(
                    "{} with available_at over a year ahead{}: its key waits as long",
                    rows(self.delayed.0),
                    first(self.delayed.1)
                ),
                "`posthaste events release` makes them due",
            ),
            (
                self.early.0,
                format!(
                    "{} with created_at in the future{}: ages and latencies are wrong",
                    rows(self.early.0),
                    first(self.early.1)
                ),
                "a writer sets created_at by a wrong clock: leave it to the default",
            ),
            (
                self.undated,
                format!(
                    "{} with a processed_at that no relay set: it counts as delivered",
                    rows(self.undated)
                ),
                "a writer sets processed_at: leave it out, and set it to null where it was never sent",
            ),
            (
                self.unreadable.0,
                format!(
                    "{} that could not be read as an event{}",
                    rows(self.unreadable.0),
                    first(self.unreadable.1)
                ),
                "dead letters: `posthaste events list --state dead` says why",
            ),
            (
                self.text_bodies,
                format!(
                    "{} of {} looked at with JSON within a JSON string as its body",
                    rows(self.text_bodies),
                    self.bodies
                ),
                "a driver serialised the body once more than meant: see docs/languages.md",
            ),
        ];
        let odd = sorts.into_iter().filter(|(count, ..)| *count > 0);
        odd.map(|(_, what, hint)| (what, hint)).unzip()
    }
}

fn rows(count: i64) -> String {
    match count {
        1 => "1 row".into(),
        LOOKED_AT_MAX.. => format!("{count} rows or more"),
        _ => format!("{count} rows"),
    }
}
