//! Outcomes whose own rows cannot be recorded: somebody holds a lock on the row, or a trigger or check of
//! the database's owner refuses it. Each is tried again by itself, after pauses that grow, and nothing
//! else waits for it.

use std::collections::BTreeMap;
use std::time::Duration;

use posthaste_core::{RetryPolicy, Seq, Settlement, ShardSet};
use rustc_hash::FxHashMap;

/// Between two attempts.
const PAUSES: RetryPolicy = RetryPolicy {
    base_delay: Duration::from_millis(500),
    max_delay: Duration::from_secs(30),
    backoff_multiplier: 2.0,
    jitter: true,
};

#[derive(Debug, Default)]
pub(crate) struct Alone {
    /// By the time of the next attempt.
    waiting: BTreeMap<(Duration, Seq), Settlement>,
    histories: FxHashMap<Seq, History>,
}

#[derive(Debug, Default)]
struct History {
    failures: u32,
    until: Duration,
    why: Box<str>,
}

impl Alone {
    /// The outcome could not be recorded, all by itself. Returns the pause before it is tried again.
    pub(crate) fn failed(
        &mut self,
        settlement: Settlement,
        why: Box<str>,
        now: Duration,
        random: f64,
    ) -> Duration {
        let history = self.histories.entry(settlement.seq).or_default();
        history.failures = history.failures.saturating_add(1);
        let pause = PAUSES.delay(history.failures, random);
        history.until = now.saturating_add(pause);
        history.why = why;
        self.waiting.insert((history.until, settlement.seq), settlement);
        pause
    }

    /// One whose time has come.
    pub(crate) fn next_due(&mut self, now: Duration) -> Option<Settlement> {
        let first = self.waiting.first_entry()?;
        (first.key().0 <= now).then(|| first.remove())
    }

    /// All of them.
    pub(crate) fn take(&mut self) -> Vec<Settlement> {
        std::mem::take(&mut self.waiting).into_values().collect()
    }

    /// When the next one's time comes.
    pub(crate) fn due(&self) -> Option<Duration> {
        self.waiting.first_key_value().map(|((until, _), _)| *until)
    }

    /// Something that kept them from being recorded may be over, or nothing comes after this: all are
    /// tried at once.
    pub(crate) fn hurry(&mut self, now: Duration) {
        for ((until, seq), settlement) in std::mem::take(&mut self.waiting) {
            let until = until.min(now);
            if let Some(history) = self.histories.get_mut(&seq) {
                history.until = until;
            }
            self.waiting.insert((until, seq), settlement);
        }
    }

    /// The event has no outcome that waits here any more: it is recorded, or overtaken by a newer one.
    pub(crate) fn forget(&mut self, seq: Seq) {
        if self.histories.is_empty() {
            return;
        }
        if let Some(history) = self.histories.remove(&seq) {
            self.waiting.remove(&(history.until, seq));
        }
    }

    /// Whether it failed by itself before.
    pub(crate) fn knows(&self, seq: Seq) -> bool {
        self.histories.contains_key(&seq)
    }

    /// Forgets those of these shards; returns their places.
    pub(crate) fn drop_shards(&mut self, shards: ShardSet) -> Vec<Seq> {
        let of_these = |settlement: &Settlement| {
            settlement.lease.is_some_and(|lease| shards.contains(lease.shard))
        };
        let dropped: Vec<Seq> = self
            .waiting
            .extract_if(.., |_, settlement| of_these(settlement))
            .map(|((_, seq), _)| seq)
            .collect();
        for seq in &dropped {
            self.histories.remove(seq);
        }
        dropped
    }

    /// How many wait.
    pub(crate) fn len(&self) -> usize {
        self.waiting.len()
    }

    /// What waits, with what is in the way, those first that are tried first.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&Settlement, &str)> {
        self.waiting
            .values()
            .filter_map(|settlement| Some((settlement, &*self.histories.get(&settlement.seq)?.why)))
    }
}
