//! Keys that wait, found at a cost that does not grow with the backlog.

use posthaste_core::{Result, Seq, StuckBy, StuckKey, StuckKeyPage, StuckKeyQuery};
use sqlx::sqlite::SqliteRow;
use sqlx::{AssertSqlSafe, Connection, Row};

use crate::SqliteOutbox;
use crate::error::database;
use crate::fetch::to_i64;
use crate::row::{self, has_failed};

/// Pending events that one page looks at to find retries, which no index knows.
const WALK_MAX: usize = 100_000;
/// Events behind a key are counted up to here.
const WAITING_COUNTED_MAX: i64 = 10_000;

/// Columns of an event without its body and headers, as `row::shown` expects them, and what waits
/// behind it.
const SELECT: &str = "\
select seq, id, aggregate_id, aggregate_type, event_type, partition_key, destination, topic, \
    null, 'null', null, content_type, created_at, available_at, processed_at, dead_at, \
    dead_reason, cast(coalesce(retry_count, 0) as integer), cast(max_retries as integer), \
    error_message, \
    (select count(*) from ( \
        select 1 from outbox_events later indexed by outbox_events_pending_key \
        where later.processed_at is null and later.dead_at is null \
            and later.order_key = event.order_key and later.seq > event.seq \
            and (coalesce(later.partition_key, '') = '') \
                = (coalesce(event.partition_key, '') = '') \
        limit ?3)), \
    order_key \
from outbox_events event where seq in ";

const WAITING: usize = 20;

/// `?1`: after which place; `?2`: how many. All dead letters are looked at: they are few, and a
/// key's first one may be anywhere.
const DEAD: &str = "( \
    select min(seq) from outbox_events indexed by outbox_events_dead \
    where processed_at is null and dead_at is not null \
    group by coalesce(partition_key, '') = '', order_key \
    having min(seq) > ?1 order by 1 limit ?2) order by seq";

/// `?4`: how many pending events to look at.
const RETRYING: &str = concat!(
    "( \
    select min(seq) from ( \
        select seq, partition_key, order_key, retry_count, error_message, available_at \
        from outbox_events indexed by outbox_events_pending \
        where processed_at is null and dead_at is null and seq > ?1 order by seq limit ?4) \
    where ",
    has_failed!(),
    " and julianday(available_at) > julianday('now') \
    group by coalesce(partition_key, '') = '', order_key order by 1 limit ?2) order by seq"
);

/// The last of the events that [`RETRYING`] looks at, where it does not look at all.
const WALKED_TO: &str = "\
select seq from outbox_events indexed by outbox_events_pending \
where processed_at is null and dead_at is null and seq > ?1 order by seq limit 1 offset ?2";

impl SqliteOutbox {
    pub(crate) async fn read_stuck_keys(&self, query: &StuckKeyQuery) -> Result<StuckKeyPage> {
        self.stuck_keys_within(query, WALK_MAX).await
    }

    /// As [`read_stuck_keys`](Self::read_stuck_keys), looking at `walk_max` pending events.
    async fn stuck_keys_within(
        &self,
        query: &StuckKeyQuery,
        walk_max: usize,
    ) -> Result<StuckKeyPage> {
        let fail = |error| database("list stuck keys", error);
        // One read transaction, so that both statements see one snapshot.
        let mut connection = self.reader("list stuck keys").await?;
        let mut transaction = connection.begin().await.map_err(fail)?;
        // One more than asked for tells whether there are more.
        let statement = sqlx::query(AssertSqlSafe(sql(query.by)))
            .bind(query.after)
            .bind(to_i64(query.limit).saturating_add(1))
            .bind(WAITING_COUNTED_MAX)
            .bind(to_i64(walk_max));
        let rows = statement.fetch_all(&mut *transaction).await.map_err(fail)?;
        let mut page = StuckKeyPage {
            keys: rows.iter().take(query.limit).map(key).collect::<Result<_>>()?,
            next: None,
        };
        if rows.len() > query.limit {
            page.next = Some(page.keys.last().map_or(query.after, |last| last.seq));
        } else if query.by == StuckBy::Retry {
            let walked_to: Option<Seq> = sqlx::query_scalar(WALKED_TO)
                .bind(query.after)
                .bind(to_i64(walk_max.saturating_sub(1)))
                .fetch_optional(&mut *transaction)
                .await
                .map_err(fail)?;
            page.next = walked_to;
        }
        transaction.rollback().await.map_err(fail)?;
        Ok(page)
    }
}

fn sql(by: StuckBy) -> String {
    let heads = match by {
        StuckBy::DeadLetter => DEAD,
        StuckBy::Retry => RETRYING,
    };
    format!("{SELECT}{heads}")
}

fn key(row: &SqliteRow) -> Result<StuckKey> {
    let mut key = StuckKey::new(row::seq(row), row::shown(row)?.record().clone());
    let waiting: i64 = row.get(WAITING);
    key.waiting = waiting.unsigned_abs();
    key.waiting_is_minimum = waiting >= WAITING_COUNTED_MAX;
    Ok(key)
}

#[cfg(test)]
mod tests {
    use super::*;
    use posthaste_core::OutboxMigrations;

    #[tokio::test]
    async fn no_listing_walks_over_delivered_or_pending_events_at_large() {
        for by in [StuckBy::DeadLetter, StuckBy::Retry] {
            let plan = crate::plan::of(&sql(by)).await;
            for line in plan.lines().filter(|line| line.contains("SCAN outbox_events")) {
                assert!(line.contains("USING INDEX outbox_events_dead"), "{by:?}: {plan}");
            }
            assert!(plan.contains("outbox_events_pending_key (order_key=?"), "{by:?}: {plan}");
        }
        let plan = crate::plan::of(WALKED_TO).await;
        assert!(plan.contains("USING INDEX outbox_events_pending (seq>?)"), "{plan}");
    }

    #[tokio::test]
    async fn retries_behind_more_pending_events_than_a_page_looks_at_are_found_page_by_page() {
        let directory = tempfile::tempdir().unwrap();
        let outbox = SqliteOutbox::open(directory.path().join("outbox.db")).await.unwrap();
        outbox.migrate().await.unwrap();
        let insert = "insert into outbox_events (aggregate_id, event_type, event_data, \
             retry_count, available_at) \
             select lower(hex(randomblob(16))), 't', '1', value = 25, \
                 iif(value = 25, '2999-01-01T00:00:00Z', null) from generate_series(1, 30)";
        let series = "with recursive generate_series (value) as (select 1 union all \
             select value + 1 from generate_series where value < 30) ";
        let insert = insert.replace(" from generate_series(1, 30)", " from generate_series");
        let insert = insert.replace("select lower", &format!("{series}select lower"));
        sqlx::query(AssertSqlSafe(insert)).execute(&outbox.writer).await.unwrap();
        let mut query = StuckKeyQuery { by: StuckBy::Retry, after: 0, limit: 5 };
        let mut found = Vec::new();
        let mut pages = 0;
        loop {
            let page = outbox.stuck_keys_within(&query, 10).await.unwrap();
            found.extend(page.keys.iter().map(|key| key.seq));
            pages += 1;
            match page.next {
                Some(next) => query.after = next,
                None => break,
            }
        }
        assert_eq!((&found[..], pages), (&[25][..], 4));
    }
}
