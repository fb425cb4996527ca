//! What to ask the store next.
//!
//! Pending events are read again until they are settled; no cursor is trusted alone. A *forward*
//! read goes upward from a hint and covers, in the same snapshot, the gaps it left (see `gaps`).
//! *Catch-up* reads what was left in the store for keys that were stuck. One operation is under
//! way at a time: `gaps` rests on that, and so does the rule that what was settled while a fetch
//! ran is not taken in from it.

use std::time::Duration;

use posthaste_core::{PendingQuery, PendingSelection, Seq, Watermark};

use crate::keys::{CatchUp, Keys};
use crate::read::dead_letters::{self, DeadLetters};
use crate::read::gaps::Gaps;
use crate::share::leases::Leases;

/// Above so many keys to catch up, one read of all keys from the lowest place is cheaper than
/// asking key by key.
const CATCH_UP_KEYS_MAX: usize = 64;
/// After a look that reached the end, the next waits for a quarter of the time that nothing came, up
/// to the poll interval: so an event is found late by a quarter of the time it took to come.
const QUIET_DIVISOR: u32 = 4;
/// While events flow, it waits twice as long as the look took: a busy database is asked less often.
const REST_FACTOR: u32 = 2;
/// The least and the most of that: a look may also take long because the database is far away.
const REST: (Duration, Duration) = (Duration::from_micros(500), Duration::from_millis(5));
/// Before the last look, that is to find nothing, when an outbox is drained.
const CONFIRM_WAIT: Duration = Duration::from_millis(1);
/// Between two watermarks while there are gaps to close.
const GAPS_WAIT: Duration = Duration::from_millis(50);
/// Between two watermarks otherwise: they tell of retried dead letters, and keep what is proven
/// close to what is read.
const REVISION_WAIT: Duration = Duration::from_millis(500);

/// A question for the store.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Operation {
    Watermark,
    DeadHeads { after: Seq, limit: usize },
    Fetch { query: PendingQuery, purpose: Purpose },
}

/// What a fetch is for.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Purpose {
    Forward,
    CatchUp(CatchUp),
}

#[derive(Debug)]
pub(crate) struct Reader {
    poll_interval: Duration,
    /// All places up to here have been passed.
    hint: Seq,
    /// The highest place that the hint ever was at.
    passed: Seq,
    gaps: Gaps,
    /// An operator may have changed events up to here: they are read again.
    recheck_up_to: Seq,
    end_reached: bool,
    /// The last forward read found nothing new.
    quiet: bool,
    poll_at: Duration,
    /// When something new was found last, or announced.
    news_at: Duration,
    /// There may be events that the forward read under way does not see.
    woken: bool,
    watermark_at: Duration,
    revision: Option<i64>,
    incarnation: Option<i64>,
    /// Dead letters that block their keys.
    pub(crate) dead_letters: DeadLetters,
    /// When the operation under way was asked for.
    asked_at: Option<Duration>,
    /// The answer to the operation under way is not wanted any more.
    stale: bool,
    /// After a slow look that found nothing: the database is not to be kept busy with nothing else.
    rest_until: Duration,
    catch_up_turn: bool,
    /// What the database may be asked for now.
    allowed: Allowed,
    /// Other relays deliver some of the numbers that this one passes.
    shares: bool,
}

/// What the database may be asked for: each kind of read has pauses of its own.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Allowed {
    pub(crate) watermarks: bool,
    pub(crate) dead_letters: bool,
    pub(crate) events: bool,
}

impl Default for Allowed {
    fn default() -> Self {
        Self { watermarks: true, dead_letters: true, events: true }
    }
}

impl Reader {
    pub(crate) fn new(poll_interval: Duration) -> Self {
        Self {
            poll_interval,
            hint: 0,
            passed: 0,
            gaps: Gaps::default(),
            recheck_up_to: 0,
            end_reached: false,
            quiet: false,
            poll_at: Duration::ZERO,
            news_at: Duration::ZERO,
            woken: false,
            watermark_at: Duration::ZERO,
            revision: None,
            incarnation: None,
            dead_letters: DeadLetters::default(),
            asked_at: None,
            stale: false,
            rest_until: Duration::ZERO,
            catch_up_turn: false,
            allowed: Allowed::default(),
            shares: false,
        }
    }

    /// The next operation, unless one is under way or none is due. `room` is how many events and
    /// payload bytes may be taken in, `leases` say whose events are wanted.
    pub(crate) fn next_operation(
        &mut self,
        now: Duration,
        room: (usize, usize),
        leases: &Leases,
        keys: &mut Keys,
    ) -> Option<Operation> {
        if self.asked_at.is_some() {
            return None;
        }
        let operation = self.choose(now, room, leases, keys)?;
        self.asked_at = Some(now);
        keys.known.read_begins();
        Some(operation)
    }

    fn choose(
        &mut self,
        now: Duration,
        (events_max, bytes_max): (usize, usize),
        leases: &Leases,
        keys: &mut Keys,
    ) -> Option<Operation> {
        let dead_letters =
            |after| Some(Operation::DeadHeads { after, limit: dead_letters::PAGE_MAX });
        let urgent = self.dead_letters.next_page();
        if let Some(after) = urgent
            && self.allowed.dead_letters
        {
            return dead_letters(after);
        }
        if now >= self.watermark_at && self.allowed.watermarks {
            return Some(Operation::Watermark);
        }
        // Nothing is read before it is known which database answers, and which keys are blocked.
        if urgent.is_some() || now >= self.watermark_at {
            return None;
        }
        if self.allowed.dead_letters
            && let Some(after) = self.dead_letters.next_slow_page(now)
        {
            return dead_letters(after);
        }
        if !self.allowed.events {
            return None;
        }
        if events_max == 0 || bytes_max == 0 {
            return None;
        }
        let fetch = |selection, purpose| {
            let query =
                PendingQuery { selection, leases: leases.active_leases(), events_max, bytes_max };
            Some(Operation::Fetch { query, purpose })
        };
        self.catch_up_turn = !self.catch_up_turn;
        if self.catch_up_turn || !self.forward_is_due(now) {
            if keys.catch_up_ranges() > CATCH_UP_KEYS_MAX {
                if let Some(first) = keys.rewind_catch_up() {
                    self.rewind(first - 1);
                }
            } else if let Some(catch_up) = keys.next_catch_up(events_max) {
                return fetch(selection_of(&catch_up), Purpose::CatchUp(catch_up));
            }
        }
        if self.forward_is_due(now) {
            self.shares = !leases.active().is_all();
            self.woken = false;
            let forward = PendingSelection::Forward { gaps: self.gaps.ranges(), after: self.hint };
            return fetch(forward, Purpose::Forward);
        }
        None
    }

    fn forward_is_due(&self, now: Duration) -> bool {
        !self.end_reached || now >= self.poll_at
    }

    /// Reads everything above `after` again.
    fn rewind(&mut self, after: Seq) {
        if after < self.hint {
            self.hint = after;
            self.gaps.rewind(after);
        }
        self.end_reached = false;
        self.quiet = false;
    }

    /// When something comes due: the next watermark, the next look at an idle outbox.
    pub(crate) fn due(&self) -> [Option<Duration>; 2] {
        if self.asked_at.is_some() {
            return [None; 2];
        }
        [Some(self.watermark_at), self.end_reached.then_some(self.poll_at)]
    }

    /// When the next page of dead letters is due that nothing waits for.
    pub(crate) fn dead_letters_due(&self) -> Option<Duration> {
        self.dead_letters.slow_due().filter(|_| self.asked_at.is_none())
    }

    /// What may be asked for from now on.
    pub(crate) const fn allow(&mut self, allowed: Allowed) {
        self.allowed = allowed;
    }

    /// Whether this place was passed and is proven to be empty, as far as is known.
    pub(crate) fn has_passed(&self, seq: Seq) -> bool {
        seq <= self.hint && !self.gaps.contains(seq)
    }

    /// There may be new events: look at once.
    pub(crate) fn wake(&mut self, now: Duration) {
        self.woken = true;
        self.news_at = now;
        self.poll_at = now.max(self.rest_until);
    }

    /// Takes a watermark. Returns whether somebody may have changed what waits.
    pub(crate) fn watermark_read(&mut self, watermark: &Watermark, now: Duration) -> bool {
        self.asked_at = None;
        self.stale = false;
        let another = self.incarnation.replace(watermark.incarnation);
        let another = another.is_some_and(|before| before != watermark.incarnation);
        // Numbers went back: the database was restored, or emptied and begun anew.
        let went_back = watermark.high < self.passed.max(self.gaps.high());
        if another || went_back {
            self.recheck_up_to = self.recheck_up_to.max(self.passed);
            self.gaps.forget();
            self.passed = 0;
            self.rewind(0);
        }
        self.gaps.observe(watermark);
        let before = self.revision.replace(watermark.revision);
        if before.is_some_and(|before| before != watermark.revision) {
            self.recheck_up_to = self.recheck_up_to.max(self.passed);
            self.rewind(0);
        }
        if another || before != Some(watermark.revision) || self.dead_letters.wants_round() {
            self.dead_letters.begin_round();
        }
        self.watermark_at = now + if self.gaps.is_empty() { REVISION_WAIT } else { GAPS_WAIT };
        another || before != Some(watermark.revision)
    }

    /// The outcome of the event is recorded, and it is not pending any more.
    pub(crate) fn settled(&mut self, seq: Seq) {
        if self.shares && seq <= self.hint {
            self.gaps.reopen(seq);
        }
        // A retry recorded late says nothing of the death that followed it.
        self.dead_letters.recorded(seq);
    }

    /// A page of a forward read: its places, whether it was cut short, and whether any event in
    /// it was new.
    pub(crate) fn forward_read(
        &mut self,
        places: &[Seq],
        more: bool,
        any_new: bool,
        now: Duration,
    ) {
        let took = self.asked_at.take().map_or(Duration::ZERO, |asked| now.saturating_sub(asked));
        let had_gaps = !self.gaps.is_empty();
        self.hint = self.gaps.page_read(self.hint, places, more);
        self.passed = self.passed.max(self.hint);
        if !had_gaps && !self.gaps.is_empty() {
            self.watermark_at = self.watermark_at.min(now + GAPS_WAIT);
        }
        self.end_reached = !more;
        self.quiet = !more && !any_new;
        if any_new {
            self.news_at = now;
        }
        if self.end_reached {
            self.rest_until = if any_new { now } else { now + took };
            let wait = if self.woken { Duration::ZERO } else { self.wait(took, now) };
            self.poll_at = (now + wait).max(self.rest_until);
        }
    }

    /// Between a look that took so long and the next, unless something is announced.
    fn wait(&self, took: Duration, now: Duration) -> Duration {
        let quiet_for = now.saturating_sub(self.news_at);
        let rest = (took * REST_FACTOR).clamp(REST.0, REST.1);
        (quiet_for / QUIET_DIVISOR).max(rest).min(self.poll_interval)
    }

    /// A page of dead letters, or a fetch for keys, was read.
    pub(crate) fn answered(&mut self) {
        self.asked_at = None;
    }

    /// The operation failed: it is asked again after the store's pause. Before anything is read, a
    /// watermark says whether it is the same database that answers then: one that was restored
    /// hands out numbers again, and is read from its start.
    pub(crate) fn failed(&mut self) {
        self.asked_at = None;
        self.stale = false;
        self.watermark_at = Duration::ZERO;
    }

    /// Other relays' shards are this one's now: what they left is read from the start, their dead
    /// letters first. What was asked before may be older than what those relays did last.
    pub(crate) fn shards_gained(&mut self) {
        self.stale = self.asked_at.is_some();
        self.dead_letters.begin_round();
        self.rewind(0);
    }

    /// Whether the answer that has just come is of no use any more. Ends the operation if so.
    pub(crate) fn discards(&mut self) -> bool {
        let stale = self.stale;
        if stale {
            self.failed();
        }
        stale
    }

    /// Every place has been looked at once.
    pub(crate) fn end_reached(&self) -> bool {
        self.end_reached && self.dead_letters.next_page().is_none() && self.revision.is_some()
    }

    /// The last look at all places found nothing new.
    pub(crate) fn is_quiet(&self) -> bool {
        self.end_reached() && self.quiet && !self.woken && self.asked_at.is_none()
    }

    /// Nothing is left to do but to make sure: looks again at once. In the future all the same: a
    /// time that has come is no deadline to wait for.
    pub(crate) fn confirm_quiet(&mut self, now: Duration) {
        self.poll_at = self.poll_at.min(now + CONFIRM_WAIT);
    }

    /// Whether an operator may have changed the event at this place since it was read first.
    pub(crate) fn is_rechecked(&self, seq: Seq) -> bool {
        seq <= self.recheck_up_to
    }

    /// Up to where the outbox has been read.
    pub(crate) fn hint(&self) -> Seq {
        self.hint
    }
}

/// One snapshot of the range is enough, gaps below it or not: an event of the key that is still to
/// turn up below one already seen would have been drawn without holding the key.
fn selection_of(catch_up: &CatchUp) -> PendingSelection {
    match catch_up {
        CatchUp::At(places) => PendingSelection::At(places.iter().map(|(_, seq)| *seq).collect()),
        CatchUp::Key { name, range, .. } => {
            PendingSelection::Key { key: name.clone(), after: range.first - 1, up_to: range.last }
        }
    }
}

#[cfg(test)]
mod tests;
