//! Reading pending events by place.

use futures_util::TryStreamExt;
use posthaste_core::{
    DeadHead, Error, ErrorKind, EventRecord, OrderKey, OutboxEvent, PendingEvent, PendingPage,
    PendingQuery, PendingSelection, Result, Seq, Settlement, SettlementOutcome, Shard, ShardLease,
    ShardSet,
};
use sqlx::Row;
use sqlx::postgres::PgArguments;
use sqlx::query::Query;

use crate::damage;
use crate::error::{failed, sqlstate};
use crate::outbox::PostgresOutbox;
use crate::row::{self, BODY_BYTES_MAX, StoredEvent, columns, shard_column};
use crate::settle;
use crate::timestamp::until;

const FETCH: &str = "fetch pending events";

/// One page of `$source`: `$1` rows at most, `$2` bytes at most.
///
/// `before` sums what the rows before the previous one weigh as stored, without reading them from
/// TOAST: it keeps a page of large payloads from crossing the wire only to be thrown away. It
/// returns one row more than fits, by which the caller knows that there is more. `(select $1)` hides
/// the limit from the planner, which then expects to stop early and walks the index in order, even
/// where it has no statistics yet and would otherwise rather sort the whole table. Bodies become
/// text only outside, for the rows that are left, and once (`offset 0`): JSON of a few kilobytes can
/// be a gigabyte of text, of which no more than its length is wanted.
macro_rules! page_of {
    ($($source:expr),+) => {
        concat!(
            "select ",
            columns!(
                "case when octet_length(body) <= 134217728 then body end",
                "left(header_texts, 131073)",
                "case when octet_length(payload) <= 134217728 then payload end"
            ),
            ", coalesce(before, 0)::bigint, ",
            shard_column!(),
            ", coalesce(octet_length(payload), octet_length(body))::bigint",
            " from (select page.*, case when payload is null then event_data::text end as body, \
             headers::text as header_texts from (",
            "select *, sum(coalesce(octet_length(payload), pg_column_size(event_data))) over ",
            "(order by seq rows between unbounded preceding and 2 preceding) as before ",
            "from ",
            $($source,)+
            " order by seq limit (select $1::bigint)) page where coalesce(before, 0) < $2 \
             order by seq offset 0) texts order by seq"
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
    "seq > $3 and seq <= $4 and coalesce(partition_key, '') = '' and aggregate_id = $5"
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

/// The columns of a page after those of an event: `before`,
const BEFORE: usize = 21;
/// the shard,
const SHARD: usize = 22;
/// and the length of the body.
const BODY_BYTES: usize = 23;

/// What stands for a row that cannot be read at all: all but its body and headers.
const HEAD: &str = concat!(
    "select ",
    columns!("'null'::text", "null::text", "null::bytea"),
    ", 0::bigint, ",
    shard_column!(),
    ", 0::bigint from outbox_events_pending where (dead_at >= '-infinity') is not true and seq = $1"
);

/// All that is asked here, to be tried beforehand.
pub(crate) const STATEMENTS: &[&str] =
    &[AHEAD, AHEAD_OF_SHARE, FORWARD, FORWARD_OF_SHARE, AT, OF_AGGREGATE, OF_NAMED_KEY, HEAD];

/// Rows that change between two questions about the one that cannot be read are asked for so often.
const ATTEMPTS_MAX: usize = 3;

/// Reads a page. Where it fails for what a row holds, what was read before that row is the page. Then the
/// row stands alone, at the beginning of the next, and becomes a dead letter; or, where nothing can be
/// read of it, it is [left out](damage).
pub(crate) async fn fetch(outbox: &PostgresOutbox, query: &PendingQuery) -> Result<PendingPage> {
    let error = match fetch_around(outbox, query).await {
        Err(error) if damage::is_damage(&error) => error,
        result => return result,
    };
    if damage::find_in_selection(outbox, &query.selection, &error).await? {
        // The next read goes around it.
        return Ok(PendingPage { more: true, ..PendingPage::default() });
    }
    Err(error)
}

async fn fetch_around(outbox: &PostgresOutbox, query: &PendingQuery) -> Result<PendingPage> {
    let query = &*damage::query_around(outbox, query).await?;
    let mut attempts = 0;
    loop {
        let error = match read_page(outbox, query).await {
            Ok((mut page, unfit)) => {
                if !unfit.is_empty() {
                    bury(outbox, query, &unfit).await;
                    page.buried = unfit.into_iter().map(Unfit::into_head).collect();
                }
                return Ok(page);
            }
            Err(error) if is_of_rows(&error) && attempts < ATTEMPTS_MAX => error,
            Err(error) => return Err(error),
        };
        attempts += 1;
        if let Some(row) = first_unreadable(outbox, query, &error).await? {
            bury(outbox, query, std::slice::from_ref(&row)).await;
            let buried = vec![row.into_head()];
            return Ok(PendingPage { events: Vec::new(), more: true, buried });
        }
    }
}

/// Whether a statement failed for what a row holds: a value that has no text (54000, its text is over a
/// gigabyte; 22...), or that is damaged (XX001, XX002) or takes more memory than there is (53200).
pub(crate) fn is_of_rows(error: &Error) -> bool {
    sqlstate(error).is_some_and(|code| {
        code.starts_with("22") || matches!(&*code, TOO_LONG | "XX001" | "XX002" | "53200")
    })
}

/// `program_limit_exceeded`: a text of more than a gigabyte, for one.
const TOO_LONG: &str = "54000";

/// The first row of a selection that cannot be read, as far as it can. `None` where it is another one
/// by now.
async fn first_unreadable(
    outbox: &PostgresOutbox,
    query: &PendingQuery,
    error: &Error,
) -> Result<Option<Unfit>> {
    let Some(seq) = first_place(outbox, query).await? else { return Ok(None) };
    let alone = PendingQuery { selection: PendingSelection::At(vec![seq]), ..query.clone() };
    match read_page(outbox, &alone).await {
        Ok(_) => return Ok(None),
        Err(error) if !is_of_rows(&error) => return Err(error),
        Err(_) => {}
    }
    let mut session = outbox.session_along_indexes(FETCH).await?;
    let statement = session.statement(HEAD).bind(seq);
    let row = statement.fetch_optional(session.connection()).await.map_err(failed(FETCH))?;
    session.finish().await?;
    let Some(row) = row else { return Ok(None) };
    let shard = row::shard(&row, SHARD).map_err(failed(FETCH))?;
    let StoredEvent { record, .. } = StoredEvent::read(&row, FETCH)?;
    let is_too_long = sqlstate(error).is_some_and(|code| code == TOO_LONG);
    let reason = if is_too_long { ErrorKind::TooLarge } else { ErrorKind::Corrupt };
    let error = format!("the row cannot be read: {}", error.report());
    Ok(Some(Unfit { seq, shard, record, reason, error }))
}

macro_rules! first_of {
    ($($condition:expr),+) => {
        concat!("select seq from ", pending_where!($($condition),+), " order by seq limit 1")
    };
}

const FIRST_FORWARD: &str = first_of!(
    "(seq > $1 or exists (select from unnest($2::bigint[], $3::bigint[]) as gap (low, high) \
     where seq between gap.low and gap.high)) and ",
    shared!("$4")
);
const FIRST_AT: &str = first_of!("seq = any($1)");
const FIRST_OF_AGGREGATE: &str =
    first_of!("seq > $1 and seq <= $2 and coalesce(partition_key, '') = '' and aggregate_id = $3");
const FIRST_OF_NAMED_KEY: &str = first_of!("seq > $1 and seq <= $2 and partition_key = $3");

/// The place of the first row of a selection.
async fn first_place(outbox: &PostgresOutbox, query: &PendingQuery) -> Result<Option<Seq>> {
    let mut session = outbox.session_along_indexes(FETCH).await?;
    let statement = match &query.selection {
        PendingSelection::Forward { gaps, after } => {
            let (low, high): (Vec<Seq>, Vec<Seq>) = gaps.iter().copied().unzip();
            let every_shard = -1;
            let statement = session.statement(FIRST_FORWARD).bind(*after).bind(low).bind(high);
            statement.bind(share_of(query).unwrap_or(every_shard))
        }
        PendingSelection::At(places) => session.statement(FIRST_AT).bind(places.as_slice()),
        PendingSelection::Key { key: OrderKey::Aggregate(id), after, up_to } => {
            session.statement(FIRST_OF_AGGREGATE).bind(*after).bind(*up_to).bind(*id)
        }
        PendingSelection::Key { key: OrderKey::Named(key), after, up_to } => {
            session.statement(FIRST_OF_NAMED_KEY).bind(*after).bind(*up_to).bind(&**key)
        }
    };
    let row = statement.fetch_optional(session.connection()).await.map_err(failed(FETCH))?;
    session.finish().await?;
    row.map(|row| row.try_get(0)).transpose().map_err(failed(FETCH))
}

/// A row that is no event, or none that can be delivered.
struct Unfit {
    seq: Seq,
    shard: Shard,
    record: EventRecord,
    reason: ErrorKind,
    error: String,
}

impl Unfit {
    fn into_head(self) -> DeadHead {
        let EventRecord { order_key, event_type, destination, .. } = self.record;
        DeadHead { seq: self.seq, key: order_key, shard: self.shard, event_type, destination }
    }
}

async fn read_page(
    outbox: &PostgresOutbox,
    query: &PendingQuery,
) -> Result<(PendingPage, Vec<Unfit>)> {
    let mut session = outbox.warm_session(FETCH).await?;
    let mut page = PendingPage::default();
    let mut unfit = Vec::new();
    let (mut bytes, mut unread) = (0, 0);
    {
        let statement = bind_selection(&session, query);
        let mut rows = statement.fetch(session.connection());
        loop {
            let taken = page.events.len() + unfit.len();
            let row = match rows.try_next().await.map_err(failed(FETCH)) {
                Ok(Some(row)) => row,
                Ok(None) => break,
                Err(error) if is_of_rows(&error) && taken > 0 => {
                    page.more = true;
                    break;
                }
                Err(error) => return Err(error),
            };
            if taken >= query.events_max || (bytes >= query.bytes_max && taken > 0) {
                page.more = true;
                unread += 1;
                if unread > 1 {
                    break;
                }
                continue;
            }
            let before: i64 = row.try_get(BEFORE).map_err(failed(FETCH))?;
            // Cut here by the stored weight, where that is more than the text's.
            page.more = usize::try_from(before).is_ok_and(|before| before >= query.bytes_max);
            let shard = row::shard(&row, SHARD).map_err(failed(FETCH))?;
            let body_bytes: Option<i64> = row.try_get(BODY_BYTES).map_err(failed(FETCH))?;
            let stored = StoredEvent::read(&row, FETCH)?;
            bytes += stored.bytes;
            match why_unfit(body_bytes.unwrap_or(0), stored.unfit) {
                Some((reason, error)) => {
                    unfit.push(Unfit {
                        seq: stored.seq,
                        shard,
                        record: stored.record,
                        reason,
                        error,
                    });
                }
                None => page.events.push(PendingEvent {
                    seq: stored.seq,
                    wait: until(stored.record.available_at, stored.now),
                    shard,
                    event: OutboxEvent::restore(stored.record),
                }),
            }
        }
    }
    // What weighs more as text than as stored is cut here, and what is left may be more than memory
    // holds: it goes with the connection.
    if unread < 2 {
        session.finish().await?;
    }
    Ok((page, unfit))
}

fn why_unfit(body_bytes: i64, corrupt: Option<Error>) -> Option<(ErrorKind, String)> {
    if body_bytes > BODY_BYTES_MAX {
        let why = format!("its body has {body_bytes} bytes; at most {BODY_BYTES_MAX} are read");
        return Some((ErrorKind::TooLarge, why));
    }
    corrupt.map(|error| (ErrorKind::Corrupt, error.report()))
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
/// operator and stops nobody. Where that fails, they are left out all the same: they are looked at
/// again later, and the rest goes on meanwhile.
async fn bury(outbox: &PostgresOutbox, query: &PendingQuery, unfit: &[Unfit]) {
    let settlements: Vec<Settlement> = unfit
        .iter()
        .map(|Unfit { seq, shard, record, reason, error }| Settlement {
            seq: *seq,
            id: record.id,
            lease: lease_of(query, *shard),
            outcome: SettlementOutcome::Dead {
                retry_count: record.retry_count,
                reason: reason.as_str(),
                error: error.as_str().into(),
            },
        })
        .collect();
    match settle::settle(outbox, &settlements).await {
        Ok(0) => {}
        Ok(_) => {
            for Unfit { seq, record, error, .. } in unfit {
                tracing::error!(seq, id = %record.id, error, "a stored row is no event: a dead letter");
            }
        }
        Err(failure) => {
            let first = unfit.first();
            tracing::warn!(
                rows = unfit.len(),
                seq = first.map(|row| row.seq),
                why = first.map(|row| &*row.error),
                error = failure.report(),
                "stored rows are no events and cannot be made dead letters; they are left out and \
                 tried again, and hold back their keys"
            );
        }
    }
}

/// The lease of a shard. Where there are leases and it has none, one that never was.
fn lease_of(query: &PendingQuery, shard: Shard) -> Option<ShardLease> {
    let leases = query.leases.as_ref()?;
    let lease = leases.iter().find(|lease| lease.shard == shard).copied();
    Some(lease.unwrap_or(ShardLease { shard, generation: -1 }))
}
