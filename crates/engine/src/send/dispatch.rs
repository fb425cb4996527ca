//! What is sent next: batches for each destination, within its breaker, the rate limit and the
//! bound on what is in flight.

use std::time::Duration;

use governor::clock::Clock;
use std::sync::Arc;

use posthaste_core::{BusCapabilities, Error, ErrorKind, KeyPipelining};

use crate::machine::{CALLS_IN_FLIGHT, Machine};
use crate::protocol::{Command, Report};
use crate::record::settling::ALONE_MAX;
use crate::routes::UnknownDestination;
use crate::send::in_flight::Place;
use crate::verdict::outage::Permit;

impl Machine {
    pub(crate) fn dispatch(
        &mut self,
        now: Duration,
        capabilities: &impl Fn(usize) -> BusCapabilities,
        commands: &mut Vec<Command>,
    ) {
        self.limited_until = None;
        self.see_to_unroutable(now);
        for destination in 0..self.outages.len() {
            commands.extend(std::iter::from_fn(|| self.next_call(destination, capabilities, now)));
        }
    }

    /// The next events for a destination, unless it is paused or enough is in flight.
    fn next_call(
        &mut self,
        destination: usize,
        capabilities: &impl Fn(usize) -> BusCapabilities,
        now: Duration,
    ) -> Option<Command> {
        let ready = self.keys.ready_count(destination);
        if ready == 0 {
            self.find_probe(destination, now);
            return None;
        }
        let BusCapabilities { batch_events_max, key_pipelining, in_flight_events_max, .. } =
            capabilities(destination);
        let batch_events_max = batch_events_max.max(1);
        let in_flight_max = self.in_flight_max(destination, in_flight_events_max, now);
        let free = self.free_for(destination, in_flight_max);
        let permit = self.outages[destination].permit(now);
        let wanted = match permit {
            Permit::Nothing => return None,
            Permit::Probe(probes) | Permit::Fresh(probes) => probes.min(batch_events_max).min(free),
            Permit::All => in_flight_max.div_ceil(CALLS_IN_FLIGHT).min(batch_events_max),
        };
        // Wait for room for a decent batch rather than send single events as answers trickle in.
        if free == 0 || free < wanted.min(ready) {
            return None;
        }
        let outage = &self.outages[destination];
        let is_suspect = |id| outage.suspicion.is_suspect(id);
        let of_destination = self.keys.ready(destination);
        let mut wanted = wanted;
        match permit {
            Permit::All => of_destination.join(),
            Permit::Fresh(_) => wanted = of_destination.put_fresh_first(wanted, is_suspect),
            Permit::Probe(probes) if outage.begins_to_probe() => {
                of_destination.put_probes_first(probes, is_suspect);
            }
            Permit::Probe(_) | Permit::Nothing => {}
        }
        if wanted == 0 {
            self.find_probe(destination, now);
            return None;
        }
        let wanted = self.limit_rate(wanted.min(free), ready, now)?;
        let per_key = match (permit, key_pipelining) {
            (Permit::All, KeyPipelining::SuffixFails) => wanted,
            _ => 1,
        };
        let taken = self.keys.take(destination, wanted, per_key, now);
        if taken.is_empty() {
            return None;
        }
        let call = (destination, self.outages[destination].sent(taken.len()));
        let (mut events, mut places) =
            (Vec::with_capacity(taken.len()), Vec::with_capacity(taken.len()));
        for (id, held) in taken {
            self.leases.sent(id.shard());
            // Of a shard that is not held, nothing waits to be sent.
            let generation = self.leases.generation(id.shard()).unwrap_or_default();
            places.push(Place { seq: held.seq, key: id, generation });
            events.push(held.event);
        }
        let events = Arc::new(events);
        self.in_flight.sent(call, Arc::clone(&events), places);
        Some(Command::Publish { call, events, not_after: self.leases.send_until() })
    }

    /// The most events in flight to a destination: what the settings, its bus, its time-outs and a database
    /// that refuses row after row leave. Of such a one it is not known whether it records anything: a few
    /// events at a time tell, and no more than these are sent again after a crash.
    fn in_flight_max(&self, destination: usize, of_bus: Option<usize>, now: Duration) -> usize {
        let mut settings = self.settings.max_concurrent_events;
        if self.database.refuses_rows() {
            let waits =
                self.database.pauses_after_refused_rows(now) || self.settling.to_be_tried() > 0;
            settings = if waits { 0 } else { settings.min(ALONE_MAX) };
        }
        self.outages[destination].window.limit(of_bus.map_or(settings, |max| max.min(settings)))
    }

    /// How many more events may be in flight to a destination. Each of several keeps a share of its
    /// own, so that one that hangs cannot take all there is.
    fn free_for(&self, destination: usize, in_flight_max: usize) -> usize {
        let of_all = self.settings.max_concurrent_events;
        let others = self.outages.len() - 1;
        let share = of_all / (2 * self.outages.len());
        let own_max = (of_all - others * share).max(1).min(in_flight_max);
        let free = of_all.saturating_sub(self.in_flight());
        free.min(own_max.saturating_sub(self.in_flight.to(destination)))
    }

    /// A destination may be probed, and the keys to do so with are shelved: fetches some of them again.
    fn find_probe(&mut self, destination: usize, now: Duration) {
        if self.keys.shelved_count(destination) == 0 || self.keys.catch_up_count() > 0 {
            return;
        }
        match self.outages[destination].permit(now) {
            Permit::Probe(probes) => self.keys.unshelve(destination, probes, now),
            Permit::Fresh(probes) => {
                let suspicion = &self.outages[destination].suspicion;
                let is_suspect = |id| suspicion.is_suspect(id);
                self.keys.unshelve_fresh(destination, probes, is_suspect, now);
            }
            Permit::All | Permit::Nothing => {}
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

    /// Events whose `destination` column names none that is configured: left in the store, where they
    /// wait for a relay that knows the name, or dead letters, as the settings say.
    fn see_to_unroutable(&mut self, now: Duration) {
        let unroutable = self.outages.len();
        let holds = self.settings.unknown_destination == UnknownDestination::Hold;
        while self.keys.ready_count(unroutable) > 0 {
            if holds {
                self.hold_unroutable(unroutable);
                continue;
            }
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

    /// An event that waits names a destination that is not configured.
    pub(crate) fn unknown_name_met(&mut self, name: &str) {
        if self.unknown_names.met(name) {
            self.reports.push(Report::UnknownDestination { name: name.into() });
        }
    }

    fn hold_unroutable(&mut self, unroutable: usize) {
        for name in self.keys.destinations_named(unroutable) {
            self.unknown_name_met(&name);
        }
        self.keys.shelve(unroutable, 0);
    }
}
