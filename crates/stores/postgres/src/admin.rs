//! What an operator does with stored events.

use std::time::Duration;

use async_trait::async_trait;
use posthaste_core::{
    EventFilter, EventPlace, EventState, Finding, OpenTransaction, OutboxAdmin, OutboxEvent,
    RelayView, Result, StuckKeyPage, StuckKeyQuery, check_destination,
};
use sqlx::postgres::PgRow;
use sqlx::{Postgres, QueryBuilder, Row};
use uuid::Uuid;

use crate::error::{failed, is_conflict};
use crate::outbox::PostgresOutbox;
use crate::repository::sql_limit;
use crate::row::has_failed;
use crate::shown::{self, build};
use crate::signal::BUMP;
use crate::timestamp::Instant;
use crate::{history, looks, open_transactions, relays, stuck_keys};

const FIND: &str = "find event";
const LIST: &str = "list events";
const COUNT: &str = "count events";
const RETRY: &str = "retry events";
const RELEASE: &str = "release events";
const REROUTE: &str = "reroute events";
const DISCARD: &str = "discard events";

/// A change that meets relays at work is repeated as a whole.
const CONFLICTS_MAX: usize = 10;

const PLACE_BY_ID: &str = "select seq, processed_at from outbox_events where id = $1";

#[async_trait]
impl OutboxAdmin for PostgresOutbox {
    async fn relays(&self) -> Result<Vec<RelayView>> {
        self.bounded("list relays", relays::list(self)).await
    }

    async fn diagnose(&self) -> Vec<Finding> {
        looks::diagnose(self).await
    }

    async fn find_event(&self, id: Uuid) -> Result<Option<OutboxEvent>> {
        self.bounded(FIND, async {
            let by_id = |columns: &str| {
                let mut query = select(columns, "outbox_events where id = ");
                query.push_bind(id);
                query
            };
            Ok(shown::rows(self, FIND, by_id).await?.pop())
        })
        .await
    }

    async fn list_events(&self, filter: &EventFilter, limit: usize) -> Result<Vec<OutboxEvent>> {
        self.bounded(LIST, list(self, filter, limit)).await
    }

    async fn event_place(&self, id: Uuid) -> Result<Option<EventPlace>> {
        self.bounded(FIND, async {
            let mut session = self.session(FIND).await?;
            let statement = session.statement(PLACE_BY_ID).bind(id);
            let row = statement.fetch_optional(session.connection()).await.map_err(failed(FIND))?;
            session.finish().await?;
            let place = |row: PgRow| {
                let delivered_at: Option<Instant> = row.try_get(1)?;
                Ok(EventPlace { seq: row.try_get(0)?, delivered_at: delivered_at.map(|at| at.0) })
            };
            row.map(place).transpose().map_err(failed(FIND))
        })
        .await
    }

    async fn count_events(&self, filter: &EventFilter, limit: u64) -> Result<u64> {
        self.bounded(COUNT, count(self, filter, limit)).await
    }

    async fn retry_events(&self, filter: &EventFilter) -> Result<u64> {
        let revive = || {
            QueryBuilder::new(concat!(
                "update outbox_events set dead_at = null, dead_reason = null, available_at = null, \
                 retry_count = 0 where processed_at is null and (dead_at is not null or ",
                has_failed!(),
                ")"
            ))
        };
        let changed = change(self, RETRY, revive, filter).await;
        let changed = changed.map_err(|error| self.locate(error))?;
        self.notify();
        Ok(changed)
    }

    async fn release_events(&self, filter: &EventFilter) -> Result<u64> {
        let release = || {
            QueryBuilder::new(
                "update outbox_events set available_at = null \
                 where processed_at is null and dead_at is null and available_at > now()",
            )
        };
        let changed = change(self, RELEASE, release, filter).await;
        let changed = changed.map_err(|error| self.locate(error))?;
        self.notify();
        Ok(changed)
    }

    async fn reroute_events(&self, filter: &EventFilter, to: Option<&str>) -> Result<u64> {
        check_destination(to)?;
        let reroute = || {
            let mut reroute = QueryBuilder::new("update outbox_events set destination = ");
            reroute.push_bind(to.map(str::to_owned));
            reroute.push(" where processed_at is null and destination is distinct from ");
            reroute.push_bind(to.map(str::to_owned));
            reroute
        };
        let changed = change(self, REROUTE, reroute, filter).await;
        let changed = changed.map_err(|error| self.locate(error))?;
        self.notify();
        Ok(changed)
    }

    async fn discard_events(&self, filter: &EventFilter) -> Result<u64> {
        let delete = || QueryBuilder::new("delete from outbox_events where processed_at is null");
        change(self, DISCARD, delete, filter).await.map_err(|error| self.locate(error))
    }

    async fn stuck_keys(&self, query: &StuckKeyQuery) -> Result<StuckKeyPage> {
        self.bounded("list stuck keys", stuck_keys::stuck_keys(self, query)).await
    }

    async fn open_transactions(
        &self,
        older_than: Duration,
        limit: usize,
    ) -> Result<Vec<OpenTransaction>> {
        let work = open_transactions::open_transactions(self, older_than, limit);
        self.bounded("list open transactions", work).await
    }
}

async fn list(
    outbox: &PostgresOutbox,
    filter: &EventFilter,
    limit: usize,
) -> Result<Vec<OutboxEvent>> {
    let mut events = Vec::new();
    let after = filter.after;
    let among_delivered = after.is_some_and(|after| after.delivered_at.is_some());
    if filter.state != Some(EventState::Delivered) && !among_delivered {
        let undelivered = |columns: &str| {
            let mut query = select(columns, "outbox_events where processed_at is null");
            if let Some(after) = after {
                // Said in so many words for the index.
                query.push(" and seq > ").push_bind(after.seq);
            }
            push_filter(&mut query, filter);
            query.push(" order by seq limit ").push_bind(sql_limit(limit));
            query
        };
        events.extend(shown::rows(outbox, LIST, undelivered).await?);
    }
    if matches!(filter.state, None | Some(EventState::Delivered)) && events.len() < limit {
        let mut session = outbox.session(LIST).await?;
        let spans = history::spans(&mut session, LIST).await?;
        session.finish().await?;
        // Latest first, day by day: no sorting of the whole history.
        for (from, until) in spans {
            let left = limit - events.len();
            if left == 0 {
                break;
            }
            let delivered = |columns: &str| {
                let mut query = select(columns, "outbox_events_processed where true");
                if let Some(from) = from {
                    query.push(" and processed_at >= ").push_bind(Instant(from));
                }
                if let Some(until) = until {
                    query.push(" and processed_at < ").push_bind(Instant(until));
                }
                push_filter(&mut query, filter);
                query.push(" order by processed_at desc, seq desc limit ");
                query.push_bind(sql_limit(left));
                query
            };
            events.extend(shown::rows(outbox, LIST, delivered).await?);
        }
    }
    Ok(events)
}

fn select(columns: &str, from: &str) -> QueryBuilder<Postgres> {
    let mut query = QueryBuilder::new("select ");
    query.push(columns).push(" from ").push(from);
    query
}

async fn count(outbox: &PostgresOutbox, filter: &EventFilter, limit: u64) -> Result<u64> {
    let from = match filter.state {
        Some(EventState::Delivered) => "outbox_events_processed where true",
        Some(_) => "outbox_events where processed_at is null",
        None => "outbox_events where true",
    };
    let mut query = QueryBuilder::new("select count(*) from (select from ");
    query.push(from);
    push_filter(&mut query, filter);
    query.push(" limit ").push_bind(i64::try_from(limit).unwrap_or(i64::MAX)).push(") counted");
    let mut session = outbox.session(COUNT).await?;
    let row = build(&mut query).fetch_one(session.connection()).await;
    let count: i64 = row.and_then(|row| row.try_get(0)).map_err(failed(COUNT))?;
    session.finish().await?;
    Ok(count.cast_unsigned())
}

/// Runs a statement on what matches, and signals relays in the same transaction. It is put together for
/// each try, since running it uses it up.
async fn change(
    outbox: &PostgresOutbox,
    operation: &'static str,
    statement: impl Fn() -> QueryBuilder<Postgres>,
    filter: &EventFilter,
) -> Result<u64> {
    if filter.state == Some(EventState::Delivered) {
        return Ok(0);
    }
    let mut conflicts = 0;
    loop {
        let mut query = statement();
        push_filter(&mut query, filter);
        let mut session = outbox.transaction(Duration::ZERO, operation).await?;
        match build(&mut query).execute(session.connection()).await {
            Ok(done) if done.rows_affected() == 0 => return Ok(0),
            Ok(done) => {
                let statement = session.statement(BUMP);
                statement.execute(session.connection()).await.map_err(failed(operation))?;
                session.finish().await?;
                return Ok(done.rows_affected());
            }
            Err(error) if is_conflict(&error) && conflicts < CONFLICTS_MAX => conflicts += 1,
            Err(error) => return Err(failed(operation)(error)),
        }
    }
}

/// Adds ` and …` for each part that is given.
fn push_filter(query: &mut QueryBuilder<Postgres>, filter: &EventFilter) {
    match filter.state {
        None | Some(EventState::Delivered) => {}
        Some(EventState::Pending) => {
            query.push(" and dead_at is null");
        }
        Some(EventState::Retrying) => {
            query.push(concat!(" and dead_at is null and ", has_failed!()));
        }
        Some(EventState::Dead) => {
            query.push(" and dead_at is not null");
        }
    }
    if let Some(ids) = &filter.ids {
        query.push(" and id = any(").push_bind(ids.clone()).push(")");
    }
    if let Some((from, to)) = filter.ids_between {
        query.push(" and id between ").push_bind(from).push(" and ").push_bind(to);
    }
    if let Some(event_type) = &filter.event_type {
        let escaped =
            |text: &str| text.replace('\\', "\\\\").replace('%', "\\%").replace('_', "\\_");
        let like = event_type.literals().map(escaped).collect::<Vec<_>>().join("%");
        query.push(" and event_type like ").push_bind(like);
    }
    if let Some(key) = &filter.order_key {
        query
            .push(" and coalesce(nullif(partition_key, ''), aggregate_id::text) = ")
            .push_bind(key.clone());
    }
    if let Some(from) = filter.created_from {
        query.push(" and created_at >= ").push_bind(Instant(from));
    }
    if let Some(before) = filter.created_before {
        query.push(" and created_at < ").push_bind(Instant(before));
    }
    match filter.after {
        Some(EventPlace { seq, delivered_at: None }) => {
            query.push(" and (processed_at is not null or seq > ").push_bind(seq).push(")");
        }
        Some(EventPlace { seq, delivered_at: Some(at) }) => {
            query.push(" and (processed_at, seq) < (").push_bind(Instant(at));
            query.push(", ").push_bind(seq).push(")");
        }
        None => {}
    }
}
