//! How many events may be on their way to a destination: fewer at once while it answers too late,
//! so that time-outs do not feed themselves.
//!
//! As a congestion window does (RFC 5681): halved by a time-out, once for what was on its way together,
//! and one more each time that as many events as it holds were taken, up to the limit of the settings.
//! A single time-out between successes is its own event's, and narrows nothing.

/// Without limit until something times out.
#[derive(Debug, Default)]
pub(crate) struct Window {
    /// The most events on their way, once something timed out.
    events_max: Option<usize>,
    /// Taken since it was widened last.
    taken: usize,
    /// Time-outs since something was taken.
    in_a_row: usize,
    /// What was sent before this call says no more than the time-out that was heard already.
    halved_before: u64,
}

impl Window {
    /// How many events may be on their way, of `events_max` that the settings allow.
    pub(crate) fn limit(&self, events_max: usize) -> usize {
        self.events_max.unwrap_or(events_max).min(events_max).max(1)
    }

    pub(crate) fn succeeded(&mut self) {
        self.in_a_row = 0;
        if let Some(events_max) = &mut self.events_max {
            self.taken += 1;
            if self.taken >= *events_max {
                self.taken = 0;
                *events_max = events_max.saturating_add(1);
            }
        }
    }

    /// An event of this call got no answer in time; the next call has the number `next_call`.
    pub(crate) fn timed_out(&mut self, call: u64, next_call: u64, in_flight: usize) {
        self.in_a_row += 1;
        if self.in_a_row > 1 && call >= self.halved_before {
            self.halved_before = next_call;
            let open = self.events_max.unwrap_or(usize::MAX).min(in_flight);
            self.events_max = Some((open / 2).max(1));
            self.taken = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_outs_of_what_was_sent_together_halve_it_once_and_successes_widen_it_again() {
        let mut window = Window::default();
        assert_eq!(window.limit(16), 16);
        for call in 0..16 {
            window.timed_out(call, 16, 16);
        }
        assert_eq!(window.limit(16), 8);
        for call in 16..18 {
            window.timed_out(call, 20, 8);
        }
        assert_eq!(window.limit(16), 4);
        for _ in 0..200 {
            window.succeeded();
        }
        assert_eq!(window.limit(16), 16);
    }

    #[test]
    fn a_time_out_between_successes_narrows_nothing() {
        let mut window = Window::default();
        for call in 0..100 {
            window.timed_out(call, call + 1, 16);
            window.succeeded();
        }
        assert_eq!(window.limit(16), 16);
    }

    #[test]
    fn one_event_may_always_be_on_its_way() {
        let mut window = Window::default();
        for call in 0..100 {
            window.timed_out(call, call + 1, 1);
        }
        assert_eq!(window.limit(16), 1);
    }
}
