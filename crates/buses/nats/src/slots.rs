//! The events of a call, and how far each has come.

use std::collections::HashSet;

use async_nats::header::HeaderMap;
use bytes::Bytes;
use posthaste_core::{Error, ErrorKind, OrderKey, OutboxEvent, Subject};

use super::acknowledgement::Outcome;

/// One event of a call.
pub(super) struct Slot<'e> {
    pub(super) event: &'e OutboxEvent,
    pub(super) subject: async_nats::Subject,
    /// Whether the subject is this event's own.
    pub(super) per_event: bool,
    pub(super) state: State,
}

pub(super) enum State {
    Ready(Outbound),
    /// Sent, and not answered yet.
    Waiting,
    Done(Outcome),
    /// Stored, and reported already.
    Reported,
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
            State::Done(outcome) => !matches!(outcome, Outcome::Acknowledged(_)),
            State::Ready(_) | State::Waiting | State::Reported => false,
        }
    }

    pub(super) fn is_waiting(&self) -> bool {
        matches!(self.state, State::Waiting)
    }

    /// Whether the configured stream was found not to store it.
    pub(super) fn is_uncovered(&self) -> bool {
        let is_missing = |error: &Error| error.kind() == ErrorKind::DestinationMissing;
        matches!(&self.state, State::Done(Outcome::Failed(error)) if is_missing(error))
    }

    pub(super) fn is_in_process(&self) -> bool {
        matches!(self.state, State::Done(Outcome::InProcess))
    }

    pub(super) fn take_message(&mut self) -> Option<Outbound> {
        match std::mem::replace(&mut self.state, State::Done(Outcome::NoAnswer)) {
            State::Ready(message) => Some(message),
            State::Waiting | State::Done(_) | State::Reported => None,
        }
    }
}

/// What is sent of an event.
pub(super) struct Outbound {
    pub(super) subject: async_nats::Subject,
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

/// Whether what comes behind a failure in a batch may go in another one: what was met is this event's,
/// or its subject's.
pub(super) fn is_of_one_event(outcome: &Outcome) -> bool {
    match outcome {
        Outcome::Failed(error) => matches!(error.subject(), Subject::Event | Subject::Route),
        // A gap before the end of time: nobody answers what is refused for lack of rights.
        Outcome::NoStream | Outcome::OverMaxPayload | Outcome::NoAnswer => true,
        Outcome::Overtaken | Outcome::InProcess | Outcome::Acknowledged(_) => false,
    }
}

/// Nothing more is sent in this call.
pub(super) fn give_up(slots: &mut [Slot<'_>]) {
    for slot in slots.iter_mut().filter(|slot| slot.is_ready()) {
        slot.state = State::Done(Outcome::NoAnswer);
    }
}
