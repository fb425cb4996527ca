//! The keys that have something to deliver: what each holds in memory, what it waits for, and
//! which come next.
//!
//! Invariants:
//!
//! 1. Events of a key are taken in the order of their numbers, and the next ones only when all
//!    taken before were given back.
//! 2. An event of a key that was fetched is *held* (here, in memory) or *unheld* (inside the
//!    key's unheld range, to be fetched again), until it is settled.
//! 3. Nothing above the start of a key's unheld range is held, so that order survives. The start itself
//!    may be: a dead letter that was revived and read before its key heard of it.
//! 4. A parked key holds nothing, a shelved one nothing but what turned up before its head: that is read
//!    again before it is sent, since whatever made it wait may have been mended in the database. A
//!    blocked one holds what is before its dead letter at most. Memory does not grow behind a stuck key.
//! 5. What is held is known: no read takes it for new. Whatever leaves memory is known no more.
//!
//! The simulator checks them after each step (`invariants.rs`).

use std::cmp::Reverse;
use std::collections::{BTreeSet, BinaryHeap, VecDeque};
use std::time::Duration;

use posthaste_core::{OrderKey, Seq, ShardSet};
use rustc_hash::FxHashMap;

use self::key::{Held, Key, KeyId};
use self::known::Known;

mod catch_up;
#[cfg(test)]
mod invariants;
pub(crate) mod key;
pub(crate) mod known;
mod ready;
mod shelves;
#[cfg(test)]
mod tests;

pub(crate) use self::catch_up::CatchUp;
use self::ready::Ready;

/// All keys with something to deliver.
#[derive(Debug)]
pub(crate) struct Keys {
    keys: FxHashMap<KeyId, Key>,
    /// Per destination, keys whose first event can be sent now.
    ready: Vec<Ready>,
    wakes: BinaryHeap<Reverse<(Duration, KeyId)>>,
    /// Keys whose head alone is to be fetched: by its place, at a cost that nothing adds to.
    catch_up_heads: VecDeque<KeyId>,
    /// Keys of which a range is to be fetched.
    catch_up: VecDeque<KeyId>,
    heads_turn: bool,
    /// What is held, taken or unrecorded. Whatever leaves memory leaves it here.
    pub(crate) known: Known,
    /// Per destination, its shelved keys.
    shelved: Vec<Ready>,
    held_events: usize,
    held_bytes: usize,
    parked: usize,
    blocked: usize,
}

impl Keys {
    pub(crate) fn new(destinations: usize) -> Self {
        Self {
            keys: FxHashMap::default(),
            ready: (0..destinations).map(|_| Ready::default()).collect(),
            wakes: BinaryHeap::new(),
            catch_up_heads: VecDeque::new(),
            catch_up: VecDeque::new(),
            heads_turn: false,
            known: Known::default(),
            shelved: (0..destinations).map(|_| Ready::default()).collect(),
            held_events: 0,
            held_bytes: 0,
            parked: 0,
            blocked: 0,
        }
    }

    /// Events in memory, those taken not counted.
    pub(crate) const fn held_events(&self) -> usize {
        self.held_events
    }

    /// Their payload bytes.
    pub(crate) const fn held_bytes(&self) -> usize {
        self.held_bytes
    }

    /// Keys that wait for a time or for an operator.
    pub(crate) const fn stuck(&self) -> usize {
        self.parked + self.blocked
    }

    /// Keys of a destination that can be sent now.
    pub(crate) fn ready_count(&self, destination: usize) -> usize {
        self.ready[destination].len()
    }

    /// Takes in an event that a read of all keys found.
    pub(crate) fn admit(&mut self, id: KeyId, held: Held, now: Duration) {
        self.go_before_parked_head(id, held.seq);
        self.hold(id, held, now);
    }

    /// A late event may precede the head that a parked key waits for; then it goes first.
    fn go_before_parked_head(&mut self, id: KeyId, seq: Seq) {
        let key = self.keys.entry(id).or_default();
        let is_before = key.unheld.as_ref().is_some_and(|range| seq < range.first);
        if key.parked_until.is_some() && is_before {
            self.unpark(id);
        }
    }

    /// Leaves an event in the store: its key fetches it again.
    pub(crate) fn leave(&mut self, id: KeyId, seq: Seq, name: &OrderKey, now: Duration) {
        self.keys.entry(id).or_default().extend_unheld(seq, name);
        self.refresh(id, now);
    }

    /// Takes in an event that was fetched for its own key, or that comes back unsent.
    pub(crate) fn hold(&mut self, id: KeyId, held: Held, now: Duration) {
        let key = self.keys.entry(id).or_default();
        let waits = held.due > now && key.waiting_count() == 0;
        let behind_unheld = key.unheld.as_ref().is_some_and(|range| held.seq >= range.first);
        if waits || behind_unheld || key.is_blocked_at(held.seq) || key.parked_until.is_some() {
            let due = held.due;
            key.extend_unheld(held.seq, held.event.order_key());
            self.known.forget(held.seq, held.event.id());
            if waits && !behind_unheld && key.parked_until.is_none() {
                self.park(id, due);
            }
            return;
        }
        self.held_events += 1;
        self.held_bytes += held.bytes();
        self.known.remember(held.seq, held.event.id(), id.shard());
        let waiting = key.waiting.get_or_insert_default();
        let at = waiting.partition_point(|other| other.seq < held.seq);
        waiting.insert(at, held);
        self.refresh(id, now);
    }

    /// Takes events of one destination that can be sent now: at most `events_max`, and at most
    /// `per_key_max` of one key.
    pub(crate) fn take(
        &mut self,
        destination: usize,
        events_max: usize,
        per_key_max: usize,
        now: Duration,
    ) -> Vec<(KeyId, Held)> {
        let mut taken = Vec::new();
        while taken.len() < events_max {
            let Some(id) = self.ready[destination].pop() else { break };
            let Some(key) = self.keys.get_mut(&id) else { continue };
            key.queued = false;
            if key.front().is_none_or(|front| front.destination != destination) {
                self.refresh(id, now);
                continue;
            }
            let room = per_key_max.min(events_max - taken.len());
            let Some(waiting) = key.waiting.as_mut() else { continue };
            let count = waiting
                .iter()
                .take(room)
                .take_while(|held| held.destination == destination && held.due <= now)
                .count();
            for held in waiting.drain(..count) {
                self.held_events -= 1;
                self.held_bytes -= held.bytes();
                key.taken += 1;
                taken.push((id, held));
            }
            if count == 0 {
                self.refresh(id, now);
            }
        }
        taken
    }

    /// One taken event of the key is dealt with (delivered, dead, parked or put back).
    pub(crate) fn release(&mut self, id: KeyId, now: Duration) {
        if let Some(key) = self.keys.get_mut(&id) {
            key.taken = key.taken.saturating_sub(1);
        }
        self.refresh(id, now);
    }

    /// The key waits until `until` behind `head`, which comes back. Both it and what the key holds behind
    /// it become unheld.
    pub(crate) fn park_behind(&mut self, id: KeyId, head: &Held, until: Duration) {
        self.drop_waiting_above(id, head.seq);
        self.known.forget(head.seq, head.event.id());
        let key = self.keys.entry(id).or_default();
        key.extend_unheld(head.seq, head.event.order_key());
        self.park(id, until);
    }

    /// The key waits for an operator behind the dead letter at `dead`. What it holds above becomes
    /// unheld.
    pub(crate) fn block(&mut self, id: KeyId, dead: Seq) {
        let key = self.keys.entry(id).or_default();
        match &mut key.blocked_by {
            Some(first) => *first = dead.min(*first),
            None => {
                key.blocked_by = Some(dead);
                self.blocked += 1;
            }
        }
        self.drop_waiting_above(id, dead);
    }

    /// The dead letter is gone or revived: its key can go on from that place, up to the next dead
    /// letter at `still_blocked_by`. The forward read is at `hint`.
    pub(crate) fn unblock(
        &mut self,
        id: KeyId,
        name: &OrderKey,
        still_blocked_by: Option<Seq>,
        hint: Seq,
        now: Duration,
    ) {
        let Some(key) = self.keys.get_mut(&id) else { return };
        let Some(dead) = key.blocked_by else { return };
        key.blocked_by = still_blocked_by;
        if still_blocked_by.is_none() {
            self.blocked -= 1;
        }
        // What is behind the dead letter must not go without it, be it in the store already or still to
        // come. Where the forward read has not come past it yet, and left nothing, that one brings it,
        // after whatever of the key comes before.
        if key.unheld.is_some() || dead <= hint {
            key.extend_unheld(dead, name);
            key.head_first = true;
        }
        self.refresh(id, now);
    }

    /// Which of the keys of a destination go next.
    pub(crate) fn ready(&mut self, destination: usize) -> &mut Ready {
        &mut self.ready[destination]
    }

    /// The destinations that the heads of a destination's ready keys name.
    pub(crate) fn destinations_named(&self, destination: usize) -> BTreeSet<Box<str>> {
        self.ready[destination]
            .iter()
            .filter_map(|id| self.keys.get(&id)?.front()?.event.destination().map(Into::into))
            .collect()
    }

    /// Forgets all keys of these shards, whatever they wait for or have in flight.
    pub(crate) fn drop_shards(&mut self, shards: ShardSet) {
        let stays = |id: &KeyId| !shards.contains(id.shard());
        for (_, key) in self.keys.extract_if(|id, _| !stays(id)) {
            for held in key.waiting.iter().flat_map(|waiting| waiting.iter()) {
                self.held_events -= 1;
                self.held_bytes -= held.bytes();
                self.known.forget(held.seq, held.event.id());
            }
            self.parked -= usize::from(key.parked_until.is_some());
            self.blocked -= usize::from(key.blocked_by.is_some());
        }
        // A key that comes back later must not find itself queued already.
        for queue in &mut self.ready {
            queue.retain(stays);
        }
        for shelved in &mut self.shelved {
            shelved.retain(stays);
        }
        self.catch_up.retain(stays);
        self.catch_up_heads.retain(stays);
    }

    /// The keys that wait for a time, or for a destination.
    pub(crate) fn waiting(&self) -> Vec<KeyId> {
        let waits = |key: &Key| key.parked_until.is_some() || key.shelved;
        self.keys.iter().filter(|(_, key)| waits(key)).map(|(id, _)| *id).collect()
    }

    /// Whether anything waits of this key, or is on its way.
    pub(crate) fn contains(&self, id: KeyId) -> bool {
        self.keys.contains_key(&id)
    }

    /// The place of the event that a key waits for, where it waits for a time or a destination.
    pub(crate) fn waits_for(&self, id: KeyId) -> Option<Seq> {
        let key = self.keys.get(&id)?;
        let waits = (key.parked_until.is_some() || key.shelved) && key.taken == 0;
        waits.then_some(key.unheld.as_ref()?.first)
    }

    /// Whatever the key waited for has changed: it reads its head again at once.
    pub(crate) fn go_on(&mut self, id: KeyId, now: Duration) {
        self.unpark(id);
        if let Some(key) = self.keys.get_mut(&id)
            && std::mem::take(&mut key.shelved)
        {
            for shelved in &mut self.shelved {
                shelved.retain(|other| *other != id);
            }
        }
        self.refresh(id, now);
    }

    /// The key's head is due at another time than was known, beyond what clocks differ by.
    pub(crate) fn reschedule(&mut self, id: KeyId, due: Duration, apart: Duration, now: Duration) {
        let Some(until) = self.keys.get(&id).and_then(|key| key.parked_until) else { return };
        if due <= now {
            self.go_on(id, now);
        } else if due > until.saturating_add(apart) || until > due.saturating_add(apart) {
            self.park(id, due);
        }
    }

    /// Whether the key is to fetch this place, or a place before it that holds it back.
    pub(crate) fn covers(&self, id: KeyId, seq: Seq) -> bool {
        let range = self.keys.get(&id).and_then(|key| key.unheld.as_ref());
        range.is_some_and(|range| (range.first..=range.last).contains(&seq))
    }

    /// An event turned up at a place that was passed: its key fetches it, before all it held behind it.
    pub(crate) fn found(&mut self, id: KeyId, seq: Seq, name: &OrderKey, now: Duration) {
        self.go_before_parked_head(id, seq);
        self.drop_waiting_above(id, seq);
        self.leave(id, seq, name, now);
    }

    /// Makes a parked key go on at once: its head was found due in the database.
    pub(crate) fn wake_head(&mut self, id: KeyId, seq: Seq, due: Duration, now: Duration) {
        let Some(key) = self.keys.get(&id) else { return };
        if key.parked_until.is_none_or(|until| until <= due) {
            return;
        }
        if key.unheld.as_ref().is_none_or(|range| range.first != seq) {
            return;
        }
        self.unpark(id);
        if due > now {
            self.park(id, due);
        }
        self.refresh(id, now);
    }

    /// Wakes the keys whose time has come.
    pub(crate) fn wake(&mut self, now: Duration) {
        while let Some(Reverse((until, id))) = self.wakes.peek().copied()
            && until <= now
        {
            self.wakes.pop();
            // An entry that was overtaken by a later park is left to that one.
            if self.keys.get(&id).is_some_and(|key| key.parked_until == Some(until)) {
                self.unpark(id);
                self.refresh(id, now);
            }
        }
    }

    /// When the next key wakes.
    pub(crate) fn next_wake(&mut self) -> Option<Duration> {
        while let Some(Reverse((until, id))) = self.wakes.peek() {
            if self.keys.get(id).is_some_and(|key| key.parked_until == Some(*until)) {
                return Some(*until);
            }
            self.wakes.pop();
        }
        None
    }

    fn park(&mut self, id: KeyId, until: Duration) {
        let key = self.keys.entry(id).or_default();
        if key.parked_until.replace(until).is_none() {
            self.parked += 1;
        }
        self.wakes.push(Reverse((until, id)));
    }

    fn unpark(&mut self, id: KeyId) {
        if let Some(key) = self.keys.get_mut(&id)
            && key.parked_until.take().is_some()
        {
            key.head_first = true;
            self.parked -= 1;
        }
    }

    /// Makes what the key holds above `place` unheld. Returns how many events that is.
    fn drop_waiting_above(&mut self, id: KeyId, place: Seq) -> usize {
        let Some(key) = self.keys.get_mut(&id) else { return 0 };
        let Some(mut waiting) = key.waiting.take() else { return 0 };
        let dropped = waiting.split_off(waiting.partition_point(|held| held.seq <= place));
        if !waiting.is_empty() {
            key.waiting = Some(waiting);
        }
        for held in &dropped {
            self.held_events -= 1;
            self.held_bytes -= held.bytes();
            self.known.forget(held.seq, held.event.id());
            key.extend_unheld(held.seq, held.event.order_key());
        }
        dropped.len()
    }

    /// Puts the key where it belongs: ready, parked, to be fetched again, or forgotten.
    fn refresh(&mut self, id: KeyId, now: Duration) {
        let Some(key) = self.keys.get_mut(&id) else { return };
        if key.taken > 0 || key.parked_until.is_some() || key.queued {
            return;
        }
        if let Some(front) = key.front() {
            let (seq, due, destination) = (front.seq, front.due, front.destination);
            if key.is_blocked_at(seq) {
                return;
            }
            if due > now {
                self.drop_waiting_above(id, 0);
                self.park(id, due);
            } else {
                key.queued = true;
                self.ready[destination].push(id);
            }
            return;
        }
        let can_go_on = key.unheld.as_ref().is_some_and(|range| !key.is_blocked_at(range.first));
        if can_go_on && !key.catching_up && !key.shelved {
            key.catching_up = true;
            let is_single = key.unheld.as_ref().is_some_and(|range| range.first == range.last);
            let of_heads = is_single || key.head_first || key.name.is_none();
            let queue = if of_heads { &mut self.catch_up_heads } else { &mut self.catch_up };
            queue.push_back(id);
        }
        self.forget_if_idle(id);
    }

    fn forget_if_idle(&mut self, id: KeyId) {
        if self.keys.get(&id).is_some_and(Key::is_idle) {
            self.keys.remove(&id);
        }
    }
}
