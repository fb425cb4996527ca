//! How far a machine is: what a run that ends waits for, and what operators are shown.

use std::time::Duration;

use posthaste_core::{Seq, Settlement};
use uuid::Uuid;

use crate::machine::{Counts, Machine};
use crate::verdict::outage::{Failing, Outage};

/// An event whose outcome cannot be recorded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NotRecorded {
    /// Its place.
    pub seq: Seq,
    /// Its identity.
    pub id: Uuid,
    /// What is in the way.
    pub why: Box<str>,
}

impl Machine {
    /// Nothing is under way that a stop has to wait for.
    pub fn is_settled(&self) -> bool {
        self.in_flight() == 0 && self.undecided().0 == 0 && self.settling.to_be_tried() == 0
    }

    /// Every event that is due now was offered once: the end of one pass.
    pub fn pass_is_done(&self) -> bool {
        let sendable = (0..self.outages.len())
            .any(|index| self.keys.ready_count(index) > 0 && self.outages[index].error().is_none());
        let outage_fills_memory = self.room().0 == 0 && !sendable;
        let all_read = self.leases.active().is_empty() || self.reader.end_reached();
        self.leases.is_complete()
            && (all_read || outage_fills_memory)
            && !sendable
            && self.keys.catch_up_count() == 0
            && self.is_settled()
    }

    /// Nothing is left to deliver but dead letters, what waits behind them, and what is delayed
    /// beyond `patience`.
    pub fn is_drained(&mut self, now: Duration, patience: Duration) -> bool {
        let waits =
            self.keys.next_wake().is_some_and(|until| until <= now.saturating_add(patience));
        let unroutable = self.outages.len();
        let ready = (0..unroutable)
            .any(|index| self.keys.ready_count(index) + self.keys.shelved_count(index) > 0)
            || self.keys.ready_count(unroutable) > 0;
        let under_way = self.keys.catch_up_count() > 0 || !self.is_settled();
        if waits || ready || under_way || !self.leases.is_complete() {
            return false;
        }
        if self.leases.active().is_empty() || self.reader.is_quiet() {
            return true;
        }
        if self.reader.end_reached() {
            self.reader.confirm_quiet(now);
        }
        false
    }

    /// Events that were sent and are not answered.
    pub fn in_flight(&self) -> usize {
        self.in_flight.events()
    }

    /// Events in memory that wait to be sent.
    pub const fn buffered(&self) -> usize {
        self.keys.held_events()
    }

    /// Events whose outcome is known and not recorded.
    pub fn unsettled(&self) -> usize {
        self.settling.unrecorded()
    }

    /// Outcomes that cannot be recorded, each with what is in the way, at most `limit`.
    pub fn rows_not_recorded(&self, limit: usize) -> Vec<NotRecorded> {
        let rows = self.settling.alone.iter().take(limit);
        rows.map(|(Settlement { seq, id, .. }, why)| NotRecorded {
            seq: *seq,
            id: *id,
            why: why.into(),
        })
        .collect()
    }

    /// Keys that wait for a time or for an operator.
    pub const fn stuck_keys(&self) -> usize {
        self.keys.stuck()
    }

    /// Keys of each destination whose heads failed and have not succeeded since.
    pub fn failing_keys(&self) -> impl Iterator<Item = usize> {
        self.outages.iter().map(|outage| outage.suspicion.suspects_count())
    }

    /// How a destination fails, if it does, with the names of so many keys.
    pub fn failing(&self, destination: usize, keys_max: usize) -> Option<Failing> {
        self.outages[destination].failing(keys_max)
    }

    /// When the pause of each destination ends; `None` for one that is not paused, or is tried now.
    pub fn pauses_end(&self) -> impl Iterator<Item = Option<Duration>> {
        self.outages.iter().map(Outage::pause_ends)
    }

    /// Events that failed, and nothing tells yet whose fault that is.
    pub fn undecided_events(&self) -> usize {
        self.outages.iter().map(|outage| outage.suspicion.undecided_count()).sum()
    }

    /// What was counted since the machine began.
    pub const fn counts(&self) -> Counts {
        self.counts
    }

    /// The place up to which the outbox was read.
    pub fn hint(&self) -> Seq {
        self.reader.hint()
    }
}
