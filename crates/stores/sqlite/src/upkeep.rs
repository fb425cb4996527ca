//! Counting and cleaning up.

use std::time::Duration;

use jiff::Timestamp;
use posthaste_core::{Backlog, Result, Seq};
use sqlx::Row;

use crate::SqliteOutbox;
use crate::error::database;
use crate::row::has_failed;
use crate::time::{parse, to_text};

/// Pending events are counted one by one up to here; what follows is estimated.
const PENDING_COUNTED_MAX: i64 = 10_000;
/// Dead letters are counted up to here.
const DEAD_COUNTED_MAX: i64 = 100_000;
/// The write lock is given back after so many, for the application's sake.
const CLEANUP_EVENTS_MAX: u64 = 1_000;

/// An `available_at` that no function of SQLite's understands counts as due: the relay then meets
/// the row and says what is wrong with it.
const BACKLOG: &str = concat!(
    "with sample as (
    select seq, ",
    has_failed!(),
    " as failed,
        available_at is null
            or coalesce(julianday(available_at) <= julianday('now'), true) as due
    from outbox_events indexed by outbox_events_pending
    where processed_at is null and dead_at is null and seq >= ?1
    order by seq limit ?2
)
select
    count(*) filter (where not failed and due),
    count(*) filter (where failed),
    count(*) filter (where not failed and not due),
    max(seq),
    (select created_at from outbox_events
        where seq = (select min(seq) from sample where due)),
    (select count(*) from (
        select 1 from outbox_events indexed by outbox_events_dead
        where processed_at is null and dead_at is not null limit ?3)),
    (select max(seq) from outbox_events indexed by outbox_events_pending
        where processed_at is null and dead_at is null)
from sample"
);

/// Text order finds the candidates by index; the exact comparison spares a time that a program
/// other than posthaste wrote in another form.
const CLEANUP: &str = "\
delete from outbox_events where seq in (
    select seq from outbox_events indexed by outbox_events_processed
    where processed_at is not null and processed_at < ?1
        and julianday(processed_at) < julianday(?1)
    order by processed_at limit ?2
)";

impl SqliteOutbox {
    pub(crate) async fn count_backlog(&self, from: Seq) -> Result<Backlog> {
        let fail = |error| database("count backlog", error);
        let mut connection = self.reader("count backlog").await?;
        let row = sqlx::query(BACKLOG)
            .bind(from)
            .bind(PENDING_COUNTED_MAX)
            .bind(DEAD_COUNTED_MAX)
            .fetch_one(&mut *connection)
            .await
            .map_err(fail)?;
        let count = |index| u64::try_from(row.get::<i64, _>(index)).unwrap_or(0);
        let mut backlog = Backlog {
            ready: count(0),
            retrying: count(1),
            scheduled: count(2),
            dead: count(5),
            ..Backlog::default()
        };
        if backlog.pending() >= PENDING_COUNTED_MAX.unsigned_abs() {
            backlog.is_estimated = true;
            // Nothing much has been delivered beyond the first ten thousand pending ones, so nearly
            // every place up to the last one is pending still.
            let (counted, last): (Option<Seq>, Option<Seq>) = (row.get(3), row.get(6));
            backlog.ready += u64::try_from(last.unwrap_or(0) - counted.unwrap_or(0)).unwrap_or(0);
        }
        let oldest: Option<String> = row.get(4);
        backlog.oldest_pending_at = oldest.as_deref().and_then(parse);
        if let Some(oldest) = backlog.oldest_pending_at {
            let age = Timestamp::now().duration_since(oldest);
            backlog.oldest_pending_age = Duration::try_from(age).unwrap_or_default();
        }
        Ok(backlog)
    }

    pub(crate) async fn clean_up(&self, older_than: Duration) -> Result<u64> {
        let cutoff = Timestamp::now().checked_sub(older_than).unwrap_or(Timestamp::MIN);
        let cutoff = to_text(cutoff);
        let mut removed = 0;
        loop {
            let mut connection = self.writing("clean up delivered events").await?;
            let done = sqlx::query(CLEANUP)
                .bind(&cutoff)
                .bind(CLEANUP_EVENTS_MAX.cast_signed())
                .execute(&mut *connection)
                .await
                .map_err(|error| database("clean up delivered events", error))?;
            removed += done.rows_affected();
            if done.rows_affected() < CLEANUP_EVENTS_MAX {
                return Ok(removed);
            }
        }
    }

    /// Moves what it can from the write-ahead log to the database, so that the log stays small.
    pub(crate) async fn checkpoint(&self) -> Result<()> {
        let mut connection = self.writing("checkpoint write-ahead log").await?;
        sqlx::query("pragma wal_checkpoint(passive)")
            .execute(&mut *connection)
            .await
            .map_err(|error| database("checkpoint write-ahead log", error))?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn counting_and_cleaning_up_walk_no_more_than_their_index() {
        for (sql, index) in
            [(BACKLOG, "outbox_events_pending"), (CLEANUP, "outbox_events_processed")]
        {
            let plan = crate::plan::of(sql).await;
            assert!(plan.contains(index), "{plan}");
            for line in plan.lines().filter(|line| line.contains("SCAN outbox_events")) {
                assert!(line.contains("INDEX outbox_events_"), "{plan}");
            }
        }
    }
}
