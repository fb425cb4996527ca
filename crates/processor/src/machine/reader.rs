//! What to ask the store next.
//!
//! Pending events are read again until they are settled; no cursor is trusted alone. The *fast
//! path* reads upward from a hint. A *sweep* reads again below the hint where a watermark shows
//! that events may have committed late. *Catch-up* reads what was left in the store for keys that
//! were stuck. One operation is under way at a time: `late_commits` rests on that, and so does
//! the rule that what was settled while a fetch ran is not taken in from it.

use std::time::Duration;

use posthaste_core::{DeadHead, PendingQuery, PendingSelection, Seq, Watermark};
use rustc_hash::{FxHashMap, FxHashSet};

use super::keys::{CatchUp, KeyId, Keys};
use super::late_commits::LateCommits;

/// Above so many keys to catch up, one read of all keys from the lowest place is cheaper than
/// asking key by key.
const CATCH_UP_KEYS_MAX: usize = 64;
/// Dead letters fetched by one query.
const DEAD_HEADS_MAX: usize = 1_000;
/// The first wait when nothing is pending; it doubles up to the poll interval.
const IDLE_WAIT_MIN: Duration = Duration::from_millis(5);
/// Between two watermarks while events flow and may commit late.
const LATE_WAIT: Duration = Duration::from_millis(20);
/// Between two watermarks while a backlog is read: late events are not the oldest then.
const LATE_WAIT_IN_BACKLOG: Duration = Duration::from_millis(100);
/// Between two watermarks where events never commit late: they only tell of retried dead letters.
const REVISION_WAIT: Duration = Duration::from_millis(500);

/// A question for the store.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Operation {
    Watermark,
    DeadHeads { after: Seq, limit: usize },
    Fetch { query: PendingQuery, purpose: Purpose },
}

/// What a fetch is for.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Purpose {
    FastPath,
    Sweep,
    CatchUp(CatchUp),
}

#[derive(Debug)]
struct Sweep {
    cursor: Seq,
    up_to: Seq,
}

/// Reading the dead letters anew; those blocking now and not found any more are unblocked.
#[derive(Debug)]
struct DeadReload {
    after: Seq,
    found: FxHashSet<Seq>,
}

#[derive(Debug)]
pub(super) struct Reader {
    late_commits_possible: bool,
    poll_interval: Duration,
    /// The fast path has passed all places up to here.
    hint: Seq,
    end_reached: bool,
    poll_at: Duration,
    idle_wait: Duration,
    late: LateCommits,
    watermark_at: Duration,
    sweep: Option<Sweep>,
    revision: Option<i64>,
    dead_reload: Option<DeadReload>,
    /// Dead letters that block a key, by place, with whether their settlement is recorded.
    blocking: FxHashMap<Seq, Blocking>,
    /// Places of events in memory or awaiting settlement.
    known: FxHashSet<Seq>,
    /// Places settled since the fetch under way was asked for.
    settled_meanwhile: FxHashSet<Seq>,
    under_way: bool,
    side_turn: bool,
    /// A watermark, and after it a look at the end, found nothing new.
    quiet: Quiet,
}

#[derive(Debug)]
struct Blocking {
    id: KeyId,
    name: posthaste_core::OrderKey,
    recorded: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Quiet {
    No,
    WatermarkRead,
    Confirmed,
}

impl Reader {
    pub(super) fn new(late_commits_possible: bool, poll_interval: Duration) -> Self {
        Self {
            late_commits_possible,
            poll_interval,
            hint: 0,
            end_reached: false,
            poll_at: Duration::ZERO,
            idle_wait: IDLE_WAIT_MIN,
            late: LateCommits::default(),
            watermark_at: Duration::ZERO,
            sweep: None,
            revision: None,
            dead_reload: None,
            blocking: FxHashMap::default(),
            known: FxHashSet::default(),
            settled_meanwhile: FxHashSet::default(),
            under_way: false,
            side_turn: false,
            quiet: Quiet::No,
        }
    }

    /// The next operation, unless one is under way or none is due. `room` is how many events and
    /// payload bytes may be taken in.
    pub(super) fn next_operation(
        &mut self,
        now: Duration,
        room: (usize, usize),
        keys: &mut Keys,
    ) -> Option<Operation> {
        if self.under_way {
            return None;
        }
        let operation = self.choose(now, room, keys)?;
        self.under_way = true;
        self.settled_meanwhile.clear();
        Some(operation)
    }

    fn choose(
        &mut self,
        now: Duration,
        (events_max, bytes_max): (usize, usize),
        keys: &mut Keys,
    ) -> Option<Operation> {
        if let Some(reload) = &self.dead_reload {
            return Some(Operation::DeadHeads { after: reload.after, limit: DEAD_HEADS_MAX });
        }
        if now >= self.watermark_at {
            return Some(Operation::Watermark);
        }
        if events_max == 0 || bytes_max == 0 {
            return None;
        }
        let fetch = |selection, purpose| {
            let query = PendingQuery { selection, events_max, bytes_max };
            Some(Operation::Fetch { query, purpose })
        };
        self.side_turn = !self.side_turn;
        let fast_path_due = !self.end_reached || now >= self.poll_at;
        if self.side_turn || !fast_path_due {
            if let Some(Sweep { cursor, up_to }) = self.sweep {
                let range = PendingSelection::Range { after: cursor, up_to: Some(up_to) };
                return fetch(range, Purpose::Sweep);
            }
            if keys.catch_up_count() > CATCH_UP_KEYS_MAX {
                self.rewind(keys);
            } else if let Some(catch_up) = keys.next_catch_up(events_max) {
                return fetch(selection_of(&catch_up), Purpose::CatchUp(catch_up));
            }
        }
        let fast_path_due = !self.end_reached || now >= self.poll_at;
        if fast_path_due {
            let range = PendingSelection::Range { after: self.hint, up_to: None };
            return fetch(range, Purpose::FastPath);
        }
        None
    }

    /// Reads all keys again from the lowest place that a key has to catch up.
    fn rewind(&mut self, keys: &mut Keys) {
        let Some(first) = keys.rewind_catch_up() else { return };
        self.hint = self.hint.min(first - 1);
        self.end_reached = false;
        // What lies above the hint is the fast path's again; a sweep there could take a later
        // event of a key before an earlier one.
        if let Some(sweep) = &mut self.sweep {
            sweep.up_to = sweep.up_to.min(self.hint);
            if sweep.cursor >= sweep.up_to {
                self.sweep = None;
            }
        }
    }

    /// When the next operation is due, if time alone decides.
    pub(super) fn next_due(&self) -> Option<Duration> {
        if self.under_way {
            return None;
        }
        Some(if self.end_reached { self.poll_at.min(self.watermark_at) } else { self.watermark_at })
    }

    /// There may be new events: look at once.
    pub(super) fn wake(&mut self, now: Duration) {
        self.poll_at = now;
        self.idle_wait = IDLE_WAIT_MIN;
    }

    /// Takes a watermark.
    pub(super) fn watermark_read(&mut self, watermark: &Watermark, now: Duration) {
        self.under_way = false;
        let after = self.late.observe(watermark);
        if after < self.hint && self.late_commits_possible {
            self.sweep_after(after);
        }
        if self.revision != Some(watermark.revision) {
            let first = self.revision.replace(watermark.revision).is_none();
            self.dead_reload = Some(DeadReload { after: 0, found: FxHashSet::default() });
            if !first {
                self.sweep_after(0);
                self.quiet = Quiet::No;
            }
        }
        self.watermark_at = now + self.watermark_wait();
        if self.quiet == Quiet::No {
            self.quiet = Quiet::WatermarkRead;
        }
    }

    fn watermark_wait(&self) -> Duration {
        if !self.late_commits_possible {
            REVISION_WAIT
        } else if !self.end_reached {
            LATE_WAIT_IN_BACKLOG
        } else if self.late.writers_are_open() || self.quiet == Quiet::No {
            LATE_WAIT
        } else {
            LATE_WAIT.max(self.idle_wait)
        }
    }

    /// Adds the range from `after` to the hint to what is swept.
    fn sweep_after(&mut self, after: Seq) {
        let hint = self.hint;
        if after >= hint {
            return;
        }
        match &mut self.sweep {
            Some(sweep) => {
                sweep.cursor = sweep.cursor.min(after);
                sweep.up_to = sweep.up_to.max(hint);
            }
            None => self.sweep = Some(Sweep { cursor: after, up_to: hint }),
        }
    }

    /// Takes a page of dead letters; returns those that block their key, and, when it was the
    /// last page, the keys that are not blocked any more.
    pub(super) fn dead_heads_read(&mut self, heads: &[DeadHead]) -> Vec<Blocked> {
        self.under_way = false;
        let Some(reload) = &mut self.dead_reload else { return Vec::new() };
        reload.found.extend(heads.iter().map(|head| head.seq));
        if let Some(last) = heads.last()
            && heads.len() >= DEAD_HEADS_MAX
        {
            reload.after = last.seq;
            return Vec::new();
        }
        let found = self.dead_reload.take().map(|reload| reload.found).unwrap_or_default();
        let gone =
            self.blocking.extract_if(|seq, blocking| blocking.recorded && !found.contains(seq));
        gone.map(|(_, blocking)| Blocked { id: blocking.id, name: blocking.name }).collect()
    }

    /// The event at `seq` is dead and blocks its key.
    pub(super) fn blocks(
        &mut self,
        seq: Seq,
        id: KeyId,
        name: posthaste_core::OrderKey,
        recorded: bool,
    ) {
        self.blocking.entry(seq).or_insert(Blocking { id, name, recorded });
    }

    /// For each of these keys, the smallest place of a dead letter that still blocks it.
    pub(super) fn still_blocking(&self, ids: &FxHashSet<KeyId>) -> FxHashMap<KeyId, Seq> {
        let mut first: FxHashMap<KeyId, Seq> = FxHashMap::default();
        for (seq, blocking) in
            self.blocking.iter().filter(|(_, blocking)| ids.contains(&blocking.id))
        {
            first.entry(blocking.id).and_modify(|first| *first = *seq.min(first)).or_insert(*seq);
        }
        first
    }

    /// Whether an event found by a fetch is new here.
    pub(super) fn is_new(&self, seq: Seq) -> bool {
        !self.known.contains(&seq) && !self.settled_meanwhile(seq)
    }

    /// Whether the fetch under way may have read the event before it was settled.
    pub(super) fn settled_meanwhile(&self, seq: Seq) -> bool {
        self.settled_meanwhile.contains(&seq)
    }

    /// The event is in memory.
    pub(super) fn remember(&mut self, seq: Seq) {
        self.known.insert(seq);
        self.quiet = Quiet::No;
    }

    /// The event is not in memory any more, and nothing about it awaits settlement.
    pub(super) fn forget(&mut self, seq: Seq) {
        self.known.remove(&seq);
        if self.under_way {
            self.settled_meanwhile.insert(seq);
        }
    }

    /// The outcome of the event is recorded; `kept` says whether it stays in memory.
    pub(super) fn settled(&mut self, seq: Seq, kept: bool) {
        if !kept {
            self.known.remove(&seq);
        }
        if self.under_way {
            self.settled_meanwhile.insert(seq);
        }
        if let Some(blocking) = self.blocking.get_mut(&seq) {
            blocking.recorded = true;
        }
    }

    /// A page of the fast path: the last place in it, whether more follow, and whether any was
    /// new.
    pub(super) fn fast_path_read(
        &mut self,
        last: Option<Seq>,
        more: bool,
        any_new: bool,
        now: Duration,
    ) {
        self.under_way = false;
        self.hint = last.unwrap_or(self.hint).max(self.hint);
        self.end_reached = !more;
        if any_new {
            self.idle_wait = IDLE_WAIT_MIN.min(self.poll_interval);
            self.quiet = Quiet::No;
            // Late events are close behind the ones that were just found.
            self.watermark_at = self.watermark_at.min(now + self.watermark_wait());
        } else if !more && self.quiet == Quiet::WatermarkRead && self.sweep.is_none() {
            self.quiet = Quiet::Confirmed;
        }
        if self.end_reached {
            self.poll_at = now + self.idle_wait;
            if !any_new {
                self.idle_wait = (self.idle_wait * 2).min(self.poll_interval);
            }
        }
    }

    /// A page of a sweep.
    pub(super) fn sweep_read(&mut self, last: Option<Seq>, more: bool) {
        self.under_way = false;
        match (&mut self.sweep, last) {
            (Some(sweep), Some(last)) if more => sweep.cursor = last,
            _ => self.sweep = None,
        }
    }

    /// A fetch for keys ended.
    pub(super) fn catch_up_read(&mut self) {
        self.under_way = false;
        self.quiet = Quiet::No;
    }

    /// The operation failed: it is asked again after the store's pause.
    pub(super) fn failed(&mut self) {
        self.under_way = false;
    }

    /// Every place has been looked at once.
    pub(super) fn end_reached(&self) -> bool {
        self.end_reached
            && self.sweep.is_none()
            && self.dead_reload.is_none()
            && self.revision.is_some()
    }

    /// Nothing is left to do but to make sure: takes the second look at once.
    pub(super) fn confirm_quiet(&mut self, now: Duration) {
        match self.quiet {
            Quiet::No => self.watermark_at = now,
            Quiet::WatermarkRead => self.poll_at = now,
            Quiet::Confirmed => {}
        }
    }

    /// A second look, after a watermark, found nothing new.
    pub(super) fn is_quiet(&self) -> bool {
        self.end_reached() && self.quiet == Quiet::Confirmed && !self.under_way
    }

    /// No pending event that is unknown here lies at or below this place, open writers aside.
    pub(super) fn hint(&self) -> Seq {
        self.hint
    }
}

/// A key to unblock.
#[derive(Debug)]
pub(super) struct Blocked {
    pub(super) id: KeyId,
    pub(super) name: posthaste_core::OrderKey,
}

fn selection_of(catch_up: &CatchUp) -> PendingSelection {
    match catch_up {
        CatchUp::At(places) => PendingSelection::At(places.iter().map(|(_, seq)| *seq).collect()),
        CatchUp::Key { name, range, .. } => {
            PendingSelection::Key { key: name.clone(), after: range.first - 1, up_to: range.last }
        }
    }
}
