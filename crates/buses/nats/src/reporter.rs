//! Reports the outcomes of a call to whoever made it.

use posthaste_core::{Error, OutboxEvent, Outcomes, PublishResult};

use super::acknowledgement::{Ack, Outcome};
use super::slots::{Slot, State};

/// Where the outcomes of a window of a call go.
#[derive(Clone, Copy)]
pub(super) struct Reporter<'a> {
    pub(super) outcomes: Outcomes<'a>,
    /// How many events of the call come before the window.
    pub(super) offset: usize,
}

impl Reporter<'_> {
    /// Reports the same for all.
    pub(super) fn all(self, events: &[OutboxEvent], error: impl Fn() -> Error) {
        let failed = (0..events.len()).map(|at| (self.offset + at, Err(error()))).collect();
        self.outcomes.known(failed);
    }

    /// Reports events that are stored, before the end of the call.
    pub(super) fn stored(self, slots: &mut [Slot<'_>], which: &[usize]) {
        let known = which.iter().map(|at| {
            slots[*at].state = State::Reported;
            (self.offset + at, Ok(()))
        });
        self.outcomes.known(known.collect());
    }

    /// Reports the acknowledged events that `is_certain` holds for, before the end of the call.
    pub(super) fn acknowledged(
        self,
        slots: &mut [Slot<'_>],
        is_certain: impl Fn(&Slot<'_>, &Ack) -> bool,
    ) {
        let mut known = Vec::new();
        for (at, slot) in slots.iter_mut().enumerate() {
            let State::Done(Outcome::Acknowledged(ack)) = &slot.state else { continue };
            if is_certain(slot, ack) {
                known.push(self.stored_one(at, ack));
                slot.state = State::Reported;
            }
        }
        self.outcomes.known(known);
    }

    /// The report of one event that is stored.
    pub(super) fn stored_one(self, at: usize, ack: &Ack) -> (usize, PublishResult) {
        let position = self.offset + at;
        if ack.is_repeat {
            self.outcomes.repeated(position);
        }
        (position, Ok(()))
    }
}
