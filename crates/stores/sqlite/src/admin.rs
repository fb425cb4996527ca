//! Finding, reviving and discarding events.

use async_trait::async_trait;
use posthaste_core::{
    EventFilter, EventState, OutboxAdmin, OutboxEvent, Result, StuckKeyPage, StuckKeyQuery,
};
use sqlx::{QueryBuilder, Sqlite};
use uuid::Uuid;

use crate::SqliteOutbox;
use crate::error::database;
use crate::fetch::to_i64;
use crate::row;

#[async_trait]
impl OutboxAdmin for SqliteOutbox {
    async fn find_event(&self, id: Uuid) -> Result<Option<OutboxEvent>> {
        Ok(self.list_events(&EventFilter::with_ids([id]), 1).await?.pop())
    }

    async fn list_events(&self, filter: &EventFilter, limit: usize) -> Result<Vec<OutboxEvent>> {
        let mut sql = QueryBuilder::new("select ");
        sql.push(row::COLUMNS).push(" from outbox_events where ");
        push_filter(&mut sql, filter);
        sql.push(match filter.state {
            Some(EventState::Delivered) => " order by processed_at desc, seq desc limit ",
            _ => " order by seq limit ",
        });
        sql.push_bind(to_i64(limit));
        let rows = sql.build().persistent(false).fetch_all(&self.readers).await;
        let rows = rows.map_err(|error| database("list events", error))?;
        rows.iter().map(row::shown).collect()
    }

    async fn count_events(&self, filter: &EventFilter, limit: u64) -> Result<u64> {
        let mut sql = QueryBuilder::new("select count(*) from (select 1 from outbox_events where ");
        push_filter(&mut sql, filter);
        sql.push(" limit ").push_bind(i64::try_from(limit).unwrap_or(i64::MAX)).push(")");
        let count: i64 = sql
            .build_query_scalar()
            .persistent(false)
            .fetch_one(&self.readers)
            .await
            .map_err(|error| database("count events", error))?;
        Ok(u64::try_from(count).unwrap_or(0))
    }

    async fn retry_events(&self, filter: &EventFilter) -> Result<u64> {
        let mut sql = QueryBuilder::new(
            "update outbox_events set dead_at = null, dead_reason = null, available_at = null, \
             retry_count = 0 \
             where processed_at is null and (dead_at is not null or retry_count > 0) and ",
        );
        push_filter(&mut sql, filter);
        self.change("retry events", sql).await
    }

    async fn discard_events(&self, filter: &EventFilter) -> Result<u64> {
        let mut sql =
            QueryBuilder::new("delete from outbox_events where processed_at is null and ");
        push_filter(&mut sql, filter);
        self.change("discard events", sql).await
    }

    async fn stuck_keys(&self, query: &StuckKeyQuery) -> Result<StuckKeyPage> {
        self.read_stuck_keys(query).await
    }
}

impl SqliteOutbox {
    /// Runs an operator's change, and tells running relays of every process.
    async fn change(&self, operation: &'static str, mut sql: QueryBuilder<Sqlite>) -> Result<u64> {
        let fail = |error| database(operation, error);
        let mut transaction = self.writer.begin_with("begin immediate").await.map_err(fail)?;
        let done = sql.build().persistent(false).execute(&mut *transaction).await.map_err(fail)?;
        let changed = done.rows_affected();
        if changed > 0 {
            // The triggers tell of dead letters only, and relays also hold waiting retries.
            sqlx::query("update outbox_signal set revision = revision + 1")
                .execute(&mut *transaction)
                .await
                .map_err(fail)?;
        }
        transaction.commit().await.map_err(fail)?;
        self.wake.notify();
        Ok(changed)
    }
}

fn push_filter(sql: &mut QueryBuilder<Sqlite>, filter: &EventFilter) {
    sql.push(match filter.state {
        None => "true",
        Some(EventState::Pending) => "processed_at is null and dead_at is null",
        Some(EventState::Retrying) => {
            "processed_at is null and dead_at is null and retry_count > 0"
        }
        Some(EventState::Dead) => "processed_at is null and dead_at is not null",
        Some(EventState::Delivered) => "processed_at is not null",
    });
    if let Some(ids) = &filter.ids {
        push_ids(sql, ids);
    }
    if let Some(event_type) = &filter.event_type {
        sql.push(" and event_type = ").push_bind(event_type.clone());
    }
    if let Some(key) = &filter.order_key {
        let aggregate = Uuid::try_parse(key).map(|id| id.simple().to_string());
        sql.push(" and (partition_key = ").push_bind(key.clone());
        sql.push(" or (coalesce(partition_key, '') = '' and order_key = ");
        sql.push_bind(aggregate.unwrap_or_else(|_| key.clone())).push("))");
    }
    // `julianday` reads every form and has the resolution of a millisecond.
    if let Some(from) = filter.created_from {
        sql.push(" and julianday(created_at) >= julianday(").push_bind(from.to_string()).push(")");
    }
    if let Some(before) = filter.created_before {
        sql.push(" and julianday(created_at) < julianday(").push_bind(before.to_string()).push(")");
    }
    if let Some(after) = filter.after {
        sql.push(" and seq > ").push_bind(after);
    }
}

/// In every form in which a writer may have stored them, so that the index on `id` serves.
fn push_ids(sql: &mut QueryBuilder<Sqlite>, ids: &[Uuid]) {
    let ids: Vec<String> = ids.iter().map(Uuid::to_string).collect();
    sql.push(" and id in (with wanted (id) as (select value from json_each(");
    sql.push_bind(serde_json::Value::from(ids).to_string());
    sql.push(
        ")) select id from wanted union all select upper(id) from wanted \
         union all select replace(id, '-', '') from wanted \
         union all select upper(replace(id, '-', '')) from wanted \
         union all select unhex(id, '-') from wanted)",
    );
}
