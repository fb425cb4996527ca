//! Which events need not be read: they are in memory, on their way, or their outcome waits to be
//! recorded.
//!
//! A fetch takes its snapshot while events come and go here. So what changed since it was asked for is
//! remembered until its answer has been taken in: a row that it brings may be older than that.

use posthaste_core::{Seq, Shard, ShardSet};
use rustc_hash::FxHashMap;
use uuid::Uuid;

/// What is known of an event that a fetch found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Found {
    /// Nothing.
    New,
    /// It is in memory, or awaits settlement.
    InMemory,
    /// It was settled while the fetch ran, and is not pending any more.
    Settled,
    /// It changed while the fetch ran: what was read may be old.
    Outdated,
}

/// Events by place. The identity tells a place that was used anew: after a failover that lost commits,
/// the database hands out numbers again.
#[derive(Debug, Default)]
pub(crate) struct Known {
    events: FxHashMap<Seq, (Uuid, Shard)>,
    /// A read is under way.
    is_reading: bool,
    /// Events that changed since it was asked for, with whether they are pending still.
    changed: FxHashMap<Seq, (Uuid, bool)>,
}

impl Known {
    /// Something is asked of the store.
    pub(crate) fn read_begins(&mut self) {
        self.changed.clear();
        self.is_reading = true;
    }

    /// The answer has been taken in.
    pub(crate) const fn read_ended(&mut self) {
        self.is_reading = false;
    }

    /// What is known of an event that the read under way found.
    pub(crate) fn recognise(&self, seq: Seq, id: Uuid) -> Found {
        if self.is_known(seq, id) {
            return Found::InMemory;
        }
        match self.changed.get(&seq) {
            Some((changed, true)) if *changed == id => Found::Outdated,
            Some((changed, false)) if *changed == id => Found::Settled,
            _ => Found::New,
        }
    }

    fn is_known(&self, seq: Seq, id: Uuid) -> bool {
        self.events.get(&seq).is_some_and(|(known, _)| *known == id)
    }

    /// The event is in memory.
    pub(crate) fn remember(&mut self, seq: Seq, id: Uuid, shard: Shard) {
        self.events.insert(seq, (id, shard));
    }

    /// The event is not in memory any more, and still pending.
    pub(crate) fn forget(&mut self, seq: Seq, id: Uuid) {
        if self.is_known(seq, id) {
            self.events.remove(&seq);
            self.changes(seq, id, true);
        }
    }

    /// The outcome of the event is recorded; `kept` says whether it is pending still.
    pub(crate) fn settled(&mut self, seq: Seq, id: Uuid, kept: bool) {
        if !kept && self.is_known(seq, id) {
            self.events.remove(&seq);
        }
        self.changes(seq, id, kept);
    }

    fn changes(&mut self, seq: Seq, id: Uuid, pending: bool) {
        if self.is_reading {
            self.changed.insert(seq, (id, pending));
        }
    }

    /// Events of these shards are of no concern any more.
    pub(crate) fn forget_shards(&mut self, shards: ShardSet) {
        if !shards.is_empty() {
            self.events.retain(|_, (_, shard)| !shards.contains(*shard));
        }
    }

    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.events.len()
    }
}
