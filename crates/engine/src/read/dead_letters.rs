//! Dead letters that block their keys, and how the relay learns that one is gone.
//!
//! The database is the truth: operators revive and discard there. When its revision changes, all
//! dead letters are read again, page by page; one that blocked and is not found any more frees its
//! key. One whose own settlement is still on its way is not expected there yet.
//!
//! Not every change raises the revision: triggers are passed over by `truncate`, and by sessions in the
//! role of a replica. So they are read again every few seconds all the same, in a *slow* round: a page a
//! second, however many there are, and nothing waits for it.

use std::time::Duration;

use posthaste_core::{DeadHead, OrderKey, Seq, ShardSet};
use rustc_hash::{FxHashMap, FxHashSet};

use crate::keys::key::KeyId;

/// Dead letters fetched by one query.
pub(crate) const PAGE_MAX: usize = 1_000;

/// Between two slow rounds.
const ROUND_EVERY: Duration = Duration::from_secs(7);
/// Between two pages of one.
const PAGE_EVERY: Duration = Duration::from_secs(1);

#[derive(Debug, Default)]
pub(crate) struct DeadLetters {
    /// By place.
    blocking: FxHashMap<Seq, Blocking>,
    /// The round of reading that is under way.
    round: Option<Round>,
    rounds: u64,
    another_round: bool,
    /// When the next slow round, or the next page of one, is due; not before they were read once.
    slow_at: Option<Duration>,
    /// Keys whose dead letter is another key's by now.
    moved: Vec<Blocking>,
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
    slow: bool,
    after: Seq,
    found: FxHashSet<Seq>,
}

/// A key whose dead letter is gone.
#[derive(Debug)]
pub(crate) struct Freed {
    pub(crate) id: KeyId,
    pub(crate) name: OrderKey,
    /// The smallest place of another dead letter that blocks it.
    pub(crate) still_blocked_by: Option<Seq>,
}

impl DeadLetters {
    /// Begins to read all of them again.
    pub(crate) fn begin_round(&mut self) {
        self.rounds += 1;
        self.another_round = false;
        self.round = Some(Round::default());
    }

    /// Begins a slow round, if it is time for one.
    fn begin_slow_round(&mut self, now: Duration) {
        if self.round.is_none() && self.slow_is_due(now) {
            self.round = Some(Round { slow: true, ..Round::default() });
        }
    }

    /// Whether another round was found to be needed, and none is under way.
    pub(crate) const fn wants_round(&self) -> bool {
        self.another_round && self.round.is_none()
    }

    /// After which place the next page begins, while a round is under way that all else waits for.
    pub(crate) fn next_page(&self) -> Option<Seq> {
        self.round.as_ref().filter(|round| !round.slow).map(|round| round.after)
    }

    /// The same of a slow round, where it is time for a page.
    pub(crate) fn next_slow_page(&mut self, now: Duration) -> Option<Seq> {
        self.begin_slow_round(now);
        let is_due = self.slow_is_due(now);
        let round = self.round.as_ref().filter(|round| round.slow && is_due)?;
        Some(round.after)
    }

    /// When the next page of a slow round is due.
    pub(crate) const fn slow_due(&self) -> Option<Duration> {
        self.slow_at
    }

    fn slow_is_due(&self, now: Duration) -> bool {
        self.slow_at.is_some_and(|at| now >= at)
    }

    /// Takes a page; with the last one, returns the keys that were freed. `blocks` says of each whether
    /// it holds back its key.
    pub(crate) fn page_read(
        &mut self,
        heads: &[DeadHead],
        blocks: impl Fn(&DeadHead) -> bool,
        now: Duration,
    ) -> Vec<Freed> {
        let Some(round) = &mut self.round else { return Vec::new() };
        round.found.extend(heads.iter().filter(|head| blocks(head)).map(|head| head.seq));
        self.slow_at = Some(now + PAGE_EVERY);
        if let Some(last) = heads.last()
            && heads.len() >= PAGE_MAX
        {
            round.after = last.seq;
            return Vec::new();
        }
        self.slow_at = Some(now + ROUND_EVERY);
        let found = self.round.take().map(|round| round.found).unwrap_or_default();
        let gone = self
            .blocking
            .extract_if(|seq, blocking| blocking.recorded && !found.contains(seq))
            .map(|(_, blocking)| blocking);
        let gone: Vec<Blocking> = gone.chain(std::mem::take(&mut self.moved)).collect();
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
    pub(crate) fn add(&mut self, seq: Seq, id: KeyId, name: OrderKey, recorded: bool) {
        let rounds_seen = self.rounds;
        let blocking = Blocking { id, name: name.clone(), recorded, rounds_seen };
        if recorded {
            let known = self.blocking.entry(seq).or_insert(blocking);
            if known.id != id && known.recorded {
                let moved = Blocking { id, name, recorded, rounds_seen: self.rounds };
                self.moved.push(std::mem::replace(known, moved));
            }
        } else {
            // Also where it is blocking already: revived meanwhile, and dead again.
            self.blocking.insert(seq, blocking);
        }
    }

    /// Forgets those of these shards: another relay sees to them.
    pub(crate) fn drop_shards(&mut self, shards: ShardSet) {
        self.blocking.retain(|_, blocking| !shards.contains(blocking.id.shard()));
        self.moved.retain(|blocking| !shards.contains(blocking.id.shard()));
    }

    /// The database knows of it now.
    pub(crate) fn recorded(&mut self, seq: Seq) {
        let Some(blocking) = self.blocking.get_mut(&seq) else { return };
        blocking.recorded = true;
        // They were read while this one was on its way: whether that saw it dead, or not yet, or
        // revived already, is unknown. It stays blocking until they are read again.
        if let Some(round) = &mut self.round {
            round.found.insert(seq);
        }
        // After a slow round there is another in any case.
        let is_read = self.round.as_ref().is_some_and(|round| !round.slow);
        self.another_round |= blocking.rounds_seen != self.rounds || is_read;
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

    fn page_read(dead: &mut DeadLetters, heads: &[DeadHead]) -> Vec<Freed> {
        dead.page_read(heads, |_| true, Duration::ZERO)
    }

    #[test]
    fn a_key_is_freed_up_to_its_next_dead_letter() {
        let mut dead = DeadLetters::default();
        dead.begin_round();
        add(&mut dead, 1, true);
        add(&mut dead, 5, true);
        assert!(page_read(&mut dead, &[head(1), head(5)]).is_empty());
        dead.begin_round();
        let freed = page_read(&mut dead, &[head(5)]);
        assert_eq!((freed.len(), freed[0].still_blocked_by), (1, Some(5)));
    }

    #[test]
    fn one_that_is_on_its_way_to_the_database_is_not_taken_for_gone() {
        let mut dead = DeadLetters::default();
        add(&mut dead, 1, false);
        dead.begin_round();
        assert!(page_read(&mut dead, &[]).is_empty(), "the database does not know of it yet");
        dead.recorded(1);
        assert!(dead.wants_round(), "it may have been revived before we heard that it is recorded");
        dead.begin_round();
        assert_eq!(page_read(&mut dead, &[]).len(), 1);
    }

    #[test]
    fn one_that_is_recorded_while_they_are_read_is_not_taken_for_gone() {
        let mut dead = DeadLetters::default();
        dead.begin_round();
        add(&mut dead, 1, false);
        dead.recorded(1);
        assert!(page_read(&mut dead, &[]).is_empty(), "the page may be older than the recording");
        assert!(dead.wants_round());
    }

    #[test]
    fn pages_are_read_to_the_end() {
        let mut dead = DeadLetters::default();
        dead.begin_round();
        let page: Vec<DeadHead> = (1..=PAGE_MAX).map(|seq| head(seq as Seq)).collect();
        add(&mut dead, 2_000, true);
        assert!(page_read(&mut dead, &page).is_empty());
        assert_eq!(dead.next_page(), Some(PAGE_MAX as Seq));
        assert!(page_read(&mut dead, &[head(2_000)]).is_empty());
        assert_eq!(dead.next_page(), None);
    }

    /// A row that was changed where no trigger fires.
    #[test]
    fn a_slow_round_finds_what_nobody_told_of_and_nothing_waits_for_it() {
        let mut dead = DeadLetters::default();
        dead.begin_round();
        add(&mut dead, 1, true);
        add(&mut dead, 2_000, true);
        assert_eq!(page_read(&mut dead, &[head(1), head(2_000)]).len(), 0);
        let later = ROUND_EVERY;
        assert_eq!((dead.next_slow_page(later), dead.next_page()), (Some(0), None));
        let page: Vec<DeadHead> = (2..).take(PAGE_MAX).map(head).collect();
        assert!(dead.page_read(&page, |_| true, later).is_empty());
        assert_eq!(dead.next_slow_page(later), None, "a page a second");
        let next = later + PAGE_EVERY;
        assert_eq!(dead.next_slow_page(next), Some(1 + PAGE_MAX as Seq));
        assert_eq!(dead.page_read(&[head(2_000)], |_| true, next).len(), 1);
        assert_eq!(dead.next_slow_page(next + PAGE_EVERY), None, "a round every few seconds");
    }

    #[test]
    fn a_dead_letter_that_became_another_keys_frees_the_one_it_blocked() {
        let mut dead = DeadLetters::default();
        add(&mut dead, 1, true);
        let other = OrderKey::named("other").expect("a key");
        let other_id = KeyId::of(&other, Shard::default());
        dead.begin_round();
        dead.add(1, other_id, other, true);
        let freed = page_read(&mut dead, &[head(1)]);
        assert_eq!((freed.len(), freed[0].name.clone()), (1, name()));
        dead.begin_round();
        assert_eq!(page_read(&mut dead, &[])[0].id, other_id);
    }

    #[test]
    fn a_dead_letter_that_holds_nothing_back_any_more_frees_its_key() {
        let mut dead = DeadLetters::default();
        add(&mut dead, 1, true);
        dead.begin_round();
        assert_eq!(dead.page_read(&[head(1)], |_| false, Duration::ZERO).len(), 1);
    }
}
