//! The persistence contract, kept by PostgreSQL.

use std::time::{Duration, Instant};

use async_trait::async_trait;
use posthaste_core::{
    Backlog, DeadHead, Head, HeadSelection, Lease, LeaseRequest, OutboxEvent, OutboxRepository,
    PendingPage, PendingQuery, PendingSelection, RepositoryCapabilities, Result, Seq, Settlement,
    Unsettled, Watermark,
};
use sqlx::{QueryBuilder, Row};
use uuid::Uuid;

use crate::damage;
use crate::error::failed;
use crate::outbox::PostgresOutbox;
use crate::row::{self, key_column, order_key, shard_column};
use crate::store::store;
use crate::{
    backlog, fetch, heads, history, integrity, lease, looks, migrations, relays, rights, settle,
    shown, standby, watermark,
};

macro_rules! dead_heads_of {
    ($source:literal) => {
        concat!(
            "select seq, ",
            key_column!(),
            ", aggregate_id, event_type, destination, ",
            shard_column!(),
            " from ",
            $source,
            " order by seq limit (select $1::bigint)"
        )
    };
}

const DEAD_HEADS: &str =
    dead_heads_of!("outbox_events_pending where dead_at >= '-infinity' and seq > $2");
/// In parts of the table, around what cannot be read.
const DEAD_HEADS_AROUND: &str = dead_heads_of!(
    "unnest($2::bigint[], $3::bigint[]) as part (low, high) cross join lateral \
     (select * from outbox_events_pending \
      where dead_at >= '-infinity' and seq >= part.low and seq <= part.high \
      order by seq limit (select $1::bigint)) dead"
);

/// All that is asked here, to be tried beforehand.
pub(crate) const STATEMENTS: &[&str] = &[DEAD_HEADS];

#[async_trait]
impl OutboxRepository for PostgresOutbox {
    fn capabilities(&self) -> RepositoryCapabilities {
        RepositoryCapabilities {
            name: "postgres",
            durable: true,
            late_commits: true,
            wakes: self.waker().hears(),
            leases: true,
        }
    }

    async fn check(&self) -> Result<()> {
        self.bounded("check the database", check(self)).await
    }

    async fn store(&self, events: &[OutboxEvent]) -> Result<()> {
        const STORE: &str = "store events";
        if events.is_empty() {
            return Ok(());
        }
        self.bounded(STORE, async {
            let mut session = self.session(STORE).await?;
            store(session.connection(), events, self.is_pooled()).await?;
            session.finish().await
        })
        .await?;
        self.notify();
        Ok(())
    }

    async fn fetch_pending(&self, query: &PendingQuery) -> Result<PendingPage> {
        self.bounded("fetch pending events", fetch::fetch(self, query)).await
    }

    async fn watermark(&self) -> Result<Watermark> {
        self.bounded("read watermark", watermark::watermark(self)).await
    }

    async fn settle(&self, settlements: &[Settlement]) -> Result<u64> {
        self.bounded("settle events", settle::settle(self, settlements)).await
    }

    async fn unsettled(&self, settlements: &[Settlement]) -> Result<Vec<Unsettled>> {
        self.bounded("look for unsettled events", settle::unsettled(self, settlements)).await
    }

    async fn heads(&self, selection: &HeadSelection, limit: usize) -> Result<Vec<Head>> {
        self.bounded("look at heads", heads::heads(self, selection, limit)).await
    }

    async fn dead_heads(&self, after: Seq, limit: usize) -> Result<Vec<DeadHead>> {
        self.bounded("read dead heads", dead_heads(self, after, limit)).await
    }

    async fn failed_events(&self, limit: usize) -> Result<Vec<OutboxEvent>> {
        const FAILED: &str = "read failed events";
        let dead = |columns: &str| {
            let mut query = QueryBuilder::new("select ");
            query.push(columns).push(
                " from outbox_events_pending where dead_at >= '-infinity' and seq > 0 \
                 order by seq limit ",
            );
            query.push_bind(sql_limit(limit));
            query
        };
        self.bounded(FAILED, shown::rows(self, FAILED, dead)).await
    }

    async fn backlog(&self, from: Seq) -> Result<Backlog> {
        self.bounded("count the backlog", backlog::backlog(self, from)).await
    }

    async fn cleanup_processed(&self, older_than: Duration) -> Result<u64> {
        history::clean_up(self, older_than).await.map_err(|error| self.locate(error))
    }

    async fn maintain(&self) -> Result<()> {
        self.bounded("create history partitions", history::maintain(self)).await
    }

    async fn lease(&self, request: &LeaseRequest) -> Result<Lease> {
        self.bounded("renew lease", lease::lease(self, request)).await
    }

    async fn leave(&self, relay: Uuid) -> Result<()> {
        self.bounded("give back lease", lease::leave(self, relay)).await
    }

    async fn tell(&self, relay: Uuid, _name: &str, report: &str) -> Result<()> {
        self.bounded("tell what a relay does", relays::tell(self, relay, report)).await
    }

    async fn wait_for_events(&self) {
        self.waker().wait().await;
    }
}

async fn check(outbox: &PostgresOutbox) -> Result<()> {
    const CHECK: &str = "check the database";
    let mut session = outbox.session(CHECK).await?;
    standby::refuse(&mut session, CHECK).await?;
    rights::check(&mut session, CHECK).await?;
    migrations::check(&mut session, CHECK).await?;
    integrity::check(&mut session, CHECK).await?;
    // Whoever starts a relay checks beforehand, and the relay does, too: it is said once.
    if let Some((fault, hint)) = looks::sequence_fault(&mut session, CHECK).await?
        && outbox.oddity().is_due(&fault, Instant::now())
    {
        tracing::warn!(fault, hint, "order within a key is not kept");
    }
    session.finish().await
}

async fn dead_heads(outbox: &PostgresOutbox, after: Seq, limit: usize) -> Result<Vec<DeadHead>> {
    let error = match dead_heads_around(outbox, after, limit).await {
        Err(error) if damage::is_damage(&error) => error,
        result => return result,
    };
    let ahead = PendingSelection::Forward { gaps: Vec::new(), after };
    if damage::find_in_selection(outbox, &ahead, &error).await? {
        return dead_heads_around(outbox, after, limit).await;
    }
    Err(error)
}

async fn dead_heads_around(
    outbox: &PostgresOutbox,
    after: Seq,
    limit: usize,
) -> Result<Vec<DeadHead>> {
    const OPERATION: &str = "read dead heads";
    let parts = damage::around(outbox, &[(after.saturating_add(1), Seq::MAX)]);
    let mut session = outbox.session_along_indexes(OPERATION).await?;
    let limit = sql_limit(limit);
    let statement = match parts {
        None => session.statement(DEAD_HEADS).bind(limit).bind(after),
        Some(parts) => {
            let (low, high) = damage::bounds(&parts);
            session.statement(DEAD_HEADS_AROUND).bind(limit).bind(low).bind(high)
        }
    };
    let rows = statement.fetch_all(session.connection()).await.map_err(failed(OPERATION))?;
    session.finish().await?;
    let head = |row: &sqlx::postgres::PgRow| {
        Ok(DeadHead {
            seq: row.try_get(0)?,
            key: order_key(row::text(row, 1)?.as_deref(), row.try_get(2)?),
            event_type: row::text(row, 3)?.unwrap_or_default(),
            destination: row::text(row, 4)?.filter(|name| !name.is_empty()),
            shard: row::shard(row, 5)?,
        })
    };
    rows.iter().map(head).collect::<Result<_, _>>().map_err(failed(OPERATION))
}

/// A limit as SQL takes it.
pub(crate) fn sql_limit(limit: usize) -> i64 {
    i64::try_from(limit).unwrap_or(i64::MAX)
}
