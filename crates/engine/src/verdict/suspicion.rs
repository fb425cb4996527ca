//! Whose fault is a failure that anything may have caused, a 500 or a 503 for one? The event's own, which
//! counts an attempt, or the destination's, which is an outage and counts none.
//!
//! The bus says what it met and about whom; what follows is decided here, for all buses alike, from
//! what *other* keys meet at the destination. The table stands in ARCHITECTURE.md. A failure is
//! *undecided* at first: its event stays taken, so that its key waits, and nothing is recorded.
//!
//! - [`OUTAGE_KEYS`] distinct keys failed in a row, and none succeeded between them: an outage. The
//!   destination is paused, and everything undecided goes back uncounted. Events that chose their own
//!   path or subject are one voice for each of these, and a key whose failure was refuted before, since
//!   others were taken after it, is none.
//! - An event succeeded that was sent after the failure was known, by a destination that takes nearly
//!   all: the event's own; where the answer spoke of the destination, if it does so still after a while. A success that was under way meanwhile proves nothing, for it may be older
//!   than the outage. Among the probes of a paused destination, which are sent together, one success
//!   proves those sent behind it. Where more than one event in [`OUTAGE_KEYS`] fails at its first try, as
//!   while a deployment replaces one instance after the other, a failure proves nothing either.
//! - The same key failed in the same way before, and was found to be at fault: its own again.
//! - Otherwise, and where nothing more is there to send that could tell, the event is tried *again*
//!   after a pause that grows, and counts nothing; its row says why it waits.
//! - That has an end: after the patience of the settings, a failure that others refuted is the event's
//!   own, and so is one that only the event itself is named for and that nothing else tells about.

use std::collections::VecDeque;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::ops::Range;
use std::time::Duration;

use posthaste_core::{Error, ErrorKind, OrderKey, Seq, ShardSet, Subject};
use rustc_hash::FxHashMap;
use uuid::Uuid;

use crate::keys::key::{Held, KeyId};
use crate::verdict::outage::PAUSES;
use crate::verdict::outage::UncountedKey;

/// So many distinct keys that fail in a row are an outage, and so many keys probe whether it is over.
///
/// Few enough that the first burst of an outage shows it, and that a quiet outbox has them soon.
/// Enough that keys with troubles of their own do not look like one: where one event in ten is
/// poison, eight in a row come once in a hundred million; where it is every second one, once in 256.
/// A false alarm costs a pause of a quarter of a second and no attempt.
pub(crate) const OUTAGE_KEYS: usize = 8;

/// A failure longer ago says nothing about now. Long, so that an outage shows on an outbox where
/// only now and then something is stored. Not for ever, so that poison which is left alone at a
/// paused destination, after operators discarded the rest, ends as dead letters all the same.
pub(crate) const EVIDENCE_AGE_MAX: Duration = Duration::from_secs(300);

/// How long a failure stays undecided when nothing more is there to send: time for other keys to
/// turn up. No longer than the shortest first retry of the default policy, which thereby comes when
/// it would have come.
pub(crate) const VERDICT_WAIT: Duration = Duration::from_millis(500);

/// The same where more of the destination's keys have to be fetched first, and memory may be short:
/// undecided failures take up some themselves.
pub(crate) const SHELVED_VERDICT_WAIT: Duration = Duration::from_secs(10);

/// A destination that takes some events and fails others, as while its leader is elected or its
/// instances are replaced, has come to rest by then.
pub(crate) const SETTLES_WITHIN: Duration = Duration::from_secs(10);

/// The most keys that are remembered as failing.
const SUSPECTS_MAX: usize = 1_024;

/// Where in the order of sending an event was: its call to the destination, and its place in it.
pub(crate) type Position = (u64, usize);

/// A failure that awaits its verdict.
#[derive(Debug)]
pub(crate) struct Undecided {
    pub(crate) id: KeyId,
    pub(crate) held: Held,
    pub(crate) error: Error,
    pub(crate) failed_at: Duration,
    pub(crate) sent: Position,
}

/// What is decided of a failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// The event's own: it counts an attempt.
    Own,
    /// Nothing tells yet: it is tried again after a pause, and counts none.
    Again(Duration),
}

/// What a verdict needs to know beside the failures.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Situation {
    pub(crate) now: Duration,
    /// How long a failure waits for others to tell; `None` while there are others under way or ready.
    pub(crate) wait: Option<Duration>,
    /// How long a failure that nothing proves to be the event's own counts nothing.
    pub(crate) patience: Duration,
    /// A number from 0 to 1, for the jitter of pauses.
    pub(crate) random: f64,
}

/// Who speaks against a destination.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Voice {
    Key(KeyId),
    /// All events that go this way, whatever their keys.
    Route(u64),
}

impl Voice {
    fn of(failure: &Undecided) -> Self {
        if failure.error.subject() != Subject::Route {
            return Self::Key(failure.id);
        }
        let event = &failure.held.event;
        let mut hasher = DefaultHasher::new();
        (event.topic(), event.topic().is_none().then(|| event.event_type())).hash(&mut hasher);
        Self::Route(hasher.finish())
    }
}

/// A failure and what speaks for its being the event's own.
#[derive(Debug)]
struct Trouble {
    failure: Undecided,
    /// The number of the first call that was sent after it was known.
    next_call: u64,
    proven: bool,
}

/// A key whose head fails.
#[derive(Debug)]
struct Suspect {
    /// Its first event, for operators.
    head: (Seq, Uuid),
    key: OrderKey,
    /// Its first failure since its last success.
    since: Duration,
    /// The first call after its latest failure was known.
    next_call: u64,
    /// When it failed first after others had been taken.
    refuted_at: Option<Duration>,
    /// What it was found to be at fault with.
    convicted: Option<ErrorKind>,
    /// Tries that counted nothing.
    uncounted: u32,
}

/// What is known of the failures of one destination.
#[derive(Debug, Default)]
pub(crate) struct Suspicion {
    undecided: Vec<Trouble>,
    /// Who failed last, each once, and when; since the last success.
    streak: VecDeque<(Voice, Duration)>,
    suspects: FxHashMap<KeyId, Suspect>,
    /// The first success among the latest probes, and the calls that these were sent in.
    proven_by: Option<(Position, Range<u64>)>,
    /// The latest call that something succeeded of.
    last_success: Option<u64>,
    /// The latest outcomes of keys at their first try, a bit each, set for a failure. That a further
    /// try succeeded tells of luck, not of health.
    recent: u32,
}

impl Suspicion {
    /// An event failed; the call numbered `next_call` is the first to be sent after this is known.
    pub(crate) fn failed(&mut self, failure: Undecided, next_call: u64) {
        let proven = self.proven_by.as_ref().is_some_and(|(success, calls)| {
            calls.contains(&failure.sent.0) && failure.sent > *success
        });
        if self.suspects(&failure, next_call) {
            let voice = Voice::of(&failure);
            self.streak.retain(|(other, _)| *other != voice);
            self.streak.push_back((voice, failure.failed_at));
            if self.streak.len() > OUTAGE_KEYS {
                self.streak.pop_front();
            }
        }
        self.undecided.push(Trouble { failure, next_call, proven });
    }

    /// Remembers the key as one that fails. Returns whether it speaks against the destination.
    fn suspects(&mut self, failure: &Undecided, next_call: u64) -> bool {
        if !self.suspects.contains_key(&failure.id) {
            self.recent = self.recent << 1 | 1;
            if self.suspects.len() >= SUSPECTS_MAX {
                self.suspects.retain(|_, suspect| suspect.convicted.is_some());
            }
            if self.suspects.len() >= SUSPECTS_MAX {
                self.suspects.clear();
            }
        }
        let last_success = self.last_success;
        let event = &failure.held.event;
        let head = (failure.held.seq, event.id());
        let suspect = self.suspects.entry(failure.id).or_insert_with(|| Suspect {
            head,
            key: event.order_key().clone(),
            since: failure.failed_at,
            next_call: u64::MAX,
            refuted_at: None,
            convicted: None,
            uncounted: 0,
        });
        if last_success.is_some_and(|call| call >= suspect.next_call) {
            suspect.refuted_at.get_or_insert(failure.failed_at);
        }
        suspect.head = head;
        suspect.next_call = next_call;
        suspect.refuted_at.is_none() && suspect.convicted.is_none()
    }

    /// An event of this key succeeded that was sent in this call.
    pub(crate) fn succeeded(&mut self, id: KeyId, call: u64) {
        self.last_success = self.last_success.max(Some(call));
        self.streak.clear();
        if self.suspects.remove(&id).is_none() {
            self.recent <<= 1;
        }
        for trouble in &mut self.undecided {
            trouble.proven |= call >= trouble.next_call;
        }
    }

    /// A probe succeeded, sent as one of those in `calls`: the outage is over.
    pub(crate) fn probe_succeeded(&mut self, success: Position, calls: Range<u64>) {
        for trouble in &mut self.undecided {
            let sent = trouble.failure.sent;
            trouble.proven |= calls.contains(&sent.0) && sent > success;
        }
        self.proven_by = Some((success, calls));
    }

    /// So many keys failed in a row that it is an outage.
    pub(crate) fn is_outage(&self, now: Duration) -> bool {
        self.streak.len() == OUTAGE_KEYS
            && self.streak.front().is_some_and(|(_, at)| *at + EVIDENCE_AGE_MAX >= now)
    }

    /// Keys have failed since the last success.
    pub(crate) fn has_evidence(&self) -> bool {
        !self.streak.is_empty()
    }

    /// The destination has taken an event since this relay began.
    pub(crate) const fn ever_succeeded(&self) -> bool {
        self.last_success.is_some()
    }

    /// The head of this key is a dead letter: what comes after it is judged anew.
    pub(crate) fn forget(&mut self, id: KeyId) {
        self.suspects.remove(&id);
    }

    /// Whether a failure of this key was found to be its own before.
    pub(crate) fn is_convicted(&self, id: KeyId) -> bool {
        self.suspects.get(&id).is_some_and(|suspect| suspect.convicted.is_some())
    }

    /// Whether the head of this key fails.
    pub(crate) fn is_suspect(&self, id: KeyId) -> bool {
        self.suspects.contains_key(&id)
    }

    /// Forgets the keys that nothing waits of any more: it was discarded, or goes elsewhere.
    pub(crate) fn retain(&mut self, waits: impl Fn(KeyId) -> bool) {
        self.suspects.retain(|id, _| waits(*id));
    }

    /// How many keys fail of which no attempt was counted, and `limit` of them, the lowest places first.
    pub(crate) fn uncounted(&self, limit: usize) -> (usize, Vec<UncountedKey>) {
        let uncounted = self.suspects.values().filter(|suspect| suspect.convicted.is_none());
        let mut keys: Vec<&Suspect> = uncounted.collect();
        keys.sort_unstable_by_key(|suspect| suspect.head);
        let named = keys.iter().take(limit).map(|suspect| UncountedKey {
            seq: suspect.head.0,
            id: suspect.head.1,
            key: suspect.key.to_string(),
        });
        (keys.len(), named.collect())
    }

    /// Keys whose heads fail.
    pub(crate) fn suspects_count(&self) -> usize {
        self.suspects.len()
    }

    pub(crate) const fn undecided_count(&self) -> usize {
        self.undecided.len()
    }

    pub(crate) fn undecided_bytes(&self) -> usize {
        self.undecided.iter().map(|trouble| trouble.failure.held.bytes()).sum()
    }

    /// What the destination said last, of what is undecided.
    pub(crate) fn last_error(&self) -> Option<&Error> {
        self.undecided.last().map(|trouble| &trouble.failure.error)
    }

    /// When the oldest undecided event failed.
    pub(crate) fn undecided_since(&self) -> Option<Duration> {
        self.undecided.first().map(|trouble| trouble.failure.failed_at)
    }

    /// At its first try, nearly everything is taken.
    const fn is_healthy(&self) -> bool {
        self.recent.count_ones() as usize * OUTAGE_KEYS <= u32::BITS as usize
    }

    /// Takes the failures of which it can be told what to do.
    pub(crate) fn decide(&mut self, situation: &Situation) -> Vec<(Undecided, Verdict)> {
        let verdicts: Vec<Option<Verdict>> =
            self.undecided.iter().map(|trouble| self.verdict(trouble, situation)).collect();
        let mut verdicts_left = verdicts.iter();
        let decided: Vec<Trouble> = self
            .undecided
            .extract_if(.., |_| verdicts_left.next().is_some_and(Option::is_some))
            .collect();
        let decided: Vec<(Undecided, Verdict)> = decided
            .into_iter()
            .map(|trouble| trouble.failure)
            .zip(verdicts.into_iter().flatten())
            .collect();
        for (failure, verdict) in &decided {
            if let Some(suspect) = self.suspects.get_mut(&failure.id) {
                match verdict {
                    Verdict::Own => suspect.convicted = Some(failure.error.kind()),
                    Verdict::Again(_) => suspect.uncounted = suspect.uncounted.saturating_add(1),
                }
            }
        }
        decided
    }

    fn verdict(&self, trouble: &Trouble, situation: &Situation) -> Option<Verdict> {
        let Situation { now, wait, patience, random } = *situation;
        let failure = &trouble.failure;
        let suspect = self.suspects.get(&failure.id);
        let convicted = suspect.is_some_and(|it| it.convicted == Some(failure.error.kind()));
        let refuted_at = suspect.and_then(|it| it.refuted_at);
        let refuted_long = refuted_at.is_some_and(|at| at.saturating_add(patience) <= now);
        let named_alone = failure.error.subject() == Subject::Event;
        // What a destination says that is down may be true from one moment to the next, as while its
        // leader is elected: it counts when it is said still, although others were taken meanwhile.
        let said_still = |at: Duration| at.saturating_add(SETTLES_WITHIN) <= now;
        let holds = named_alone || refuted_at.is_some_and(said_still);
        if (trouble.proven && holds && self.is_healthy()) || convicted || refuted_long {
            return Some(Verdict::Own);
        }
        let waited = wait.is_some_and(|wait| failure.failed_at.saturating_add(wait) <= now);
        if !waited && !trouble.proven {
            return None;
        }
        let since = suspect.map_or(failure.failed_at, |it| it.since);
        if waited && named_alone && since.saturating_add(patience) <= now {
            return Some(Verdict::Own);
        }
        let pause = PAUSES.delay(suspect.map_or(1, |it| it.uncounted + 1), random);
        Some(Verdict::Again(pause.max(failure.error.retry_after().unwrap_or_default())))
    }

    /// All of them, which an outage excuses.
    pub(crate) fn take_excused(&mut self) -> Vec<Undecided> {
        self.undecided.drain(..).map(|trouble| trouble.failure).collect()
    }

    /// Failures of events whose shards go to other relays.
    pub(crate) fn take_of_shards(&mut self, shards: ShardSet) -> Vec<Undecided> {
        self.suspects.retain(|id, _| !shards.contains(id.shard()));
        self.undecided
            .extract_if(.., |trouble| shards.contains(trouble.failure.id.shard()))
            .map(|trouble| trouble.failure)
            .collect()
    }
}

#[cfg(test)]
mod tests;
