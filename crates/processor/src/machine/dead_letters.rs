//! Dead letters that block their keys, and how the relay learns that one is gone.
//!
//! The database is the truth: operators revive and discard there. When its revision changes, all
//! dead letters are read again, page by page; one that blocked and is not found any more frees its
//! key. One whose own settlement is still on its way is not expected there yet.

use posthaste_core::{DeadHead, OrderKey, Seq, ShardSet};
use rustc_hash::{FxHashMap, FxHashSet};

use super::key::KeyId;

/// Dead letters fetched by one query.
pub(super) const PAGE_MAX: usize = 1_000;

#[derive(Debug, Default)]
pub(super) struct DeadLetters {
    /// By place.
    blocking: FxHashMap<Seq, Blocking>,
    /// The round of reading that is under way.
    round: Option<Round>,
    rounds: u64,
    another_round: bool,
}

#[derive(Debug)]
struct Blocking {
    id: KeyId,
    name: OrderKey,
    /// Whether the database knows of it.
    recorded: bool,
    /// How many rounds had begun when this one died.
    rounds_seen: u64,
}

#[derive(Debug, Default)]
struct Round {
    after: Seq,
    found: FxHashSet<Seq>,
}

/// A key whose dead letter is gone.
#[derive(Debug)]
pub(super) struct Freed {
    pub(super) id: KeyId,
    pub(super) name: OrderKey,
    /// The smallest place of another dead letter that blocks it.
    pub(super) still_blocked_by: Option<Seq>,
}

impl DeadLetters {
    /// Begins to read all of them again.
    pub(super) fn begin_round(&mut self) {
        self.rounds += 1;
        self.another_round = false;
        self.round = Some(Round::default());
    }

    /// Whether another round was found to be needed, and none is under way.
    pub(super) const fn wants_round(&self) -> bool {
        self.another_round && self.round.is_none()
    }

    /// After which place the next page begins, while a round is under way.
    pub(super) fn next_page(&self) -> Option<Seq> {
        self.round.as_ref().map(|round| round.after)
    }

    /// Takes a page; with the last one, returns the keys that were freed.
    pub(super) fn page_read(&mut self, heads: &[DeadHead]) -> Vec<Freed> {
        let Some(round) = &mut self.round else { return Vec::new() };
        round.found.extend(heads.iter().map(|head| head.seq));
        if let Some(last) = heads.last()
            && heads.len() >= PAGE_MAX
        {
            round.after = last.seq;
            return Vec::new();
        }
        let found = self.round.take().map(|round| round.found).unwrap_or_default();
        let gone: Vec<Blocking> = self
            .blocking
            .extract_if(|seq, blocking| blocking.recorded && !found.contains(seq))
            .map(|(_, blocking)| blocking)
            .collect();
        let remaining = self.first_of(&gone.iter().map(|blocking| blocking.id).collect());
        gone.into_iter()
            .map(|Blocking { id, name, .. }| {
                let still_blocked_by = remaining.get(&id).copied();
                Freed { id, name, still_blocked_by }
            })
            .collect()
    }

    /// For each of these keys, the smallest place of a dead letter that blocks it.
    fn first_of(&self, ids: &FxHashSet<KeyId>) -> FxHashMap<KeyId, Seq> {
        let mut first: FxHashMap<KeyId, Seq> = FxHashMap::default();
        if ids.is_empty() {
            return first;
        }
        for (seq, Blocking { id, .. }) in &self.blocking {
            if ids.contains(id) {
                first.entry(*id).and_modify(|first| *first = *seq.min(first)).or_insert(*seq);
            }
        }
        first
    }

    /// The event at `seq` is dead and blocks its key; `recorded` says whether the database told so
    /// or is to be told.
    pub(super) fn add(&mut self, seq: Seq, id: KeyId, name: OrderKey, recorded: bool) {
        let blocking = Blocking { id, name, recorded, rounds_seen: self.rounds };
        if recorded {
            self.blocking.entry(seq).or_insert(blocking);
        } else {
            // Also where it is blocking already: revived meanwhile, and dead again.
            self.blocking.insert(seq, blocking);
        }
    }

    /// Forgets those of these shards: another relay sees to them.
    pub(super) fn drop_shards(&mut self, shards: ShardSet) {
        self.blocking.retain(|_, blocking| !shards.contains(blocking.id.shard()));
    }

    /// The database knows of it now.
    pub(super) fn recorded(&mut self, seq: Seq) {
        let Some(blocking) = self.blocking.get_mut(&seq) else { return };
        blocking.recorded = true;
        // They were read while this one was on its way: whether that saw it dead, or not yet, or
        // revived already, is unknown. It stays blocking until they are read again.
        if blocking.rounds_seen != self.rounds || self.round.is_some() {
            self.another_round = true;
            if let Some(round) = &mut self.round {
                round.found.insert(seq);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use posthaste_core::Shard;

    fn name() -> OrderKey {
        OrderKey::named("k").expect("a key")
    }

    fn head(seq: Seq) -> DeadHead {
        let shard = Shard::default();
        DeadHead { seq, key: name(), shard, event_type: "t".into(), destination: None }
    }

    fn add(dead: &mut DeadLetters, seq: Seq, recorded: bool) {
        dead.add(seq, KeyId::of(&name(), Shard::default()), name(), recorded);
    }

    #[test]
    fn a_key_is_freed_up_to_its_next_dead_letter() {
        let mut dead = DeadLetters::default();
        dead.begin_round();
        add(&mut dead, 1, true);
        add(&mut dead, 5, true);
        assert!(dead.page_read(&[head(1), head(5)]).is_empty());
        dead.begin_round();
        let freed = dead.page_read(&[head(5)]);
        assert_eq!((freed.len(), freed[0].still_blocked_by), (1, Some(5)));
    }

    #[test]
    fn one_that_is_on_its_way_to_the_database_is_not_taken_for_gone() {
        let mut dead = DeadLetters::default();
        add(&mut dead, 1, false);
        dead.begin_round();
        assert!(dead.page_read(&[]).is_empty(), "the database does not know of it yet");
        dead.recorded(1);
        assert!(dead.wants_round(), "it may have been revived before we heard that it is recorded");
        dead.begin_round();
        assert_eq!(dead.page_read(&[]).len(), 1);
    }

    #[test]
    fn one_that_is_recorded_while_they_are_read_is_not_taken_for_gone() {
        let mut dead = DeadLetters::default();
        dead.begin_round();
        add(&mut dead, 1, false);
        dead.recorded(1);
        assert!(dead.page_read(&[]).is_empty(), "the page may be older than the recording");
        assert!(dead.wants_round());
    }

    #[test]
    fn pages_are_read_to_the_end() {
        let mut dead = DeadLetters::default();
        dead.begin_round();
        let page: Vec<DeadHead> = (1..=PAGE_MAX).map(|seq| head(seq as Seq)).collect();
        add(&mut dead, 2_000, true);
        assert!(dead.page_read(&page).is_empty());
        assert_eq!(dead.next_page(), Some(PAGE_MAX as Seq));
        assert!(dead.page_read(&[head(2_000)]).is_empty());
        assert_eq!(dead.next_page(), None);
    }
}
