//! Waits of a few milliseconds that end in time: the runtime's own timers go by milliseconds, and end half a
//! one after one and a half.

use std::time::Duration;

use async_io::Timer;
use futures_util::FutureExt as _;

/// The longest wait that is worth it.
const WORTH: Duration = Duration::from_millis(5);

/// Ends short waits. Only earlier than the runtime would: it does not know of the runtime's time, which
/// stands still in tests.
pub(crate) struct FineTimer {
    timer: Timer,
    /// When it rings.
    set_to: Option<Duration>,
}

impl FineTimer {
    pub(crate) fn new() -> Self {
        // What it runs on comes into being with the first wait. It cannot do without a few file
        // descriptors, and says so by a panic: now, rather than later.
        let _ = Timer::after(WORTH).now_or_never();
        Self { timer: Timer::never(), set_to: None }
    }

    /// Completes at `deadline`, if the wait until then is short; never otherwise.
    pub(crate) async fn ring_at(&mut self, deadline: Option<Duration>, now: Duration) {
        let wait = deadline.map(|deadline| deadline.saturating_sub(now));
        let Some(wait) = wait.filter(|wait| *wait <= WORTH) else {
            return std::future::pending().await;
        };
        // Setting it wakes a thread; it is asked for the same again and again.
        if self.set_to != deadline {
            self.timer.set_after(wait);
            self.set_to = deadline;
        }
        // Once it has rung, it is silent until it is set to another time.
        (&mut self.timer).await;
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    const MS: Duration = Duration::from_millis(1);
    const SOON: Duration = Duration::from_secs(5);

    #[tokio::test]
    async fn a_short_wait_ends_in_time_and_a_long_one_does_not() {
        let mut timer = FineTimer::new();
        let (begun, now) = (Instant::now(), Duration::from_secs(7));
        let rings = timer.ring_at(Some(now + MS), now);
        tokio::time::timeout(SOON, rings).await.expect("it rings");
        assert!(begun.elapsed() >= MS);
        let again = timer.ring_at(Some(now + MS), now);
        tokio::time::timeout(20 * MS, again).await.expect_err("it has rung");
        for never in [Some(now + 6 * MS), None] {
            let rings = timer.ring_at(never, now);
            tokio::time::timeout(20 * MS, rings).await.expect_err("the runtime's timer is enough");
        }
    }

    /// An answer came first.
    #[tokio::test]
    async fn a_wait_that_was_given_up_does_not_ring_for_the_next() {
        let mut timer = FineTimer::new();
        let now = Duration::ZERO;
        assert!(timer.ring_at(Some(MS), now).now_or_never().is_none());
        std::thread::sleep(3 * MS);
        let begun = Instant::now();
        let rings = timer.ring_at(Some(8 * MS), 4 * MS);
        tokio::time::timeout(SOON, rings).await.expect("it rings");
        assert!(begun.elapsed() >= 4 * MS);
    }
}
