//! Leases: which relay delivers which shards.
//!
//! A relay is alive while its `lease_until`, by the database's clock, is not over. Its shards are its
//! own until another relay has removed it from `outbox_relays` and taken them, which raises their
//! generation.
//!
//! - Renewing changes one row, and needs no more as long as nothing is to be given or taken.
//! - Whatever changes hands does so in a transaction under one lock, so that each sees what the one
//!   before did. The lock belongs to the transaction: poolers do not mind. Nobody waits for it, and
//!   the server ends the transaction of a relay that stands still in the middle of it.
//! - A relay that is renewing at this moment is not removed (`skip locked`), and one that was removed
//!   finds no row to renew. So no two of them believe in the same shard.
//! - A lease that ends further ahead than its relay asked for was given before the server's clock was set
//!   back. It is shortened to a minute more than that: a relay that lives renews it before, and one
//!   that is dead does not own its shards for as long as the clock went back.
//! - A shard whose events are being settled at this moment is not taken (`skip locked` again, against
//!   the settlement's `for key share`): it is taken the next time.

use std::time::Instant;

use posthaste_core::{
    Error, ErrorKind, Lease, LeaseRequest, Result, Shard, ShardLease, fair_share,
};
use sqlx::postgres::{PgArguments, PgRow};
use sqlx::query::Query;
use sqlx::{Postgres, Row};
use uuid::Uuid;

use crate::error::failed;
use crate::outbox::PostgresOutbox;
use crate::session::Session;

const LEASE: &str = "renew lease";
const LEAVE: &str = "give back lease";

/// The end of the longest lease that another relay can have: as long as it asked for, and a minute. One
/// of version 0.1.0 does not say how long that is, and is taken to ask for as long as this one.
macro_rules! longest {
    () => {
        "now() + coalesce(lease_ttl, $2::bigint * interval '1 microsecond') + interval '1 minute'"
    };
}

/// What a relay holds, who is alive, and whether there is anything to take.
macro_rules! state {
    () => {
        concat!(
            "select \
            array(select relay from outbox_relays \
                  where (lease_until > now() and not leaving) or relay = $1), \
            array(select shard from outbox_shards where owner = $1 order by shard), \
            array(select generation from outbox_shards where owner = $1 order by shard), \
            exists (select from outbox_shards left join outbox_relays on relay = owner \
                    where (lease_until > now()) is not true and owner is distinct from $1), \
            exists (select from outbox_relays where relay <> $1 and lease_until > ",
            longest!(),
            ")"
        )
    };
}

/// Renews, and looks. Without a row to renew there is no answer.
const RENEW: &str = concat!(
    "with renewed as (update outbox_relays \
         set lease_until = clock_timestamp() + $2::bigint * interval '1 microsecond', \
             lease_ttl = $2::bigint * interval '1 microsecond', leaving = $3 \
         where relay = $1 returning 1) ",
    state!(),
    " where exists (select from renewed)"
);

const STATE: &str = state!();

/// The lock of a change of hands: a row that only relays may change. It leaves settlements alone, which
/// hold the row for key share, and nobody waits for it.
///
/// A relay of version 0.1.0 takes an advisory lock instead, which is therefore taken, too. But any login
/// may take that one: held by a role that could not be a relay's, it stops nobody.
const LOCK: &str = "\
    select exists (select from ( \
        select from outbox_shards where shard = 0 for no key update skip locked) own) \
    and (pg_try_advisory_xact_lock(hashtext('posthaste.lease'), hashtext(current_schema())) \
        or not exists (select from pg_locks held join pg_stat_activity using (pid) \
            where held.locktype = 'advisory' and held.granted and held.objsubid = 2 \
                and held.classid::bigint = hashtext('posthaste.lease')::bigint & 4294967295 \
                and held.objid::bigint = hashtext(current_schema())::bigint & 4294967295 \
                and held.database = (select oid from pg_database where datname = current_database()) \
                and has_table_privilege(usesysid, 'outbox_shards', 'update')))";

/// Who holds the row, where it is a session: for a message.
const LOCK_HOLDER: &str = "\
    select coalesce(string_agg(distinct 'pid ' || pid, ', '), 'nobody that can be seen') \
    from outbox_shards join pg_locks on locktype = 'transactionid' and granted \
        and transactionid = outbox_shards.xmax \
    where shard = 0";

const JOIN: &str = "\
    insert into outbox_relays (relay, lease_until, leaving, name, lease_ttl) \
    values ($1, clock_timestamp() + $2 * interval '1 microsecond', $3, $4, $2::bigint * interval '1 microsecond') \
    on conflict (relay) do update set lease_until = excluded.lease_until, \
        lease_ttl = excluded.lease_ttl, leaving = excluded.leaving";

/// Of a relay that was removed: whatever it held is not its own any more, taken or not.
const GIVE_UP: &str = "update outbox_shards set owner = null where owner = $1";

const RELEASE: &str = "\
    update outbox_shards set owner = null where owner = $1 and shard in (\
        select held.shard from outbox_shards held \
        join unnest($2::smallint[], $3::bigint[]) as given (shard, generation) \
        using (shard, generation) for no key update of held skip locked)";

const SHORTEN: &str = concat!(
    "update outbox_relays set lease_until = ",
    longest!(),
    " where relay in (select relay from outbox_relays where relay <> $1 and lease_until > ",
    longest!(),
    " for update skip locked)"
);

const REMOVE_DEAD: &str = "\
    delete from outbox_relays where relay in (\
        select relay from outbox_relays where lease_until <= now() and relay <> $1 \
        for update skip locked)";

/// The generation rises with the clock where it can: a standby that was behind takes over, or a dump is
/// restored, and still no number is given out twice.
const TAKE: &str = "\
    update outbox_shards set owner = $1, taken_at = now(), generation = \
        greatest(generation + 1, (extract(epoch from now()) * 1000000)::bigint) \
    where shard in (\
        select shard from outbox_shards \
        where owner is null or not exists (select from outbox_relays where relay = owner) \
        order by shard limit $2 for update skip locked)";

const LEAVE_RELAY: &str = "\
    with gone as (delete from outbox_relays where relay = $1) \
    update outbox_shards set owner = null where owner = $1";

/// All that is asked here, to be tried beforehand.
pub(crate) const STATEMENTS: &[&str] = &[
    RENEW,
    STATE,
    LOCK,
    LOCK_HOLDER,
    JOIN,
    GIVE_UP,
    RELEASE,
    SHORTEN,
    REMOVE_DEAD,
    TAKE,
    LEAVE_RELAY,
];

pub(crate) async fn lease(outbox: &PostgresOutbox, request: &LeaseRequest) -> Result<Lease> {
    let LeaseRequest { relay, ttl, release, leaving, .. } = request;
    let ttl = i64::try_from(ttl.as_micros()).unwrap_or(i64::MAX);
    // First and by itself, so that nobody's lease ends while it waits for another relay.
    let mut session = outbox.session(LEASE).await?;
    let statement = session.statement(RENEW).bind(relay).bind(ttl).bind(leaving);
    let row = statement.fetch_optional(session.connection()).await.map_err(failed(LEASE))?;
    session.finish().await?;
    let renewed = row.map(|row| read(&row, request)).transpose()?;
    if let Some((lease, found)) = &renewed {
        let may_take = found.any_free && lease.shards.len() < lease.fair_share;
        if release.is_empty() && !may_take && !found.any_too_long {
            return Ok(lease.clone());
        }
    }
    match (change_hands(outbox, request, ttl, renewed.is_some()).await, renewed) {
        (Ok(Some(lease)), _) => Ok(lease),
        // Another relay is at it, or died half way: the next renewal tries again.
        (Ok(None), Some((lease, _))) => Ok(lease),
        (Ok(None), None) => {
            tell_who_is_in_the_way(outbox).await;
            Ok(Lease { shards: Vec::new(), fair_share: Shard::COUNT, relays: 1 })
        }
        // It counts as alive, so it had better go on: its shards are nobody else's.
        (Err(error), Some((lease, _))) => {
            tracing::warn!(error = error.report(), "shards could not change hands");
            Ok(lease)
        }
        (Err(error), None) => Err(error),
    }
}

/// A relay that cannot join delivers nothing.
async fn tell_who_is_in_the_way(outbox: &PostgresOutbox) {
    let Ok(mut session) = outbox.session(LEASE).await else { return };
    let statement = session.statement(LOCK_HOLDER);
    let row = statement.fetch_one(session.connection()).await;
    if let Ok(held_by) = row.and_then(|row| row.try_get::<String, _>(0))
        && outbox.cannot_join().is_due(&held_by, Instant::now())
    {
        tracing::warn!(held_by, "another session changes the shards; trying again");
    }
    let _ = session.finish().await;
}

/// Joins, gives and takes. `None` when another relay holds the lock.
async fn change_hands(
    outbox: &PostgresOutbox,
    request: &LeaseRequest,
    ttl: i64,
    is_known: bool,
) -> Result<Option<Lease>> {
    let LeaseRequest { relay, name, release, leaving, .. } = request;
    let mut session = outbox.transaction(outbox.statement_timeout(), LEASE).await?;
    let statement = session.statement(LOCK);
    let locked = statement.fetch_one(session.connection()).await;
    if !locked.and_then(|row| row.try_get(0)).map_err(failed(LEASE))? {
        return Ok(None);
    }
    run(&mut session, |session| {
        session.statement(JOIN).bind(relay).bind(ttl).bind(leaving).bind(&**name)
    })
    .await?;
    if !is_known {
        run(&mut session, |session| session.statement(GIVE_UP).bind(relay)).await?;
    }
    if !release.is_empty() {
        let (shards, generations) = columns(release);
        run(&mut session, |session| {
            session.statement(RELEASE).bind(relay).bind(shards).bind(generations)
        })
        .await?;
    }
    let shortened = session.statement(SHORTEN).bind(relay).bind(ttl);
    let shortened = shortened.execute(session.connection()).await.map_err(failed(LEASE))?;
    if shortened.rows_affected() > 0 {
        tracing::warn!(
            relays = shortened.rows_affected(),
            "leases end further ahead than any lease lasts: the database's clock was set back; they \
             end in a minute unless they are renewed"
        );
    }
    run(&mut session, |session| session.statement(REMOVE_DEAD).bind(relay)).await?;
    let before = state(&mut session, request, ttl).await?;
    let missing = before.fair_share.saturating_sub(before.shards.len());
    let lease = if missing == 0 {
        before
    } else {
        let missing = i64::try_from(missing).unwrap_or(i64::MAX);
        run(&mut session, |session| session.statement(TAKE).bind(relay).bind(missing)).await?;
        state(&mut session, request, ttl).await?
    };
    session.finish().await?;
    Ok(Some(lease))
}

pub(crate) async fn leave(outbox: &PostgresOutbox, relay: Uuid) -> Result<()> {
    let mut session = outbox.session(LEAVE).await?;
    let statement = session.statement(LEAVE_RELAY).bind(relay);
    statement.execute(session.connection()).await.map_err(failed(LEAVE))?;
    session.finish().await
}

async fn run<'q>(
    session: &mut Session,
    statement: impl FnOnce(&Session) -> Query<'q, Postgres, PgArguments>,
) -> Result<()> {
    let statement = statement(session);
    statement.execute(session.connection()).await.map(|_| ()).map_err(failed(LEASE))
}

async fn state(session: &mut Session, request: &LeaseRequest, ttl: i64) -> Result<Lease> {
    let statement = session.statement(STATE).bind(request.relay).bind(ttl);
    let row = statement.fetch_one(session.connection()).await.map_err(failed(LEASE))?;
    read(&row, request).map(|(lease, _)| lease)
}

/// What was found beside a lease.
struct Found {
    /// Shards that nobody alive owns.
    any_free: bool,
    /// Leases that end further ahead than any lasts.
    any_too_long: bool,
}

fn read(row: &PgRow, request: &LeaseRequest) -> Result<(Lease, Found)> {
    let read = || -> sqlx::Result<_> {
        let alive: Vec<Uuid> = row.try_get(0)?;
        let shards: Vec<i16> = row.try_get(1)?;
        let generations: Vec<i64> = row.try_get(2)?;
        let found = Found { any_free: row.try_get(3)?, any_too_long: row.try_get(4)? };
        Ok((alive, shards, generations, found))
    };
    let (alive, shards, generations, found) = read().map_err(failed(LEASE))?;
    let shards = shards.into_iter().zip(generations).map(|(number, generation)| {
        let shard = usize::try_from(number).ok().and_then(Shard::from_index);
        let shard = shard.ok_or_else(|| {
            Error::new(ErrorKind::Schema, LEASE, format!("there is no shard {number}"))
        })?;
        Ok(ShardLease { shard, generation })
    });
    let lease = Lease {
        shards: shards.collect::<Result<_>>()?,
        fair_share: if request.leaving { 0 } else { fair_share(&alive, request.relay) },
        relays: alive.len(),
    };
    Ok((lease, found))
}

/// Leases turned by ninety degrees: the numbers of their shards, and their generations.
pub(crate) fn columns<'l>(
    leases: impl IntoIterator<Item = &'l ShardLease>,
) -> (Vec<i16>, Vec<i64>) {
    leases
        .into_iter()
        .map(|lease| (i16::try_from(lease.shard.index()).unwrap_or(i16::MAX), lease.generation))
        .unzip()
}
