//! Outcomes on their way into the database: each statement with all that gathered while the one
//! before ran.
//!
//! Where outcomes come faster than one statement after the other records them, two run at a time,
//! each with the outcomes of one half of the shards. So no event is in both, and no two
//! transactions hold the same shard, which PostgreSQL would note in a multixact for every one.

use posthaste_core::{Seq, Settlement, SettlementOutcome, ShardSet};
use rustc_hash::FxHashSet;

/// The most settlements in one statement.
const SETTLE_BATCH_MAX: usize = 2_000;
/// From so many on, a second statement is worth its commit. Few in tests, so that they see two.
const SPLIT_FROM: usize = if cfg!(test) { 4 } else { 1_500 };
/// Statements at a time.
const LANES: usize = 2;

/// Gathers settlements.
#[derive(Debug, Default)]
pub(super) struct Settling {
    lanes: [Lane; LANES],
    /// Places whose latest outcome is a retry that is not recorded yet.
    retries: FxHashSet<Seq>,
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
    pub(super) fn add(&mut self, settlement: Settlement, may_replace: bool) {
        if stays_pending(&settlement) {
            self.retries.insert(settlement.seq);
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
    pub(super) fn next_batch(&mut self) -> Option<Vec<Settlement>> {
        let nothing_runs = self.lanes.iter().all(|lane| lane.under_way == 0);
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

    /// The batch is recorded.
    pub(super) fn recorded(&mut self, batch: &[Settlement]) {
        self.ended(batch);
        if !self.retries.is_empty() {
            for settlement in batch {
                self.retries.remove(&settlement.seq);
            }
        }
    }

    /// Whether a retry of the event awaits recording.
    pub(super) fn is_unrecorded_retry(&self, seq: Seq) -> bool {
        self.retries.contains(&seq)
    }

    /// The batch is not known to be recorded: what `is_ours` of it goes again, with what has gathered
    /// since.
    pub(super) fn failed(
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
    pub(super) fn drop_shards(&mut self, shards: ShardSet) {
        let retries = &mut self.retries;
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

    /// Shards with outcomes not recorded yet.
    pub(super) fn unrecorded_shards(&self) -> ShardSet {
        self.lanes.iter().flat_map(|lane| lane.unrecorded_shards().iter()).collect()
    }

    /// Nothing of the batch is under way any more. It has all that was of its lanes.
    fn ended(&mut self, batch: &[Settlement]) {
        for settlement in batch {
            let lane = &mut self.lanes[lane_of(settlement)];
            (lane.under_way, lane.under_way_shards) = (0, ShardSet::EMPTY);
        }
    }

    fn gathered(&self) -> usize {
        self.lanes.iter().map(|lane| lane.gathered.len()).sum()
    }

    /// Outcomes not recorded yet.
    pub(super) fn unrecorded(&self) -> usize {
        self.lanes.iter().map(|lane| lane.gathered.len() + lane.under_way).sum()
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
pub(super) const fn stays_pending(settlement: &Settlement) -> bool {
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

    #[test]
    fn one_batch_is_under_way_and_the_rest_gathers() {
        let mut settling = Settling::default();
        settling.add(retry(1, 1), false);
        let batch = settling.next_batch().expect("a batch");
        settling.add(retry(2, 1), false);
        assert_eq!((batch.len(), settling.unrecorded()), (1, 2));
        assert!(settling.next_batch().is_none());
        settling.recorded(&batch);
        assert_eq!(settling.next_batch().expect("a batch").len(), 1);
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
        let few = settling.next_batch().expect("a batch");
        assert_eq!((few.len(), settling.next_batch()), (3, None));
        add(&mut settling, 8..24);
        assert!(settling.next_batch().is_none(), "both halves are under way");
        settling.recorded(&few);
        let one = settling.next_batch().expect("a batch");
        let other = settling.next_batch().expect("another at the same time");
        assert_eq!((one.len(), other.len()), (8, 8));
        assert!(shards_of(&one).iter().all(|shard| !shards_of(&other).contains(shard)));
        add(&mut settling, 32..48);
        assert!(settling.next_batch().is_none());
        settling.failed(other, |_| true);
        let again = settling.next_batch().expect("a batch");
        assert_eq!(again.len(), 16, "what failed, and what gathered since of its half");
        assert_eq!(settling.next_batch(), None, "the first half is under way still");
        settling.recorded(&one);
        assert_eq!(settling.next_batch().expect("a batch").len(), 8);
    }

    #[test]
    fn after_a_failure_a_batch_never_holds_an_event_twice() {
        let mut settling = Settling::default();
        settling.add(retry(1, 1), false);
        let batch = settling.next_batch().expect("a batch");
        settling.add(retry(1, 2), false);
        settling.failed(batch, |_| true);
        assert_eq!(settling.next_batch().expect("a batch"), [retry(1, 2)]);
    }
}
