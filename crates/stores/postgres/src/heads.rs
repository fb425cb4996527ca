//! What is undelivered, without bodies: for relays that compare what they know with what is there.

use std::time::Duration;

use posthaste_core::{Head, HeadSelection, Result, Seq};
use sqlx::Row;
use sqlx::postgres::PgRow;
use uuid::Uuid;

use crate::damage;
use crate::error::failed;
use crate::outbox::PostgresOutbox;
use crate::repository::sql_limit;
use crate::row::{self, has_failed, key_column, shard_column};
use crate::timestamp::{Instant, until};

const HEADS: &str = "look at heads";

/// Dead letters are among them, so no condition but the places: the index on `seq` is enough.
macro_rules! heads_where {
    ($source:literal) => {
        concat!(
            "select seq, id, ",
            key_column!(),
            ", aggregate_id, event_type, destination, available_at, clock_timestamp(), \
             dead_at is not null, ",
            shard_column!(),
            ", ",
            has_failed!(),
            " from ",
            $source,
            " order by seq limit (select $1::bigint)"
        )
    };
}

const AT: &str = heads_where!("outbox_events_pending where seq = any($2)");
const BETWEEN: &str = heads_where!("outbox_events_pending where seq > $2 and seq <= $3");
/// In parts of a range, around what cannot be read.
const AROUND: &str = heads_where!(
    "unnest($2::bigint[], $3::bigint[]) as part (low, high) cross join lateral \
     (select * from outbox_events_pending where seq >= part.low and seq <= part.high \
      order by seq limit (select $1::bigint)) event"
);

/// All that is asked here, to be tried beforehand.
pub(crate) const STATEMENTS: &[&str] = &[AT, BETWEEN];

pub(crate) async fn heads(
    outbox: &PostgresOutbox,
    selection: &HeadSelection,
    limit: usize,
) -> Result<Vec<Head>> {
    let error = match heads_around(outbox, selection, limit).await {
        Err(error) if damage::is_damage(&error) => error,
        result => return result,
    };
    if damage::find(outbox, &ranges_of(selection), &error).await? {
        return heads_around(outbox, selection, limit).await;
    }
    Err(error)
}

fn ranges_of(selection: &HeadSelection) -> Vec<(Seq, Seq)> {
    match selection {
        HeadSelection::At(places) => places.iter().map(|place| (*place, *place)).collect(),
        HeadSelection::Between { after, up_to } => vec![(after.saturating_add(1), *up_to)],
    }
}

async fn heads_around(
    outbox: &PostgresOutbox,
    selection: &HeadSelection,
    limit: usize,
) -> Result<Vec<Head>> {
    let parts = damage::around(outbox, &ranges_of(selection));
    let mut session = outbox.session_along_indexes(HEADS).await?;
    let limit = sql_limit(limit);
    let statement = match (parts, selection) {
        (Some(parts), _) => {
            let (low, high) = damage::bounds(&parts);
            session.statement(AROUND).bind(limit).bind(low).bind(high)
        }
        (None, HeadSelection::At(places)) => {
            session.statement(AT).bind(limit).bind(places.as_slice())
        }
        (None, HeadSelection::Between { after, up_to }) => {
            session.statement(BETWEEN).bind(limit).bind(*after).bind(*up_to)
        }
    };
    let rows = statement.fetch_all(session.connection()).await.map_err(failed(HEADS))?;
    session.finish().await?;
    rows.iter().map(head).collect::<Result<_, _>>().map_err(failed(HEADS))
}

fn head(row: &PgRow) -> sqlx::Result<Head> {
    let now = row.try_get::<Instant, _>(7)?.0;
    let available_at = row.try_get::<Option<Instant>, _>(6)?.map(|instant| instant.0);
    let wait: Duration = until(available_at, now);
    Ok(Head {
        seq: row.try_get::<Seq, _>(0)?,
        id: row.try_get::<Uuid, _>(1)?,
        key: row::order_key(row::text(row, 2)?.as_deref(), row.try_get(3)?),
        event_type: row::text(row, 4)?.unwrap_or_default(),
        destination: row::text(row, 5)?.filter(|name| !name.is_empty()),
        wait,
        dead: row.try_get(8)?,
        shard: row::shard(row, 9)?,
        has_failed: row.try_get(10)?,
    })
}
