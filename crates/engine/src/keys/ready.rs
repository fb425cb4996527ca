//! The keys of a destination whose first event can be sent now, and which of them go next.
//!
//! While a destination is paused, which keys go depends on whether they have failed already. So what is
//! ready is told apart then, each key once: a turn of the loop looks at what came since the last one only,
//! however much waits.

use std::collections::VecDeque;

use crate::keys::key::KeyId;

/// Multiples of it fall all over any range.
const STEP: usize = 0x9E37_79B1;

#[derive(Debug, Default)]
pub(crate) struct Ready {
    /// In the order in which they go.
    queue: VecDeque<KeyId>,
    /// Told apart during a pause, and behind the queue: those that have not failed,
    fresh: VecDeque<KeyId>,
    /// and those that have.
    suspects: VecDeque<KeyId>,
    /// From where in `fresh` the next one comes.
    turn: usize,
}

impl Ready {
    pub(crate) fn len(&self) -> usize {
        self.queue.len() + self.fresh.len() + self.suspects.len()
    }

    pub(crate) fn push(&mut self, id: KeyId) {
        self.queue.push_back(id);
    }

    pub(crate) fn pop(&mut self) -> Option<KeyId> {
        let told_apart =
            |ready: &mut Self| ready.fresh.pop_front().or_else(|| ready.suspects.pop_front());
        self.queue.pop_front().or_else(|| told_apart(self))
    }

    /// All of them, in the order in which they go.
    pub(crate) fn iter(&self) -> impl Iterator<Item = KeyId> {
        self.queue.iter().chain(&self.fresh).chain(&self.suspects).copied()
    }

    /// The first ones, at most so many, which stay; and the others, which are taken out.
    pub(crate) fn split(&mut self, keep: usize) -> (Vec<KeyId>, Vec<KeyId>) {
        self.join();
        let others = self.queue.split_off(self.queue.len().min(keep));
        (self.queue.iter().copied().collect(), others.into())
    }

    pub(crate) fn retain(&mut self, stays: impl Fn(&KeyId) -> bool) {
        for part in [&mut self.queue, &mut self.fresh, &mut self.suspects] {
            part.retain(&stays);
        }
    }

    /// The pause is over: they go as they came, those that failed behind the others.
    pub(crate) fn join(&mut self) {
        if self.fresh.is_empty() && self.suspects.is_empty() {
            return;
        }
        self.fresh.append(&mut self.queue);
        self.fresh.append(&mut self.suspects);
        std::mem::swap(&mut self.queue, &mut self.fresh);
    }

    /// Puts keys that have not failed first, at most so many. Returns how many there are.
    ///
    /// The one that came first, the one that came last, and one between them in turn: wherever something is
    /// that would be taken, among much that would not, it has not to wait for all of that.
    pub(crate) fn put_fresh_first(
        &mut self,
        keys_max: usize,
        is_suspect: impl Fn(KeyId) -> bool,
    ) -> usize {
        self.tell_apart(is_suspect);
        while self.queue.len() < keys_max
            && let Some(id) = self.next_fresh()
        {
            self.queue.push_back(id);
        }
        self.queue.len()
    }

    /// Puts the keys to probe a destination with first: half of them at most such that failed
    /// before, and these behind the others, whose success proves whose fault another failure is.
    /// What is not among the probes comes behind them, suspects last.
    pub(crate) fn put_probes_first(&mut self, probes: usize, is_suspect: impl Fn(KeyId) -> bool) {
        self.tell_apart(is_suspect);
        let fresh = self.fresh.len().min(probes - self.suspects.len().min(probes / 2));
        let suspects = self.suspects.len().min(probes - fresh);
        self.queue.extend(self.fresh.drain(..fresh));
        self.queue.extend(self.suspects.drain(..suspects));
    }

    fn next_fresh(&mut self) -> Option<KeyId> {
        self.turn = self.turn.wrapping_add(1);
        match self.turn % 3 {
            0 => {
                let at = self.turn.wrapping_mul(STEP) % self.fresh.len().max(1);
                self.fresh.swap_remove_front(at)
            }
            1 => self.fresh.pop_front(),
            _ => self.fresh.pop_back(),
        }
    }

    fn tell_apart(&mut self, is_suspect: impl Fn(KeyId) -> bool) {
        for id in self.queue.drain(..) {
            let part = if is_suspect(id) { &mut self.suspects } else { &mut self.fresh };
            part.push_back(id);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use posthaste_core::{OrderKey, Shard};

    use super::*;

    fn key(number: usize) -> KeyId {
        let name = OrderKey::named(&format!("key-{number}")).expect("a key");
        KeyId::of(&name, Shard::default())
    }

    fn ready(keys: std::ops::Range<usize>) -> Ready {
        let mut ready = Ready::default();
        keys.for_each(|number| ready.push(key(number)));
        ready
    }

    fn all(mut ready: Ready) -> Vec<KeyId> {
        std::iter::from_fn(|| ready.pop()).collect()
    }

    /// By the number of keys looked at, for each turn of the loop.
    #[test]
    fn a_pause_costs_nothing_for_what_waits_until_a_key_comes_that_has_not_failed() {
        let mut ready = ready(0..10_000);
        let (old, looked_at) = (ready.len(), Cell::new(0));
        let failed: rustc_hash::FxHashSet<KeyId> = ready.iter().collect();
        let turn = |ready: &mut Ready| {
            looked_at.set(0);
            let fresh = ready.put_fresh_first(8, |id| {
                looked_at.set(looked_at.get() + 1);
                failed.contains(&id)
            });
            (fresh, looked_at.get())
        };
        assert_eq!(turn(&mut ready), (0, old), "each is told apart once");
        for _ in 0..100 {
            assert_eq!(turn(&mut ready), (0, 0));
        }
        ready.push(key(old));
        assert_eq!(turn(&mut ready), (1, 1));
        assert_eq!((ready.pop(), turn(&mut ready)), (Some(key(old)), (0, 0)));
        assert_eq!(ready.len(), old);
    }

    #[test]
    fn of_keys_that_have_not_failed_the_oldest_the_newest_and_others_have_their_turn() {
        let mut ready = ready(0..100);
        assert_eq!(ready.put_fresh_first(8, |id| id == key(0)), 8);
        let tried: Vec<KeyId> = (0..8).filter_map(|_| ready.pop()).collect();
        assert_eq!((tried[0], tried[1]), (key(1), key(99)));
        // The next oldest takes the place of the one between them.
        assert_eq!((tried[3], tried[4]), (key(3), key(98)));
        assert!((3..98).any(|number| tried[2] == key(number)), "one between them");
        ready.push(key(100));
        for _ in 0..3 {
            ready.put_fresh_first(1, |_| false);
            let tried = ready.pop();
            if tried == Some(key(100)) {
                ready.join();
                assert_eq!(ready.iter().last(), Some(key(0)), "it goes on, suspects last");
                return;
            }
        }
        panic!("what has just come is not among the next three");
    }

    #[test]
    fn probes_are_of_other_keys_first_and_then_of_suspects() {
        let mut probed = ready(1..7);
        probed.put_probes_first(4, |id| [1, 2, 3, 4].map(key).contains(&id));
        assert_eq!(all(probed), [5, 6, 1, 2, 3, 4].map(key));
        let mut probed = ready(1..7);
        probed.put_probes_first(4, |id| id == key(1));
        assert_eq!(all(probed), [2, 3, 4, 1, 5, 6].map(key));
    }
}
