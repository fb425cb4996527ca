//! The keys that have something to deliver: what each holds in memory, what it waits for, and
//! which come next.
//!
//! Invariants:
//!
//! 1. Events of a key are taken in the order of their numbers, and the next ones only when all
//!    taken before were given back.
//! 2. An event of a key that was fetched is *held* (here, in memory) or *unheld* (inside the
//!    key's unheld range, to be fetched again), until it is settled.
//! 3. Nothing at or above the start of a key's unheld range is held, so that order survives.
//! 4. A parked or blocked key holds its head at most: memory does not grow behind a stuck key. A
//!    shelved one, whose destination is down, holds nothing.

use std::cmp::Reverse;
use std::collections::{BTreeSet, BinaryHeap, VecDeque};
use std::time::Duration;

use posthaste_core::{OrderKey, Seq, ShardSet};
use rustc_hash::FxHashMap;

use super::key::{Admission, Held, Key, KeyId, Unheld};

/// A delay longer than this is waited for without the event: it is fetched again when due.
const HOLD_DELAY_MAX: Duration = Duration::from_secs(30);

/// What to fetch for keys that can go on.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum CatchUp {
    /// Single events of several keys.
    At(Vec<(KeyId, Seq)>),
    /// A range of one key.
    Key { id: KeyId, name: OrderKey, range: Unheld },
}

/// All keys with something to deliver.
#[derive(Debug)]
pub(super) struct Keys {
    keys: FxHashMap<KeyId, Key>,
    /// Per destination, keys whose first event can be sent now.
    ready: Vec<VecDeque<KeyId>>,
    wakes: BinaryHeap<Reverse<(Duration, KeyId)>>,
    catch_up: VecDeque<KeyId>,
    /// Per destination, its shelved keys.
    shelved: Vec<Vec<KeyId>>,
    held_events: usize,
    held_bytes: usize,
    parked: usize,
    blocked: usize,
}

impl Keys {
    pub(super) fn new(destinations: usize) -> Self {
        Self {
            keys: FxHashMap::default(),
            ready: (0..destinations).map(|_| VecDeque::new()).collect(),
            wakes: BinaryHeap::new(),
            catch_up: VecDeque::new(),
            shelved: vec![Vec::new(); destinations],
            held_events: 0,
            held_bytes: 0,
            parked: 0,
            blocked: 0,
        }
    }

    /// Events in memory, those taken not counted.
    pub(super) const fn held_events(&self) -> usize {
        self.held_events
    }

    /// Their payload bytes.
    pub(super) const fn held_bytes(&self) -> usize {
        self.held_bytes
    }

    /// Keys that wait for a time or for an operator.
    pub(super) const fn stuck(&self) -> usize {
        self.parked + self.blocked
    }

    /// Keys of a destination that can be sent now.
    pub(super) fn ready_count(&self, destination: usize) -> usize {
        self.ready[destination].len()
    }

    /// Keys that wait to be fetched again.
    pub(super) fn catch_up_count(&self) -> usize {
        self.catch_up.len()
    }

    /// Takes in an event that a read of all keys found.
    pub(super) fn admit(&mut self, id: KeyId, held: Held, now: Duration) -> Admission {
        let key = self.keys.entry(id).or_default();
        // A late event may precede the head that a parked key holds; then it goes first.
        let before_parked_head =
            key.parked_until.is_some() && key.front().is_some_and(|front| held.seq < front.seq);
        if before_parked_head {
            self.unpark(id);
        }
        self.hold(id, held, now)
    }

    /// Leaves an event in the store: its key fetches it again.
    pub(super) fn leave(&mut self, id: KeyId, seq: Seq, name: &OrderKey, now: Duration) {
        self.keys.entry(id).or_default().extend_unheld(seq, name);
        self.refresh(id, now);
    }

    /// Takes in an event that was fetched for its own key, or that comes back unsent.
    pub(super) fn hold(&mut self, id: KeyId, held: Held, now: Duration) -> Admission {
        let key = self.keys.entry(id).or_default();
        let far_off = held.due > now.saturating_add(HOLD_DELAY_MAX) && key.waiting_count() == 0;
        let behind_unheld = key.unheld.as_ref().is_some_and(|range| held.seq >= range.first);
        if far_off || behind_unheld || key.is_blocked_at(held.seq) || key.parked_until.is_some() {
            let due = held.due;
            key.extend_unheld(held.seq, held.event.order_key());
            if far_off && !behind_unheld && key.parked_until.is_none() {
                self.park(id, due);
            }
            return Admission::Unheld;
        }
        self.held_events += 1;
        self.held_bytes += held.bytes();
        let waiting = key.waiting.get_or_insert_default();
        let at = waiting.partition_point(|other| other.seq < held.seq);
        waiting.insert(at, held);
        self.refresh(id, now);
        Admission::Held
    }

    /// Takes events of one destination that can be sent now: at most `events_max`, and at most
    /// `per_key_max` of one key.
    pub(super) fn take(
        &mut self,
        destination: usize,
        events_max: usize,
        per_key_max: usize,
        now: Duration,
    ) -> Vec<(KeyId, Held)> {
        let mut taken = Vec::new();
        while taken.len() < events_max {
            let Some(id) = self.ready[destination].pop_front() else { break };
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
    pub(super) fn release(&mut self, id: KeyId, now: Duration) {
        if let Some(key) = self.keys.get_mut(&id) {
            key.taken = key.taken.saturating_sub(1);
        }
        self.refresh(id, now);
    }

    /// The key waits until `until` behind `head`, which comes back. What it holds beyond its head
    /// becomes unheld; returns the places of that.
    pub(super) fn park_behind(
        &mut self,
        id: KeyId,
        mut head: Held,
        until: Duration,
        now: Duration,
    ) -> Vec<Seq> {
        let mut dropped = self.drop_waiting_above(id, head.seq);
        head.due = until;
        let seq = head.seq;
        if until > now.saturating_add(HOLD_DELAY_MAX) {
            let key = self.keys.entry(id).or_default();
            key.extend_unheld(seq, head.event.order_key());
            dropped.push(seq);
        } else {
            self.held_events += 1;
            self.held_bytes += head.bytes();
            let key = self.keys.entry(id).or_default();
            key.waiting.get_or_insert_default().push_front(head);
        }
        self.park(id, until);
        dropped
    }

    /// The key waits for an operator behind the dead letter at `dead`. What it holds above becomes
    /// unheld; returns the places of that.
    pub(super) fn block(&mut self, id: KeyId, dead: Seq) -> Vec<Seq> {
        let key = self.keys.entry(id).or_default();
        match &mut key.blocked_by {
            Some(first) => *first = dead.min(*first),
            None => {
                key.blocked_by = Some(dead);
                self.blocked += 1;
            }
        }
        self.drop_waiting_above(id, dead)
    }

    /// The dead letter is gone or revived: its key can go on from that place, up to the next dead
    /// letter at `still_blocked_by`. The forward read is at `hint`.
    pub(super) fn unblock(
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
        }
        self.refresh(id, now);
    }

    /// Puts the keys to probe a destination with first: half of them at most such that failed
    /// before, and these behind the others, whose success proves whose fault another failure is.
    /// What is not among the probes comes behind them, suspects last.
    pub(super) fn order_probes(
        &mut self,
        destination: usize,
        probes: usize,
        is_suspect: impl Fn(KeyId) -> bool,
    ) {
        let ready = &mut self.ready[destination];
        let (mut suspected, mut others): (VecDeque<KeyId>, VecDeque<KeyId>) =
            std::mem::take(ready).into_iter().partition(|id| is_suspect(*id));
        let others_first = others.len().min(probes - suspected.len().min(probes / 2));
        let others_later = others.split_off(others_first);
        let suspected_later = suspected.split_off(suspected.len().min(probes - others_first));
        for part in [others, suspected, others_later, suspected_later] {
            ready.extend(part);
        }
    }

    /// Puts ready keys of this kind before all others, at most so many. Returns how many there are.
    pub(super) fn put_first(
        &mut self,
        destination: usize,
        keys_max: usize,
        which: impl Fn(KeyId) -> bool,
    ) -> usize {
        let ready = &mut self.ready[destination];
        let found: Vec<KeyId> =
            ready.iter().copied().filter(|id| which(*id)).take(keys_max).collect();
        if !found.is_empty() {
            ready.retain(|id| !found.contains(id));
            found.iter().rev().for_each(|id| ready.push_front(*id));
        }
        found.len()
    }

    /// The destinations that the heads of a destination's ready keys name.
    pub(super) fn destinations_named(&self, destination: usize) -> BTreeSet<Box<str>> {
        self.ready[destination]
            .iter()
            .filter_map(|id| self.keys.get(id)?.front()?.event.destination().map(Into::into))
            .collect()
    }

    /// Leaves what waits for a destination in the store, but for the heads of `keep` keys to probe with:
    /// not more of these, since one key may fill the memory. Returns the places of what is unheld now.
    pub(super) fn shelve(&mut self, destination: usize, keep: usize) -> Vec<Seq> {
        let mut dropped = Vec::new();
        let ready = &mut self.ready[destination];
        let shelved = ready.split_off(ready.len().min(keep));
        let kept: Vec<KeyId> = ready.iter().copied().collect();
        for id in kept {
            if let Some(head) = self.keys.get(&id).and_then(Key::front).map(|head| head.seq) {
                dropped.extend(self.drop_waiting_above(id, head));
            }
        }
        for id in shelved {
            let Some(key) = self.keys.get_mut(&id) else { continue };
            key.queued = false;
            key.shelved = true;
            self.shelved[destination].push(id);
            dropped.extend(self.drop_waiting_above(id, 0));
        }
        dropped
    }

    /// Forgets all keys of these shards, whatever they wait for or have in flight. Returns the places
    /// of the events that waited.
    pub(super) fn drop_shards(&mut self, shards: ShardSet) -> Vec<Seq> {
        let stays = |id: &KeyId| !shards.contains(id.shard());
        let mut dropped = Vec::new();
        for (_, key) in self.keys.extract_if(|id, _| !stays(id)) {
            for held in key.waiting.iter().flat_map(|waiting| waiting.iter()) {
                self.held_events -= 1;
                self.held_bytes -= held.bytes();
                dropped.push(held.seq);
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
        dropped
    }

    /// The destination answers again, or is to be probed with `keys_max` keys: its shelved keys go
    /// on, those first that were shelved first.
    pub(super) fn unshelve(&mut self, destination: usize, keys_max: usize, now: Duration) {
        let go_on = self.shelved[destination].len().min(keys_max);
        let later = self.shelved[destination].split_off(go_on);
        for id in std::mem::replace(&mut self.shelved[destination], later) {
            if let Some(key) = self.keys.get_mut(&id) {
                key.shelved = false;
            }
            self.refresh(id, now);
        }
    }

    /// Keys that wait for a destination to answer again.
    pub(super) fn shelved_count(&self, destination: usize) -> usize {
        self.shelved[destination].len()
    }

    /// Makes a parked key go on at once: its head was found due in the database.
    pub(super) fn wake_head(&mut self, id: KeyId, seq: Seq, due: Duration, now: Duration) {
        let Some(key) = self.keys.get_mut(&id) else { return };
        if key.parked_until.is_none_or(|until| until <= due) {
            return;
        }
        let held_head = key.waiting.as_mut().and_then(|waiting| waiting.front_mut());
        match held_head {
            Some(head) if head.seq == seq => head.due = due,
            Some(_) => return,
            None if key.unheld.as_ref().is_some_and(|range| range.first == seq) => {}
            None => return,
        }
        self.unpark(id);
        if due > now {
            self.park(id, due);
        }
        self.refresh(id, now);
    }

    /// Wakes the keys whose time has come.
    pub(super) fn wake(&mut self, now: Duration) {
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
    pub(super) fn next_wake(&mut self) -> Option<Duration> {
        while let Some(Reverse((until, id))) = self.wakes.peek() {
            if self.keys.get(id).is_some_and(|key| key.parked_until == Some(*until)) {
                return Some(*until);
            }
            self.wakes.pop();
        }
        None
    }

    /// What to fetch next for keys that can go on; single events are asked for together.
    pub(super) fn next_catch_up(&mut self, events_max: usize) -> Option<CatchUp> {
        let mut singles = Vec::new();
        while let Some(id) = self.catch_up.pop_front() {
            let Some(key) = self.keys.get_mut(&id) else { continue };
            let Some(range) = &key.unheld else {
                key.catching_up = false;
                continue;
            };
            if range.first == range.last {
                singles.push((id, range.first));
                if singles.len() >= events_max {
                    break;
                }
            } else if !singles.is_empty() {
                self.catch_up.push_front(id);
                break;
            } else if let Some(name) = &key.name {
                let name = OrderKey::clone(name);
                return Some(CatchUp::Key { id, name, range: Unheld::clone(range) });
            }
        }
        (!singles.is_empty()).then_some(CatchUp::At(singles))
    }

    /// A fetch of `asked` brought all of it, or only what is below `more_from`. To be called
    /// before the events are given to [`hold`](Self::hold).
    pub(super) fn caught_up(&mut self, id: KeyId, asked: &Unheld, more_from: Option<Seq>) {
        let Some(key) = self.keys.get_mut(&id) else { return };
        key.catching_up = false;
        let Some(range) = key.unheld.as_mut() else { return };
        let first = more_from.unwrap_or(asked.last + 1);
        if first > range.last {
            key.unheld = None;
            key.name = None;
        } else {
            range.first = range.first.max(first);
        }
    }

    /// A fetch for keys is over, be it that it failed: those with something left ask again.
    pub(super) fn catch_up_ended(&mut self, ids: impl IntoIterator<Item = KeyId>, now: Duration) {
        for id in ids {
            if let Some(key) = self.keys.get_mut(&id) {
                key.catching_up = false;
                self.refresh(id, now);
            }
        }
    }

    /// Gives up the unheld ranges of all keys that can go on, and returns where a read of all
    /// keys must start instead. For when that is cheaper than asking key by key.
    pub(super) fn rewind_catch_up(&mut self) -> Option<Seq> {
        let mut first: Option<Seq> = None;
        while let Some(id) = self.catch_up.pop_front() {
            let Some(key) = self.keys.get_mut(&id) else { continue };
            key.catching_up = false;
            key.name = None;
            if let Some(range) = key.unheld.take() {
                first = Some(first.map_or(range.first, |first| first.min(range.first)));
            }
            self.forget_if_idle(id);
        }
        first
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
            self.parked -= 1;
        }
    }

    /// Makes what the key holds above `place` unheld.
    fn drop_waiting_above(&mut self, id: KeyId, place: Seq) -> Vec<Seq> {
        let Some(key) = self.keys.get_mut(&id) else { return Vec::new() };
        let Some(mut waiting) = key.waiting.take() else { return Vec::new() };
        let dropped = waiting.split_off(waiting.partition_point(|held| held.seq <= place));
        if !waiting.is_empty() {
            key.waiting = Some(waiting);
        }
        for held in &dropped {
            self.held_events -= 1;
            self.held_bytes -= held.bytes();
            key.extend_unheld(held.seq, held.event.order_key());
        }
        dropped.iter().map(|held| held.seq).collect()
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
                self.park(id, due);
            } else {
                key.queued = true;
                self.ready[destination].push_back(id);
            }
            return;
        }
        let can_go_on = key.unheld.as_ref().is_some_and(|range| !key.is_blocked_at(range.first));
        if can_go_on && !key.catching_up && !key.shelved {
            key.catching_up = true;
            self.catch_up.push_back(id);
        }
        self.forget_if_idle(id);
    }

    fn forget_if_idle(&mut self, id: KeyId) {
        if self.keys.get(&id).is_some_and(Key::is_idle) {
            self.keys.remove(&id);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use posthaste_core::{OutboxEvent, Payload, Shard};
    use rustc_hash::FxHashSet;
    use uuid::Uuid;

    const NOW: Duration = Duration::from_secs(100);

    fn held(seq: Seq, key: &str) -> Held {
        let event = OutboxEvent::builder(Uuid::nil(), "t")
            .order_key(key)
            .payload(Payload::json_text("{}").expect("JSON"))
            .build()
            .expect("an event");
        Held { seq, due: Duration::ZERO, destination: 0, event }
    }

    fn id(key: &str) -> KeyId {
        KeyId::of(&OrderKey::named(key).expect("a key"), Shard::default())
    }

    fn take(keys: &mut Keys, per_key: usize) -> Vec<Seq> {
        keys.take(0, 100, per_key, NOW).iter().map(|(_, held)| held.seq).collect()
    }

    #[test]
    fn an_aggregate_and_its_text_are_one_key() {
        let aggregate = Uuid::from_u128(7);
        let named = OrderKey::named(&aggregate.to_string()).expect("a key");
        let id = |key: &OrderKey| KeyId::of(key, Shard::default());
        assert_eq!(id(&OrderKey::Aggregate(aggregate)), id(&named));
    }

    #[test]
    fn a_key_gives_its_events_in_order_and_waits_for_what_was_taken() {
        let mut keys = Keys::new(1);
        for seq in [3, 1, 2] {
            keys.admit(id("a"), held(seq, "a"), NOW);
        }
        keys.admit(id("b"), held(4, "b"), NOW);
        assert_eq!(take(&mut keys, 1), [1, 4]);
        assert_eq!(take(&mut keys, 1), [0; 0]);
        keys.release(id("a"), NOW);
        assert_eq!(take(&mut keys, 2), [2, 3]);
    }

    #[test]
    fn a_parked_key_holds_its_head_only_and_asks_for_the_rest_afterwards() {
        let mut keys = Keys::new(1);
        for seq in 1..=3 {
            keys.admit(id("a"), held(seq, "a"), NOW);
        }
        let (key, head) = keys.take(0, 1, 1, NOW).remove(0);
        let until = NOW + Duration::from_secs(1);
        assert_eq!(keys.park_behind(key, head, until, NOW), [2, 3]);
        keys.release(key, NOW);
        assert_eq!(keys.admit(key, held(4, "a"), NOW), Admission::Unheld);
        assert_eq!((keys.held_events(), keys.stuck()), (1, 1));
        assert_eq!(take(&mut keys, 1), [0; 0]);

        keys.wake(until);
        let taken = keys.take(0, 10, 10, until);
        assert_eq!(taken.len(), 1);
        keys.release(key, until);
        let range = Unheld { first: 2, last: 4 };
        let name = OrderKey::named("a").expect("a key");
        assert_eq!(
            keys.next_catch_up(10),
            Some(CatchUp::Key { id: key, name, range: range.clone() })
        );
        // One more arrives while the fetch is under way.
        assert_eq!(keys.admit(key, held(5, "a"), until), Admission::Unheld);
        keys.caught_up(key, &range, None);
        for seq in 2..=4 {
            keys.hold(key, held(seq, "a"), until);
        }
        assert_eq!(keys.take(0, 10, 10, until).len(), 3);
        for _ in 0..3 {
            keys.release(key, until);
        }
        assert_eq!(keys.next_catch_up(10), Some(CatchUp::At(vec![(key, 5)])));
    }

    #[test]
    fn a_blocked_key_stays_until_unblocked_and_then_starts_at_the_dead_letter() {
        let mut keys = Keys::new(1);
        keys.admit(id("a"), held(1, "a"), NOW);
        keys.admit(id("a"), held(2, "a"), NOW);
        keys.admit(id("b"), held(3, "b"), NOW);
        let (key, _) = keys.take(0, 1, 1, NOW).remove(0);
        assert_eq!(keys.block(key, 1), [2]);
        keys.release(key, NOW);
        assert_eq!(take(&mut keys, 1), [3], "another key flows");
        assert!(keys.next_catch_up(10).is_none());
        keys.unblock(key, &OrderKey::named("a").expect("a key"), None, 3, NOW);
        assert!(matches!(
            keys.next_catch_up(10),
            Some(CatchUp::Key { range: Unheld { first: 1, last: 2 }, .. })
        ));
    }

    /// It may be revived: what comes later must not overtake it.
    #[test]
    fn a_key_with_nothing_behind_its_dead_letter_starts_there_too_unless_it_is_still_to_be_read() {
        for (hint, expected) in [(0, None), (1, Some(1))] {
            let mut keys = Keys::new(1);
            keys.block(id("a"), 1);
            keys.unblock(id("a"), &OrderKey::named("a").expect("a key"), None, hint, NOW);
            let catch_up = expected.map(|seq| CatchUp::At(vec![(id("a"), seq)]));
            assert_eq!(keys.next_catch_up(10), catch_up);
            let admission = if catch_up.is_some() { Admission::Unheld } else { Admission::Held };
            assert_eq!(keys.admit(id("a"), held(2, "a"), NOW), admission);
        }
    }

    #[test]
    fn keys_of_a_dead_destination_are_shelved_but_for_one_that_probes() {
        let mut keys = Keys::new(2);
        for (seq, key) in [(1, "a"), (2, "b"), (3, "b"), (4, "c")] {
            keys.admit(id(key), held(seq, key), NOW);
        }
        assert_eq!(keys.shelve(0, 1), [2, 3, 4]);
        assert_eq!(keys.admit(id("b"), held(5, "b"), NOW), Admission::Unheld);
        assert_eq!((keys.held_events(), keys.shelved_count(0)), (1, 2));
        assert_eq!(take(&mut keys, 1), [1]);
        assert!(keys.next_catch_up(10).is_none());
        keys.unshelve(0, usize::MAX, NOW);
        assert!(matches!(
            keys.next_catch_up(10),
            Some(CatchUp::Key { range: Unheld { first: 2, last: 5 }, .. })
        ));
        assert_eq!(keys.next_catch_up(10), Some(CatchUp::At(vec![(id("c"), 4)])));
    }

    #[test]
    fn probes_are_of_other_keys_first_and_then_of_suspects() {
        let mut keys = Keys::new(1);
        let names = ["a", "b", "c", "d", "e", "f"];
        for (seq, key) in (1..).zip(names) {
            keys.admit(id(key), held(seq, key), NOW);
        }
        let suspects: FxHashSet<KeyId> = ["a", "b", "c", "d"].map(id).into_iter().collect();
        keys.order_probes(0, 4, |id| suspects.contains(&id));
        assert_eq!(take(&mut keys, 6), [5, 6, 1, 2, 3, 4]);

        let mut keys = Keys::new(1);
        for (seq, key) in (1..).zip(names) {
            keys.admit(id(key), held(seq, key), NOW);
        }
        let suspects: FxHashSet<KeyId> = ["a"].map(id).into_iter().collect();
        keys.order_probes(0, 4, |id| suspects.contains(&id));
        assert_eq!(take(&mut keys, 6), [2, 3, 4, 1, 5, 6]);
    }

    #[test]
    fn a_late_event_of_a_parked_key_goes_before_its_head() {
        let mut keys = Keys::new(1);
        keys.admit(id("a"), held(5, "a"), NOW);
        let (key, head) = keys.take(0, 1, 1, NOW).remove(0);
        keys.park_behind(key, head, NOW + Duration::from_secs(1), NOW);
        keys.release(key, NOW);
        assert_eq!(keys.admit(key, held(4, "a"), NOW), Admission::Held);
        assert_eq!(take(&mut keys, 10), [4]);
    }

    #[test]
    fn far_off_events_are_not_kept_in_memory() {
        let mut keys = Keys::new(1);
        let due = NOW + Duration::from_secs(3600);
        let delayed = |seq| Held { due, ..held(seq, "a") };
        assert_eq!(keys.admit(id("a"), delayed(1), NOW), Admission::Unheld);
        assert_eq!(keys.admit(id("a"), held(2, "a"), NOW), Admission::Unheld);
        assert_eq!((keys.held_events(), keys.next_wake()), (0, Some(due)));
        keys.wake(due);
        assert!(matches!(keys.next_catch_up(10), Some(CatchUp::Key { .. })));
    }

    #[test]
    fn a_key_with_nothing_left_is_forgotten() {
        let mut keys = Keys::new(1);
        keys.admit(id("a"), held(1, "a"), NOW);
        take(&mut keys, 1);
        keys.release(id("a"), NOW);
        assert!(keys.keys.is_empty());
    }
}
