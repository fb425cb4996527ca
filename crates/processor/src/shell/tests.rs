//! Until when a call may go on.

use futures_util::FutureExt;

use super::*;

const SECOND: Duration = Duration::from_secs(1);

#[tokio::test(start_paused = true)]
async fn a_lease_is_prolonged_by_what_renews_it_in_time_only() {
    for (renewed_at, ends_at) in [(3 * SECOND, 9 * SECOND), (5 * SECOND, 5 * SECOND)] {
        let sender = watch::Sender::new(4 * SECOND);
        let ends = lease_ends(Clock::start(), 4 * SECOND, sender.subscribe());
        let mut ends = std::pin::pin!(ends);
        assert_eq!(ends.as_mut().now_or_never(), None);
        // Nothing runs meanwhile, as in a process that is stopped.
        tokio::time::advance(renewed_at).await;
        sender.send_replace(9 * SECOND);
        tokio::time::advance(ends_at - renewed_at).await;
        assert_eq!(ends.now_or_never(), Some(()), "renewed at {renewed_at:?}");
    }
}
