//! The leases as a database keeps them.

use std::collections::BTreeMap;
use std::time::Duration;

use posthaste_core::{Lease, Shard, ShardLease, ShardSet, fair_share};
use uuid::Uuid;

#[derive(Debug)]
pub(super) struct Leases {
    /// Until when each relay counts as alive.
    relays: BTreeMap<Uuid, (Duration, bool)>,
    shards: [(Option<Uuid>, i64); Shard::COUNT],
}

impl Default for Leases {
    fn default() -> Self {
        Self { relays: BTreeMap::new(), shards: [(None, 0); Shard::COUNT] }
    }
}

impl Leases {
    pub(super) fn lease(
        &mut self,
        relay: Uuid,
        ttl: Duration,
        (release, leaving): (&[ShardLease], bool),
        now: Duration,
    ) -> Lease {
        for given in release {
            let (owner, generation) = &mut self.shards[given.shard.index()];
            if *owner == Some(relay) && *generation == given.generation {
                *owner = None;
            }
        }
        if !self.relays.contains_key(&relay) {
            for (owner, _) in &mut self.shards {
                if *owner == Some(relay) {
                    *owner = None;
                }
            }
        }
        self.relays.retain(|_, (until, _)| *until > now);
        self.relays.insert(relay, (now + ttl, leaving));
        let staying = self.relays.iter().filter(|(_, (_, leaving))| !leaving);
        let alive: Vec<Uuid> = staying.map(|(id, _)| *id).collect();
        let fair_share = if leaving { 0 } else { fair_share(&alive, relay) };
        let mut owned = self.owned(relay).len();
        for (owner, generation) in &mut self.shards {
            let free = owner.is_none_or(|owner| !self.relays.contains_key(&owner));
            if free && owned < fair_share {
                (*owner, *generation) = (Some(relay), *generation + 1);
                owned += 1;
            }
        }
        let shards = self.owned(relay).iter().map(|shard| {
            let generation = self.shards[shard.index()].1;
            ShardLease { shard, generation }
        });
        Lease { shards: shards.collect(), fair_share, relays: alive.len() }
    }

    pub(super) fn has_row(&self, relay: Uuid) -> bool {
        self.relays.contains_key(&relay)
    }

    pub(super) fn leave(&mut self, relay: Uuid) {
        self.relays.remove(&relay);
    }

    pub(super) fn owner(&self, shard: Shard) -> Option<Uuid> {
        self.shards[shard.index()].0
    }

    pub(super) fn owned(&self, relay: Uuid) -> ShardSet {
        ShardSet::ALL.iter().filter(|shard| self.shards[shard.index()].0 == Some(relay)).collect()
    }

    pub(super) fn is_current(&self, lease: ShardLease) -> bool {
        self.shards[lease.shard.index()].1 == lease.generation
    }

    /// Whether no other relay may be sending events of this shard, or may from now on.
    pub(super) fn may_send(
        &self,
        relay: Uuid,
        shard: Shard,
        generation: i64,
        now: Duration,
    ) -> bool {
        self.shards[shard.index()] == (Some(relay), generation)
            && self.relays.get(&relay).is_some_and(|(until, _)| *until > now)
    }
}
