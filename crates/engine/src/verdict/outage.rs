//! A breaker per destination: an outage pauses it and counts no attempt.

use std::time::Duration;

use posthaste_core::{Error, ErrorKind, RetryPolicy, Seq};
use uuid::Uuid;

use crate::keys::key::KeyId;
use crate::send::window::Window;
use crate::verdict::suspicion::{OUTAGE_KEYS, Position, Suspicion, Undecided};

/// How pauses grow, of a destination and of an event that counts nothing: quick enough to resume soon,
/// slow enough to leave a sick server alone.
pub(crate) const PAUSES: RetryPolicy = RetryPolicy {
    base_delay: Duration::from_millis(250),
    max_delay: Duration::from_secs(5),
    backoff_multiplier: 2.0,
    jitter: true,
};

/// The most between two early probes of a destination that asked to be left alone. No longer than good
/// events may be late where only poison is answered so; seldom enough for a destination that means it.
const EARLY_PROBES_APART_MAX: Duration = Duration::from_secs(1);

/// Closed, open or half-open.
#[derive(Debug, Default)]
pub(crate) struct Outage {
    state: State,
    /// What the destination last said; kept while half-open.
    error: Option<String>,
    /// Calls sent so far: the number of the next one.
    calls: u64,
    /// Failures that may be the destination's or their events' own.
    pub(crate) suspicion: Suspicion,
    /// How many events may be on their way.
    pub(crate) window: Window,
    /// The first failure since the last success.
    failing_since: Option<Duration>,
    last_error: Option<Error>,
}

/// How a destination fails, for operators: nothing is decided by it.
#[derive(Debug)]
pub struct Failing {
    /// The first failure since the last success; `None` where something was taken since.
    pub since: Option<Duration>,
    /// What failed last.
    pub last_error: Error,
    /// Keys that fail and of which no attempt was counted.
    pub uncounted_keys: usize,
    /// Some of them, the lowest places first.
    pub uncounted: Vec<UncountedKey>,
}

/// A key whose first event fails, and counts no attempt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UncountedKey {
    /// The place of that event.
    pub seq: Seq,
    /// Its identity.
    pub id: Uuid,
    /// The key.
    pub key: String,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Events flow.
    #[default]
    Closed,
    /// Nothing is sent until `until`, but for `early` probes.
    Open { until: Duration, early: Option<Early>, failures: u32 },
    /// Probes may be sent, in calls numbered from `first_call`: `sent` events were, of which
    /// `unanswered` are under way. They are `early` where the pause was not over.
    HalfOpen {
        failures: u32,
        first_call: u64,
        sent: usize,
        unanswered: usize,
        early: Option<Early>,
    },
}

/// Keys that have not failed are tried during a pause that was inferred from those that have: these may
/// all be poison, and others must not wait for them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Early {
    from: Duration,
    /// Until when the destination asked to be left alone. Then a single event is tried, and after each
    /// that was answered alike the next one later: the more keys say so, the truer it is.
    asked_until: Option<Duration>,
    failed: u32,
}

impl Early {
    const fn keys(self) -> usize {
        if self.asked_until.is_some() { 1 } else { OUTAGE_KEYS }
    }

    /// After another failure of keys that were tried so, if `before` says that any were.
    fn after(before: Option<Self>, asked: Option<Duration>, now: Duration, random: f64) -> Self {
        let asked_before = before.and_then(|early| early.asked_until).filter(|until| *until > now);
        let asked_until = asked.map(|asked| now.saturating_add(asked)).or(asked_before);
        let failed = before.map_or(0, |early| early.failed.saturating_add(1));
        let apart = match asked_until {
            Some(_) => PAUSES.delay(failed + 1, random).min(EARLY_PROBES_APART_MAX),
            None => PAUSES.base_delay,
        };
        Self { from: now.saturating_add(apart), asked_until, failed }
    }
}

/// How much may be sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Permit {
    /// As much as there is room for.
    All,
    /// So many events, each of another key, to see whether the destination is back.
    Probe(usize),
    /// So many events, each of another key that has not failed.
    Fresh(usize),
    /// Nothing.
    Nothing,
}

impl Outage {
    /// How much may be sent now. An open breaker whose pause is over becomes half-open.
    pub(crate) fn permit(&mut self, now: Duration) -> Permit {
        if let State::Open { until, failures, .. } = self.state
            && now >= until
        {
            self.half_open(failures, None);
        }
        let probes_max = self.probes_max();
        match &mut self.state {
            State::Closed => Permit::All,
            State::Open { early: Some(early), .. } if now >= early.from => {
                Permit::Fresh(early.keys())
            }
            State::Open { .. } => Permit::Nothing,
            State::HalfOpen { sent, unanswered, early, .. } => {
                if *unanswered == 0 && *sent >= probes_max {
                    // They told nothing either way.
                    *sent = 0;
                }
                match probes_max.saturating_sub(*sent) {
                    0 => Permit::Nothing,
                    probes if early.is_some() => Permit::Fresh(probes),
                    probes => Permit::Probe(probes),
                }
            }
        }
    }

    fn half_open(&mut self, failures: u32, early: Option<Early>) {
        let first_call = self.calls;
        self.state = State::HalfOpen { failures, first_call, sent: 0, unanswered: 0, early };
    }

    /// A destination that cannot be reached is asked with a single event. Where events failed, a
    /// single one could be poison, and keep it closed for all others.
    fn probes_max(&self) -> usize {
        if let State::HalfOpen { early: Some(early), .. } = self.state {
            return early.keys();
        }
        if self.suspicion.has_evidence() { OUTAGE_KEYS } else { 1 }
    }

    /// No probe was sent yet since the pause was over.
    pub(crate) fn begins_to_probe(&self) -> bool {
        matches!(self.state, State::HalfOpen { sent: 0, .. })
    }

    /// So many events were sent. Returns the number of the call.
    pub(crate) fn sent(&mut self, events: usize) -> u64 {
        if let State::Open { failures, early, .. } = self.state {
            self.half_open(failures, early);
        }
        if let State::HalfOpen { sent, unanswered, .. } = &mut self.state {
            *sent += events;
            *unanswered += events;
        }
        self.calls += 1;
        self.calls - 1
    }

    /// A call is answered that so many events were sent in; to be told before their results.
    pub(crate) fn answered(&mut self, call: u64, events: usize) {
        if let State::HalfOpen { first_call, unanswered, .. } = &mut self.state
            && call >= *first_call
        {
            *unanswered = unanswered.saturating_sub(events);
        }
    }

    /// What was to be sent in a call was not.
    pub(crate) fn not_sent(&mut self, call: u64, events: usize) {
        self.answered(call, events);
        if let State::HalfOpen { first_call, sent, .. } = &mut self.state
            && call >= *first_call
        {
            *sent = sent.saturating_sub(events);
        }
    }

    /// An event of this key was taken. An answer to what was sent before an outage does not end it.
    pub(crate) fn succeeded(&mut self, id: KeyId, sent: Position) {
        self.window.succeeded();
        match self.state {
            State::Closed => {
                self.failing_since = None;
                self.suspicion.succeeded(id, sent.0);
            }
            State::HalfOpen { first_call, .. } if sent.0 >= first_call => {
                self.suspicion.probe_succeeded(sent, first_call..self.calls);
                self.suspicion.succeeded(id, sent.0);
                self.failing_since = None;
                self.close();
            }
            State::HalfOpen { .. } | State::Open { .. } => {}
        }
    }

    /// An event cannot be sent, ever. That says little of the destination: many such events are
    /// found out before anything is sent.
    pub(crate) fn refused(&mut self, call: u64, kind: ErrorKind) {
        let heard = kind == ErrorKind::Rejected && !self.suspicion.has_evidence();
        if let State::HalfOpen { first_call, sent, .. } = &mut self.state
            && call >= *first_call
        {
            // Another may probe in its place.
            *sent = sent.saturating_sub(1);
            if heard {
                self.failing_since = None;
                self.close();
            }
        }
    }

    /// An event failed, and it is not known whose fault that is.
    pub(crate) fn failed(&mut self, failure: Undecided) {
        self.fails(&failure.error, failure.failed_at);
        self.suspicion.failed(failure, self.calls);
    }

    /// An event of this key got no answer in time, one of so many on their way.
    pub(crate) fn timed_out(&mut self, id: KeyId, call: u64, in_flight: usize) {
        if !self.suspicion.is_convicted(id) {
            self.window.timed_out(call, self.calls, in_flight);
        }
    }

    /// There is no connection to the destination.
    pub(crate) fn unavailable(&mut self, error: &Error, now: Duration, random: f64) {
        self.fails(error, now);
        let asked = error.retry_after().map(|asked| now.saturating_add(asked));
        self.open(error.report(), (asked, None), now, random);
    }

    fn fails(&mut self, error: &Error, now: Duration) {
        self.failing_since.get_or_insert(now);
        self.last_error = Some(error.clone());
    }

    /// Keys of which nothing `waits` any more do not fail. Where `nothing_waits` at all, what was not taken is
    /// gone, and what fails next begins anew.
    pub(crate) fn gone(&mut self, waits: impl Fn(KeyId) -> bool, nothing_waits: bool) {
        self.suspicion.retain(waits);
        if nothing_waits && self.suspicion.suspects_count() == 0 {
            self.failing_since = None;
        }
    }

    fn is_failing(&self) -> bool {
        self.error.is_some() || self.suspicion.suspects_count() > 0
    }

    /// How it fails, if it does, with the names of so many keys.
    pub(crate) fn failing(&self, keys_max: usize) -> Option<Failing> {
        let last_error = self.last_error.clone().filter(|_| self.is_failing())?;
        let (uncounted_keys, uncounted) = self.suspicion.uncounted(keys_max);
        Some(Failing { since: self.failing_since, last_error, uncounted_keys, uncounted })
    }

    /// The bus says that it is connected again: a pause ends at once.
    pub(crate) fn recovered(&mut self, now: Duration) {
        if let State::Open { until, .. } = &mut self.state {
            *until = now;
        }
    }

    /// Takes it for an outage if enough keys failed and, where these are probes, none is left to
    /// send or to be answered; `more_ready` says whether there are more. Returns whether the
    /// destination is paused now.
    pub(crate) fn suspect(&mut self, more_ready: bool, now: Duration, random: f64) -> bool {
        let decided = match self.state {
            State::Open { .. } => return true,
            State::Closed => true,
            // Of keys that have not failed, all that there were have been sent together.
            State::HalfOpen { sent, unanswered, early, .. } => {
                unanswered == 0 && (sent >= self.probes_max() || !more_ready || early.is_some())
            }
        };
        if !decided || !self.suspicion.is_outage(now) {
            return false;
        }
        let Some(error) = self.suspicion.last_error() else { return false };
        let text = format!(
            "{OUTAGE_KEYS} keys failed in a row and none succeeded; the last: {}",
            error.report()
        );
        let asked = error.retry_after();
        let before = match self.state {
            State::HalfOpen { early, .. } => early,
            State::Closed | State::Open { .. } => None,
        };
        let early = Early::after(before, asked, now, random);
        self.open(text, (early.asked_until, Some(early)), now, random);
        true
    }

    /// What failed said nothing against the destination: it can be reached.
    pub(crate) fn acquitted(&mut self) {
        if matches!(self.state, State::HalfOpen { .. }) {
            self.close();
        }
    }

    fn open(
        &mut self,
        error: String,
        (asked_until, early): (Option<Duration>, Option<Early>),
        now: Duration,
        random: f64,
    ) {
        let failures = match self.state {
            State::Closed => 1,
            State::HalfOpen { failures, .. } => failures.saturating_add(1),
            // One outage, however many of the events in flight report it.
            State::Open { .. } => return,
        };
        let until = now.saturating_add(PAUSES.delay(failures, random));
        let until = until.max(asked_until.unwrap_or_default());
        self.state = State::Open { until, early, failures };
        self.error = Some(error);
    }

    fn close(&mut self) {
        self.state = State::Closed;
        self.error = None;
    }

    /// When the pause is over, if there is one.
    pub(crate) fn pause_ends(&self) -> Option<Duration> {
        match self.state {
            State::Open { until, .. } => Some(until),
            State::Closed | State::HalfOpen { .. } => None,
        }
    }

    /// When a key that has not failed may be tried during a pause.
    pub(crate) fn early_from(&self) -> Option<Duration> {
        match self.state {
            State::Open { early, .. } => early.map(|early| early.from),
            State::Closed | State::HalfOpen { .. } => None,
        }
    }

    /// What it is paused for.
    pub(crate) fn error(&self) -> Option<&str> {
        self.error.as_deref()
    }
}

#[cfg(test)]
mod tests;
