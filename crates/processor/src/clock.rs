//! The relay's clock: monotonic, and counting the time in which the machine is suspended.
//!
//! A relay that wakes from a suspend must find its lease over. `Instant` stands still meanwhile on
//! Linux; the difference to the clock that does not is added. It is the runtime's clock otherwise, so
//! that tests with paused time work.

use std::time::Duration;

use tokio::time::Instant;

#[derive(Debug, Clone, Copy)]
pub(crate) struct Clock {
    started: Instant,
    suspended_before: Duration,
}

impl Clock {
    pub(crate) fn start() -> Self {
        Self { started: Instant::now(), suspended_before: suspended() }
    }

    /// Time since the start.
    pub(crate) fn now(&self) -> Duration {
        self.started.elapsed() + self.suspended_since()
    }

    /// Completes at that time; never for a time past the end of the clock, as `Duration::MAX` is.
    pub(crate) async fn sleep_until(&self, deadline: Option<Duration>) {
        let at = deadline
            .map(|deadline| deadline.saturating_sub(self.suspended_since()))
            .and_then(|deadline| self.started.checked_add(deadline));
        match at {
            Some(at) => tokio::time::sleep_until(at).await,
            None => std::future::pending().await,
        }
    }

    fn suspended_since(&self) -> Duration {
        // The two clocks are read one after the other: what lies between is no suspend.
        let since = suspended().saturating_sub(self.suspended_before);
        if since < Duration::from_millis(100) { Duration::ZERO } else { since }
    }
}

/// How long the machine was suspended since it started.
#[cfg(any(target_os = "linux", target_os = "android"))]
fn suspended() -> Duration {
    use rustix::time::{ClockId, clock_gettime};
    let read = |clock| Duration::try_from(clock_gettime(clock)).unwrap_or_default();
    // In this order: whatever lies between the two makes it less, and the lease shorter, not longer.
    let awake_and_suspended = read(ClockId::Boottime);
    awake_and_suspended.saturating_sub(read(ClockId::Monotonic))
}

/// Unknown here: a lease may outlast a suspend by the relay's clock, and then what is sent late is
/// sent twice. Settling is fenced by the database all the same.
#[cfg(not(any(target_os = "linux", target_os = "android")))]
const fn suspended() -> Duration {
    Duration::ZERO
}
