//! Reading pending events by place.

use std::time::Duration;

use futures_util::TryStreamExt;
use jiff::Timestamp;
use posthaste_core::{
    DeadHead, ErrorKind, EventRecord, OrderKey, OutboxEvent, PendingEvent, PendingPage,
    PendingQuery, PendingSelection, Result, Seq, Settlement, SettlementOutcome, Shard, ShardLease,
    ShardSet,
};
use sqlx::Row;
use sqlx::postgres::PgArguments;
use sqlx::query::Query;

use crate::error::failed;
use crate::outbox::PostgresOutbox;
use crate::row::{self, StoredEvent, columns, shard_column};
use crate::settle;

const FETCH: &str = "fetch pending events";

/// One page of `$source`: `$1` rows at most, `$2` bytes at most.
///
/// `before` sums what the rows before the previous one weigh as stored, without reading them from
/// TOAST: it keeps a page of large payloads from crossing the wire only to be thrown away. It
/// returns one row more than fits, by which the caller knows that there is more. `(select $1)` hides
/// the limit from the planner, which then expects to stop early and walks the index in order, even
/// where it has no statistics yet and would otherwise rather sort the whole table. Bodies become
/// text only outside, for the rows that are left.
macro_rules! page_of {
    ($($source:expr),+) => {
        concat!(
            "select ",
            columns!(),
            ", coalesce(before, 0)::bigint, ",
            shard_column!(),
            " from (",
            "select *, sum(coalesce(octet_length(payload), pg_column_size(event_data))) over ",
            "(order by seq rows between unbounded preceding and 2 preceding) as before ",
            "from ",
            $($source,)+
            " order by seq limit (select $1::bigint)) page where coalesce(before, 0) < $2 order by seq"
        )
    };
}

/// Pending rows under a condition.
///
/// The table is the pending partition itself, and `dead_at is null` is written in a roundabout way:
/// without statistics, as after a first bulk load, the planner takes one row in 200 to be null, and
/// would rather read and sort the whole table than walk the index for so few.
macro_rules! pending_where {
    ($($condition:expr),+) => {
        concat!(
            "outbox_events_pending where (dead_at >= '-infinity') is not true and ",
            $($condition),+
        )
    };
}

/// What a relay that has the outbox to itself asks where nothing can turn up late.
pub const AHEAD: &str = page_of!(pending_where!("seq > $3"));
const AT: &str = page_of!(pending_where!("seq = any($3)"));
const OF_AGGREGATE: &str = page_of!(pending_where!(
    "seq > $3 and seq <= $4 and partition_key is null and aggregate_id = $5"
));
const OF_NAMED_KEY: &str =
    page_of!(pending_where!("seq > $3 and seq <= $4 and partition_key = $5"));

/// Gaps and what lies ahead, in one statement and thus of one snapshot. A gap is a walk of its own
/// along the index: `or` would have PostgreSQL read everything.
macro_rules! forward {
    ($($condition:expr),*) => {
        page_of!(
            "((select found.* \
             from unnest((select $4::bigint[]), (select $5::bigint[])) as gap (low, high) \
             cross join lateral (select * from ",
            pending_where!("seq >= gap.low and seq <= gap.high" $(, $condition)*),
            " order by seq limit (select $1::bigint)) found \
             order by found.seq limit (select $1::bigint)) \
             union all (select * from ",
            pending_where!("seq > $3" $(, $condition)*),
            " order by seq limit (select $1::bigint))) forward"
        )
    };
}

const FORWARD: &str = forward!();

/// Of the keys of a share of the shards: `$mask` has the bit of each. Written in a roundabout way once
/// more: of "is not true" the planner expects most rows to be so, and walks the index; of what the
/// expression says it would expect next to none, and rather sort the table.
macro_rules! shared {
    ($mask:literal) => {
        concat!("((", $mask, "::bigint >> ", shard_column!(), ") & 1 = 0) is not true")
    };
}

const AHEAD_OF_SHARE: &str = page_of!(pending_where!("seq > $3 and ", shared!("$4")));
const FORWARD_OF_SHARE: &str = forward!(" and ", shared!("$6"));

/// The index of `before` in a page's rows, after the columns of an event.
const BEFORE: usize = 21;
/// And of its shard.
const SHARD: usize = 22;

pub(crate) async fn fetch(outbox: &PostgresOutbox, query: &PendingQuery) -> Result<PendingPage> {
    let (mut page, corrupt) = read_page(outbox, query).await?;
    if !corrupt.is_empty() {
        bury(outbox, query, &corrupt).await?;
        page.buried = corrupt.into_iter().map(Corrupt::into_head).collect();
    }
    Ok(page)
}

/// A row that is no event.
struct Corrupt {
    seq: Seq,
    shard: Shard,
    record: EventRecord,
    error: String,
}

impl Corrupt {
    fn into_head(self) -> DeadHead {
        let EventRecord { order_key, event_type, destination, .. } = self.record;
        DeadHead { seq: self.seq, key: order_key, shard: self.shard, event_type, destination }
    }
}

async fn read_page(
    outbox: &PostgresOutbox,
    query: &PendingQuery,
) -> Result<(PendingPage, Vec<Corrupt>)> {
    let mut session = outbox.warm_session(FETCH).await?;
    let mut page = PendingPage::default();
    let mut corrupt = Vec::new();
    let mut bytes = 0;
    {
        let statement = bind_selection(&session, query);
        let mut rows = statement.fetch(session.connection());
        while let Some(row) = rows.try_next().await.map_err(failed(FETCH))? {
            let taken = page.events.len() + corrupt.len();
            if taken >= query.events_max || (bytes >= query.bytes_max && taken > 0) {
                page.more = true;
                break;
            }
            let before: i64 = row.try_get(BEFORE).map_err(failed(FETCH))?;
            // Cut here by the stored weight, where that is more than the text's.
            page.more = usize::try_from(before).is_ok_and(|before| before >= query.bytes_max);
            let shard = row::shard(&row, SHARD).map_err(failed(FETCH))?;
            let StoredEvent { seq, now, record, corrupt: error } = StoredEvent::read(&row, FETCH)?;
            bytes += record.payload.body().len();
            match error {
                Some(error) => corrupt.push(Corrupt { seq, shard, record, error: error.report() }),
                None => page.events.push(PendingEvent {
                    seq,
                    wait: until(record.available_at, now),
                    shard,
                    event: OutboxEvent::restore(record),
                }),
            }
        }
    }
    session.finish().await?;
    Ok((page, corrupt))
}

fn bind_selection<'q>(
    session: &crate::session::Session,
    query: &'q PendingQuery,
) -> Query<'q, sqlx::Postgres, PgArguments> {
    let mask = share_of(query);
    let sql = match (&query.selection, mask) {
        (PendingSelection::Forward { gaps, .. }, None) if gaps.is_empty() => AHEAD,
        (PendingSelection::Forward { gaps, .. }, Some(_)) if gaps.is_empty() => AHEAD_OF_SHARE,
        (PendingSelection::Forward { .. }, None) => FORWARD,
        (PendingSelection::Forward { .. }, Some(_)) => FORWARD_OF_SHARE,
        (PendingSelection::At(_), _) => AT,
        (PendingSelection::Key { key: OrderKey::Aggregate(_), .. }, _) => OF_AGGREGATE,
        (PendingSelection::Key { key: OrderKey::Named(_), .. }, _) => OF_NAMED_KEY,
    };
    let limit = i64::try_from(query.events_max.max(1)).unwrap_or(i64::MAX).saturating_add(1);
    let bytes = i64::try_from(query.bytes_max.max(1)).unwrap_or(i64::MAX);
    let statement = session.statement(sql).bind(limit).bind(bytes);
    match &query.selection {
        PendingSelection::Forward { gaps, after } => {
            let mut statement = statement.bind(*after);
            if !gaps.is_empty() {
                let (low, high): (Vec<Seq>, Vec<Seq>) = gaps.iter().copied().unzip();
                statement = statement.bind(low).bind(high);
            }
            match mask {
                Some(mask) => statement.bind(mask),
                None => statement,
            }
        }
        PendingSelection::At(places) => statement.bind(places.as_slice()),
        PendingSelection::Key { key, after, up_to } => {
            let statement = statement.bind(*after).bind(*up_to);
            match key {
                OrderKey::Aggregate(id) => statement.bind(*id),
                OrderKey::Named(key) => statement.bind(&**key),
            }
        }
    }
}

/// The shards whose events are wanted, as a mask; `None` for all of them.
fn share_of(query: &PendingQuery) -> Option<i64> {
    let shards: ShardSet = query.leases.as_ref()?.iter().map(|lease| lease.shard).collect();
    (!shards.is_all()).then_some(shards.bits().cast_signed())
}

/// Dead-letters rows that are no events, so that one bad row of a foreign writer is seen by an
/// operator and stops nobody.
async fn bury(outbox: &PostgresOutbox, query: &PendingQuery, corrupt: &[Corrupt]) -> Result<()> {
    let settlements: Vec<Settlement> = corrupt
        .iter()
        .map(|Corrupt { seq, shard, record, error }| {
            tracing::error!(seq, id = %record.id, error, "a stored row is no event: a dead letter");
            Settlement {
                seq: *seq,
                id: record.id,
                lease: lease_of(query, *shard),
                outcome: SettlementOutcome::Dead {
                    retry_count: record.retry_count,
                    reason: ErrorKind::Corrupt.as_str(),
                    error: error.as_str().into(),
                },
            }
        })
        .collect();
    settle::settle(outbox, &settlements).await.map(|_| ())
}

/// The lease of a shard. Where there are leases and it has none, one that never was.
fn lease_of(query: &PendingQuery, shard: Shard) -> Option<ShardLease> {
    let leases = query.leases.as_ref()?;
    let lease = leases.iter().find(|lease| lease.shard == shard).copied();
    Some(lease.unwrap_or(ShardLease { shard, generation: -1 }))
}

/// From `now` until `then`; zero when it has passed.
fn until(then: Option<Timestamp>, now: Timestamp) -> Duration {
    then.map_or(Duration::ZERO, |then| {
        Duration::try_from(then.duration_since(now)).unwrap_or_default()
    })
}
