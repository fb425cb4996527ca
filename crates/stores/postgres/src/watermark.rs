//! Which events may still turn up late.
//!
//! `nextval` locks the sequence (`RowExclusiveLock`) before it draws a number, and the lock belongs
//! to the top-level transaction: it stays when a savepoint is rolled back and goes only when the
//! transaction ends. PostgreSQL makes a commit visible *before* it releases the locks. So a
//! transaction that is not among the holders of that lock has either drawn nothing yet or ended
//! visibly. Unlike a lock on the table, this one is not taken by relays that settle events.
//!
//! A holder is named by its virtual transaction id, which it has from its first statement on and
//! which `prepare transaction` leaves alone. After a restart of the server, though, transactions
//! that were prepared before it have new names (`-1/` and their number), and the names of others are
//! given out again. So nothing that was proven before a restart holds after it: it is another
//! *incarnation*, and relays begin anew.
//!
//! The incarnation also tells one database from another that answers at the same address, since that
//! one hands out numbers again. The numbers alone do not tell: writers may have drawn more of them than
//! ever before by the time a relay looks. A standby that takes over changes the timeline. A server that
//! was restored, from a dump or from a copy of its disk, has another time of start. A database, or an
//! outbox in it, that was restored in a server that runs on has other object identifiers. A server that
//! restarts its processes after a crash keeps its time of start; from version 15 on it then resets its
//! statistics. What was prepared before a restart is part of it, too: whenever one of these comes or
//! goes, relays read from the start.
//!
//! Rows that a subscription applies are drawn at the publisher, in transactions of which nothing is
//! known here: it may hold one open that is older than all we see. So a subscription that fills the
//! outbox is an open writer itself, as long as it is there.

use posthaste_core::{OpenWriter, Result, Seq, Watermark};
use sqlx::Row;

use crate::error::failed;
use crate::outbox::PostgresOutbox;

const WATERMARK: &str = "read watermark";

const HIGH: &str = "\
    select case when is_called then last_value else 0 end from outbox_events_seq";

/// The locks of `pg_locks` whose transactions may have drawn numbers.
macro_rules! is_holder {
    () => {
        "locktype = 'relation' and granted and mode = 'RowExclusiveLock' \
        and database = (select oid from pg_database where datname = current_database()) \
        and relation = to_regclass('outbox_events_seq')"
    };
}
pub(crate) use is_holder;

/// By name at every execution: a prepared plan would outlive a sequence that was created anew.
const WRITERS: &str = concat!(
    "\
    select (select revision from outbox_signal), \
        concat_ws(' ', left(pg_walfile_name(pg_current_wal_lsn()), 8), \
            extract(epoch from pg_postmaster_start_time()), \
            case when current_setting('server_version_num')::int >= 150000 \
                then extract(epoch from pg_stat_get_bgwriter_stat_reset_time()) end, \
            (select oid from pg_database where datname = current_database()), \
            to_regclass('outbox_events_seq')::oid), \
        coalesce(array_agg(distinct virtualtransaction), '{}'), \
        array(select distinct 'subscription/' || srsubid from pg_subscription_rel \
            where srrelid in (to_regclass('outbox_events'), to_regclass('outbox_events_pending'))) \
    from pg_locks where ",
    is_holder!()
);

/// All that is asked here, to be tried beforehand.
pub(crate) const STATEMENTS: &[&str] = &[HIGH, WRITERS];

pub(crate) async fn watermark(outbox: &PostgresOutbox) -> Result<Watermark> {
    let mut session = outbox.warm_session(WATERMARK).await?;
    // Two statements, not one: nothing else makes sure that the number is read before the locks.
    let statement = session.statement(HIGH);
    let high: Seq = statement
        .fetch_one(session.connection())
        .await
        .and_then(|row| row.try_get(0))
        .map_err(failed(WATERMARK))?;
    let statement = session.statement(WRITERS);
    let (revision, database, mut tokens, subscriptions) = statement
        .fetch_one(session.connection())
        .await
        .and_then(|row| {
            Ok((
                row.try_get::<i64, _>(0)?,
                row.try_get::<String, _>(1)?,
                row.try_get::<Vec<String>, _>(2)?,
                row.try_get::<Vec<String>, _>(3)?,
            ))
        })
        .map_err(failed(WATERMARK))?;
    session.finish().await?;
    if outbox.first_hears_of_subscription(!subscriptions.is_empty()) {
        tracing::warn!(
            "a subscription fills this outbox: its rows come late and out of order, and no place \
             below them counts as read. At a cut-over, stop the writers at the publisher, wait until \
             all is applied, drop the subscription and set outbox_events_seq above every seq; then \
             start the relay here"
        );
    }
    tokens.extend(subscriptions);
    let incarnation = incarnation(&database, &mut tokens);
    let writers = tokens.into_iter().map(|token| OpenWriter { token: token.into() }).collect();
    Ok(Watermark { high, writers, revision, incarnation })
}

/// A number for the database as it is now, and for the writers that came into it from elsewhere: what
/// was prepared before a restart, and subscriptions.
fn incarnation(database: &str, tokens: &mut [String]) -> i64 {
    tokens.sort_unstable();
    let from_elsewhere = |token: &&str| token.starts_with("-1/") || token.starts_with("sub");
    fingerprint(
        std::iter::once(database).chain(tokens.iter().map(String::as_str).filter(from_elsewhere)),
    )
}

/// FNV-1a.
fn fingerprint<'t>(texts: impl Iterator<Item = &'t str>) -> i64 {
    let hash = texts
        .flat_map(|text| text.bytes().chain([0]))
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
        });
    hash.cast_signed()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_comes_from_before_a_restart_or_from_a_publisher_makes_another_incarnation() {
        let of = |tokens: &[&str]| {
            let mut tokens: Vec<String> = tokens.iter().map(|token| (*token).to_owned()).collect();
            incarnation("1 2", &mut tokens)
        };
        assert_eq!(of(&["3/7", "4/1"]), of(&[]));
        let one = of(&["-1/700", "3/7"]);
        assert_ne!(one, of(&[]));
        assert_eq!(one, of(&["-1/700"]));
        assert_ne!(one, of(&["-1/700", "-1/701"]));
        assert_ne!(one, of(&["-1/701"]));
        assert_eq!(of(&["-1/701", "-1/700"]), of(&["-1/700", "-1/701"]));
        assert_ne!(of(&["subscription/16400"]), of(&[]));
        assert_ne!(incarnation("1 2", &mut []), incarnation("1 3", &mut []));
    }
}
