//! Finding, reviving and discarding events.

use async_trait::async_trait;
use posthaste_core::{
    EventFilter, EventPlace, EventState, Finding, OutboxAdmin, OutboxEvent, RelayView, Result,
    StuckKeyPage, StuckKeyQuery, check_destination,
};
use sqlx::{QueryBuilder, Sqlite};
use uuid::Uuid;

use crate::SqliteOutbox;
use crate::error::database;
use crate::fetch::to_i64;
use crate::row::{self, has_failed};
use crate::{looks, relays};

#[async_trait]
impl OutboxAdmin for SqliteOutbox {
    async fn find_event(&self, id: Uuid) -> Result<Option<OutboxEvent>> {
        Ok(self.list_events(&EventFilter::with_ids([id]), 1).await?.pop())
    }

    async fn list_events(&self, filter: &EventFilter, limit: usize) -> Result<Vec<OutboxEvent>> {
        let among_delivered = filter.after.is_some_and(|after| after.delivered_at.is_some());
        let mut events = Vec::new();
        if filter.state != Some(EventState::Delivered) && !among_delivered {
            let mut sql = select_matching(filter);
            sql.push(" and processed_at is null");
            if let Some(after) = filter.after {
                // Said in so many words for the index.
                sql.push(" and seq > ").push_bind(after.seq);
            }
            sql.push(" order by seq limit ").push_bind(to_i64(limit));
            self.read_into(&mut events, sql).await?;
        }
        let left = limit - events.len();
        if matches!(filter.state, None | Some(EventState::Delivered)) && left > 0 {
            let mut sql = select_matching(filter);
            sql.push(" and processed_at is not null");
            sql.push(" order by processed_at desc, seq desc limit ").push_bind(to_i64(left));
            self.read_into(&mut events, sql).await?;
        }
        Ok(events)
    }

    async fn event_place(&self, id: Uuid) -> Result<Option<EventPlace>> {
        let mut sql = QueryBuilder::new("select seq from outbox_events where true");
        push_ids(&mut sql, &[id]);
        let mut connection = self.reader("find event").await?;
        let seq: Option<i64> = sql
            .build_query_scalar()
            .persistent(false)
            .fetch_optional(&mut *connection)
            .await
            .map_err(|error| database("find event", error))?;
        let (Some(seq), Some(event)) = (seq, self.find_event(id).await?) else { return Ok(None) };
        Ok(Some(EventPlace { seq, delivered_at: event.processed_at() }))
    }

    async fn count_events(&self, filter: &EventFilter, limit: u64) -> Result<u64> {
        let mut sql = QueryBuilder::new("select count(*) from (select 1 from outbox_events where ");
        push_filter(&mut sql, filter);
        sql.push(" limit ").push_bind(i64::try_from(limit).unwrap_or(i64::MAX)).push(")");
        let mut connection = self.reader("count events").await?;
        let count: i64 = sql
            .build_query_scalar()
            .persistent(false)
            .fetch_one(&mut *connection)
            .await
            .map_err(|error| database("count events", error))?;
        Ok(u64::try_from(count).unwrap_or(0))
    }

    async fn retry_events(&self, filter: &EventFilter) -> Result<u64> {
        let mut sql = QueryBuilder::new(concat!(
            "update outbox_events set dead_at = null, dead_reason = null, available_at = null, \
             retry_count = 0 where processed_at is null and (dead_at is not null or ",
            has_failed!(),
            ") and ",
        ));
        push_filter(&mut sql, filter);
        self.change("retry events", sql).await
    }

    async fn release_events(&self, filter: &EventFilter) -> Result<u64> {
        let mut sql = QueryBuilder::new(
            "update outbox_events set available_at = null \
             where processed_at is null and dead_at is null \
             and julianday(available_at) > julianday('now') and ",
        );
        push_filter(&mut sql, filter);
        self.change("release events", sql).await
    }

    async fn reroute_events(&self, filter: &EventFilter, to: Option<&str>) -> Result<u64> {
        check_destination(to)?;
        let mut sql = QueryBuilder::new("update outbox_events set destination = ");
        sql.push_bind(to.map(str::to_owned));
        sql.push(" where processed_at is null and destination is not ");
        sql.push_bind(to.map(str::to_owned)).push(" and ");
        push_filter(&mut sql, filter);
        self.change("reroute events", sql).await
    }

    async fn discard_events(&self, filter: &EventFilter) -> Result<u64> {
        let mut sql =
            QueryBuilder::new("delete from outbox_events where processed_at is null and ");
        push_filter(&mut sql, filter);
        self.change("discard events", sql).await
    }

    async fn diagnose(&self) -> Vec<Finding> {
        looks::diagnose(self).await
    }

    async fn relays(&self) -> Result<Vec<RelayView>> {
        relays::list(self).await
    }

    async fn stuck_keys(&self, query: &StuckKeyQuery) -> Result<StuckKeyPage> {
        self.read_stuck_keys(query).await
    }
}

fn select_matching(filter: &EventFilter) -> QueryBuilder<Sqlite> {
    let mut sql = QueryBuilder::new("select ");
    sql.push(row::COLUMNS).push(" from outbox_events where ");
    push_filter(&mut sql, filter);
    sql
}

impl SqliteOutbox {
    async fn read_into(
        &self,
        events: &mut Vec<OutboxEvent>,
        mut sql: QueryBuilder<Sqlite>,
    ) -> Result<()> {
        let mut connection = self.reader("list events").await?;
        let rows = sql.build().persistent(false).fetch_all(&mut *connection).await;
        let rows = rows.map_err(|error| database("list events", error))?;
        for row in &rows {
            events.push(row::shown(row)?);
        }
        Ok(())
    }

    /// Runs an operator's change, and tells running relays of every process.
    async fn change(&self, operation: &'static str, mut sql: QueryBuilder<Sqlite>) -> Result<u64> {
        let fail = |error| database(operation, error);
        let mut transaction = self.begin_write(operation).await?;
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
            concat!("processed_at is null and dead_at is null and ", has_failed!())
        }
        Some(EventState::Dead) => "processed_at is null and dead_at is not null",
        Some(EventState::Delivered) => "processed_at is not null",
    });
    if let Some(ids) = &filter.ids {
        push_ids(sql, ids);
    }
    if let Some((from, to)) = filter.ids_between {
        push_range(sql, from, to);
    }
    if let Some(event_type) = &filter.event_type {
        let escaped = |text: &str| text.replace('[', "[[]").replace('?', "[?]");
        let glob = event_type.literals().map(escaped).collect::<Vec<_>>().join("*");
        sql.push(" and event_type glob ").push_bind(glob);
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
    match filter.after {
        Some(EventPlace { seq, delivered_at: None }) => {
            sql.push(" and (processed_at is not null or seq > ").push_bind(seq).push(")");
        }
        Some(EventPlace { seq, delivered_at: Some(_) }) => {
            // As it is written there: the texts decide the order.
            sql.push(" and (processed_at, seq) < (select processed_at, seq from outbox_events");
            sql.push(" where seq = ").push_bind(seq).push(")");
        }
        None => {}
    }
}

/// As below, one range for each form.
fn push_range(sql: &mut QueryBuilder<Sqlite>, from: Uuid, to: Uuid) {
    let forms: [fn(Uuid) -> String; 2] =
        [|id| id.hyphenated().to_string(), |id| id.simple().to_string()];
    sql.push(" and (id between ").push_bind(from.as_bytes().to_vec());
    sql.push(" and ").push_bind(to.as_bytes().to_vec());
    for form in forms {
        let (from, to) = (form(from), form(to));
        sql.push(" or id between ").push_bind(from.to_uppercase());
        sql.push(" and ").push_bind(to.to_uppercase());
        sql.push(" or id between ").push_bind(from).push(" and ").push_bind(to);
    }
    sql.push(")");
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
