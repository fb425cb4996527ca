//! The events of a call, and how far each has come.

use std::collections::HashSet;

use async_nats::Subject;
use async_nats::header::HeaderMap;
use bytes::Bytes;
use posthaste_core::{ErrorStatus, OrderKey, OutboxEvent};

use super::acknowledgement::Outcome;

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
    /// Sent, and not answered yet.
    Waiting,
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
            State::Ready(_) | State::Waiting => false,
        }
    }

    pub(super) fn is_waiting(&self) -> bool {
        matches!(self.state, State::Waiting)
    }

    pub(super) fn take_message(&mut self) -> Option<Outbound> {
        match std::mem::replace(&mut self.state, State::Done(Outcome::NoAnswer)) {
            State::Ready(message) => Some(message),
            State::Waiting | State::Done(_) => None,
        }
    }
}

/// What is sent of an event.
pub(super) struct Outbound {
    pub(super) subject: Subject,
    pub(super) headers: HeaderMap,
    pub(super) body: Bytes,
}

/// The events that can be sent now: those behind no event of their key that failed or is unanswered.
pub(super) fn sendable(slots: &[Slot<'_>]) -> Vec<usize> {
    let mut held_back: HashSet<&OrderKey> = HashSet::new();
    let mut ready = Vec::with_capacity(slots.len());
    for (at, slot) in slots.iter().enumerate() {
        if slot.has_failed() || slot.is_waiting() {
            held_back.insert(slot.key());
        } else if slot.is_ready() && !held_back.contains(slot.key()) {
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
