//! Several relays on one outbox: each leases a share of the shards.
//!
//! - A relay that does not renew its lease in time is taken for dead, by the database's clock, and
//!   others take its shards.
//! - Every time a shard is taken, its *generation* rises. A settlement names the generation under
//!   which its event was sent, and the store refuses it when that is over: a relay that was paused
//!   past its lease cannot change what its successor works on.
//! - A shard whose generation did not change was nobody else's meanwhile. So a relay that renews
//!   late, and finds its generations unchanged, goes on with what it holds. One that was removed as
//!   dead has lost all, also what nobody took.

use std::time::Duration;

use uuid::Uuid;

use crate::{Shard, ShardSet};

/// A relay's hold on a shard, and which of all holds on it that is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ShardLease {
    /// The shard.
    pub shard: Shard,
    /// Rises each time the shard is taken.
    pub generation: i64,
}

/// What a relay asks for: to be counted among the living for another `ttl`, and its fair share.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeaseRequest {
    /// The relay: unique to one run of one process.
    pub relay: Uuid,
    /// What operators see: host and process id.
    pub name: Box<str>,
    /// How long the lease lasts, by the database's clock from now.
    pub ttl: Duration,
    /// Shards to give back. One whose generation has changed is left alone.
    pub release: Vec<ShardLease>,
    /// It is about to stop: its fair share is nothing, and others' are as if it were gone.
    pub leaving: bool,
}

/// What a relay holds.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Lease {
    /// Its shards, in order.
    pub shards: Vec<ShardLease>,
    /// How many shards it should have. It gives back what is above, once nothing of it is under
    /// way.
    pub fair_share: usize,
    /// Relays alive, itself included.
    pub relays: usize,
}

impl Lease {
    /// The set of its shards.
    #[must_use]
    pub fn shard_set(&self) -> ShardSet {
        self.shards.iter().map(|lease| lease.shard).collect()
    }
}

/// How many shards `relay` should have among `alive` ones. The shares of all add up to
/// [`Shard::COUNT`] and differ by one at most; every relay computes them alike, in whatever order it
/// sees the others. A relay that is not among them is counted in.
#[must_use]
pub fn fair_share(alive: &[Uuid], relay: Uuid) -> usize {
    let others = alive.iter().filter(|other| **other != relay);
    let (mut count, mut before) = (1, 0);
    for other in others {
        count += 1;
        before += usize::from(*other < relay);
    }
    Shard::COUNT / count + usize::from(before < Shard::COUNT % count)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fair_shares_add_up_and_differ_by_one_at_most() {
        for relays in 1..=100 {
            let alive: Vec<Uuid> = (0..relays).rev().map(Uuid::from_u128).collect();
            let shares: Vec<usize> = alive.iter().map(|relay| fair_share(&alive, *relay)).collect();
            let (least, most) = (shares.iter().min(), shares.iter().max());
            assert_eq!(shares.iter().sum::<usize>(), Shard::COUNT);
            assert!(most.zip(least).is_some_and(|(most, least)| most - least <= 1), "{shares:?}");
        }
    }

    #[test]
    fn a_newcomer_is_counted_in() {
        assert_eq!(fair_share(&[], Uuid::from_u128(1)), 64);
        assert_eq!(fair_share(&[Uuid::from_u128(1)], Uuid::from_u128(2)), 32);
    }
}
