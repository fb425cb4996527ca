//! What becomes of an event after an attempt: delivered, tried again, put back or dead.

use std::time::Duration;

use posthaste_core::{
    Error, ErrorKind, ErrorStatus, OutboxEvent, PublishResult, RetryDecision, Seq, Settlement,
    SettlementOutcome, Subject,
};
use uuid::Uuid;

use crate::keys::key::{Held, KeyId};
use crate::machine::Machine;
use crate::protocol::{Report, Summary};
use crate::routes::DeadHeadPolicy;
use crate::send::in_flight::{CallId, Place};
use crate::verdict::suspicion::{
    Position, SHELVED_VERDICT_WAIT, Situation, Undecided, VERDICT_WAIT, Verdict,
};

/// The longest error text that is stored with an event.
const ERROR_CHARS_MAX: usize = 2_000;

impl Machine {
    /// Outcomes of a call are known, each with the position of its event in it.
    pub(crate) fn published(
        &mut self,
        call: CallId,
        mut outcomes: Vec<(usize, PublishResult)>,
        now: Duration,
    ) {
        outcomes.retain(|(number, _)| self.in_flight.is_unanswered(call, *number));
        let destination = call.0;
        let was_paused = self.outages[destination].error().is_some();
        let mut dealt_with = Vec::with_capacity(outcomes.len());
        let in_flight = self.in_flight.to(destination);
        self.outages[destination].answered(call.1, outcomes.len());
        for (number, result) in outcomes {
            let Some((place, events)) = self.in_flight.take(call, number) else { continue };
            let (id, event) = (place.key, &events[number]);
            let position = (call.1, number);
            if !self.returned(place) {
                // Another relay sees to the event now. The destination is ours still.
                self.outcome_of_anothers(destination, id, position, result, now);
                continue;
            }
            match result {
                Ok(()) => {
                    self.outages[destination].succeeded(id, position);
                    self.delivered(place, event.id());
                }
                // Behind a failed event of its key: goes again, and counts nothing.
                Err(_) if !self.in_flight.failed(call, id) => {
                    self.put_back(id, held(place, destination, event), now);
                }
                Err(error) => {
                    let timed_out = error.kind() == ErrorKind::Timeout;
                    let held = held(place, destination, event);
                    let failure = Undecided { id, held, error, failed_at: now, sent: position };
                    let is_known = self.attempt_failed(failure, now);
                    if timed_out {
                        self.outages[destination].timed_out(id, call.1, in_flight);
                    }
                    if !is_known {
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

    /// The broker holds an event of this id already: a repeat, as after a crash, or another event.
    pub(crate) fn repeats_seen(&mut self, call: CallId, repeated: &[usize]) {
        for number in repeated {
            let Some((place, event)) = self.in_flight.get(call, *number) else { continue };
            if self.unsent_above.is_some_and(|place_of| place.seq > place_of) {
                let event = summary(event);
                self.counts.lost_as_repeat += 1;
                self.reports.push(Report::LostAsRepeat { destination: call.0, event });
            }
        }
    }

    /// A call has ended, or it was given up when the lease under which it was sent was over: then what
    /// of it is unanswered goes again, if it is ours still.
    pub(crate) fn call_ended(&mut self, call: CallId, given_up: bool, now: Duration) {
        let unanswered = self.in_flight.unanswered(call);
        if given_up {
            let destination = call.0;
            self.outages[destination].not_sent(call.1, unanswered.len());
            for number in unanswered {
                let Some((place, events)) = self.in_flight.take(call, number) else { continue };
                if self.returned(place) {
                    self.put_back(place.key, held(place, destination, &events[number]), now);
                    self.keys.release(place.key, now);
                }
            }
        } else if !unanswered.is_empty() {
            // A bus that breaks its contract must not make events vanish.
            let no_result = || {
                let why = "the bus gave no result for this event";
                Err(Error::new(ErrorKind::Internal, "publish", why))
            };
            let outcomes = unanswered.into_iter().map(|number| (number, no_result())).collect();
            self.published(call, outcomes, now);
        }
        self.in_flight.ended(call);
    }

    /// Decides what can be decided of the failures whose fault is unknown.
    pub(crate) fn decide_undecided(&mut self, now: Duration) {
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
        let wait = self.verdict_wait(destination);
        let outage = &mut self.outages[destination];
        // After a stop nothing more is sent that could tell.
        if outage.suspect(more_ready, now, random) || self.stopping {
            self.excuse_undecided(destination, now);
            return;
        }
        if outage.suspicion.is_outage(now) {
            return;
        }
        let situation = Situation { now, wait, patience: self.patience, random };
        let decided = outage.suspicion.decide(&situation);
        if !decided.is_empty() {
            outage.acquitted();
        }
        for (failure, verdict) in decided {
            let id = failure.id;
            match verdict {
                Verdict::Own => self.count_attempt(failure, now),
                Verdict::Again(pause) => self.try_again(failure, pause, now),
            }
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
            self.keys.shelve(destination, 0);
        }
    }

    /// How long an undecided failure waits, if nothing is under way to the destination or ready for
    /// it that could tell whose fault it is.
    fn verdict_wait(&self, destination: usize) -> Option<Duration> {
        let left_alone =
            self.in_flight.to(destination) == 0 && self.keys.ready_count(destination) == 0;
        let shelved = self.keys.shelved_count(destination) > 0;
        let wait = if shelved { SHELVED_VERDICT_WAIT } else { VERDICT_WAIT };
        left_alone.then_some(wait.min(self.patience))
    }

    /// When failures must be decided that nothing else decides.
    pub(crate) fn verdicts_due(&self) -> impl Iterator<Item = Duration> {
        (0..self.outages.len()).filter_map(|destination| {
            let since = self.outages[destination].suspicion.undecided_since()?;
            Some(since + self.verdict_wait(destination)?)
        })
    }

    /// Failures whose fault is unknown, and their payload bytes: they are in memory as well.
    pub(crate) fn undecided(&self) -> (usize, usize) {
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

    /// What the outcome of an event that is another relay's now says of the destination.
    fn outcome_of_anothers(
        &mut self,
        destination: usize,
        id: KeyId,
        position: Position,
        result: PublishResult,
        now: Duration,
    ) {
        let random = self.random();
        let outage = &mut self.outages[destination];
        match result {
            Ok(()) => outage.succeeded(id, position),
            Err(error) if error.subject() == Subject::Connection => {
                outage.unavailable(&error, now, random);
            }
            Err(error) if error.status() == ErrorStatus::Permanent => {
                outage.refused(position.0, error.kind());
            }
            Err(_) => {}
        }
    }

    /// An event is not in flight any more. Returns whether its shard was this relay's all the time
    /// since it was sent.
    fn returned(&mut self, place: Place) -> bool {
        let shard = place.key.shard();
        self.leases.returned(shard);
        self.leases.holds(shard, place.generation)
    }

    fn delivered(&mut self, place: Place, event: Uuid) {
        self.counts.delivered += 1;
        let outcome = if self.settings.keeps_delivered() {
            SettlementOutcome::Delivered
        } else {
            SettlementOutcome::DeliveredAndRemoved
        };
        self.record(place.key, place.seq, event, outcome);
    }

    /// Hands the outcome of an attempt to settling.
    fn record(&mut self, id: KeyId, seq: Seq, event: Uuid, outcome: SettlementOutcome) {
        // Only a retry leaves an event with an outcome that may still wait to be sent.
        let may_replace = self.settling.is_unrecorded_retry(seq);
        let lease = self.leases.lease_of(id.shard());
        if lease.is_none() && self.leases.are_shared() {
            return; // Another relay's: it has an outcome of its own.
        }
        self.settling.add(Settlement { seq, id: event, lease, outcome }, may_replace);
    }

    fn put_back(&mut self, id: KeyId, held: Held, now: Duration) {
        self.was_sent(held.seq);
        if self.leases.is_active(id.shard()) {
            self.keys.hold(id, held, now);
        } else {
            // A shard that is leaving takes nothing in.
            self.keys.known.forget(held.seq, held.event.id());
        }
    }

    /// Returns whether it is known what becomes of the event.
    fn attempt_failed(&mut self, failure: Undecided, now: Duration) -> bool {
        let random = self.random();
        let outage = &mut self.outages[failure.held.destination];
        let (kind, subject) = (failure.error.kind(), failure.error.subject());
        if subject == Subject::Connection {
            outage.unavailable(&failure.error, now, random);
            self.counts.interrupted += 1;
            self.put_back(failure.id, failure.held, now);
            return true;
        }
        // What refuses everything may be no receiver at all, but a wrong address.
        let is_receiver = kind != ErrorKind::Rejected || outage.suspicion.ever_succeeded();
        if failure.error.status() == ErrorStatus::Permanent && is_receiver {
            let Undecided { id, held, error, sent: (call, _), .. } = failure;
            outage.refused(call, kind);
            let retry_count = held.event.retry_count();
            self.dead_letter(id, held, kind.as_str(), retry_count, &error);
            return true;
        }
        outage.failed(failure);
        false
    }

    /// An event was sent, and is sent again.
    fn was_sent(&mut self, seq: Seq) {
        self.unsent_above = self.unsent_above.map(|above| above.max(seq));
    }

    fn count_attempt(&mut self, failure: Undecided, now: Duration) {
        let Undecided { id, held, error, failed_at, .. } = failure;
        if error.status() == ErrorStatus::Permanent {
            let retry_count = held.event.retry_count();
            self.dead_letter(id, held, error.kind().as_str(), retry_count, &error);
            return;
        }
        let random = self.random();
        let destination = self.routes.rules(held.destination);
        let policy = destination.retry_policy.unwrap_or(self.settings.retry_policy);
        let attempts_max = destination.max_attempts.unwrap_or(held.event.max_retries());
        match held.event.decide_retry_within(attempts_max, &policy, random) {
            RetryDecision::Exhausted { retry_count } => {
                self.dead_letter(id, held, RetryDecision::EXHAUSTED_REASON, retry_count, &error);
            }
            RetryDecision::Retry { retry_count, delay } => {
                // The delay began with the failure, not with the verdict.
                let delay = delay.max(error.retry_after().unwrap_or_default());
                let left = failed_at.saturating_add(delay).saturating_sub(now);
                self.counts.retried += 1;
                self.reports.push(Report::RetryScheduled {
                    destination: held.destination,
                    event: summary(&held.event),
                    delay: left,
                    error: storable(&error.report()),
                });
                self.retry_later(id, held, retry_count, left, &error, now);
            }
        }
    }

    /// Nothing tells whose fault it was: the event waits for a moment, and its row says why.
    fn try_again(&mut self, failure: Undecided, pause: Duration, now: Duration) {
        let Undecided { id, held, error, .. } = failure;
        self.counts.interrupted += 1;
        let retry_count = held.event.retry_count();
        self.reports.push(Report::TriedAgain {
            destination: held.destination,
            event: summary(&held.event),
            pause,
            error: storable(&error.report()),
        });
        self.retry_later(id, held, retry_count, pause, &error, now);
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
        let outcome = SettlementOutcome::Retry {
            retry_count,
            delay,
            error: storable(&error.report()).into(),
        };
        self.record(id, held.seq, held.event.id(), outcome);
        if !self.leases.is_active(id.shard()) {
            self.keys.known.forget(held.seq, held.event.id());
            return;
        }
        self.was_sent(held.seq);
        let event = held.event.with_retry_count(retry_count);
        let head = Held { event, ..held };
        self.keys.park_behind(id, &head, now.saturating_add(delay));
    }

    pub(crate) fn dead_letter(
        &mut self,
        id: KeyId,
        held: Held,
        reason: &'static str,
        retry_count: u32,
        error: &Error,
    ) {
        let text = storable(&error.report());
        let policy = self.routes.dead_head(held.event.destination(), held.event.event_type());
        let blocks_key = policy == DeadHeadPolicy::Block;
        self.counts.dead_lettered += 1;
        self.reports.push(Report::DeadLettered {
            event: summary(&held.event),
            reason,
            error: text.clone(),
            blocks_key,
        });
        if let Some(outage) = self.outages.get_mut(held.destination) {
            outage.suspicion.forget(id);
        }
        let outcome = SettlementOutcome::Dead { retry_count, reason, error: text.into() };
        self.record(id, held.seq, held.event.id(), outcome);
        if blocks_key && self.leases.is_active(id.shard()) {
            self.reader.dead_letters.add(held.seq, id, held.event.order_key().clone(), false);
            self.keys.block(id, held.seq);
        }
    }
}

/// An event that was sent, as it waited before.
fn held(place: Place, destination: usize, event: &OutboxEvent) -> Held {
    Held { seq: place.seq, due: Duration::ZERO, destination, event: event.clone() }
}

fn summary(event: &OutboxEvent) -> Summary {
    Summary {
        id: event.id(),
        event_type: event.event_type().into(),
        key: event.order_key().to_string(),
    }
}

/// An error text that every database takes: bounded, and without the NUL that some refuse.
pub fn storable(text: &str) -> String {
    text.chars().map(|c| if c == '\0' { '\u{fffd}' } else { c }).take(ERROR_CHARS_MAX).collect()
}
