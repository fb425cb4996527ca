//! Outcomes on their way into the database: each statement with all that gathered while the one
//! before ran.
//!
//! Where outcomes come faster than one statement after the other records them, two run at a time,
//! each with the outcomes of one half of the shards. So no event is in both, and no two
//! transactions hold the same shard, which PostgreSQL would note in a multixact for every one.
//!
//! A batch that the database refuses for something that may be one row's (a trigger, a lock, a right that
//! one outcome takes) is tried again in halves, so that what can be recorded is, and the row that fails
//! stands [alone](crate::record::alone).

use std::collections::VecDeque;
use std::time::Duration;

use posthaste_core::{Error, ErrorKind, Seq, Settlement, SettlementOutcome, ShardSet};
use rustc_hash::FxHashMap;

use crate::record::alone::Alone;

/// The most settlements in one statement.
const SETTLE_BATCH_MAX: usize = 2_000;
/// From so many on, a second statement is worth its commit. Few in tests, so that they see two.
const SPLIT_FROM: usize = if cfg!(test) { 4 } else { 1_500 };
/// Statements at a time.
const LANES: usize = 2;
/// So many rows that fail one after the other, each by itself, and the database may not record at all: no
/// more events than these are sent at a time until it records one.
pub(crate) const ALONE_MAX: usize = 8;

/// What a failure to record says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// The database is not there, or takes nothing from us: all of it goes again later.
    All,
    /// It may be one row's doing, or the database is slow: smaller parts, after a pause.
    AllOrSome,
    /// It is some row's doing: smaller parts at once.
    Some,
}

impl Refusal {
    pub(crate) fn of(error: &Error) -> Self {
        match error.kind() {
            ErrorKind::Unreachable
            | ErrorKind::Throttled
            | ErrorKind::Config
            | ErrorKind::Schema => Self::All,
            ErrorKind::Timeout | ErrorKind::Conflict => Self::AllOrSome,
            _ => Self::Some,
        }
    }
}

/// Gathers settlements.
#[derive(Debug, Default)]
pub(crate) struct Settling {
    lanes: [Lane; LANES],
    /// Parts of batches that failed as a whole, to be tried before anything else.
    parts: VecDeque<Vec<Settlement>>,
    /// What failed by itself.
    pub(crate) alone: Alone,
    alone_turn: bool,
    /// Rows that failed by themselves for the first time since anything was recorded.
    failed_in_a_row: usize,
    /// Places whose latest outcome is a retry that is not recorded yet, with its count of attempts.
    retries: FxHashMap<Seq, u32>,
}

/// Half of the shards, or all outcomes of a store without leases.
#[derive(Debug, Default)]
struct Lane {
    gathered: Vec<Settlement>,
    /// Those of a statement that runs.
    under_way: usize,
    under_way_shards: ShardSet,
}

impl Settling {
    /// Adds an outcome. It replaces an older one of the same event that was not sent yet: one
    /// statement must not change a row twice.
    pub(crate) fn add(&mut self, settlement: Settlement, may_replace: bool) {
        if let SettlementOutcome::Retry { retry_count, .. } = settlement.outcome {
            self.retries.insert(settlement.seq, retry_count);
        }
        if may_replace {
            for part in &mut self.parts {
                part.retain(|older| older.seq != settlement.seq);
            }
            self.alone.forget(settlement.seq);
        }
        let gathered = &mut self.lanes[lane_of(&settlement)].gathered;
        if may_replace
            && let Some(older) = gathered.iter_mut().find(|older| older.seq == settlement.seq)
        {
            *older = settlement;
            return;
        }
        gathered.push(settlement);
    }

    /// The next batch, unless what runs is enough.
    pub(crate) fn next_batch(&mut self, now: Duration) -> Option<Vec<Settlement>> {
        let nothing_runs = self.lanes.iter().all(|lane| lane.under_way == 0);
        if nothing_runs && let Some(part) = self.next_part(now) {
            for settlement in &part {
                let lane = &mut self.lanes[lane_of(settlement)];
                lane.under_way += 1;
                if let Some(lease) = settlement.lease {
                    lane.under_way_shards.insert(lease.shard);
                }
            }
            return Some(part);
        }
        let mut batch = Vec::new();
        if nothing_runs && self.gathered() < SPLIT_FROM {
            for lane in &mut self.lanes {
                lane.take_into(&mut batch);
            }
        } else {
            let enough = if nothing_runs { 1 } else { SPLIT_FROM / LANES };
            let mut lanes = self.lanes.iter_mut();
            lanes
                .find(|lane| lane.under_way == 0 && lane.gathered.len() >= enough)?
                .take_into(&mut batch);
        }
        (!batch.is_empty()).then_some(batch)
    }

    /// What waits alone is tried once more, at once.
    pub(crate) fn try_alone_again(&mut self) {
        self.parts.extend(self.alone.take().into_iter().map(|settlement| vec![settlement]));
    }

    /// A part of a batch that failed, or one row that did, in turn with what is new.
    fn next_part(&mut self, now: Duration) -> Option<Vec<Settlement>> {
        self.parts.retain(|part| !part.is_empty());
        if let Some(part) = self.parts.pop_front() {
            return Some(part);
        }
        self.alone_turn = !self.alone_turn;
        if !self.alone_turn && self.gathered() > 0 {
            return None;
        }
        self.alone.next_due(now).map(|settlement| vec![settlement])
    }

    /// The batch, which [ended](Self::ended), is recorded.
    pub(crate) fn recorded(&mut self, batch: &[Settlement]) {
        self.failed_in_a_row = 0;
        for settlement in batch {
            self.alone.forget(settlement.seq);
        }
        if !self.retries.is_empty() {
            for settlement in batch {
                self.retries.remove(&settlement.seq);
            }
        }
    }

    /// The attempts that a retry counts which awaits recording.
    pub(crate) fn unrecorded_retry(&self, seq: Seq) -> Option<u32> {
        self.retries.get(&seq).copied()
    }

    /// Whether a retry of the event awaits recording.
    pub(crate) fn is_unrecorded_retry(&self, seq: Seq) -> bool {
        self.retries.contains_key(&seq)
    }

    /// A batch was refused for what may be some rows' doing: halves of it go again. One that is by
    /// itself comes back, to wait alone.
    pub(crate) fn refused(
        &mut self,
        mut batch: Vec<Settlement>,
        is_ours: impl Fn(&Settlement) -> bool,
    ) -> Option<Settlement> {
        self.ended(&batch);
        batch.retain(is_ours);
        // A newer outcome has come meanwhile: only that one is to be recorded.
        let newer =
            |seq| self.lanes.iter().any(|lane| lane.gathered.iter().any(|newer| newer.seq == seq));
        if !self.retries.is_empty() {
            batch.retain(|settlement| !newer(settlement.seq));
        }
        if batch.len() > 1 {
            let rest = batch.split_off(batch.len() / 2);
            self.parts.push_front(rest);
            self.parts.push_front(batch);
            return None;
        }
        let settlement = batch.pop()?;
        self.failed_in_a_row += usize::from(!self.alone.knows(settlement.seq));
        Some(settlement)
    }

    /// Whether so many rows have failed by themselves that it may not be they.
    pub(crate) const fn may_fail_altogether(&self) -> bool {
        self.failed_in_a_row >= ALONE_MAX
    }

    /// The batch is not known to be recorded: what `is_ours` of it goes again, with what has gathered
    /// since.
    pub(crate) fn failed(
        &mut self,
        mut batch: Vec<Settlement>,
        is_ours: impl Fn(&Settlement) -> bool,
    ) {
        self.ended(&batch);
        batch.retain(is_ours);
        let newer = self.lanes.each_mut().map(|lane| std::mem::take(&mut lane.gathered));
        for settlement in batch {
            self.lanes[lane_of(&settlement)].gathered.push(settlement);
        }
        for settlement in newer.into_iter().flatten() {
            self.add(settlement, true);
        }
    }

    /// Forgets the outcomes of these shards, but for what is under way.
    pub(crate) fn drop_shards(&mut self, shards: ShardSet) {
        let retries = &mut self.retries;
        for seq in self.alone.drop_shards(shards) {
            retries.remove(&seq);
        }
        let gone = |settlement: &Settlement| {
            settlement.lease.is_some_and(|lease| shards.contains(lease.shard))
        };
        for part in &mut self.parts {
            for settlement in part.extract_if(.., |settlement| gone(settlement)) {
                retries.remove(&settlement.seq);
            }
        }
        for lane in &mut self.lanes {
            lane.gathered.retain(|settlement| {
                let stays = settlement.lease.is_none_or(|lease| !shards.contains(lease.shard));
                if !stays {
                    retries.remove(&settlement.seq);
                }
                stays
            });
        }
    }

    /// Shards with outcomes not recorded yet. Those that failed by themselves keep no shard from another
    /// relay, which sends their events again.
    pub(crate) fn unrecorded_shards(&self) -> ShardSet {
        let parts = self.parts.iter().flat_map(|part| shards_of(part).iter());
        self.lanes.iter().flat_map(|lane| lane.unrecorded_shards().iter()).chain(parts).collect()
    }

    /// Nothing of the batch is under way any more. It has all that was of its lanes.
    pub(crate) fn ended(&mut self, batch: &[Settlement]) {
        for settlement in batch {
            let lane = &mut self.lanes[lane_of(settlement)];
            (lane.under_way, lane.under_way_shards) = (0, ShardSet::EMPTY);
        }
    }

    fn gathered(&self) -> usize {
        self.lanes.iter().map(|lane| lane.gathered.len()).sum()
    }

    /// Outcomes not recorded yet.
    pub(crate) fn unrecorded(&self) -> usize {
        self.to_be_tried() + self.alone.len()
    }

    /// Those of them that are not waiting after a failure of their own.
    pub(crate) fn to_be_tried(&self) -> usize {
        let parts: usize = self.parts.iter().map(Vec::len).sum();
        let lanes = self.lanes.iter().map(|lane| lane.gathered.len() + lane.under_way);
        lanes.sum::<usize>() + parts
    }
}

impl Lane {
    fn take_into(&mut self, batch: &mut Vec<Settlement>) {
        let room = SETTLE_BATCH_MAX - batch.len();
        if self.gathered.len() <= room && batch.is_empty() {
            *batch = std::mem::take(&mut self.gathered);
            self.under_way = batch.len();
            self.under_way_shards = shards_of(batch);
            return;
        }
        let taken = self.gathered.len().min(room);
        self.under_way = taken;
        self.under_way_shards = shards_of(&self.gathered[..taken]);
        batch.extend(self.gathered.drain(..taken));
    }

    fn unrecorded_shards(&self) -> ShardSet {
        self.under_way_shards.iter().chain(shards_of(&self.gathered).iter()).collect()
    }
}

fn lane_of(settlement: &Settlement) -> usize {
    settlement.lease.map_or(0, |lease| lease.shard.index() % LANES)
}

fn shards_of(settlements: &[Settlement]) -> ShardSet {
    settlements.iter().filter_map(|settlement| settlement.lease).map(|lease| lease.shard).collect()
}

/// Whether the event of this settlement is pending still.
pub(crate) const fn stays_pending(settlement: &Settlement) -> bool {
    matches!(settlement.outcome, SettlementOutcome::Retry { .. })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    use posthaste_core::{Shard, ShardLease};
    use uuid::Uuid;

    fn retry(seq: i64, retry_count: u32) -> Settlement {
        let outcome =
            SettlementOutcome::Retry { retry_count, delay: Duration::ZERO, error: "".into() };
        Settlement { lease: None, seq, id: Uuid::nil(), outcome }
    }

    fn done(settling: &mut Settling, batch: &[Settlement]) {
        settling.ended(batch);
        settling.recorded(batch);
    }

    #[test]
    fn one_batch_is_under_way_and_the_rest_gathers() {
        let mut settling = Settling::default();
        settling.add(retry(1, 1), false);
        let batch = settling.next_batch(Duration::ZERO).expect("a batch");
        settling.add(retry(2, 1), false);
        assert_eq!((batch.len(), settling.unrecorded()), (1, 2));
        assert!(settling.next_batch(Duration::ZERO).is_none());
        done(&mut settling, &batch);
        assert_eq!(settling.next_batch(Duration::ZERO).expect("a batch").len(), 1);
    }

    fn of_shard(seq: i64, shard: usize) -> Settlement {
        let shard = Shard::from_index(shard).expect("a shard");
        Settlement { lease: Some(ShardLease { shard, generation: 1 }), ..retry(seq, 1) }
    }

    #[test]
    fn many_outcomes_go_in_two_statements_that_share_no_shard() {
        let mut settling = Settling::default();
        let add = |settling: &mut Settling, seqs: std::ops::Range<i64>| {
            for seq in seqs {
                settling.add(of_shard(seq, usize::try_from(seq % 8).expect("small")), false);
            }
        };
        // Few go in one.
        add(&mut settling, 0..3);
        let few = settling.next_batch(Duration::ZERO).expect("a batch");
        assert_eq!((few.len(), settling.next_batch(Duration::ZERO)), (3, None));
        add(&mut settling, 8..24);
        assert!(settling.next_batch(Duration::ZERO).is_none(), "both halves are under way");
        done(&mut settling, &few);
        let one = settling.next_batch(Duration::ZERO).expect("a batch");
        let other = settling.next_batch(Duration::ZERO).expect("another at the same time");
        assert_eq!((one.len(), other.len()), (8, 8));
        assert!(shards_of(&one).iter().all(|shard| !shards_of(&other).contains(shard)));
        add(&mut settling, 32..48);
        assert!(settling.next_batch(Duration::ZERO).is_none());
        settling.failed(other, |_| true);
        let again = settling.next_batch(Duration::ZERO).expect("a batch");
        assert_eq!(again.len(), 16, "what failed, and what gathered since of its half");
        assert_eq!(settling.next_batch(Duration::ZERO), None, "the first half is under way still");
        done(&mut settling, &one);
        assert_eq!(settling.next_batch(Duration::ZERO).expect("a batch").len(), 8);
    }

    #[test]
    fn after_a_failure_a_batch_never_holds_an_event_twice() {
        let mut settling = Settling::default();
        settling.add(retry(1, 1), false);
        let batch = settling.next_batch(Duration::ZERO).expect("a batch");
        settling.add(retry(1, 2), false);
        settling.failed(batch, |_| true);
        assert_eq!(settling.next_batch(Duration::ZERO).expect("a batch"), [retry(1, 2)]);
    }

    #[test]
    fn a_row_that_cannot_be_recorded_stands_alone() {
        let mut settling = Settling::default();
        for seq in 1..=20 {
            settling.add(retry(seq, 1), false);
        }
        let (mut recorded, mut statements) = (Vec::new(), 0);
        while let Some(batch) = settling.next_batch(Duration::ZERO) {
            statements += 1;
            if batch.iter().any(|settlement| settlement.seq == 13) {
                if let Some(row) = settling.refused(batch, |_| true) {
                    settling.alone.failed(row, "locked".into(), Duration::ZERO, 0.0);
                }
            } else {
                done(&mut settling, &batch);
                recorded.extend(batch.iter().map(|settlement| settlement.seq));
            }
        }
        recorded.sort_unstable();
        let expected: Vec<Seq> = (1..=20).filter(|seq| *seq != 13).collect();
        assert_eq!(recorded, expected);
        assert!(statements < 12, "{statements}");
        assert_eq!((settling.to_be_tried(), settling.unrecorded()), (0, 1));
        assert!(!settling.may_fail_altogether());
        // Its pauses grow, and what is new does not wait for it.
        let mut pauses = Vec::new();
        for _ in 0..4 {
            let due = settling.alone.due().expect("it is tried again");
            settling.add(retry(100, 1), false);
            let mut tried = Vec::new();
            while let Some(batch) = settling.next_batch(due) {
                match batch.as_slice() {
                    [row] if row.seq == 13 => {
                        let row = settling.refused(batch, |_| true).expect("it stands alone");
                        pauses.push(settling.alone.failed(row, "locked".into(), due, 0.0));
                    }
                    _ => done(&mut settling, &batch),
                }
                tried.push(settling.unrecorded());
            }
            assert_eq!(tried.len(), 2);
        }
        assert!(pauses.is_sorted() && pauses[0] < pauses[3], "{pauses:?}");
    }

    #[test]
    fn rows_that_fail_one_after_the_other_may_be_the_databases_doing_until_one_is_recorded() {
        let mut settling = Settling::default();
        for seq in 1..=20 {
            settling.add(retry(seq, 1), false);
        }
        while let Some(batch) = settling.next_batch(Duration::ZERO) {
            if let Some(row) = settling.refused(batch, |_| true) {
                settling.alone.failed(row, "no right".into(), Duration::ZERO, 0.0);
            }
        }
        assert!(settling.may_fail_altogether());
        assert_eq!((settling.to_be_tried(), settling.unrecorded()), (0, 20));
        settling.add(retry(21, 1), false);
        let batch = settling.next_batch(Duration::ZERO).expect("a batch");
        done(&mut settling, &batch);
        assert!(!settling.may_fail_altogether());
    }

    #[test]
    fn a_newer_outcome_takes_the_place_of_one_that_waits_alone() {
        let mut settling = Settling::default();
        settling.add(retry(1, 1), false);
        let batch = settling.next_batch(Duration::ZERO).expect("a batch");
        let row = settling.refused(batch, |_| true).expect("it stands alone");
        settling.alone.failed(row, "locked".into(), Duration::ZERO, 0.0);
        settling.add(retry(1, 2), true);
        assert_eq!(settling.next_batch(Duration::ZERO).expect("a batch"), [retry(1, 2)]);
        assert_eq!(settling.alone.len(), 0);
    }
}
