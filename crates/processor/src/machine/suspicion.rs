//! Whose fault is an *ambiguous* failure, one of status `Transient`, a 500 for one? The event's own,
//! which counts an attempt, or the destination's, which is an outage and counts none.
//!
//! A failure is *undecided* at first: its event stays taken, so that its key waits, and nothing is
//! recorded. What happens beside it decides:
//!
//! - [`OUTAGE_KEYS`] distinct keys failed in a row, and none succeeded between them: an outage. The
//!   destination is paused, and everything undecided goes back uncounted.
//! - An event succeeded that was sent after the failure was known: the event's own. A success that
//!   was under way meanwhile proves nothing, for it may be older than the outage. Among the probes
//!   of a paused destination, which are sent together, one success proves those sent behind it.
//! - Nothing more is there to send, and too few keys have failed: after [`VERDICT_WAIT`] the
//!   event's own. While there is something to send, it decides, however long it takes.

use std::collections::VecDeque;
use std::ops::Range;
use std::time::Duration;

use posthaste_core::{Error, ShardSet};
use rustc_hash::FxHashSet;

use super::key::{Held, KeyId};

/// So many distinct keys that fail in a row are an outage, and so many keys probe whether it is over.
///
/// Few enough that the first burst of an outage shows it, and that a quiet outbox has them soon.
/// Enough that keys with troubles of their own do not look like one: where one event in ten is
/// poison, eight in a row come once in a hundred million; where it is every second one, once in 256.
/// A false alarm costs a pause of a quarter of a second and no attempt.
pub(super) const OUTAGE_KEYS: usize = 8;

/// A failure longer ago says nothing about now. Long, so that an outage shows on an outbox where
/// only now and then something is stored. Not for ever, so that poison which is left alone at a
/// paused destination, after operators discarded the rest, ends as dead letters all the same.
pub(super) const EVIDENCE_AGE_MAX: Duration = Duration::from_secs(300);

/// How long a failure stays undecided when nothing more is there to send: time for other keys to
/// turn up. No longer than the shortest first retry of the default policy, which thereby comes when
/// it would have come.
pub(super) const VERDICT_WAIT: Duration = Duration::from_millis(500);

/// The same where more of the destination's keys have to be fetched first, and memory may be short:
/// undecided failures take up some themselves.
pub(super) const SHELVED_VERDICT_WAIT: Duration = Duration::from_secs(10);

/// The most keys that are remembered as having failed in this outage.
const SUSPECTS_MAX: usize = 1_024;

/// Where in the order of sending an event was: its call to the destination, and its place in it.
pub(super) type Position = (u64, usize);

/// A failure that awaits its verdict.
#[derive(Debug)]
pub(super) struct Undecided {
    pub(super) id: KeyId,
    pub(super) held: Held,
    pub(super) error: Error,
    pub(super) failed_at: Duration,
    pub(super) sent: Position,
}

/// What is known of the failures of one destination.
#[derive(Debug, Default)]
pub(super) struct Suspicion {
    /// Each with the number of the first call that was sent after it was known, and with whether it
    /// is proven to be the event's own.
    undecided: Vec<(Undecided, u64, bool)>,
    /// The keys that failed last, each once, and when; since the last success.
    streak: VecDeque<(KeyId, Duration)>,
    /// Keys that failed in this outage, for probes to take other ones too.
    suspects: FxHashSet<KeyId>,
    /// The first success among the latest probes, and the calls that these were sent in.
    proven_by: Option<(Position, Range<u64>)>,
}

impl Suspicion {
    /// An event failed; the call numbered `next_call` is the first to be sent after this is known.
    pub(super) fn failed(&mut self, failure: Undecided, next_call: u64) {
        self.streak.retain(|(id, _)| *id != failure.id);
        self.streak.push_back((failure.id, failure.failed_at));
        if self.streak.len() > OUTAGE_KEYS {
            self.streak.pop_front();
        }
        let proven = self.proven_by.as_ref().is_some_and(|(success, calls)| {
            calls.contains(&failure.sent.0) && failure.sent > *success
        });
        self.undecided.push((failure, next_call, proven));
    }

    /// An event succeeded that was sent in this call.
    pub(super) fn succeeded(&mut self, call: u64) {
        self.streak.clear();
        for (_, next_call, proven) in &mut self.undecided {
            *proven |= call >= *next_call;
        }
    }

    /// A probe succeeded, sent as one of those in `calls`: the outage is over.
    pub(super) fn probe_succeeded(&mut self, success: Position, calls: Range<u64>) {
        self.suspects.clear();
        for (failure, _, proven) in &mut self.undecided {
            *proven |= calls.contains(&failure.sent.0) && failure.sent > success;
        }
        self.proven_by = Some((success, calls));
    }

    /// The destination is not suspected any more.
    pub(super) fn cleared(&mut self) {
        self.suspects.clear();
    }

    /// So many keys failed in a row that it is an outage.
    pub(super) fn is_outage(&self, now: Duration) -> bool {
        self.streak.len() == OUTAGE_KEYS
            && self.streak.front().is_some_and(|(_, at)| *at + EVIDENCE_AGE_MAX >= now)
    }

    /// Keys have failed since the last success.
    pub(super) fn has_evidence(&self) -> bool {
        !self.streak.is_empty()
    }

    /// The keys that failed in this outage.
    pub(super) const fn suspects(&self) -> &FxHashSet<KeyId> {
        &self.suspects
    }

    pub(super) const fn undecided_count(&self) -> usize {
        self.undecided.len()
    }

    pub(super) fn undecided_bytes(&self) -> usize {
        self.undecided.iter().map(|(failure, ..)| failure.held.bytes()).sum()
    }

    /// What the destination said last, of what is undecided.
    pub(super) fn last_error(&self) -> Option<&Error> {
        self.undecided.last().map(|(failure, ..)| &failure.error)
    }

    /// When the oldest undecided event failed.
    pub(super) fn undecided_since(&self) -> Option<Duration> {
        self.undecided.first().map(|(failure, ..)| failure.failed_at)
    }

    /// Failures that are proven to be their events' own.
    pub(super) fn take_proven(&mut self) -> Vec<Undecided> {
        self.take(|_, proven| proven)
    }

    /// Failures that have waited in vain, for so long, for others beside them.
    pub(super) fn take_waited(&mut self, wait: Duration, now: Duration) -> Vec<Undecided> {
        self.take(|failure, _| failure.failed_at + wait <= now)
    }

    /// All of them, which an outage excuses.
    pub(super) fn take_excused(&mut self) -> Vec<Undecided> {
        let excused = self.take(|_, _| true);
        if self.suspects.len() + excused.len() > SUSPECTS_MAX {
            self.suspects.clear();
        }
        self.suspects.extend(excused.iter().map(|failure| failure.id));
        excused
    }

    /// Failures of events whose shards go to other relays.
    pub(super) fn take_of_shards(&mut self, shards: ShardSet) -> Vec<Undecided> {
        self.take(|failure, _| shards.contains(failure.id.shard()))
    }

    fn take(&mut self, which: impl Fn(&Undecided, bool) -> bool) -> Vec<Undecided> {
        let taken = self.undecided.extract_if(.., |(failure, _, proven)| which(failure, *proven));
        taken.map(|(failure, ..)| failure).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use posthaste_core::{ErrorKind, OutboxEvent, Payload, Shard};
    use uuid::Uuid;

    const NOW: Duration = Duration::from_secs(100);

    fn failure(key: usize, sent: Position, failed_at: Duration) -> Undecided {
        let name = format!("key-{key}");
        let event = OutboxEvent::builder(Uuid::nil(), "t")
            .order_key(&*name)
            .payload(Payload::json_text("{}").expect("JSON"))
            .build()
            .expect("an event");
        let held = Held { seq: 1, due: Duration::ZERO, destination: 0, event };
        let error = Error::new(ErrorKind::Failed, "publish", "no");
        let id = KeyId::of(held.event.order_key(), Shard::default());
        Undecided { id, held, error, failed_at, sent }
    }

    /// `keys` fail, each in a call of its own.
    fn fail(suspicion: &mut Suspicion, keys: Range<usize>, now: Duration) {
        for key in keys {
            let call = key as u64;
            suspicion.failed(failure(key, (call, 0), now), call + 1);
        }
    }

    #[test]
    fn distinct_keys_in_a_row_are_an_outage_and_one_key_often_is_none() {
        let mut suspicion = Suspicion::default();
        for _ in 0..100 {
            fail(&mut suspicion, 0..OUTAGE_KEYS - 1, NOW);
        }
        assert!(!suspicion.is_outage(NOW));
        fail(&mut suspicion, 100..101, NOW);
        assert!(suspicion.is_outage(NOW));
        assert_eq!(suspicion.take_excused().len(), 100 * (OUTAGE_KEYS - 1) + 1);
    }

    #[test]
    fn a_success_between_them_makes_it_none_even_one_that_was_under_way() {
        let mut suspicion = Suspicion::default();
        fail(&mut suspicion, 1..OUTAGE_KEYS, NOW);
        suspicion.succeeded(0);
        fail(&mut suspicion, OUTAGE_KEYS..OUTAGE_KEYS + 1, NOW);
        assert!(!suspicion.is_outage(NOW));
        assert!(suspicion.take_proven().is_empty(), "it may be older than the failures");
    }

    #[test]
    fn a_success_sent_after_a_failure_was_known_proves_that_it_is_the_events_own() {
        let mut suspicion = Suspicion::default();
        suspicion.failed(failure(1, (4, 0), NOW), 7);
        suspicion.failed(failure(2, (5, 0), NOW), 8);
        suspicion.succeeded(6);
        assert!(suspicion.take_proven().is_empty());
        suspicion.succeeded(7);
        assert_eq!(suspicion.take_proven().len(), 1);
        assert_eq!(suspicion.undecided_count(), 1);
    }

    #[test]
    fn among_probes_a_success_proves_what_was_sent_behind_it() {
        let mut suspicion = Suspicion::default();
        suspicion.failed(failure(1, (3, 0), NOW), 5);
        suspicion.failed(failure(2, (3, 2), NOW), 5);
        suspicion.probe_succeeded((3, 1), 3..5);
        // One more of the same probes is answered later; one was sent after the outage.
        suspicion.failed(failure(3, (4, 0), NOW), 6);
        suspicion.failed(failure(4, (5, 0), NOW), 6);
        let proven: Vec<Position> =
            suspicion.take_proven().into_iter().map(|failure| failure.sent).collect();
        assert_eq!(proven, [(3, 2), (4, 0)]);
    }

    #[test]
    fn failures_of_long_ago_are_no_outage() {
        let mut suspicion = Suspicion::default();
        fail(&mut suspicion, 0..OUTAGE_KEYS, NOW);
        assert!(suspicion.is_outage(NOW + EVIDENCE_AGE_MAX));
        let later = NOW + EVIDENCE_AGE_MAX + Duration::from_secs(1);
        assert!(!suspicion.is_outage(later));
        fail(&mut suspicion, 0..OUTAGE_KEYS - 1, later);
        assert!(!suspicion.is_outage(later), "the key that is gone does not count");
    }

    #[test]
    fn a_failure_waits_for_others_no_longer_than_told() {
        let mut suspicion = Suspicion::default();
        fail(&mut suspicion, 0..1, NOW);
        fail(&mut suspicion, 1..2, NOW + Duration::from_millis(1));
        assert_eq!(suspicion.undecided_since(), Some(NOW));
        assert!(suspicion.take_waited(VERDICT_WAIT, NOW).is_empty());
        assert_eq!(suspicion.take_waited(VERDICT_WAIT, NOW + VERDICT_WAIT).len(), 1);
        assert_eq!(suspicion.undecided_count(), 1);
    }
}
