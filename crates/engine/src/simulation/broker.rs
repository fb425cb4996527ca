//! The broker of the simulation: destinations that are down in every way, or fail one event.

use std::collections::HashSet;

use posthaste_core::{Error, ErrorKind, KeyPipelining, OutboxEvent, PublishResult};
use rand::RngExt;
use uuid::Uuid;

use super::relay::Identity;
use super::world::{CLOCKS_APART, DESTINATIONS, Down, World};
use crate::CallId;
use crate::protocol::Input;

impl World {
    pub(super) fn toggle_outage(&mut self) {
        let destination = self.random.random_range(0..DESTINATIONS.len());
        let down = match self.random.random_range(0..4) {
            0..2 => Down::Unavailable,
            2 => Down::Ambiguous,
            _ => Down::Claimed,
        };
        let outage = &mut self.outage[destination];
        *outage = if outage.is_none() { Some(down) } else { None };
    }

    pub(super) fn publish(
        &mut self,
        relay: &Identity,
        call: CallId,
        events: &[OutboxEvent],
    ) -> Input {
        let mut failed_keys: HashSet<Uuid> = HashSet::new();
        let mut results = Vec::new();
        for (event, place) in events.iter().zip(&relay.calls[&call].0) {
            let key = event.aggregate_id();
            assert!(
                !relay.acknowledged.contains(&(event.id(), place.generation)),
                "sent again after its acknowledgement"
            );
            assert!(
                !relay.shared
                    || self.leases.may_send(
                        relay.id,
                        place.key.shard(),
                        place.generation,
                        self.now
                    ),
                "{} sends what another relay may be sending",
                relay.id
            );
            assert!(
                self.pipelining == KeyPipelining::SuffixFails
                    || events.iter().filter(|other| other.aggregate_id() == key).count() == 1,
                "two events of a key in one call"
            );
            if failed_keys.contains(&key) {
                results.push(Err(Error::new(ErrorKind::Failed, "publish", "behind a failed one")));
                continue;
            }
            let row = &self.rows[&place.seq];
            assert!(
                row.available_at <= self.now + CLOCKS_APART,
                "{} was sent before its time",
                place.seq
            );
            let result = self.publish_one(call.0, event);
            if result.is_err() && self.pipelining == KeyPipelining::SuffixFails {
                failed_keys.insert(key);
            }
            results.push(result);
        }
        let outcomes = results.into_iter().enumerate().collect();
        Input::Published { call, outcomes, repeated: Vec::new() }
    }

    fn publish_one(&mut self, destination: usize, event: &OutboxEvent) -> PublishResult {
        let unavailable = |why| Err(Error::new(ErrorKind::Unreachable, "publish", why));
        let blame = |world: &mut Self| *world.blamed.entry(event.id()).or_default() += 1;
        match self.outage[destination] {
            Some(Down::Unavailable) => return unavailable("down"),
            Some(Down::Ambiguous) => {
                blame(self);
                return Err(Error::new(ErrorKind::Failed, "publish", "down, and does not say so"));
            }
            Some(Down::Claimed) => {
                blame(self);
                return Err(Error::new(ErrorKind::Throttled, "publish", "down, says its proxy"));
            }
            None => {}
        }
        let dice = if self.faults { self.random.random_range(0..100) } else { 100 };
        match dice {
            0..8 => {
                blame(self);
                let kind = if dice < 5 { ErrorKind::Failed } else { ErrorKind::Throttled };
                return Err(Error::new(kind, "publish", "transient"));
            }
            8..10 => {
                blame(self);
                return Err(Error::new(ErrorKind::Rejected, "publish", "permanent"));
            }
            10..13 => return unavailable("before the write"),
            _ => {}
        }
        if self.written.insert(event.id()) {
            self.first_deliveries.push(self.places[&event.id()]);
        } else {
            self.repeats.push(self.places[&event.id()]);
        }
        if (13..17).contains(&dice) { unavailable("answer lost") } else { Ok(()) }
    }
}
