//! Pauses after failures of the database, so that it is not asked in a busy loop.
//!
//! Each kind of work is paused apart: a database that still answers reads while it refuses to write (a full
//! disk, for one) has not recovered, nor has one whose watermark can be read and whose events cannot (a
//! damaged page).

use std::time::Duration;

use posthaste_core::RetryPolicy;

/// How long to wait before asking again.
const PAUSES: RetryPolicy = RetryPolicy {
    base_delay: Duration::from_millis(100),
    max_delay: Duration::from_secs(5),
    backoff_multiplier: 2.0,
    jitter: true,
};

/// How long to wait before a few more events are sent, where those before could not be recorded. Short, since
/// events that could be may stand behind many that cannot.
const REFUSED_ROWS_PAUSES: RetryPolicy =
    RetryPolicy { max_delay: Duration::from_secs(1), ..PAUSES };

/// What the database is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Work {
    /// Leases.
    Leasing,
    /// Watermarks.
    Watermarks,
    /// Dead letters.
    DeadLetters,
    /// Events.
    Fetching,
    /// Looks at what is known to wait. Nothing hangs on them at once.
    Looking,
    /// Settlements.
    Recording,
    /// Settlements of rows that the database refuses, one after the other, while it records no other.
    RefusedRows,
}

impl Work {
    /// All that goes on only while shards are held.
    pub(crate) const READING: [Self; 4] =
        [Self::Watermarks, Self::DeadLetters, Self::Fetching, Self::Looking];
}

#[derive(Debug, Default)]
pub(crate) struct Database {
    leasing: Pause,
    watermarks: Pause,
    dead_letters: Pause,
    fetching: Pause,
    looking: Pause,
    recording: Pause,
    refused_rows: Pause,
}

#[derive(Debug, Default)]
struct Pause {
    failures: u32,
    until: Duration,
}

impl Database {
    pub(crate) fn failed(&mut self, work: Work, now: Duration, random: f64) {
        let pauses = if work == Work::RefusedRows { REFUSED_ROWS_PAUSES } else { PAUSES };
        let pause = self.pause(work);
        pause.failures = pause.failures.saturating_add(1);
        pause.until = now.saturating_add(pauses.delay(pause.failures, random));
    }

    /// Returns whether this ends a failure of the database as a whole.
    pub(crate) fn answered(&mut self, work: Work) -> bool {
        let was_failing = self.is_failing();
        *self.pause(work) = Pause::default();
        was_failing && !self.is_failing()
    }

    /// Whether recording failed last.
    pub(crate) const fn fails_to_record(&self) -> bool {
        self.recording.failures > 0
    }

    /// Whether it may be asked now.
    pub(crate) fn may(&mut self, work: Work, now: Duration) -> bool {
        now >= self.pause(work).until
    }

    /// Whether its last answer to any work was a failure.
    pub(crate) const fn is_failing(&self) -> bool {
        self.is_away() || self.refuses_rows()
    }

    /// Whether it fails for more than single rows.
    pub(crate) const fn is_away(&self) -> bool {
        self.leasing.failures > 0
            || self.watermarks.failures > 0
            || self.dead_letters.failures > 0
            || self.fetching.failures > 0
            || self.recording.failures > 0
    }

    /// Whether row after row was refused since it recorded anything: it may be they, or it records nothing.
    pub(crate) const fn refuses_rows(&self) -> bool {
        self.refused_rows.failures > 0
    }

    /// Whether it is too early to send more after such.
    pub(crate) fn pauses_after_refused_rows(&self, now: Duration) -> bool {
        now < self.refused_rows.until
    }

    /// When the pauses end.
    pub(crate) fn pauses_end(&self) -> impl Iterator<Item = Duration> {
        let Self { leasing, watermarks, dead_letters, fetching, looking, recording, refused_rows } =
            self;
        [leasing, watermarks, dead_letters, fetching, looking, recording, refused_rows]
            .into_iter()
            .filter(|pause| pause.failures > 0)
            .map(|pause| pause.until)
    }

    const fn pause(&mut self, work: Work) -> &mut Pause {
        match work {
            Work::Leasing => &mut self.leasing,
            Work::Watermarks => &mut self.watermarks,
            Work::DeadLetters => &mut self.dead_letters,
            Work::Fetching => &mut self.fetching,
            Work::Looking => &mut self.looking,
            Work::Recording => &mut self.recording,
            Work::RefusedRows => &mut self.refused_rows,
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
        assert!(!database.answered(Work::Fetching));
        assert!(database.is_failing());
        assert!(database.may(Work::Fetching, Duration::ZERO));
        assert!(!database.may(Work::Recording, Duration::ZERO));
        assert!(database.answered(Work::Recording));
        assert!(!database.is_failing());
    }

    #[test]
    fn one_kind_of_read_that_works_does_not_end_the_pause_of_another() {
        let mut database = Database::default();
        database.failed(Work::Fetching, Duration::ZERO, 0.0);
        assert!(!database.answered(Work::Watermarks));
        assert!(!database.answered(Work::DeadLetters));
        assert!(database.is_failing());
        assert!(!database.may(Work::Fetching, Duration::ZERO));
        assert!(database.answered(Work::Fetching));
    }
}
