//! Which relay delivers which key: every key belongs to one of 64 shards.

use std::fmt;

/// A part of all keys, delivered by one relay at a time.
///
/// Which shard a key belongs to is the store's to say, always the same, and the same for an aggregate's
/// id and a named key of that text: a database that finds a relay's share of the rows computes the hash
/// for each of them, so it has to be one that this database is quick at. Writers and relays need not
/// know it. A store without leases has all keys in one shard, the default.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Shard(u8);

impl Shard {
    /// How many there are: the most relays that can share the work of one outbox.
    pub const COUNT: usize = 64;

    /// The shard of this number, from 0 to 63.
    #[must_use]
    pub const fn from_index(index: usize) -> Option<Self> {
        #[expect(clippy::cast_possible_truncation, reason = "below 64")]
        if index < Self::COUNT { Some(Self(index as u8)) } else { None }
    }

    /// Its number.
    #[must_use]
    pub const fn index(self) -> usize {
        self.0 as usize
    }
}

impl fmt::Display for Shard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A set of shards.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct ShardSet(u64);

impl ShardSet {
    /// None.
    pub const EMPTY: Self = Self(0);
    /// All.
    pub const ALL: Self = Self(u64::MAX);

    /// Whether the shard is in it.
    #[must_use]
    pub const fn contains(self, shard: Shard) -> bool {
        (self.0 >> shard.0) & 1 == 1
    }

    /// Adds a shard.
    pub const fn insert(&mut self, shard: Shard) {
        self.0 |= 1 << shard.0;
    }

    /// What is in this set and not in `other`.
    #[must_use]
    pub const fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }

    /// How many are in it.
    #[must_use]
    pub const fn len(self) -> usize {
        self.0.count_ones() as usize
    }

    /// Whether there is none in it.
    #[must_use]
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Whether all are in it.
    #[must_use]
    pub const fn is_all(self) -> bool {
        self.0 == u64::MAX
    }

    /// Its shards, ascending.
    pub fn iter(self) -> impl Iterator<Item = Shard> {
        (0..64).map(Shard).filter(move |shard| self.contains(*shard))
    }

    /// As a number in which the bit of each of its shards is set.
    #[must_use]
    pub const fn bits(self) -> u64 {
        self.0
    }
}

impl FromIterator<Shard> for ShardSet {
    fn from_iter<I: IntoIterator<Item = Shard>>(shards: I) -> Self {
        let mut set = Self::EMPTY;
        for shard in shards {
            set.insert(shard);
        }
        set
    }
}

impl fmt::Debug for ShardSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.iter().map(|shard| shard.0)).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_set_holds_what_was_put_in() {
        let mut set = ShardSet::EMPTY;
        for index in [0, 5, 63] {
            set.insert(Shard::from_index(index).expect("a shard"));
        }
        let indexes: Vec<usize> = set.iter().map(Shard::index).collect();
        assert_eq!((indexes, set.len()), (vec![0, 5, 63], 3));
        assert_eq!(ShardSet::ALL.without(set).len(), 61);
        assert!(ShardSet::ALL.iter().collect::<ShardSet>().is_all());
        assert_eq!(set.bits(), 1 | (1 << 5) | (1 << 63));
        assert!(Shard::from_index(64).is_none());
    }
}
