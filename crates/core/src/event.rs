//! The event: what is stored with the data and delivered to the world.

use std::time::Duration;

use jiff::Timestamp;
use uuid::Uuid;

use crate::{
    Error, Headers, OrderKey, OutboxEventBuilder, Payload, Result, RetryDecision, RetryPolicy,
};

/// `max_retries` where the writer gives none: the column's default.
pub const DEFAULT_MAX_RETRIES: u32 = 3;

/// An event of the outbox. Immutable: a change of state gives a new value.
///
/// ```
/// # use posthaste_core::{OutboxEvent, Payload};
/// # use uuid::Uuid;
/// let order = Uuid::now_v7();
/// let event = OutboxEvent::builder(order, "order.placed")
///     .payload(Payload::json(&serde_json::json!({ "total": 42 }))?)
///     .aggregate_type("order")
///     .header("tenant", "acme")
///     .build()?;
/// assert!(event.is_pending());
/// # Ok::<(), posthaste_core::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct OutboxEvent(EventRecord);

/// All columns of an event as plain data: what a store reads and writes.
///
/// Turn it into an event with [`OutboxEvent::restore`]. No rule is checked on the way, since what
/// is stored is stored; the rules are the builder's.
#[derive(Debug, Clone, PartialEq)]
pub struct EventRecord {
    /// Unique; UUIDv7 where posthaste makes it.
    pub id: Uuid,
    /// What the event is about.
    pub aggregate_id: Uuid,
    /// The kind of thing it is about.
    pub aggregate_type: Option<Box<str>>,
    /// What happened.
    pub event_type: Box<str>,
    /// What orders it.
    pub order_key: OrderKey,
    /// The name of a configured destination, where the writer chose one.
    pub destination: Option<Box<str>>,
    /// The subject, topic, queue or path within the destination, where the writer chose one.
    pub topic: Option<Box<str>>,
    /// Headers that travel along.
    pub headers: Headers,
    /// The body.
    pub payload: Payload,
    /// When it was stored (the database's clock, at the start of its transaction).
    pub created_at: Timestamp,
    /// Not delivered before this time: a delay the writer asked for, or the next attempt.
    pub available_at: Option<Timestamp>,
    /// When it was delivered.
    pub processed_at: Option<Timestamp>,
    /// When it became a dead letter.
    pub dead_at: Option<Timestamp>,
    /// Why: an [`ErrorKind`](crate::ErrorKind)'s name or `retries_exhausted`.
    pub dead_reason: Option<Box<str>>,
    /// Failed attempts.
    pub retry_count: u32,
    /// It is dead-lettered when `retry_count` reaches this.
    pub max_retries: u32,
    /// What the last failed attempt met.
    pub error_message: Option<Box<str>>,
}

/// `dead_reason` of an event that used up `max_retries`.
const RETRIES_EXHAUSTED: &str = "retries_exhausted";

impl OutboxEvent {
    /// Starts a new event about `aggregate_id`.
    pub fn builder(aggregate_id: Uuid, event_type: impl Into<String>) -> OutboxEventBuilder {
        OutboxEventBuilder::new(aggregate_id, event_type.into())
    }

    /// A new JSON event with defaults for all else. `data` may be text, a slice, or anything else
    /// that serde serialises.
    ///
    /// # Errors
    /// As [`OutboxEventBuilder::build`].
    pub fn new(
        aggregate_id: Uuid,
        event_type: impl Into<String>,
        data: &(impl serde::Serialize + ?Sized),
    ) -> Result<Self> {
        Self::builder(aggregate_id, event_type).payload(Payload::json(data)?).build()
    }

    /// An event as a store holds it.
    #[must_use]
    pub const fn restore(record: EventRecord) -> Self {
        Self(record)
    }

    /// All columns.
    #[must_use]
    pub const fn record(&self) -> &EventRecord {
        &self.0
    }

    /// The event's identity; the same at every delivery.
    #[must_use]
    pub const fn id(&self) -> Uuid {
        self.0.id
    }

    /// What the event is about.
    #[must_use]
    pub const fn aggregate_id(&self) -> Uuid {
        self.0.aggregate_id
    }

    /// The kind of thing it is about.
    #[must_use]
    pub fn aggregate_type(&self) -> Option<&str> {
        self.0.aggregate_type.as_deref()
    }

    /// What happened.
    #[must_use]
    pub fn event_type(&self) -> &str {
        &self.0.event_type
    }

    /// What orders it.
    #[must_use]
    pub const fn order_key(&self) -> &OrderKey {
        &self.0.order_key
    }

    /// The configured destination the writer chose.
    #[must_use]
    pub fn destination(&self) -> Option<&str> {
        self.0.destination.as_deref()
    }

    /// The subject, topic, queue or path the writer chose.
    #[must_use]
    pub fn topic(&self) -> Option<&str> {
        self.0.topic.as_deref()
    }

    /// Headers that travel along.
    #[must_use]
    pub const fn headers(&self) -> &Headers {
        &self.0.headers
    }

    /// The body.
    #[must_use]
    pub const fn payload(&self) -> &Payload {
        &self.0.payload
    }

    /// When it was stored.
    #[must_use]
    pub const fn created_at(&self) -> Timestamp {
        self.0.created_at
    }

    /// Not delivered before this time.
    #[must_use]
    pub const fn available_at(&self) -> Option<Timestamp> {
        self.0.available_at
    }

    /// When it was delivered.
    #[must_use]
    pub const fn processed_at(&self) -> Option<Timestamp> {
        self.0.processed_at
    }

    /// When it became a dead letter.
    #[must_use]
    pub const fn dead_at(&self) -> Option<Timestamp> {
        self.0.dead_at
    }

    /// Why it is a dead letter.
    #[must_use]
    pub fn dead_reason(&self) -> Option<&str> {
        self.0.dead_reason.as_deref()
    }

    /// Failed attempts.
    #[must_use]
    pub const fn retry_count(&self) -> u32 {
        self.0.retry_count
    }

    /// It is dead-lettered when [`retry_count`](Self::retry_count) reaches this. 0 acts like 1:
    /// every event is tried once.
    #[must_use]
    pub const fn max_retries(&self) -> u32 {
        self.0.max_retries
    }

    /// What the last failed attempt met.
    #[must_use]
    pub fn error_message(&self) -> Option<&str> {
        self.0.error_message.as_deref()
    }

    /// Neither delivered nor dead.
    #[must_use]
    pub const fn is_pending(&self) -> bool {
        self.0.processed_at.is_none() && self.0.dead_at.is_none()
    }

    /// A dead letter: visible and replayable, until someone acts.
    #[must_use]
    pub const fn is_dead(&self) -> bool {
        self.0.processed_at.is_none() && self.0.dead_at.is_some()
    }

    /// What one more failed attempt means. `random` as in [`RetryPolicy::delay`].
    #[must_use]
    pub fn decide_retry(&self, policy: &RetryPolicy, random: f64) -> RetryDecision {
        self.decide_retry_within(self.0.max_retries, policy, random)
    }

    /// The same with `attempts_max` in place of the event's own `max_retries`: for a destination whose
    /// operator decides.
    #[must_use]
    pub fn decide_retry_within(
        &self,
        attempts_max: u32,
        policy: &RetryPolicy,
        random: f64,
    ) -> RetryDecision {
        let retry_count = self.0.retry_count.saturating_add(1);
        if retry_count >= attempts_max {
            RetryDecision::Exhausted { retry_count }
        } else {
            RetryDecision::Retry { retry_count, delay: policy.delay(retry_count, random) }
        }
    }

    /// The event after a failed attempt at `now`: waiting for its retry, or dead when its retries
    /// are used up.
    #[must_use]
    pub fn failed(self, error: &Error, decision: RetryDecision, now: Timestamp) -> Self {
        match decision {
            RetryDecision::Retry { retry_count, delay } => Self(EventRecord {
                retry_count,
                available_at: Some(add(now, delay)),
                error_message: Some(error.report().into()),
                ..self.0
            }),
            RetryDecision::Exhausted { retry_count } => {
                Self(EventRecord { retry_count, ..self.0 }).dead(RETRIES_EXHAUSTED, error, now)
            }
        }
    }

    /// The event with another count of failed attempts, for a processor that leaves the times to
    /// the database.
    #[must_use]
    pub fn with_retry_count(self, retry_count: u32) -> Self {
        Self(EventRecord { retry_count, ..self.0 })
    }

    /// The event after an error that will not pass: a dead letter.
    #[must_use]
    pub fn dead_lettered(self, error: &Error, now: Timestamp) -> Self {
        self.dead(error.kind().as_str(), error, now)
    }

    /// The event after its delivery at `now`.
    #[must_use]
    pub fn delivered(self, now: Timestamp) -> Self {
        Self(EventRecord { processed_at: Some(now), ..self.0 })
    }

    /// A dead letter given a fresh set of retries, available at once, at its old place in its key.
    #[must_use]
    pub fn revived(self) -> Self {
        Self(EventRecord {
            dead_at: None,
            dead_reason: None,
            available_at: None,
            retry_count: 0,
            ..self.0
        })
    }

    fn dead(self, reason: &str, error: &Error, now: Timestamp) -> Self {
        Self(EventRecord {
            dead_at: Some(now),
            dead_reason: Some(reason.into()),
            error_message: Some(error.report().into()),
            ..self.0
        })
    }
}

impl RetryDecision {
    /// `dead_reason` of an event whose retries are used up.
    pub const EXHAUSTED_REASON: &'static str = RETRIES_EXHAUSTED;
}

/// `now + delay`, capped at the last time there is.
fn add(now: Timestamp, delay: Duration) -> Timestamp {
    now.checked_add(delay).unwrap_or(Timestamp::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ErrorKind;
    use proptest::prelude::*;

    fn event(max_retries: u32) -> OutboxEvent {
        OutboxEvent::builder(Uuid::nil(), "t")
            .payload(Payload::json_text("{}").unwrap())
            .max_retries(max_retries)
            .build()
            .unwrap()
    }

    fn failure() -> Error {
        Error::new(ErrorKind::Failed, "publish", "no")
    }

    #[test]
    fn an_event_is_tried_max_retries_times_and_then_dead() {
        let (policy, now) = (RetryPolicy::default(), Timestamp::UNIX_EPOCH);
        let mut event = event(3);
        for attempt in 1..=3 {
            assert!(event.is_pending(), "attempt {attempt}");
            let decision = event.decide_retry(&policy, 0.0);
            event = event.failed(&failure(), decision, now);
            assert_eq!(event.retry_count(), attempt);
        }
        assert!(event.is_dead());
        assert_eq!(event.dead_reason(), Some("retries_exhausted"));
        assert_eq!(event.error_message(), Some("publish: no"));
        let event = event.revived();
        assert!(event.is_pending());
        assert_eq!(event.retry_count(), 0);
    }

    #[test]
    fn a_permanent_error_is_dead_at_once_and_burns_no_attempt() {
        let error = Error::new(ErrorKind::TooLarge, "publish", "5 MB are over 1 MB");
        let event = event(3).dead_lettered(&error, Timestamp::UNIX_EPOCH);
        assert_eq!((event.dead_reason(), event.retry_count()), (Some("too_large"), 0));
    }

    #[test]
    fn ids_are_version_7_and_the_key_falls_back_to_the_aggregate() {
        let event = event(3);
        assert_eq!(event.id().get_version_num(), 7);
        assert_eq!(event.order_key(), &OrderKey::Aggregate(Uuid::nil()));
    }

    proptest! {
        #[test]
        fn no_retry_count_overflows(retry_count in any::<u32>(), max_retries in any::<u32>(), random in 0.0..1.0) {
            let event = OutboxEvent::restore(EventRecord { retry_count, max_retries, ..event(1).0 });
            let decision = event.decide_retry(&RetryPolicy::default(), random);
            let after = event.failed(&failure(), decision, Timestamp::MAX);
            prop_assert!(after.retry_count() >= retry_count);
            prop_assert_eq!(after.is_dead(), after.retry_count() >= max_retries);
        }
    }
}
