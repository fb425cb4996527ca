//! How fast something moves, over the last seconds.

use std::collections::VecDeque;
use std::time::Duration;

use tokio::time::Instant;

/// Figures of the last `window`, and what they say of the speed.
#[derive(Debug)]
pub(crate) struct Rate {
    window: Duration,
    samples: VecDeque<(Instant, u64)>,
}

impl Rate {
    /// Over so long.
    pub(crate) const fn over(window: Duration) -> Self {
        Self { window, samples: VecDeque::new() }
    }

    /// Nothing is known any more.
    pub(crate) fn clear(&mut self) {
        self.samples.clear();
    }

    /// Takes the figure of this moment. The last one from before the window stays, to begin it.
    pub(crate) fn sample(&mut self, now: Instant, figure: u64) {
        self.samples.push_back((now, figure));
        while self.samples.get(1).is_some_and(|(at, _)| now.duration_since(*at) >= self.window) {
            self.samples.pop_front();
        }
    }

    /// How much the figure grew a second; below zero where it fell. `None` before there are two.
    pub(crate) fn per_second(&self) -> Option<f64> {
        let ((begin, first), (end, last)) = (self.samples.front()?, self.samples.back()?);
        let seconds = end.duration_since(*begin).as_secs_f64();
        (seconds > 0.0).then(|| (*last as f64 - *first as f64) / seconds)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_is_that_of_its_window_whatever_was_before() {
        let begin = Instant::now();
        let mut rate = Rate::over(Duration::from_secs(10));
        assert_eq!(rate.per_second(), None);
        let mut figure = 0;
        for second in 0..=30 {
            // A thousand a second at first, then ten.
            figure += if second < 15 { 1_000 } else { 10 };
            rate.sample(begin + Duration::from_secs(second), figure);
        }
        assert_eq!(rate.per_second(), Some(10.0));
        rate.sample(begin + Duration::from_secs(31), figure - 100);
        assert!(rate.per_second().is_some_and(|rate| rate < 0.0), "what falls is below zero");
    }

    #[test]
    fn one_figure_says_nothing_of_the_speed() {
        let mut rate = Rate::over(Duration::from_secs(10));
        rate.sample(Instant::now(), 5);
        assert_eq!(rate.per_second(), None);
    }
}
