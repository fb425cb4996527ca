//! One key: its identity, what it holds in memory, and what it waits for.

use std::collections::VecDeque;
use std::hash::{DefaultHasher, Hasher};
use std::time::Duration;

use posthaste_core::{OrderKey, OutboxEvent, Seq, Shard};

/// A hash of an order key. Two keys with one hash are ordered as if they were one key: slower,
/// never wrong. They have one shard, too: its lowest bits are the shard's number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct KeyId(u64);

impl KeyId {
    /// An aggregate's id and a named key of the same text are the same key.
    pub(crate) fn of(key: &OrderKey, shard: Shard) -> Self {
        // Without a random seed: equal in every run, so that a seed of the simulator replays.
        let mut hasher = DefaultHasher::new();
        match key {
            OrderKey::Aggregate(id) => {
                let mut text = [0; uuid::fmt::Hyphenated::LENGTH];
                hasher.write(id.hyphenated().encode_lower(&mut text).as_bytes());
            }
            OrderKey::Named(name) => hasher.write(name.as_bytes()),
        }
        let shards = Shard::COUNT as u64;
        Self(hasher.finish() / shards * shards + shard.index() as u64)
    }

    pub(crate) fn shard(self) -> Shard {
        #[expect(clippy::cast_possible_truncation, reason = "below the count")]
        let index = (self.0 % Shard::COUNT as u64) as usize;
        Shard::from_index(index).unwrap_or_else(|| unreachable!("below the count"))
    }
}

/// An event in memory.
#[derive(Debug)]
pub(crate) struct Held {
    pub(crate) seq: Seq,
    /// Not to be sent before.
    pub(crate) due: Duration,
    /// Index of its destination.
    pub(crate) destination: usize,
    pub(crate) event: OutboxEvent,
}

impl Held {
    pub(crate) fn bytes(&self) -> usize {
        self.event.payload().body().len()
    }
}

/// Events of a key that must be fetched again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Unheld {
    pub(crate) first: Seq,
    pub(crate) last: Seq,
}

/// What a key holds in memory, and what it waits for.
#[derive(Debug, Default)]
pub(crate) struct Key {
    // Boxed: a parked key without events stays small, and there may be very many of those.
    #[expect(clippy::box_collection, reason = "8 bytes instead of 32 in every parked key")]
    pub(crate) waiting: Option<Box<VecDeque<Held>>>,
    pub(crate) taken: u32,
    pub(crate) queued: bool,
    pub(crate) catching_up: bool,
    /// Its destination is down and memory was short: it waits until that answers again.
    pub(crate) shelved: bool,
    /// The first of what is unheld is fetched by itself.
    pub(crate) head_first: bool,
    pub(crate) parked_until: Option<Duration>,
    /// Place of the dead letter that blocks what comes after it.
    pub(crate) blocked_by: Option<Seq>,
    pub(crate) unheld: Option<Box<Unheld>>,
    /// Needed to ask for the unheld range; kept only where that is more than one event.
    pub(crate) name: Option<Box<OrderKey>>,
}

impl Key {
    pub(crate) fn front(&self) -> Option<&Held> {
        self.waiting.as_ref().and_then(|waiting| waiting.front())
    }

    pub(crate) fn waiting_count(&self) -> usize {
        self.waiting.as_ref().map_or(0, |waiting| waiting.len())
    }

    pub(crate) fn is_blocked_at(&self, seq: Seq) -> bool {
        self.blocked_by.is_some_and(|dead| seq > dead)
    }

    pub(crate) fn is_idle(&self) -> bool {
        self.waiting_count() == 0
            && self.taken == 0
            && self.parked_until.is_none()
            && self.blocked_by.is_none()
            && self.unheld.is_none()
            && !self.queued
            && !self.catching_up
            && !self.shelved
    }

    pub(crate) fn extend_unheld(&mut self, seq: Seq, name: &OrderKey) {
        match &mut self.unheld {
            Some(range) => {
                range.first = range.first.min(seq);
                range.last = range.last.max(seq);
            }
            None => self.unheld = Some(Box::new(Unheld { first: seq, last: seq })),
        }
        if self.name.is_none()
            && self.unheld.as_ref().is_some_and(|range| range.first != range.last)
        {
            self.name = Some(Box::new(name.clone()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use uuid::Uuid;

    #[test]
    fn an_aggregate_and_its_text_are_one_key() {
        let aggregate = Uuid::from_u128(7);
        let named = OrderKey::named(&aggregate.to_string()).expect("a key");
        let id = |key: &OrderKey| KeyId::of(key, Shard::default());
        assert_eq!(id(&OrderKey::Aggregate(aggregate)), id(&named));
    }
}
