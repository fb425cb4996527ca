//! Reading what is pending.

use std::time::Duration;

use jiff::Timestamp;
use posthaste_core::{
    DeadHead, Error, ErrorKind, OrderKey, PendingEvent, PendingPage, PendingQuery,
    PendingSelection, Result, Seq, Shard, Watermark,
};
use sqlx::sqlite::SqliteRow;
use sqlx::{Connection, QueryBuilder, Row, Sqlite};

use crate::SqliteOutbox;
use crate::error::database;
use crate::row;

/// The greatest number drawn, and the revision. `sqlite_sequence` is what AUTOINCREMENT keeps.
pub(crate) const WATERMARK: &str = "select coalesce((select seq from sqlite_sequence \
     where name = 'outbox_events'), 0), (select revision from outbox_signal)";

const BURY: &str = "update outbox_events set \
     dead_at = strftime('%Y-%m-%dT%H:%M:%fZ', 'now'), dead_reason = ?3, error_message = ?1 \
     where seq = ?2 and processed_at is null and dead_at is null";

/// A row that cannot be read as an event.
struct CorruptRow {
    head: DeadHead,
    error: Error,
}

impl SqliteOutbox {
    /// One page. A row that cannot be read as an event becomes a dead letter.
    pub(crate) async fn fetch_page(&self, query: &PendingQuery) -> Result<PendingPage> {
        let (mut page, corrupt) = self.read_page(query).await?;
        if !corrupt.is_empty() {
            self.bury(&corrupt).await?;
            page.buried = corrupt.into_iter().map(|row| row.head).collect();
        }
        Ok(page)
    }

    async fn read_page(&self, query: &PendingQuery) -> Result<(PendingPage, Vec<CorruptRow>)> {
        let fail = |error| database("fetch pending events", error);
        // Sizes first: the bodies of a page that is over `bytes_max` must never be in memory. One
        // read transaction makes both queries see one snapshot.
        let mut connection = self.reader("fetch pending events").await?;
        let mut transaction = connection.begin().await.map_err(fail)?;
        let sizes = sizes(query).build().fetch_all(&mut *transaction).await.map_err(fail)?;
        let (places, more) = cut(&sizes, query);
        let mut page = PendingPage { more, ..PendingPage::default() };
        let mut corrupt = Vec::new();
        if places.is_empty() {
            return Ok((page, corrupt));
        }
        let mut bodies = QueryBuilder::new("select ");
        bodies
            .push(row::COLUMNS)
            .push(" from outbox_events where seq in (select value from json_each(");
        bodies.push_bind(json(&places)).push(")) order by seq");
        let rows = bodies.build().fetch_all(&mut *transaction).await.map_err(fail)?;
        transaction.rollback().await.map_err(fail)?;
        let now = Timestamp::now();
        page.events.reserve_exact(rows.len());
        for row in &rows {
            match row::event(row) {
                Ok(event) => {
                    let wait = until(event.available_at(), now);
                    let (seq, shard) = (row::seq(row), Shard::default());
                    page.events.push(PendingEvent { seq, wait, shard, event });
                }
                Err(error) => corrupt.push(CorruptRow { head: row::head_of(row), error }),
            }
        }
        Ok((page, corrupt))
    }

    /// Dead-letters rows that cannot be read. One that cannot be dead-lettered either (a trigger of the
    /// owner's refuses it) stands alone: it stays as it is, and the caller holds it back.
    async fn bury(&self, rows: &[CorruptRow]) -> Result<()> {
        const OPERATION: &str = "dead-letter corrupt rows";
        let fail = |error| database(OPERATION, error);
        let mut transaction = self.begin_write(OPERATION).await?;
        for CorruptRow { head: DeadHead { seq, .. }, error } in rows {
            let buried = sqlx::query(BURY)
                .bind(error.report())
                .bind(seq)
                .bind(error.kind().as_str())
                .execute(&mut *transaction)
                .await
                .map_err(fail);
            match buried {
                Ok(done) if done.rows_affected() > 0 => {
                    let error = error.report();
                    tracing::error!(seq, error, "a stored row cannot be read as an event");
                }
                Ok(_) => {}
                // The statement alone was undone. Told of less loudly, since it comes again and again.
                Err(refused) if refused.kind() == ErrorKind::Rejected => {
                    let (error, refused) = (error.report(), refused.report());
                    tracing::debug!(seq, error, refused, "a row that cannot be read stays pending");
                }
                Err(failed) => return Err(failed),
            }
        }
        transaction.commit().await.map_err(fail)
    }

    pub(crate) async fn read_watermark(&self) -> Result<Watermark> {
        let mut connection = self.reader("read watermark").await?;
        let (high, revision) = sqlx::query_as::<_, (Seq, i64)>(WATERMARK)
            .fetch_one(&mut *connection)
            .await
            .map_err(|error| database("read watermark", error))?;
        // One writer at a time: whoever drew a number has committed, or holds the write lock and
        // shows neither its events nor its numbers.
        // Another file in the place of the first one is another outbox.
        let incarnation = self.incarnation();
        Ok(Watermark { high, writers: Vec::new(), revision, incarnation })
    }

    pub(crate) async fn read_dead_heads(&self, after: Seq, limit: usize) -> Result<Vec<DeadHead>> {
        let mut connection = self.reader("read dead heads").await?;
        let rows = sqlx::query(
            "select seq, iif(length(cast(partition_key as blob)) > 512, \
                 cast(substr(cast(partition_key as blob), 1, 513) as text), partition_key), \
                 substr(aggregate_id, 1, 513), event_type, substr(destination, 1, 513) \
             from outbox_events indexed by outbox_events_dead \
             where processed_at is null and dead_at is not null and seq > ?1 \
             order by seq limit ?2",
        )
        .bind(after)
        .bind(to_i64(limit))
        .fetch_all(&mut *connection)
        .await
        .map_err(|error| database("read dead heads", error))?;
        Ok(rows.iter().map(|row| row::dead_head(row, [0, 1, 2, 3, 4])).collect())
    }
}

/// Place and size of the body of what `query` selects, and of one more.
fn sizes(query: &PendingQuery) -> QueryBuilder<Sqlite> {
    let mut sql = QueryBuilder::new(
        // `octet_length` of a column reads the row's head, not its body. The rest of a row counts
        // beyond what is usual for it: all that is brought into memory has a limit.
        "select seq, iif(payload is null, octet_length(event_data), octet_length(payload)) \
         + max(0, iif(payload is null, 0, octet_length(event_data)) + coalesce(octet_length(headers), 0) \
         + coalesce(octet_length(topic), 0) + coalesce(octet_length(destination), 0) \
         + coalesce(octet_length(aggregate_type), 0) + coalesce(octet_length(content_type), 0) \
         - 2048) from outbox_events ",
    );
    // Delivered events stay in the table, so a scan by seq would walk over all of them: name the
    // index rather than hope for it.
    let pending = "processed_at is null and dead_at is null ";
    match &query.selection {
        PendingSelection::Forward { gaps, after } => {
            // Nothing commits late here, so there are hardly ever gaps to look into.
            let lowest = gaps.first().map_or(*after, |(low, _)| low.saturating_sub(1).min(*after));
            sql.push("indexed by outbox_events_pending where ").push(pending);
            sql.push("and seq > ").push_bind(lowest);
            if !gaps.is_empty() {
                sql.push(" and (seq > ").push_bind(*after);
                sql.push(" or exists (select 1 from json_each(").push_bind(json_pairs(gaps));
                sql.push(") where seq between value ->> 0 and value ->> 1))");
            }
        }
        PendingSelection::At(places) => {
            sql.push("where ").push(pending).push("and seq in (select value from json_each(");
            sql.push_bind(json(places)).push("))");
        }
        PendingSelection::Key { key, after, up_to } => {
            sql.push("indexed by outbox_events_pending_key where ").push(pending);
            match key {
                OrderKey::Aggregate(id) => {
                    sql.push("and coalesce(partition_key, '') = '' and order_key = ");
                    sql.push_bind(id.simple().to_string());
                }
                OrderKey::Named(name) => {
                    sql.push("and partition_key = ").push_bind(name.to_string());
                    sql.push(" and order_key = ").push_bind(name.to_string());
                }
            }
            sql.push(" and seq > ").push_bind(*after).push(" and seq <= ").push_bind(*up_to);
        }
    }
    sql.push(" order by seq limit ").push_bind(to_i64(query.events_max).saturating_add(1));
    sql
}

/// The places that are within the limits, and whether there are more.
fn cut(sizes: &[SqliteRow], query: &PendingQuery) -> (Vec<Seq>, bool) {
    let mut places = Vec::new();
    let mut bytes: usize = 0;
    for row in sizes {
        if places.len() >= query.events_max || (bytes >= query.bytes_max && !places.is_empty()) {
            return (places, true);
        }
        places.push(row.get(0));
        let size: Option<i64> = row.get(1);
        bytes = bytes.saturating_add(usize::try_from(size.unwrap_or(0)).unwrap_or(usize::MAX));
    }
    (places, false)
}

/// From `now` until `then`; zero when it has passed.
fn until(then: Option<Timestamp>, now: Timestamp) -> Duration {
    then.map_or(Duration::ZERO, |then| {
        Duration::try_from(then.duration_since(now)).unwrap_or_default()
    })
}

fn json(places: &[Seq]) -> String {
    serde_json::Value::from(places).to_string()
}

fn json_pairs(ranges: &[(Seq, Seq)]) -> String {
    ranges.iter().map(|(low, high)| vec![*low, *high]).collect::<serde_json::Value>().to_string()
}

pub(crate) fn to_i64(number: usize) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn plan(selection: PendingSelection) -> String {
        let query = PendingQuery { leases: None, selection, events_max: 10, bytes_max: 10 };
        crate::plan::of(&sizes(&query).into_string()).await
    }

    #[tokio::test]
    async fn no_fetch_walks_over_delivered_events() {
        let key = OrderKey::Named("k".into());
        for (selection, expected) in [
            (
                PendingSelection::Forward { gaps: vec![], after: 0 },
                "SEARCH outbox_events USING INDEX outbox_events_pending (seq>?)",
            ),
            (
                PendingSelection::Forward { gaps: vec![(1, 2)], after: 7 },
                "SEARCH outbox_events USING INDEX outbox_events_pending (seq>?)",
            ),
            (
                PendingSelection::Key { key, after: 0, up_to: 9 },
                "outbox_events_pending_key (order_key=? AND seq>? AND seq<?)",
            ),
            (PendingSelection::At(vec![1]), "USING INTEGER PRIMARY KEY (rowid=?)"),
        ] {
            let plan = plan(selection.clone()).await;
            assert!(plan.contains(expected), "{selection:?}: {plan}");
            assert!(!plan.contains("SCAN outbox_events"), "{selection:?}: {plan}");
            assert!(!plan.contains("TEMP B-TREE"), "{selection:?} sorts: {plan}");
        }
    }
}
