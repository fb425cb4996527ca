//! Outcomes on their way into the database: one statement at a time, each with all that gathered
//! while the one before ran.

use posthaste_core::{Seq, Settlement, SettlementOutcome, ShardSet};
use rustc_hash::FxHashSet;

/// The most settlements in one statement.
const SETTLE_BATCH_MAX: usize = 2_000;

/// Gathers settlements.
#[derive(Debug, Default)]
pub(super) struct Settling {
    gathered: Vec<Settlement>,
    under_way: usize,
    under_way_shards: ShardSet,
    /// Places whose latest outcome is a retry that is not recorded yet.
    retries: FxHashSet<Seq>,
}

impl Settling {
    /// Adds an outcome. It replaces an older one of the same event that was not sent yet: one
    /// statement must not change a row twice.
    pub(super) fn add(&mut self, settlement: Settlement, may_replace: bool) {
        if stays_pending(&settlement) {
            self.retries.insert(settlement.seq);
        }
        if may_replace
            && let Some(older) = self.gathered.iter_mut().find(|older| older.seq == settlement.seq)
        {
            *older = settlement;
            return;
        }
        self.gathered.push(settlement);
    }

    /// The next batch, unless one is under way.
    pub(super) fn next_batch(&mut self) -> Option<Vec<Settlement>> {
        if self.under_way > 0 || self.gathered.is_empty() {
            return None;
        }
        let batch: Vec<Settlement> = if self.gathered.len() > SETTLE_BATCH_MAX {
            self.gathered.drain(..SETTLE_BATCH_MAX).collect()
        } else {
            std::mem::take(&mut self.gathered)
        };
        self.under_way = batch.len();
        self.under_way_shards = shards_of(&batch);
        Some(batch)
    }

    /// The batch is recorded.
    pub(super) fn recorded(&mut self, batch: &[Settlement]) {
        self.nothing_under_way();
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

    /// The batch is not known to be recorded: it goes again, with what has gathered since.
    pub(super) fn failed(&mut self, batch: Vec<Settlement>) {
        self.nothing_under_way();
        let newer = std::mem::replace(&mut self.gathered, batch);
        for settlement in newer {
            self.add(settlement, true);
        }
    }

    /// Forgets the outcomes of these shards, but for what is under way.
    pub(super) fn drop_shards(&mut self, shards: ShardSet) {
        let retries = &mut self.retries;
        self.gathered.retain(|settlement| {
            let stays = settlement.lease.is_none_or(|lease| !shards.contains(lease.shard));
            if !stays {
                retries.remove(&settlement.seq);
            }
            stays
        });
    }

    /// Shards with outcomes not recorded yet.
    pub(super) fn unrecorded_shards(&self) -> ShardSet {
        self.under_way_shards.iter().chain(shards_of(&self.gathered).iter()).collect()
    }

    fn nothing_under_way(&mut self) {
        self.under_way = 0;
        self.under_way_shards = ShardSet::EMPTY;
    }

    /// Outcomes not recorded yet.
    pub(super) fn unrecorded(&self) -> usize {
        self.gathered.len() + self.under_way
    }
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

    #[test]
    fn after_a_failure_a_batch_never_holds_an_event_twice() {
        let mut settling = Settling::default();
        settling.add(retry(1, 1), false);
        let batch = settling.next_batch().expect("a batch");
        settling.add(retry(1, 2), false);
        settling.failed(batch);
        assert_eq!(settling.next_batch().expect("a batch"), [retry(1, 2)]);
    }
}
