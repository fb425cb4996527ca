//! The events of a call, and how far each has come.

use std::collections::HashSet;
use std::future::Future;
use std::pin::Pin;

use async_nats::Subject;
use async_nats::jetstream::context::PublishError;
use async_nats::jetstream::publish::PublishAck;
use posthaste_core::{ErrorStatus, OrderKey, OutboxEvent, Result};
use tokio::time::{Instant, timeout_at};

use super::acknowledgement::Outcome;
use super::fast_ingest::Outbound;

pub(super) type Answer = Pin<Box<dyn Future<Output = Result<PublishAck, PublishError>> + Send>>;

/// One event of a call.
pub(super) struct Slot<'e> {
    pub(super) event: &'e OutboxEvent,
    pub(super) subject: Subject,
    /// Whether the subject is this event's own.
    pub(super) per_event: bool,
    pub(super) state: State,
}

pub(super) enum State {
    Ready(Outbound),
    Waiting(Answer),
    Done(Outcome),
}

impl<'e> Slot<'e> {
    pub(super) const fn key(&self) -> &'e OrderKey {
        self.event.order_key()
    }

    pub(super) fn is_ready(&self) -> bool {
        matches!(self.state, State::Ready(_))
    }

    pub(super) fn has_failed(&self) -> bool {
        match &self.state {
            State::Done(outcome) => !matches!(outcome, Outcome::Acknowledged),
            State::Ready(_) | State::Waiting(_) => false,
        }
    }

    pub(super) fn take_message(&mut self) -> Option<Outbound> {
        match std::mem::replace(&mut self.state, State::Done(Outcome::NoAnswer)) {
            State::Ready(message) => Some(message),
            State::Waiting(_) | State::Done(_) => None,
        }
    }
}

/// The events that can be sent now: those of keys without a failure.
pub(super) fn sendable(slots: &[Slot<'_>]) -> Vec<usize> {
    let mut failed: HashSet<&OrderKey> = HashSet::new();
    let mut ready = Vec::with_capacity(slots.len());
    for (at, slot) in slots.iter().enumerate() {
        if slot.has_failed() {
            failed.insert(slot.key());
        } else if slot.is_ready() && !failed.contains(slot.key()) {
            ready.push(at);
        }
    }
    ready
}

/// Whether other events may do better.
pub(super) fn is_own_fault(outcome: &Outcome, per_event: bool) -> bool {
    match outcome {
        Outcome::Failed(error) => error.status() != ErrorStatus::Unavailable,
        Outcome::NoStream => per_event,
        Outcome::NoAnswer | Outcome::Overtaken | Outcome::Acknowledged => false,
    }
}

/// Nothing more is sent in this call.
pub(super) fn give_up(slots: &mut [Slot<'_>]) {
    for slot in slots.iter_mut().filter(|slot| slot.is_ready()) {
        slot.state = State::Done(Outcome::NoAnswer);
    }
}

pub(super) fn any(slots: &[Slot<'_>], wanted: impl Fn(&Outcome) -> bool) -> bool {
    slots.iter().any(|slot| matches!(&slot.state, State::Done(outcome) if wanted(outcome)))
}

/// Waits for answers in the order sent. One that is there counts even after the deadline.
pub(super) async fn receive(slots: &mut [Slot<'_>], deadline: Instant) {
    for slot in slots {
        if let State::Waiting(answer) = &mut slot.state
            && let Ok(answer) = timeout_at(deadline, answer).await
        {
            slot.state = State::Done(match answer {
                Ok(_) => Outcome::Acknowledged,
                Err(error) => Outcome::from(error),
            });
        }
    }
}
