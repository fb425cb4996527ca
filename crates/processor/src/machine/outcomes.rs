//! What becomes of an event after an attempt: delivered, tried again, put back or dead.

use std::time::Duration;

use posthaste_core::{
    Error, ErrorKind, ErrorStatus, OutboxEvent, PublishResult, RetryDecision, Settlement,
    SettlementOutcome,
};
use rustc_hash::FxHashSet;

use super::key::{Admission, Held, KeyId};
use super::{Batch, Machine, Place, Report, Summary};
use crate::DeadHeadPolicy;

/// The longest error text that is stored with an event.
const ERROR_CHARS_MAX: usize = 2_000;

impl Machine {
    pub(super) fn published(
        &mut self,
        destination: usize,
        batch: Batch,
        mut results: Vec<PublishResult>,
        now: Duration,
    ) {
        // A bus that breaks its contract must not make events vanish.
        results.resize_with(batch.events.len(), || {
            Err(Error::new(ErrorKind::Internal, "publish", "the bus gave no result for this event"))
        });
        self.in_flight[destination] -= batch.events.len();
        let was_paused = self.outages[destination].error().is_some();
        let mut failed_keys: FxHashSet<KeyId> = FxHashSet::default();
        let mut keys_of_batch = Vec::with_capacity(batch.places.len());
        for ((event, place), result) in batch.events.into_iter().zip(batch.places).zip(results) {
            let id = place.key;
            let is_ours = self.returned(place, &event);
            keys_of_batch.extend(is_ours.then_some(id));
            let held = Held { seq: place.seq, due: Duration::ZERO, destination, event };
            match result {
                // Another relay sees to the event now. The destination is ours still.
                Ok(()) if !is_ours => self.outages[destination].answered(),
                Err(error) if !is_ours => self.destination_failed(destination, &error, now),
                Ok(()) => {
                    self.outages[destination].answered();
                    self.delivered(id, &held);
                }
                // Behind a failed event of its key: goes again, and counts nothing.
                Err(_) if failed_keys.contains(&id) => self.put_back(id, held, now),
                Err(error) => {
                    failed_keys.insert(id);
                    self.attempt_failed(id, held, &error, now);
                }
            }
        }
        for id in keys_of_batch {
            self.keys.release(id, now);
        }
        match (was_paused, self.outages[destination].error()) {
            (false, Some(error)) => {
                let error = error.to_owned();
                self.reports.push(Report::Paused { destination, error });
            }
            (true, None) => {
                self.reports.push(Report::Resumed { destination });
                self.keys.unshelve(destination, usize::MAX, now);
            }
            _ => {}
        }
    }

    /// A batch was not sent, since the lease ended before: its events go again, if they are ours
    /// still.
    pub(super) fn not_sent(&mut self, destination: usize, batch: Batch, now: Duration) {
        self.in_flight[destination] -= batch.events.len();
        self.outages[destination].not_sent();
        for (event, place) in batch.events.into_iter().zip(batch.places) {
            if self.returned(place, &event) {
                let held = Held { seq: place.seq, due: Duration::ZERO, destination, event };
                self.put_back(place.key, held, now);
                self.keys.release(place.key, now);
            }
        }
    }

    /// An event is not in flight any more. Returns whether its shard was this relay's all the time
    /// since it was sent.
    fn returned(&mut self, place: Place, event: &OutboxEvent) -> bool {
        let shard = place.key.shard();
        self.in_flight_bytes -= event.payload().body().len();
        self.leases.returned(shard);
        self.leases.holds(shard, place.generation)
    }

    fn delivered(&mut self, id: KeyId, held: &Held) {
        self.counts.delivered += 1;
        self.record(id, held, SettlementOutcome::Delivered);
    }

    /// Hands the outcome of an attempt to settling.
    fn record(&mut self, id: KeyId, held: &Held, outcome: SettlementOutcome) {
        // Only a retry leaves an event with an outcome that may still wait to be sent.
        let may_replace = held.event.retry_count() > 0;
        let lease = self.leases.lease_of(id.shard());
        let settlement = Settlement { seq: held.seq, id: held.event.id(), lease, outcome };
        self.settling.add(settlement, may_replace);
    }

    fn put_back(&mut self, id: KeyId, held: Held, now: Duration) {
        let seq = held.seq;
        // A shard that is leaving takes nothing in.
        if !self.leases.is_active(id.shard()) || self.keys.hold(id, held, now) == Admission::Unheld
        {
            self.reader.forget(seq);
        }
    }

    fn attempt_failed(&mut self, id: KeyId, held: Held, error: &Error, now: Duration) {
        match error.status() {
            ErrorStatus::Unavailable => {
                self.destination_failed(held.destination, error, now);
                self.counts.interrupted += 1;
                self.put_back(id, held, now);
            }
            ErrorStatus::Permanent => {
                self.destination_failed(held.destination, error, now);
                let retry_count = held.event.retry_count();
                self.dead_letter(id, held, error.kind().as_str(), retry_count, error);
            }
            ErrorStatus::Transient => {
                self.destination_failed(held.destination, error, now);
                let random = self.random();
                match held.event.decide_retry(&self.settings.retry_policy, random) {
                    RetryDecision::Exhausted { retry_count } => {
                        self.dead_letter(
                            id,
                            held,
                            RetryDecision::EXHAUSTED_REASON,
                            retry_count,
                            error,
                        );
                    }
                    RetryDecision::Retry { retry_count, delay } => {
                        self.retry_later(id, held, retry_count, delay, error, now);
                    }
                }
            }
        }
    }

    /// What a failure says of the destination.
    fn destination_failed(&mut self, destination: usize, error: &Error, now: Duration) {
        let random = self.random();
        match error.status() {
            ErrorStatus::Unavailable => self.outages[destination].unavailable(error, now, random),
            ErrorStatus::Permanent | ErrorStatus::Transient => self.outages[destination].answered(),
        }
    }

    fn retry_later(
        &mut self,
        id: KeyId,
        held: Held,
        retry_count: u32,
        delay: Duration,
        error: &Error,
        now: Duration,
    ) {
        let text = storable(&error.report());
        self.counts.retried += 1;
        self.reports.push(Report::RetryScheduled {
            destination: held.destination,
            event: summary(&held.event),
            delay,
            error: text.clone(),
        });
        self.record(id, &held, SettlementOutcome::Retry { retry_count, delay, error: text.into() });
        if !self.leases.is_active(id.shard()) {
            return;
        }
        let event = held.event.with_retry_count(retry_count);
        let head = Held { event, ..held };
        for seq in self.keys.park_behind(id, head, now.saturating_add(delay), now) {
            self.reader.forget(seq);
        }
    }

    pub(super) fn dead_letter(
        &mut self,
        id: KeyId,
        held: Held,
        reason: &'static str,
        retry_count: u32,
        error: &Error,
    ) {
        let text = storable(&error.report());
        let policy = self.dead_head_policy(held.event.destination(), held.event.event_type());
        let blocks_key = policy == DeadHeadPolicy::Block;
        self.counts.dead_lettered += 1;
        self.reports.push(Report::DeadLettered {
            event: summary(&held.event),
            reason,
            error: text.clone(),
            blocks_key,
        });
        self.record(id, &held, SettlementOutcome::Dead { retry_count, reason, error: text.into() });
        if blocks_key && self.leases.is_active(id.shard()) {
            self.reader.dead_letters.add(held.seq, id, held.event.order_key().clone(), false);
            self.block(id, held.seq);
        }
    }
}

fn summary(event: &OutboxEvent) -> Summary {
    Summary {
        id: event.id(),
        event_type: event.event_type().into(),
        key: event.order_key().to_string(),
    }
}

/// An error text that every database takes: bounded, and without the NUL that some refuse.
fn storable(text: &str) -> String {
    text.chars().map(|c| if c == '\0' { '\u{fffd}' } else { c }).take(ERROR_CHARS_MAX).collect()
}
