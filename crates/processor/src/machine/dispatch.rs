//! What is sent next: batches for each destination, within its breaker, the rate limit and the
//! bound on what is in flight.

use std::time::Duration;

use governor::clock::Clock;
use posthaste_core::{BusCapabilities, Error, ErrorKind, KeyPipelining};

use super::outage::Permit;
use super::{Batch, CALLS_IN_FLIGHT, Command, Machine, Place};

impl Machine {
    pub(super) fn dispatch(&mut self, now: Duration, commands: &mut Vec<Command>) {
        self.limited_until = None;
        self.dead_letter_unroutable(now);
        for destination in 0..self.outages.len() {
            while let Some(batch) = self.next_batch(destination, now) {
                let not_after = self.leases.send_until();
                commands.push(Command::Publish { destination, batch, not_after });
            }
        }
    }

    /// The next events for a destination, unless it is paused or enough is in flight.
    fn next_batch(&mut self, destination: usize, now: Duration) -> Option<Batch> {
        let ready = self.keys.ready_count(destination);
        if ready == 0 {
            self.find_probe(destination, now);
            return None;
        }
        let BusCapabilities { batch_events_max, key_pipelining, .. } =
            self.routes.capabilities(destination);
        let batch_events_max = batch_events_max.max(1);
        let in_flight_max = self.settings.max_concurrent_events;
        let free = self.free_for(destination);
        let permit = self.outages[destination].permit(now);
        let wanted = match permit {
            Permit::Nothing => return None,
            Permit::Probe(probes) => probes.min(batch_events_max).min(free),
            Permit::All => in_flight_max.div_ceil(CALLS_IN_FLIGHT).min(batch_events_max),
        };
        // Wait for room for a decent batch rather than send single events as answers trickle in.
        if free == 0 || free < wanted.min(ready) {
            return None;
        }
        let wanted = self.limit_rate(wanted.min(free), ready, now)?;
        if let Permit::Probe(probes) = permit
            && self.outages[destination].begins_to_probe()
        {
            let suspects = self.outages[destination].suspicion.suspects();
            self.keys.order_probes(destination, probes, suspects);
        }
        let per_key = match (permit, key_pipelining) {
            (Permit::All, KeyPipelining::SuffixFails) => wanted,
            _ => 1,
        };
        let taken = self.keys.take(destination, wanted, per_key, now);
        if taken.is_empty() {
            return None;
        }
        let call = self.outages[destination].sent(taken.len());
        self.in_flight[destination] += taken.len();
        let mut batch = Batch {
            call,
            events: Vec::with_capacity(taken.len()),
            places: Vec::with_capacity(taken.len()),
        };
        for (id, held) in taken {
            self.in_flight_bytes += held.event.payload().body().len();
            self.leases.sent(id.shard());
            // Of a shard that is not held, nothing waits to be sent.
            let generation = self.leases.generation(id.shard()).unwrap_or_default();
            batch.places.push(Place { seq: held.seq, key: id, generation });
            batch.events.push(held.event);
        }
        Some(batch)
    }

    /// How many more events may be in flight to a destination. Each of several keeps a share of its
    /// own, so that one that hangs cannot take all there is.
    fn free_for(&self, destination: usize) -> usize {
        let in_flight_max = self.settings.max_concurrent_events;
        let others = self.outages.len() - 1;
        let share = in_flight_max / (2 * self.outages.len());
        let own_max = (in_flight_max - others * share).max(1);
        let free = in_flight_max.saturating_sub(self.in_flight());
        free.min(own_max.saturating_sub(self.in_flight[destination]))
    }

    /// A destination may be probed, and all its keys are shelved: fetches some of them again.
    fn find_probe(&mut self, destination: usize, now: Duration) {
        if self.keys.shelved_count(destination) > 0
            && self.keys.catch_up_count() == 0
            && let Permit::Probe(probes) = self.outages[destination].permit(now)
        {
            self.keys.unshelve(destination, probes, now);
        }
    }

    /// How many of `wanted` events the rate limit lets through; `None` for none. Asks for no more
    /// than is `ready`, since what is granted and not used is lost.
    fn limit_rate(&mut self, wanted: usize, ready: usize, now: Duration) -> Option<usize> {
        let Some((limiter, clock, clock_at)) = &mut self.limiter else { return Some(wanted) };
        clock.advance(now.saturating_sub(*clock_at));
        *clock_at = now;
        let wanted = wanted.min(ready);
        for permitted in 0..wanted {
            if let Err(not_until) = limiter.check() {
                self.limited_until = Some(now + not_until.wait_time_from(clock.now()));
                return (permitted > 0).then_some(permitted);
            }
        }
        Some(wanted)
    }

    fn dead_letter_unroutable(&mut self, now: Duration) {
        let unroutable = self.outages.len();
        while self.keys.ready_count(unroutable) > 0 {
            for (id, held) in self.keys.take(unroutable, usize::MAX, 1, now) {
                let name = held.event.destination().unwrap_or_default().to_owned();
                let error = Error::new(
                    ErrorKind::DestinationMissing,
                    "route event",
                    "no destination of this name is configured",
                )
                .with_context("destination", name);
                self.dead_letter(id, held, ErrorKind::DestinationMissing.as_str(), 0, &error);
                self.keys.release(id, now);
            }
        }
    }
}
