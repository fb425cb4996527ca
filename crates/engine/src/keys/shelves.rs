//! Keys of a destination that is down, left in the store when memory runs short.

use std::time::Duration;

use super::Keys;
use crate::keys::key::{Key, KeyId};

impl Keys {
    /// Leaves what waits for a destination in the store, but for the heads of `keep` keys to probe with:
    /// not more of these, since one key may fill the memory. Returns how many events are unheld now.
    pub(crate) fn shelve(&mut self, destination: usize, keep: usize) -> usize {
        let mut dropped = 0;
        let (kept, shelved) = self.ready[destination].split(keep);
        for id in kept {
            if let Some(head) = self.keys.get(&id).and_then(Key::front).map(|head| head.seq) {
                dropped += self.drop_waiting_above(id, head);
            }
        }
        for id in shelved {
            let Some(key) = self.keys.get_mut(&id) else { continue };
            key.queued = false;
            key.shelved = true;
            key.head_first = true;
            self.shelved[destination].push(id);
            dropped += self.drop_waiting_above(id, 0);
        }
        dropped
    }

    /// The destination answers again, or is to be probed with `keys_max` keys: its shelved keys go
    /// on, those first that were shelved first.
    pub(crate) fn unshelve(&mut self, destination: usize, keys_max: usize, now: Duration) {
        for _ in 0..self.shelved[destination].len().min(keys_max) {
            let Some(id) = self.shelved[destination].pop() else { break };
            if let Some(key) = self.keys.get_mut(&id) {
                key.shelved = false;
            }
            self.refresh(id, now);
        }
    }

    /// The same, of keys that have not failed.
    pub(crate) fn unshelve_fresh(
        &mut self,
        destination: usize,
        keys_max: usize,
        is_suspect: impl Fn(KeyId) -> bool,
        now: Duration,
    ) {
        let fresh = self.shelved[destination].put_fresh_first(keys_max, is_suspect);
        self.unshelve(destination, fresh.min(keys_max), now);
    }

    /// Keys that wait for a destination to answer again.
    pub(crate) fn shelved_count(&self, destination: usize) -> usize {
        self.shelved[destination].len()
    }

    pub(crate) fn is_shelved(&self, id: KeyId) -> bool {
        self.keys.get(&id).is_some_and(|key| key.shelved)
    }
}
