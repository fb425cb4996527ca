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
//! that were prepared before it have new names (`-1/` and their number). Those are therefore also
//! part of the revision: whenever one comes or goes, relays read from the start.
//!
//! So is what tells one database from another that answers at the same address, since that one hands
//! out numbers again. The numbers alone do not tell: writers may have drawn more of them than ever
//! before by the time a relay looks. A standby that takes over changes the timeline. A server that
//! was restored, from a dump or from a copy of its disk, has another time of start. A database, or an
//! outbox in it, that was restored in a server that runs on has other object identifiers.

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
            (select oid from pg_database where datname = current_database()), \
            to_regclass('outbox_events_seq')::oid), \
        coalesce(array_agg(distinct virtualtransaction), '{}') \
    from pg_locks where ",
    is_holder!()
);

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
    let (revision, database, tokens) = statement
        .fetch_one(session.connection())
        .await
        .and_then(|row| {
            Ok((
                row.try_get::<i64, _>(0)?,
                row.try_get::<String, _>(1)?,
                row.try_get::<Vec<String>, _>(2)?,
            ))
        })
        .map_err(failed(WATERMARK))?;
    session.finish().await?;
    let revision = revision
        .wrapping_add(fingerprint([database.as_str()].into_iter()))
        .wrapping_add(fingerprint_of_prepared(&tokens));
    let writers = tokens.into_iter().map(|token| OpenWriter { token: token.into() }).collect();
    Ok(Watermark { high, writers, revision })
}

/// A number for the set of transactions that were prepared before a restart: 0 for none. `tokens`
/// are in order.
fn fingerprint_of_prepared(tokens: &[String]) -> i64 {
    let mut prepared =
        tokens.iter().map(String::as_str).filter(|token| token.starts_with("-1/")).peekable();
    if prepared.peek().is_none() { 0 } else { fingerprint(prepared) }
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
    fn prepared_transactions_that_come_or_go_change_the_revision() {
        let tokens = |tokens: &[&str]| {
            let tokens: Vec<String> = tokens.iter().map(|token| (*token).to_owned()).collect();
            fingerprint_of_prepared(&tokens)
        };
        assert_eq!(tokens(&["3/7", "4/1"]), 0);
        let one = tokens(&["-1/700", "3/7"]);
        assert_ne!(one, 0);
        assert_eq!(one, tokens(&["-1/700"]));
        assert_ne!(one, tokens(&["-1/700", "-1/701"]));
        assert_ne!(one, tokens(&["-1/701"]));
    }
}
