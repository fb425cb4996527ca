//! Recording outcomes, one statement per batch.

use std::collections::{BTreeMap, BTreeSet};

use posthaste_core::{Result, Seq, Settlement, SettlementOutcome, ShardLease, Unsettled};
use sqlx::postgres::{PgArguments, PgRow};
use sqlx::query::Query;
use sqlx::{Connection, Postgres, Row};
use uuid::Uuid;

use crate::error::{failed, is_conflict};
use crate::lease;
use crate::outbox::PostgresOutbox;
use crate::session::{Begin, Session};

type Statement<'q> = Query<'q, Postgres, PgArguments>;

const SETTLE: &str = "settle events";

/// Two relays that settle the same event are in each other's way once, not for ever.
const CONFLICTS_MAX: usize = 5;

/// What every branch adds: dead and delivered events are left alone. `$places` are the branch's `seq`.
///
/// The places are named twice: as the range of the walk along the index on `seq`, which then touches no
/// other event however the two are joined, and as what joins them. In the statements below,
/// `(select $1)` hides the length of the array from the planner, which then expects few rows, however
/// small or bloated its statistics say the table is; `is true` keeps it from the index on `id`,
/// where neighbours in time are scattered.
macro_rules! still_pending {
    ($places:literal) => {
        concat!(
            "where event.processed_at is null and event.dead_at is null \
             and event.seq = any ((select ",
            $places,
            "::bigint[])::bigint[]) and event.seq = outcome.seq and (event.id = outcome.id) is true \
             and (outcome.lease is null or outcome.lease = any (array(select number from held)))"
        )
    };
}

/// The leases that are this relay's still, held so until the transaction ends: whoever wants to take
/// one of these shards waits or goes without.
macro_rules! held {
    () => {
        "held as materialized (select number from outbox_shards \
             join unnest($1::smallint[], $2::bigint[]) \
             with ordinality as given (shard, generation, number) \
             using (shard, generation) where shard = any ($1) for key share of outbox_shards)"
    };
}

/// All delivered: what nearly every batch is.
pub const DELIVERED: &str = concat!(
    "with ",
    held!(),
    " update outbox_events event set processed_at = now() \
     from unnest((select $3::bigint[]), (select $4::uuid[]), (select $5::smallint[])) \
         as outcome (seq, id, lease) ",
    still_pending!("$3")
);

/// All delivered, and none to be kept. The condition on `processed_at` leaves one partition, the
/// one of what waits: the history is neither read nor locked.
const REMOVED: &str = concat!(
    "with ",
    held!(),
    " delete from outbox_events event \
     using unnest((select $3::bigint[]), (select $4::uuid[]), (select $5::smallint[])) \
         as outcome (seq, id, lease) ",
    still_pending!("$3")
);

/// Any mix. Each row is in one branch only. `$removed` is a branch of its own, since it takes the right
/// to delete, which not every relay needs.
macro_rules! mixed {
    ($($removed:expr),* ; $count:literal) => {
        concat!(
            "with ",
            held!(),
            ", delivered as (update outbox_events event set processed_at = now() \
             from unnest((select $3::bigint[]), (select $4::uuid[]), (select $5::smallint[])) \
                 as outcome (seq, id, lease) ",
            still_pending!("$3"),
            " returning 1), \
             retried as (update outbox_events event set retry_count = outcome.retry_count, \
                 available_at = now() + outcome.delay * interval '1 microsecond', \
                 error_message = outcome.error \
             from unnest((select $6::bigint[]), (select $7::uuid[]), (select $8::smallint[]), \
                 (select $9::int4[]), (select $10::bigint[]), (select $11::text[])) \
                 as outcome (seq, id, lease, retry_count, delay, error) ",
            still_pending!("$6"),
            " returning 1), \
             buried as (update outbox_events event set retry_count = outcome.retry_count, \
                 dead_at = now(), dead_reason = outcome.reason, error_message = outcome.error \
             from unnest((select $12::bigint[]), (select $13::uuid[]), (select $14::smallint[]), \
                 (select $15::int4[]), (select $16::text[]), (select $17::text[])) \
                 as outcome (seq, id, lease, retry_count, reason, error) ",
            still_pending!("$12"),
            " returning 1)",
            $($removed,)*
            " select (select count(*) from delivered) + (select count(*) from retried) \
                 + (select count(*) from buried)",
            $count
        )
    };
}

const MIXED: &str = mixed!(; "");

const MIXED_AND_REMOVED: &str = mixed!(
    ", removed as (delete from outbox_events event \
     using unnest((select $18::bigint[]), (select $19::uuid[]), (select $20::smallint[])) \
         as outcome (seq, id, lease) ",
    still_pending!("$18"),
    " returning 1)";
    " + (select count(*) from removed)"
);

/// Those of these events that no other session holds, locked until the transaction ends.
const FREE: &str = "\
    select seq from outbox_events_pending where seq = any ((select $1::bigint[])::bigint[]) \
    order by seq for update skip locked";

/// Those that are pending still, and who holds a lock on each. A row that is locked names in `xmax` the
/// transaction that did it (or several, which have no name here).
const PENDING_STILL: &str = "\
    with holder as materialized (\
        select lock.transactionid, min(lock.pid) as pid, \
            min(concat_ws(', ', nullif(activity.application_name, ''), activity.state)) as what \
        from pg_locks lock left join pg_stat_activity activity using (pid) \
        where lock.locktype = 'transactionid' and lock.granted group by 1) \
    select event.seq, event.id, holder.transactionid is not null, holder.pid, holder.what \
    from outbox_events_pending event left join holder on holder.transactionid = event.xmax \
    where event.seq = any ((select $1::bigint[])::bigint[]) and event.dead_at is null \
    order by event.seq";

const GENERATIONS: &str = "select shard, generation from outbox_shards";

/// All that is asked here, to be tried beforehand.
pub(crate) const STATEMENTS: &[&str] =
    &[DELIVERED, REMOVED, MIXED, MIXED_AND_REMOVED, FREE, PENDING_STILL, GENERATIONS];

/// Over TLS, the most events of one statement. sqlx 0.9.0 leaves Nagle's algorithm on, and a message
/// of more than one TLS record (16 KiB) then waits some 40 ms for the server's delayed
/// acknowledgement (transact-rs/sqlx#4335, mended after 0.9.0). An event weighs 38 bytes here.
const EVENTS_PER_TLS_RECORD: usize = 380;

/// Settles in one statement, or, over TLS, in one per TLS record. Each is harmless to repeat, so an
/// error in a later one asks for nothing but a repetition of all.
pub(crate) async fn settle(outbox: &PostgresOutbox, settlements: &[Settlement]) -> Result<u64> {
    let chunk = if outbox.may_use_tls() { EVENTS_PER_TLS_RECORD } else { settlements.len().max(1) };
    let mut changed = 0;
    for settlements in settlements.chunks(chunk) {
        changed += settle_at_once(outbox, settlements).await?;
    }
    Ok(changed)
}

async fn settle_at_once(outbox: &PostgresOutbox, settlements: &[Settlement]) -> Result<u64> {
    let mut batch = Batch::collect(settlements.iter(), outbox.takes_ascii_only());
    let mut conflicts = 0;
    loop {
        let mut session = outbox.warm_session(SETTLE).await?;
        match run(&mut session, &batch).await {
            Ok(changed) => {
                session.finish().await?;
                return Ok(changed);
            }
            Err(error) if is_conflict(&error) && conflicts < CONFLICTS_MAX => {
                conflicts += 1;
                // There is nothing wrong with the connection.
                session.finish().await?;
            }
            Err(error) if is_locked(&error) => {
                // Until it is rolled back for good, what it had locked looks like another session's.
                session.connection().ping().await.map_err(failed(SETTLE))?;
                session.finish().await?;
                return settle_what_is_free(outbox, settlements).await;
            }
            Err(error) if is_untranslatable(&error) && !outbox.takes_ascii_only() => {
                session.finish().await?;
                outbox.take_ascii_only();
                batch = Batch::collect(settlements.iter(), true);
            }
            Err(error) => return Err(failed(SETTLE)(error)),
        }
    }
}

async fn run(session: &mut Session, batch: &Batch<'_>) -> sqlx::Result<u64> {
    match batch.of_one_kind() {
        Some((sql, events)) => {
            let statement = events.bind(batch.bind_leases(session.statement(sql)));
            statement.execute(session.connection()).await.map(|done| done.rows_affected())
        }
        None => {
            let removes = !batch.removed.seqs.is_empty();
            let sql = if removes { MIXED_AND_REMOVED } else { MIXED };
            let statement = batch.bind_all(session.statement(sql));
            let row = statement.fetch_one(session.connection()).await;
            row.and_then(|row| row.try_get::<i64, _>(0)).map(i64::cast_unsigned)
        }
    }
}

/// Leaves out what other sessions hold: somebody looks at a row in a transaction of their own, for one.
async fn settle_what_is_free(outbox: &PostgresOutbox, settlements: &[Settlement]) -> Result<u64> {
    let begin = Begin::within(Some(outbox.statement_timeout())).along_indexes();
    let mut session = outbox.begin_session(begin, SETTLE).await?;
    let places: Vec<Seq> = settlements.iter().map(|settlement| settlement.seq).collect();
    let statement = session.statement(FREE).bind(places);
    let rows = statement.fetch_all(session.connection()).await.map_err(failed(SETTLE))?;
    let free = rows.iter().map(|row| row.try_get(0)).collect::<sqlx::Result<BTreeSet<Seq>>>();
    let free = free.map_err(failed(SETTLE))?;
    let settlements = settlements.iter().filter(|settlement| free.contains(&settlement.seq));
    let batch = Batch::collect(settlements, outbox.takes_ascii_only());
    let changed = run(&mut session, &batch).await.map_err(failed(SETTLE))?;
    session.finish().await?;
    Ok(changed)
}

/// Of settlements that changed fewer events than they name: which are pending still, though their leases
/// last, and what is in the way.
pub(crate) async fn unsettled(
    outbox: &PostgresOutbox,
    settlements: &[Settlement],
) -> Result<Vec<Unsettled>> {
    const LOOK: &str = "look for unsettled events";
    let mut session = outbox.session_along_indexes(LOOK).await?;
    let statement = session.statement(GENERATIONS);
    let rows = statement.fetch_all(session.connection()).await.map_err(failed(LOOK))?;
    let generation = |row: &PgRow| Ok((row.try_get(0)?, row.try_get(1)?));
    let generations = rows.iter().map(generation).collect::<sqlx::Result<BTreeMap<i16, i64>>>();
    let generations = generations.map_err(failed(LOOK))?;
    let is_current = |lease: ShardLease| {
        let shard = i16::try_from(lease.shard.index()).unwrap_or(i16::MAX);
        generations.get(&shard) == Some(&lease.generation)
    };
    let given: BTreeMap<Seq, Uuid> = settlements
        .iter()
        .filter(|settlement| settlement.lease.is_none_or(is_current))
        .map(|settlement| (settlement.seq, settlement.id))
        .collect();
    let places: Vec<Seq> = given.keys().copied().collect();
    let statement = session.statement(PENDING_STILL).bind(places);
    let rows = statement.fetch_all(session.connection()).await.map_err(failed(LOOK))?;
    session.finish().await?;
    let read = |row: &PgRow| {
        let (seq, id): (Seq, Uuid) = (row.try_get(0)?, row.try_get(1)?);
        let why = in_the_way(row.try_get(2)?, row.try_get(3)?, row.try_get(4)?);
        Ok((given.get(&seq) == Some(&id)).then_some(Unsettled { seq, why: why.into() }))
    };
    rows.iter()
        .filter_map(|row| read(row).transpose())
        .collect::<Result<_, _>>()
        .map_err(failed(LOOK))
}

fn in_the_way(is_locked: bool, pid: Option<i32>, what: Option<&str>) -> String {
    match (is_locked, pid) {
        (true, Some(pid)) => {
            let what = what
                .filter(|what| !what.is_empty())
                .map_or(String::new(), |what| format!(" ({what})"));
            format!("session {pid}{what} holds a lock on the row")
        }
        (true, None) => "a prepared transaction holds a lock on the row".into(),
        (false, _) => {
            "the row is pending still: a lock that is gone by now, or a trigger or rule of \
                       this database's that keeps it as it is"
                .into()
        }
    }
}

/// `lock_not_available`.
fn is_locked(error: &sqlx::Error) -> bool {
    code(error).as_deref() == Some("55P03")
}

/// `untranslatable_character`: this database's encoding has no such character.
fn is_untranslatable(error: &sqlx::Error) -> bool {
    code(error).as_deref() == Some("22P05")
}

fn code(error: &sqlx::Error) -> Option<String> {
    error.as_database_error()?.code().map(Into::into)
}

/// A text that a database of any encoding takes.
fn in_ascii(text: &str) -> String {
    let mut ascii = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '\u{2018}' | '\u{2019}' => ascii.push('\''),
            '\u{201c}' | '\u{201d}' => ascii.push('"'),
            '\u{2013}' | '\u{2014}' => ascii.push('-'),
            '\u{2026}' => ascii.push_str("..."),
            c if c.is_ascii() => ascii.push(c),
            c => ascii.extend(c.escape_unicode()),
        }
    }
    ascii
}

/// The longest delay the database is asked to add: a hundred years, in microseconds.
const DELAY_MICROS_MAX: i64 = 100 * 366 * 86_400 * 1_000_000;

/// A batch turned by ninety degrees, ordered by place, so that two relays lock rows in one order.
#[derive(Default)]
struct Batch<'s> {
    /// The leases under which its events were sent.
    leases: (Vec<i16>, Vec<i64>),
    delivered: Events,
    removed: Events,
    retried: Failures,
    delays: Vec<i64>,
    buried: Failures,
    reasons: Vec<&'s str>,
}

#[derive(Default)]
struct Events {
    seqs: Vec<i64>,
    ids: Vec<Uuid>,
    /// Which of the leases, from 1.
    leases: Vec<Option<i16>>,
}

#[derive(Default)]
struct Failures {
    events: Events,
    counts: Vec<i32>,
    errors: Vec<String>,
}

impl Events {
    fn push(&mut self, settlement: &Settlement, lease: Option<i16>) {
        self.seqs.push(settlement.seq);
        self.ids.push(settlement.id);
        self.leases.push(lease);
    }

    fn bind<'q>(&'q self, statement: Statement<'q>) -> Statement<'q> {
        statement.bind(&self.seqs).bind(&self.ids).bind(&self.leases)
    }
}

impl Failures {
    fn push(
        &mut self,
        settlement: &Settlement,
        lease: Option<i16>,
        retry_count: u32,
        error: String,
    ) {
        self.events.push(settlement, lease);
        self.counts.push(i32::try_from(retry_count).unwrap_or(i32::MAX));
        self.errors.push(error);
    }
}

impl<'s> Batch<'s> {
    /// `ascii_only`: this database's encoding does not take any text.
    fn collect(settlements: impl Iterator<Item = &'s Settlement>, ascii_only: bool) -> Self {
        // A broker's message may hold what PostgreSQL's text cannot; it must not hold up the batch.
        let storable = |error: &str| {
            let error = error.replace('\0', "\u{fffd}");
            if ascii_only { in_ascii(&error) } else { error }
        };
        let mut ordered: Vec<&Settlement> = settlements.collect();
        ordered.sort_by_key(|settlement| settlement.seq);
        let leases: BTreeSet<ShardLease> =
            ordered.iter().filter_map(|settlement| settlement.lease).collect();
        let number: BTreeMap<&ShardLease, i16> = leases.iter().zip(1..).collect();
        let mut batch = Self { leases: lease::columns(&leases), ..Self::default() };
        for settlement in ordered {
            let lease = settlement.lease.and_then(|lease| number.get(&lease).copied());
            match &settlement.outcome {
                SettlementOutcome::Delivered => batch.delivered.push(settlement, lease),
                SettlementOutcome::DeliveredAndRemoved => batch.removed.push(settlement, lease),
                SettlementOutcome::Retry { retry_count, delay, error } => {
                    batch.retried.push(settlement, lease, *retry_count, storable(error));
                    let micros = i64::try_from(delay.as_micros()).unwrap_or(i64::MAX);
                    batch.delays.push(micros.min(DELAY_MICROS_MAX));
                }
                SettlementOutcome::Dead { retry_count, reason, error } => {
                    batch.buried.push(settlement, lease, *retry_count, storable(error));
                    batch.reasons.push(reason);
                }
            }
        }
        batch
    }

    /// The statement that is enough where all were delivered and all or none are to be kept, and
    /// its events.
    fn of_one_kind(&self) -> Option<(&'static str, &Events)> {
        let nothing_failed = self.retried.counts.is_empty() && self.buried.counts.is_empty();
        match (self.delivered.seqs.is_empty(), self.removed.seqs.is_empty()) {
            (_, true) if nothing_failed => Some((DELIVERED, &self.delivered)),
            (true, false) if nothing_failed => Some((REMOVED, &self.removed)),
            _ => None,
        }
    }

    fn bind_leases<'q>(&'q self, statement: Statement<'q>) -> Statement<'q> {
        statement.bind(&self.leases.0).bind(&self.leases.1)
    }

    fn bind_all<'q>(&'q self, statement: Statement<'q>) -> Statement<'q> {
        let statement = self.delivered.bind(self.bind_leases(statement));
        let statement = self.retried.events.bind(statement);
        let statement =
            statement.bind(&self.retried.counts).bind(&self.delays).bind(&self.retried.errors);
        let statement = self.buried.events.bind(statement);
        let statement =
            statement.bind(&self.buried.counts).bind(&self.reasons).bind(&self.buried.errors);
        if self.removed.seqs.is_empty() { statement } else { self.removed.bind(statement) }
    }
}
