//! How a processor works.

use std::num::NonZeroU32;
use std::time::Duration;

use posthaste_core::{Error, ErrorKind, Result, RetryPolicy};

use crate::routes::UnknownDestination;

/// How a processor works. Every field has a default that suits a service of moderate load.
#[derive(Debug, Clone, PartialEq)]
pub struct ProcessorSettings {
    /// The most events fetched by one query. Default 1,000: with 500, a drain was a sixth slower.
    pub batch_size: usize,
    /// The longest wait between two looks at an idle outbox when no wake-up comes: the worst latency
    /// where the store hears nothing of a writer ([`OutboxRepository::wait_for_events`][wait]), and of
    /// an event that was stored long before its transaction commits. Default 100 ms: then an idle relay
    /// costs about 1 % of a core, and the database as much. (5 s would cost nothing.)
    ///
    /// [wait]: posthaste_core::OutboxRepository::wait_for_events
    pub poll_interval: Duration,
    /// The most events published and not yet acknowledged, over all destinations; with what is
    /// acknowledged and not yet settled, it bounds what a crash can send twice. Default 1,000: with
    /// 500, a drain was a sixth slower; with 10, it took more than twice as long.
    pub max_concurrent_events: usize,
    /// When a failed event is tried again.
    pub retry_policy: RetryPolicy,
    /// How long failures count no attempt that nothing proves to be their events' own: because nothing
    /// else is there to send, or because others fail as well. An outage of a quiet destination shorter
    /// than this costs no attempt; a lone poison event is tried for so long before its first attempt
    /// counts. Default 2 min: as long as a rolling deployment may take. A run that ends by itself
    /// (`process_events`, `drain`) has no patience.
    pub outage_patience: Duration,
    /// What happens to events for a destination that is not configured. Default: they wait.
    pub unknown_destination: UnknownDestination,
    /// The most events published in a second, over all destinations. Default: no limit.
    pub rate_limit_events_per_second: Option<NonZeroU32>,
    /// The most payload bytes held in memory. One event may exceed it alone. Default 64 MiB.
    pub buffer_bytes_max: usize,
    /// How long `stop` waits for acknowledgements and their settlement. Default 30 s.
    pub shutdown_timeout: Duration,
    /// How long this relay counts as alive, where several share an outbox, after it has last told the
    /// database so: it tells four times as often. When it dies, others take over what it delivered
    /// within this time and a quarter of it; when it cannot reach the database, it stops sending
    /// after four fifths. At least 1 s. Default 5 s.
    pub lease_ttl: Duration,
    /// Delivered events older than this are removed. `None` keeps them for ever. Zero keeps none:
    /// what records a delivery deletes the event, which is faster, and leaves nothing to look at.
    /// Default 30 days.
    pub retention: Option<Duration>,
}

impl Default for ProcessorSettings {
    fn default() -> Self {
        Self {
            batch_size: 1_000,
            poll_interval: Duration::from_millis(100),
            max_concurrent_events: 1_000,
            retry_policy: RetryPolicy::default(),
            outage_patience: Duration::from_secs(120),
            unknown_destination: UnknownDestination::default(),
            rate_limit_events_per_second: None,
            buffer_bytes_max: 64 * 1024 * 1024,
            shutdown_timeout: Duration::from_secs(30),
            lease_ttl: Duration::from_secs(5),
            retention: Some(Duration::from_secs(30 * 24 * 60 * 60)),
        }
    }
}

impl ProcessorSettings {
    /// Whether a delivered event is kept at all, to be listed or shown: not with a retention of zero.
    #[must_use]
    pub fn keeps_delivered(&self) -> bool {
        self.retention != Some(Duration::ZERO)
    }

    /// Every rule these settings break, as (field name, what is wrong and how to mend it).
    #[must_use]
    pub fn problems(&self) -> Vec<(&'static str, String)> {
        let mut problems = Vec::new();
        let mut require = |field, holds: bool, why: &str| {
            if !holds {
                problems.push((field, why.to_owned()));
            }
        };
        require(
            "batch_size",
            (1..=100_000).contains(&self.batch_size),
            "must be from 1 to 100000 events",
        );
        require(
            "poll_interval",
            self.poll_interval >= Duration::from_millis(1),
            "must be at least 1 ms",
        );
        require(
            "max_concurrent_events",
            (1..=1_000_000).contains(&self.max_concurrent_events),
            "must be from 1 to 1000000 events",
        );
        require(
            "lease_ttl",
            (Duration::from_secs(1)..=Duration::from_secs(3600)).contains(&self.lease_ttl),
            "must be from 1 s to 1 h",
        );
        require("buffer_bytes_max", self.buffer_bytes_max >= 64 * 1024, "must be at least 64 KiB");
        let policy = &self.retry_policy;
        require("retry.base_delay", !policy.base_delay.is_zero(), "must be more than zero");
        require(
            "retry.max_delay",
            policy.max_delay >= policy.base_delay,
            "must be at least base_delay",
        );
        require(
            "retry.backoff_multiplier",
            policy.backoff_multiplier.is_finite() && policy.backoff_multiplier >= 1.0,
            "must be a number of at least 1",
        );
        problems
    }

    /// Refuses settings that break a rule.
    ///
    /// # Errors
    /// [`ErrorKind::Config`], naming every rule that is broken.
    pub fn validate(&self) -> Result<()> {
        let problems = self.problems();
        if problems.is_empty() {
            return Ok(());
        }
        let text: Vec<String> =
            problems.iter().map(|(field, why)| format!("{field} {why}")).collect();
        Err(Error::new(ErrorKind::Config, "build processor", text.join("; ")))
    }
}
