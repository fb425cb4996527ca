//! What becomes of an event after an attempt: delivered, tried again, put back or dead.

use std::time::Duration;

use posthaste_core::{
    Error, ErrorKind, ErrorStatus, OutboxEvent, PublishResult, RetryDecision, Settlement,
    SettlementOutcome,
};
use rustc_hash::FxHashSet;

use super::key::{Admission, Held, KeyId};
use super::suspicion::{Position, SHELVED_VERDICT_WAIT, Undecided, VERDICT_WAIT};
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
        let was_paused = self.outages[destination].error().is_some();
        self.in_flight[destination] -= batch.events.len();
        self.outages[destination].answered(batch.call, batch.events.len());
        let mut failed_keys: FxHashSet<KeyId> = FxHashSet::default();
        let mut dealt_with = Vec::with_capacity(batch.places.len());
        let sent = batch.events.into_iter().zip(batch.places).zip(results);
        for (number, ((event, place), result)) in sent.enumerate() {
            let id = place.key;
            let position = (batch.call, number);
            if !self.returned(place, &event) {
                // Another relay sees to the event now. The destination is ours still.
                self.outcome_of_anothers(destination, position, result, now);
                continue;
            }
            let held = Held { seq: place.seq, due: Duration::ZERO, destination, event };
            match result {
                Ok(()) => {
                    self.outages[destination].succeeded(position);
                    self.delivered(id, &held);
                }
                // Behind a failed event of its key: goes again, and counts nothing.
                Err(_) if failed_keys.contains(&id) => self.put_back(id, held, now),
                Err(error) => {
                    failed_keys.insert(id);
                    let failure = Undecided { id, held, error, failed_at: now, sent: position };
                    if !self.attempt_failed(failure, now) {
                        continue;
                    }
                }
            }
            dealt_with.push(id);
        }
        for id in dealt_with {
            self.keys.release(id, now);
        }
        self.decide_failures(destination, now);
        self.report_pause(destination, was_paused, now);
    }

    /// Decides what can be decided of the failures whose fault is unknown.
    pub(super) fn decide_undecided(&mut self, now: Duration) {
        for destination in 0..self.outages.len() {
            let was_paused = self.outages[destination].error().is_some();
            self.decide_failures(destination, now);
            self.report_pause(destination, was_paused, now);
        }
    }

    fn decide_failures(&mut self, destination: usize, now: Duration) {
        if self.outages[destination].suspicion.undecided_count() == 0 {
            return;
        }
        let random = self.random();
        let more_ready = self.keys.ready_count(destination) > 0;
        let outage = &mut self.outages[destination];
        let mut own = Vec::new();
        if !outage.suspicion.is_outage(now) {
            own = outage.suspicion.take_proven();
        }
        // After a stop nothing more is sent that could tell.
        if outage.suspect(more_ready, now, random) || self.stopping {
            self.excuse_undecided(destination, now);
        } else if let Some(wait) = self.verdict_wait(destination) {
            let outage = &mut self.outages[destination];
            let alone = outage.suspicion.take_waited(wait, now);
            if !alone.is_empty() {
                outage.acquitted();
            }
            own.extend(alone);
        }
        for failure in own {
            let id = failure.id;
            self.count_attempt(failure, now);
            self.keys.release(id, now);
        }
    }

    /// An outage, or a stop: what is undecided goes behind other keys and counts nothing.
    fn excuse_undecided(&mut self, destination: usize, now: Duration) {
        for Undecided { id, held, .. } in self.outages[destination].suspicion.take_excused() {
            self.counts.interrupted += 1;
            self.put_back(id, held, now);
            self.keys.release(id, now);
        }
        // Where memory is short, others must come to probe in their place.
        if self.keys.shelved_count(destination) > 0 {
            for seq in self.keys.shelve(destination, 0) {
                self.reader.forget(seq);
            }
        }
    }

    /// How long an undecided failure waits, if nothing is under way to the destination or ready for
    /// it that could tell whose fault it is.
    fn verdict_wait(&self, destination: usize) -> Option<Duration> {
        let left_alone =
            self.in_flight[destination] == 0 && self.keys.ready_count(destination) == 0;
        let shelved = self.keys.shelved_count(destination) > 0;
        left_alone.then_some(if shelved { SHELVED_VERDICT_WAIT } else { VERDICT_WAIT })
    }

    /// When failures must be decided that nothing else decides.
    pub(super) fn verdicts_due(&self) -> impl Iterator<Item = Duration> {
        (0..self.outages.len()).filter_map(|destination| {
            let since = self.outages[destination].suspicion.undecided_since()?;
            Some(since + self.verdict_wait(destination)?)
        })
    }

    /// Failures whose fault is unknown, and their payload bytes: they are in memory as well.
    pub(super) fn undecided(&self) -> (usize, usize) {
        self.outages.iter().fold((0, 0), |(events, bytes), outage| {
            let suspicion = &outage.suspicion;
            (events + suspicion.undecided_count(), bytes + suspicion.undecided_bytes())
        })
    }

    fn report_pause(&mut self, destination: usize, was_paused: bool, now: Duration) {
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
        self.outages[destination].not_sent(batch.call, batch.events.len());
        for (event, place) in batch.events.into_iter().zip(batch.places) {
            if self.returned(place, &event) {
                let held = Held { seq: place.seq, due: Duration::ZERO, destination, event };
                self.put_back(place.key, held, now);
                self.keys.release(place.key, now);
            }
        }
    }

    /// What the outcome of an event that is another relay's now says of the destination.
    fn outcome_of_anothers(
        &mut self,
        destination: usize,
        position: Position,
        result: PublishResult,
        now: Duration,
    ) {
        let random = self.random();
        let outage = &mut self.outages[destination];
        match result.as_ref().map_err(|error| (error, error.status())) {
            Ok(()) => outage.succeeded(position),
            Err((error, ErrorStatus::Unavailable)) => outage.unavailable(error, now, random),
            Err((error, ErrorStatus::Permanent)) => outage.refused(position.0, error.kind()),
            Err((_, ErrorStatus::Transient)) => {}
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
        let outcome = if self.settings.keeps_delivered() {
            SettlementOutcome::Delivered
        } else {
            SettlementOutcome::DeliveredAndRemoved
        };
        self.record(id, held, outcome);
    }

    /// Hands the outcome of an attempt to settling.
    fn record(&mut self, id: KeyId, held: &Held, outcome: SettlementOutcome) {
        // Only a retry leaves an event with an outcome that may still wait to be sent.
        let may_replace = held.event.retry_count() > 0;
        let lease = self.leases.lease_of(id.shard());
        if lease.is_none() && self.leases.are_shared() {
            return; // Another relay's: it has an outcome of its own.
        }
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

    /// Returns whether it is known what becomes of the event.
    fn attempt_failed(&mut self, failure: Undecided, now: Duration) -> bool {
        let destination = failure.held.destination;
        match failure.error.status() {
            ErrorStatus::Unavailable => {
                let random = self.random();
                self.outages[destination].unavailable(&failure.error, now, random);
                self.counts.interrupted += 1;
                self.put_back(failure.id, failure.held, now);
                true
            }
            ErrorStatus::Permanent => {
                let Undecided { id, held, error, sent: (call, _), .. } = failure;
                self.outages[destination].refused(call, error.kind());
                let retry_count = held.event.retry_count();
                self.dead_letter(id, held, error.kind().as_str(), retry_count, &error);
                true
            }
            ErrorStatus::Transient => {
                self.outages[destination].failed(failure);
                false
            }
        }
    }

    fn count_attempt(&mut self, failure: Undecided, now: Duration) {
        let Undecided { id, held, error, failed_at, .. } = failure;
        let random = self.random();
        match held.event.decide_retry(&self.settings.retry_policy, random) {
            RetryDecision::Exhausted { retry_count } => {
                self.dead_letter(id, held, RetryDecision::EXHAUSTED_REASON, retry_count, &error);
            }
            RetryDecision::Retry { retry_count, delay } => {
                // The delay began with the failure, not with the verdict.
                let left = failed_at.saturating_add(delay).saturating_sub(now);
                self.retry_later(id, held, retry_count, left, &error, now);
            }
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
