//! What to fetch for keys that can go on: their heads by place, several in one question, and ranges key by key.

use std::time::Duration;

use posthaste_core::{OrderKey, Seq};

use super::Keys;
use crate::keys::key::{KeyId, Unheld};

/// What to fetch for keys that can go on.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum CatchUp {
    /// Single events of several keys.
    At(Vec<(KeyId, Seq)>),
    /// A range of one key.
    Key { id: KeyId, name: OrderKey, range: Unheld },
}

impl Keys {
    /// Keys that wait to be fetched again.
    pub(crate) fn catch_up_count(&self) -> usize {
        self.catch_up_heads.len() + self.catch_up.len()
    }

    /// Those of them that wait for a range.
    pub(crate) fn catch_up_ranges(&self) -> usize {
        self.catch_up.len()
    }

    /// What to fetch next for keys that can go on; heads are asked for together, in turn with ranges.
    pub(crate) fn next_catch_up(&mut self, events_max: usize) -> Option<CatchUp> {
        self.heads_turn = !self.heads_turn;
        let heads_first = self.heads_turn || self.catch_up.is_empty();
        if heads_first && let Some(heads) = self.next_heads(events_max) {
            return Some(heads);
        }
        self.next_range().or_else(|| self.next_heads(events_max))
    }

    fn next_heads(&mut self, events_max: usize) -> Option<CatchUp> {
        let mut heads = Vec::new();
        while heads.len() < events_max
            && let Some(id) = self.catch_up_heads.pop_front()
        {
            let Some(key) = self.keys.get_mut(&id) else { continue };
            match &key.unheld {
                Some(range) => heads.push((id, range.first)),
                None => key.catching_up = false,
            }
        }
        (!heads.is_empty()).then_some(CatchUp::At(heads))
    }

    fn next_range(&mut self) -> Option<CatchUp> {
        while let Some(id) = self.catch_up.pop_front() {
            let Some(key) = self.keys.get_mut(&id) else { continue };
            if let (Some(range), Some(name)) = (&key.unheld, &key.name) {
                let name = OrderKey::clone(name);
                return Some(CatchUp::Key { id, name, range: Unheld::clone(range) });
            }
            key.catching_up = false;
        }
        None
    }

    /// A fetch of `asked` brought all of it, or only what is below `more_from`. To be called
    /// before the events are given to [`hold`](Self::hold).
    pub(crate) fn caught_up(&mut self, id: KeyId, asked: &Unheld, more_from: Option<Seq>) {
        let Some(key) = self.keys.get_mut(&id) else { return };
        key.catching_up = false;
        let Some(range) = key.unheld.as_mut() else { return };
        if range.first < asked.first {
            // Something turned up below meanwhile: all of it is fetched again, in order.
            return;
        }
        key.head_first = false;
        let first = more_from.unwrap_or(asked.last + 1);
        if first > range.last {
            key.unheld = None;
            key.name = None;
        } else {
            range.first = range.first.max(first);
        }
    }

    /// A fetch for keys is over, be it that it failed: those with something left ask again.
    pub(crate) fn catch_up_ended(&mut self, ids: impl IntoIterator<Item = KeyId>, now: Duration) {
        for id in ids {
            if let Some(key) = self.keys.get_mut(&id) {
                key.catching_up = false;
                self.refresh(id, now);
            }
        }
    }

    /// Gives up the unheld ranges of all keys that can go on, and returns where a read of all
    /// keys must start instead. For when that is cheaper than asking key by key.
    pub(crate) fn rewind_catch_up(&mut self) -> Option<Seq> {
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
}
