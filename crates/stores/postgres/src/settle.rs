//! Recording outcomes, one statement per batch.

use std::collections::{BTreeMap, BTreeSet};

use posthaste_core::{Result, Settlement, SettlementOutcome, ShardLease};
use sqlx::postgres::PgArguments;
use sqlx::query::Query;
use sqlx::{Postgres, Row};
use uuid::Uuid;

use crate::error::{failed, is_conflict};
use crate::lease;
use crate::outbox::PostgresOutbox;

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

/// Any mix. Each row is in one branch only.
const MIXED: &str = concat!(
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
    " returning 1), \
     removed as (delete from outbox_events event \
     using unnest((select $18::bigint[]), (select $19::uuid[]), (select $20::smallint[])) \
         as outcome (seq, id, lease) ",
    still_pending!("$18"),
    " returning 1) \
     select (select count(*) from delivered) + (select count(*) from retried) \
         + (select count(*) from buried) + (select count(*) from removed)"
);

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
    let batch = Batch::collect(settlements);
    let mut conflicts = 0;
    loop {
        let mut session = outbox.warm_session(SETTLE).await?;
        let changed = match batch.of_one_kind() {
            Some((sql, events)) => {
                let statement = events.bind(batch.bind_leases(session.statement(sql)));
                statement.execute(session.connection()).await.map(|done| done.rows_affected())
            }
            None => {
                let statement = batch.bind_all(session.statement(MIXED));
                let row = statement.fetch_one(session.connection()).await;
                row.and_then(|row| row.try_get::<i64, _>(0)).map(i64::cast_unsigned)
            }
        };
        match changed {
            Ok(changed) => {
                session.finish().await?;
                return Ok(changed);
            }
            Err(error) if is_conflict(&error) && conflicts < CONFLICTS_MAX => {
                conflicts += 1;
                // There is nothing wrong with the connection.
                session.finish().await?;
            }
            Err(error) => return Err(failed(SETTLE)(error)),
        }
    }
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
    fn push(&mut self, settlement: &Settlement, lease: Option<i16>, retry_count: u32, error: &str) {
        self.events.push(settlement, lease);
        self.counts.push(i32::try_from(retry_count).unwrap_or(i32::MAX));
        // A broker's message may hold what PostgreSQL's text cannot; it must not hold up the batch.
        self.errors.push(error.replace('\0', "\u{fffd}"));
    }
}

impl<'s> Batch<'s> {
    fn collect(settlements: &'s [Settlement]) -> Self {
        let mut ordered: Vec<&Settlement> = settlements.iter().collect();
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
                    batch.retried.push(settlement, lease, *retry_count, error);
                    let micros = i64::try_from(delay.as_micros()).unwrap_or(i64::MAX);
                    batch.delays.push(micros.min(DELAY_MICROS_MAX));
                }
                SettlementOutcome::Dead { retry_count, reason, error } => {
                    batch.buried.push(settlement, lease, *retry_count, error);
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
        self.removed.bind(statement)
    }
}
