//! Pauses after failures of the database, so that it is not asked in a busy loop.
//!
//! Leasing, reading and recording are paused apart: a database that still answers reads while it refuses to
//! write (a full disk, for one) has not recovered.

use std::time::Duration;

use posthaste_core::RetryPolicy;

/// How long to wait before asking again.
const PAUSES: RetryPolicy = RetryPolicy {
    base_delay: Duration::from_millis(100),
    max_delay: Duration::from_secs(5),
    backoff_multiplier: 2.0,
    jitter: true,
};

/// What the database is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Work {
    /// Leases.
    Leasing,
    /// Watermarks, dead letters, events.
    Reading,
    /// Settlements.
    Recording,
}

#[derive(Debug, Default)]
pub(super) struct Database {
    leasing: Pause,
    reading: Pause,
    recording: Pause,
}

#[derive(Debug, Default)]
struct Pause {
    failures: u32,
    until: Duration,
}

impl Database {
    pub(super) fn failed(&mut self, work: Work, now: Duration, random: f64) {
        let pause = self.pause(work);
        pause.failures = pause.failures.saturating_add(1);
        pause.until = now.saturating_add(PAUSES.delay(pause.failures, random));
    }

    /// Returns whether this ends a failure of the database as a whole.
    pub(super) fn answered(&mut self, work: Work) -> bool {
        let was_failing = self.is_failing();
        *self.pause(work) = Pause::default();
        was_failing && !self.is_failing()
    }

    /// Whether it may be asked now.
    pub(super) fn may(&mut self, work: Work, now: Duration) -> bool {
        now >= self.pause(work).until
    }

    /// Whether its last answer to any work was a failure.
    pub(super) const fn is_failing(&self) -> bool {
        self.leasing.failures > 0 || self.reading.failures > 0 || self.recording.failures > 0
    }

    /// When the pauses end.
    pub(super) fn pauses_end(&self) -> impl Iterator<Item = Duration> {
        [&self.leasing, &self.reading, &self.recording]
            .into_iter()
            .filter(|pause| pause.failures > 0)
            .map(|pause| pause.until)
    }

    const fn pause(&mut self, work: Work) -> &mut Pause {
        match work {
            Work::Leasing => &mut self.leasing,
            Work::Reading => &mut self.reading,
            Work::Recording => &mut self.recording,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_to_a_read_does_not_end_a_failure_to_record() {
        let mut database = Database::default();
        database.failed(Work::Recording, Duration::ZERO, 0.0);
        assert!(!database.answered(Work::Reading));
        assert!(database.is_failing());
        assert!(database.may(Work::Reading, Duration::ZERO));
        assert!(!database.may(Work::Recording, Duration::ZERO));
        assert!(database.answered(Work::Recording));
        assert!(!database.is_failing());
    }
}
