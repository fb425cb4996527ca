//! When a failed event is tried again.

use std::time::Duration;

/// The shortest delay any policy gives: a zero delay would be a busy loop.
const DELAY_MIN: Duration = Duration::from_millis(1);

/// Exponential backoff with a ceiling and jitter.
///
/// The delay before retry `n` (counting from 1) is `base_delay * backoff_multiplier^(n-1)`, never
/// above `max_delay` and never below one millisecond. With `jitter`, it is drawn evenly from the
/// upper half of that ("equal jitter"), so that events that failed together do not come back
/// together.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RetryPolicy {
    /// Delay before the first retry. Default 1 s.
    pub base_delay: Duration,
    /// The longest delay. Default 60 s.
    pub max_delay: Duration,
    /// Factor from one delay to the next. Default 2.0. Below 1, or not a number, counts as 1.
    pub backoff_multiplier: f64,
    /// Draw the delay from its upper half. Default on.
    pub jitter: bool,
}

impl Default for RetryPolicy {
    fn default() -> Self {
        Self {
            base_delay: Duration::from_secs(1),
            max_delay: Duration::from_secs(60),
            backoff_multiplier: 2.0,
            jitter: true,
        }
    }
}

impl RetryPolicy {
    /// The delay before retry number `retry` (1 for the first; 0 is read as 1).
    ///
    /// `random` is a number in `[0, 1)` from the caller's generator; anything else is clamped. The
    /// function is pure: equal arguments give equal delays. It neither panics nor overflows for
    /// any argument.
    #[must_use]
    pub fn delay(&self, retry: u32, random: f64) -> Duration {
        let ceiling = self.max_delay.max(DELAY_MIN);
        let multiplier = if self.backoff_multiplier >= 1.0 { self.backoff_multiplier } else { 1.0 };
        // Exponents past i32 are past every ceiling or, at multiplier 1, without effect.
        let exponent = i32::try_from(retry.saturating_sub(1)).unwrap_or(i32::MAX);
        let exact = self.base_delay.as_secs_f64() * multiplier.powi(exponent);
        let share = if self.jitter {
            let random = if random.is_finite() { random.clamp(0.0, 1.0) } else { 0.0 };
            0.5 + 0.5 * random
        } else {
            1.0
        };
        // `try_from_secs_f64` refuses infinity and what a Duration cannot hold: both mean "ceiling".
        let full = Duration::try_from_secs_f64(exact).map_or(ceiling, |delay| delay.min(ceiling));
        full.mul_f64(share).clamp(DELAY_MIN, ceiling)
    }
}

/// What follows a failed attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RetryDecision {
    /// Try again after `delay`; `retry_count` is the new count of failed attempts.
    Retry {
        /// Failed attempts, this one included.
        retry_count: u32,
        /// From now until the next attempt.
        delay: Duration,
    },
    /// `max_retries` are used up: dead-letter it.
    Exhausted {
        /// Failed attempts, this one included.
        retry_count: u32,
    },
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn any_policy() -> impl Strategy<Value = RetryPolicy> {
        let any_duration = (any::<u64>(), 0_u32..1_000_000_000)
            .prop_map(|(seconds, nanos)| Duration::new(seconds, nanos));
        (any_duration.clone(), any_duration, any::<f64>(), any::<bool>()).prop_map(
            |(base_delay, max_delay, backoff_multiplier, jitter)| RetryPolicy {
                base_delay,
                max_delay,
                backoff_multiplier,
                jitter,
            },
        )
    }

    proptest! {
        #[test]
        fn delay_stays_within_its_bounds_for_every_policy_and_attempt(
            policy in any_policy(), retry in any::<u32>(), random in any::<f64>()
        ) {
            let delay = policy.delay(retry, random);
            prop_assert!(delay > Duration::ZERO);
            prop_assert!(delay <= policy.max_delay.max(DELAY_MIN));
        }

        #[test]
        fn without_jitter_delay_never_shrinks(policy in any_policy(), retry in 1_u32..u32::MAX) {
            let policy = RetryPolicy { jitter: false, ..policy };
            prop_assert!(policy.delay(retry + 1, 0.0) >= policy.delay(retry, 0.0));
        }
    }

    #[test]
    fn default_doubles_from_one_second_to_a_minute() {
        let policy = RetryPolicy { jitter: false, ..RetryPolicy::default() };
        let seconds: Vec<u64> = (1..=8).map(|retry| policy.delay(retry, 0.0).as_secs()).collect();
        assert_eq!(seconds, [1, 2, 4, 8, 16, 32, 60, 60]);
    }

    #[test]
    fn jitter_draws_from_the_upper_half() {
        let policy = RetryPolicy::default();
        assert_eq!(policy.delay(1, 0.0), Duration::from_millis(500));
        assert_eq!(policy.delay(1, 0.5), Duration::from_millis(750));
    }
}
