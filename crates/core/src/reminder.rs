//! What is tried again and again is said once, and not each time.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// It is said again although nothing changed.
const AGAIN_AFTER: Duration = Duration::from_secs(60);

/// Whether something that recurs is to be said in a log: when it is another thing than before, and again
/// every minute.
#[derive(Debug, Default)]
pub struct Reminder(Mutex<Option<(Box<str>, Instant)>>);

impl Reminder {
    /// Whether `what` is to be said now; it counts as said then.
    #[must_use]
    pub fn is_due(&self, what: &str, now: Instant) -> bool {
        let mut said = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let is_said = said
            .as_ref()
            .is_some_and(|(before, at)| **before == *what && now.duration_since(*at) < AGAIN_AFTER);
        if !is_said {
            *said = Some((what.into(), now));
        }
        !is_said
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reason_is_said_when_it_changes_and_every_minute() {
        let (reminder, begin) = (Reminder::default(), Instant::now());
        let mut said = Vec::new();
        for second in 0..150 {
            let what = if second < 100 { "pid 7" } else { "pid 8" };
            if reminder.is_due(what, begin + Duration::from_secs(second)) {
                said.push(second);
            }
        }
        assert_eq!(said, [0, 60, 100]);
    }
}
