//! A breaker per destination: an outage pauses it and counts no attempt.

use std::time::Duration;

use posthaste_core::{Error, RetryPolicy};

/// The longest pause a server may ask for with a retry-after.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(300);

/// How pauses grow: quick enough to resume soon, slow enough to leave a sick server alone.
const PAUSES: RetryPolicy = RetryPolicy {
    base_delay: Duration::from_millis(250),
    max_delay: Duration::from_secs(5),
    backoff_multiplier: 2.0,
    jitter: true,
};

/// Closed, open or half-open.
#[derive(Debug, Default)]
pub(super) struct Outage {
    state: State,
    /// What the destination last said; kept while half-open.
    error: Option<String>,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Events flow.
    #[default]
    Closed,
    /// Nothing is sent until `until`.
    Open { until: Duration, failures: u32 },
    /// One probe may be sent; `sent` says whether it is under way.
    HalfOpen { failures: u32, sent: bool },
}

/// How much may be sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Permit {
    /// As much as there is room for.
    All,
    /// A single event, to see whether the destination is back.
    Probe,
    /// Nothing.
    Nothing,
}

impl Outage {
    /// How much may be sent now. An open breaker whose pause is over becomes half-open.
    pub(super) fn permit(&mut self, now: Duration) -> Permit {
        if let State::Open { until, failures } = self.state
            && now >= until
        {
            self.state = State::HalfOpen { failures, sent: false };
        }
        match self.state {
            State::Closed => Permit::All,
            State::HalfOpen { sent: false, .. } => Permit::Probe,
            State::Open { .. } | State::HalfOpen { sent: true, .. } => Permit::Nothing,
        }
    }

    /// Something was sent: a half-open breaker lets nothing more through until it is answered.
    pub(super) fn sent(&mut self) {
        if let State::HalfOpen { sent, .. } = &mut self.state {
            *sent = true;
        }
    }

    /// What was to be sent was not.
    pub(super) fn not_sent(&mut self) {
        if let State::HalfOpen { sent, .. } = &mut self.state {
            *sent = false;
        }
    }

    /// The destination answered for an event, be it with a refusal of that event.
    pub(super) fn answered(&mut self) {
        // An open breaker stays open: the answer is to something sent before the outage.
        if matches!(self.state, State::HalfOpen { sent: true, .. }) {
            *self = Self::default();
        }
    }

    /// The destination is unavailable.
    pub(super) fn unavailable(&mut self, error: &Error, now: Duration, random: f64) {
        let failures = match self.state {
            State::Closed => 1,
            State::HalfOpen { failures, .. } => failures.saturating_add(1),
            // One outage, however many of the events in flight report it.
            State::Open { .. } => return,
        };
        let asked = error.retry_after().unwrap_or_default().min(RETRY_AFTER_MAX);
        let pause = PAUSES.delay(failures, random).max(asked);
        self.state = State::Open { until: now.saturating_add(pause), failures };
        self.error = Some(error.report());
    }

    /// When the pause is over, if there is one.
    pub(super) fn pause_ends(&self) -> Option<Duration> {
        match self.state {
            State::Open { until, .. } => Some(until),
            State::Closed | State::HalfOpen { .. } => None,
        }
    }

    /// What it is paused for.
    pub(super) fn error(&self) -> Option<&str> {
        self.error.as_deref()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use posthaste_core::ErrorKind;

    fn down() -> Error {
        Error::new(ErrorKind::Unreachable, "publish", "refused")
    }

    #[test]
    fn an_outage_pauses_and_a_single_probe_reopens() {
        let mut outage = Outage::default();
        let start = Duration::from_secs(1);
        assert_eq!(outage.permit(start), Permit::All);
        outage.unavailable(&down(), start, 0.0);
        assert_eq!(outage.permit(start), Permit::Nothing);
        let until = outage.pause_ends().expect("a pause");
        assert_eq!(outage.permit(until), Permit::Probe);
        outage.sent();
        assert_eq!(outage.permit(until), Permit::Nothing);
        outage.answered();
        assert_eq!(outage.permit(until), Permit::All);
        assert_eq!(outage.error(), None);
    }

    #[test]
    fn pauses_grow_with_each_failed_probe_and_stay_bounded() {
        let mut outage = Outage::default();
        let mut now = Duration::ZERO;
        let mut pauses = Vec::new();
        for _ in 0..40 {
            outage.permit(now);
            outage.sent();
            outage.unavailable(&down(), now, 0.0);
            let until = outage.pause_ends().expect("a pause");
            pauses.push(until - now);
            now = until;
        }
        assert!(pauses.is_sorted());
        assert!(pauses.iter().all(|pause| *pause <= PAUSES.max_delay));
    }

    #[test]
    fn retry_after_lengthens_the_pause_up_to_its_limit() {
        for (asked, expected) in [(20, 20), (100_000, 300)] {
            let mut outage = Outage::default();
            let error = down().with_retry_after(Duration::from_secs(asked));
            outage.unavailable(&error, Duration::ZERO, 0.0);
            assert_eq!(outage.pause_ends(), Some(Duration::from_secs(expected)));
        }
    }

    #[test]
    fn an_answer_to_something_sent_before_the_outage_does_not_end_it() {
        let mut outage = Outage::default();
        outage.unavailable(&down(), Duration::ZERO, 0.0);
        outage.answered();
        assert_eq!(outage.permit(Duration::ZERO), Permit::Nothing);
    }
}
