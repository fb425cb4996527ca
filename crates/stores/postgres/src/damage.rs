//! Reading around places of the table that the server cannot read.
//!
//! A page of the table that is damaged (a disk that lies, a block that was overwritten) fails each
//! statement that comes past it, and the rows on it have neither a key nor an identity any more: they
//! cannot be made dead letters. Only the index tells where they are. So their places are found by
//! halving, told once, and left out of what is asked for; the rest goes on.
//!
//! Nobody knows whose events they are, so the later events of their keys do not wait for them. What is
//! taken for damaged is therefore read twice, a second apart, before it is left out, and looked at again
//! each minute: events whose page was restored are delivered then.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use posthaste_core::{Error, OrderKey, PendingQuery, PendingSelection, Result, Seq};
use sqlx::Row;

use crate::error::{failed, sqlstate};
use crate::outbox::PostgresOutbox;
use crate::repository::sql_limit;

const FIND: &str = "look for damaged rows";

/// A disk may fail once and answer the next time.
const ASKED_AGAIN_AFTER: Duration = Duration::from_secs(1);

/// A page may be restored.
const LOOK_AGAIN: Duration = Duration::from_secs(60);

/// More of them are not looked for at a time. A page of the table has at most some 200 rows.
const FOUND_MAX: usize = 1_000;

/// A table with more of them is one to restore, not one to read around.
const KNOWN_MAX: usize = 10_000;

/// The first stretch of places that is looked at; each further one is four times as long. What lies
/// within it of a place that was found is looked at, too.
const STRETCH: Seq = 1_024;

/// Comes past every row of these places, without reading bodies.
const PASS: &str = "\
    select count(dead_at) from outbox_events_pending where seq >= $1 and seq <= $2";

const HIGH: &str = "select last_value from outbox_events_seq";

/// The places of a key, in parts of a range.
const OF_KEY: &str = "\
    select found.seq from unnest($1::bigint[], $2::bigint[]) as part (low, high) \
    cross join lateral (select seq from outbox_events_pending \
        where (dead_at >= '-infinity') is not true and seq >= part.low and seq <= part.high \
            and coalesce(partition_key, '') = $3 and ($4::uuid is null or aggregate_id = $4) \
        order by seq limit (select $5::bigint)) found \
    order by found.seq limit (select $5::bigint)";

/// Places, with the time when each was looked at last.
#[derive(Default)]
pub(crate) struct Damage(Mutex<BTreeMap<Seq, Instant>>);

impl Damage {
    /// What is left out at present, ascending.
    fn known(&self) -> Vec<Seq> {
        let places = self.places();
        places.iter().filter(|(_, at)| at.elapsed() < LOOK_AGAIN).map(|(seq, _)| *seq).collect()
    }

    /// Takes what was found, and says which of it is new.
    fn add(&self, found: &[Seq]) -> Vec<Seq> {
        let (mut places, now) = (self.places(), Instant::now());
        found.iter().copied().filter(|seq| places.insert(*seq, now).is_none()).collect()
    }

    fn is_full(&self) -> bool {
        // What was restored counts no more.
        self.known().len() >= KNOWN_MAX
    }

    fn places(&self) -> MutexGuard<'_, BTreeMap<Seq, Instant>> {
        // Plain data: a panic elsewhere leaves nothing half done.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether the server met a page that it cannot read: `data_corrupted`, `index_corrupted`.
pub(crate) fn is_damage(error: &Error) -> bool {
    sqlstate(error).is_some_and(|code| matches!(&*code, "XX001" | "XX002"))
}

/// What is left of these ranges (inclusive, ascending) without the places that are known to be damaged;
/// `None` where that is all of it.
pub(crate) fn around(outbox: &PostgresOutbox, ranges: &[(Seq, Seq)]) -> Option<Vec<(Seq, Seq)>> {
    let known = outbox.damage().known();
    let is_within = |seq: &Seq| ranges.iter().any(|(low, high)| (low..=high).contains(&seq));
    if !known.iter().any(is_within) {
        return None;
    }
    Some(ranges.iter().flat_map(|range| without(*range, &known)).collect())
}

fn without((first, high): (Seq, Seq), places: &[Seq]) -> Vec<(Seq, Seq)> {
    let (mut parts, mut low) = (Vec::new(), first);
    for place in places.iter().copied().filter(|place| (first..=high).contains(place)) {
        if low < place {
            parts.push((low, place - 1));
        }
        low = place + 1;
    }
    if low <= high {
        parts.push((low, high));
    }
    parts
}

/// Two lists, as `unnest` takes them.
pub(crate) fn bounds(ranges: &[(Seq, Seq)]) -> (Vec<Seq>, Vec<Seq>) {
    ranges.iter().copied().unzip()
}

/// The same query, without the places that are known to be damaged.
pub(crate) async fn query_around<'q>(
    outbox: &PostgresOutbox,
    query: &'q PendingQuery,
) -> Result<Cow<'q, PendingQuery>> {
    let Some(mut parts) = around(outbox, &ranges_of(&query.selection, Seq::MAX)) else {
        return Ok(Cow::Borrowed(query));
    };
    let selection = match &query.selection {
        PendingSelection::Forward { after, .. } => {
            // The last part has no end: what lies ahead.
            let after = parts.pop().map_or(*after, |(low, _)| low - 1);
            PendingSelection::Forward { gaps: parts, after }
        }
        PendingSelection::At(_) => {
            PendingSelection::At(parts.iter().flat_map(|(low, high)| *low..=*high).collect())
        }
        PendingSelection::Key { key, .. } => {
            let limit = query.events_max.saturating_add(1);
            PendingSelection::At(places_of_key(outbox, key, &parts, limit).await?)
        }
    };
    Ok(Cow::Owned(PendingQuery { selection, ..query.clone() }))
}

/// Places a selection may find events at, ascending.
fn ranges_of(selection: &PendingSelection, high: Seq) -> Vec<(Seq, Seq)> {
    match selection {
        PendingSelection::Forward { gaps, after } => {
            let ahead = (after.saturating_add(1), high);
            gaps.iter().copied().chain([ahead]).collect()
        }
        PendingSelection::At(places) => places.iter().map(|place| (*place, *place)).collect(),
        PendingSelection::Key { after, up_to, .. } => vec![(after.saturating_add(1), *up_to)],
    }
}

async fn places_of_key(
    outbox: &PostgresOutbox,
    key: &OrderKey,
    parts: &[(Seq, Seq)],
    limit: usize,
) -> Result<Vec<Seq>> {
    let (low, high) = bounds(parts);
    let (named, aggregate) = match key {
        OrderKey::Named(name) => (&**name, None),
        OrderKey::Aggregate(id) => ("", Some(*id)),
    };
    let mut session = outbox.session_along_indexes(FIND).await?;
    let statement = session.statement(OF_KEY).bind(low).bind(high).bind(named).bind(aggregate);
    let statement = statement.bind(sql_limit(limit));
    let rows = statement.fetch_all(session.connection()).await.map_err(failed(FIND))?;
    session.finish().await?;
    rows.iter().map(|row| row.try_get(0)).collect::<Result<_, _>>().map_err(failed(FIND))
}

/// Looks for the damage that a selection met with `error`. `false` where there is none, or too much.
pub(crate) async fn find_in_selection(
    outbox: &PostgresOutbox,
    selection: &PendingSelection,
    error: &Error,
) -> Result<bool> {
    let mut session = outbox.session_along_indexes(FIND).await?;
    let row = session.statement(HIGH).fetch_one(session.connection()).await;
    let high: Seq = row.and_then(|row| row.try_get(0)).map_err(failed(FIND))?;
    session.finish().await?;
    find(outbox, &ranges_of(selection, high), error).await
}

/// The same in ranges. What is found there is left out from now on.
pub(crate) async fn find(
    outbox: &PostgresOutbox,
    ranges: &[(Seq, Seq)],
    error: &Error,
) -> Result<bool> {
    // Where even nothing cannot be read, it is not the rows.
    if outbox.damage().is_full() || is_damaged(outbox, Seq::MAX, Seq::MAX).await? {
        return Ok(false);
    }
    let suspects = suspects(outbox, ranges).await?;
    if !suspects.is_empty() {
        tokio::time::sleep(ASKED_AGAIN_AFTER).await;
    }
    let mut found = Vec::new();
    for seq in suspects {
        if is_damaged(outbox, seq, seq).await? {
            found.push(seq);
        }
    }
    let new = outbox.damage().add(&found);
    if let (Some(first), Some(last)) = (new.first(), new.last()) {
        tracing::error!(
            rows = new.len(),
            first_seq = first,
            last_seq = last,
            error = error.report(),
            "rows of outbox_events_pending are on a page that the server cannot read. They are left \
             out, and later events of their keys do not wait for them. Check the disk, restore the \
             page or the database from a backup, and run pg_amcheck; what can be read again is delivered"
        );
    }
    Ok(!found.is_empty())
}

async fn suspects(outbox: &PostgresOutbox, ranges: &[(Seq, Seq)]) -> Result<Vec<Seq>> {
    let parts = around(outbox, ranges).unwrap_or_else(|| ranges.to_vec());
    let mut found: Vec<Seq> = Vec::new();
    for (mut low, high) in parts {
        // Once something was found, only what is near it: the next read meets the rest.
        while found.len() < FOUND_MAX {
            let near = found.last().map_or(high, |last| last.saturating_add(STRETCH));
            let Some(seq) = first_damaged(outbox, low, high.min(near)).await? else { break };
            found.push(seq);
            low = seq.saturating_add(1);
        }
    }
    Ok(found)
}

/// The first place between these that cannot be read. Comes past each row before it a few times at most.
async fn first_damaged(outbox: &PostgresOutbox, low: Seq, high: Seq) -> Result<Option<Seq>> {
    let (mut low, mut stretch) = (low, STRETCH);
    while low <= high {
        let end = low.saturating_add(stretch - 1).min(high);
        if is_damaged(outbox, low, end).await? {
            let mut damaged_at_or_before = end;
            while low < damaged_at_or_before {
                let middle = low + (damaged_at_or_before - low) / 2;
                if is_damaged(outbox, low, middle).await? {
                    damaged_at_or_before = middle;
                } else {
                    low = middle + 1;
                }
            }
            return Ok(Some(low));
        }
        if end == Seq::MAX {
            break;
        }
        (low, stretch) = (end + 1, stretch.saturating_mul(4));
    }
    Ok(None)
}

async fn is_damaged(outbox: &PostgresOutbox, low: Seq, high: Seq) -> Result<bool> {
    let mut session = outbox.session_along_indexes(FIND).await?;
    let statement = session.statement(PASS).bind(low).bind(high);
    match statement.fetch_one(session.connection()).await.map_err(failed(FIND)) {
        Ok(_) => session.finish().await.map(|()| false),
        Err(error) if is_damage(&error) => Ok(true),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_without_places_keep_all_others() {
        assert_eq!(without((1, 9), &[]), [(1, 9)]);
        assert_eq!(without((1, 9), &[1, 4, 5, 9, 12]), [(2, 3), (6, 8)]);
        assert_eq!(without((4, 4), &[4]), []);
        assert_eq!(without((7, Seq::MAX), &[3, 8]), [(7, 7), (9, Seq::MAX)]);
    }

    #[test]
    fn what_was_found_is_told_once() {
        let damage = Damage::default();
        assert_eq!(damage.add(&[7, 8]), [7, 8]);
        assert_eq!(damage.add(&[8, 9]), [9]);
        assert_eq!(damage.known(), [7, 8, 9]);
    }

    #[test]
    fn what_was_restored_keeps_nothing_from_being_found() {
        let (damage, places) = (Damage::default(), 0..KNOWN_MAX as Seq);
        damage.add(&places.clone().collect::<Vec<_>>());
        assert!(damage.is_full());
        let before = Instant::now().checked_sub(LOOK_AGAIN).unwrap();
        damage.places().extend(places.map(|seq| (seq, before)));
        assert!(!damage.is_full());
    }
}
