//! Holds back what follows a row that was buried, until the relay knows of the grave.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use posthaste_core::{OrderKey, PendingEvent, Seq};

/// A caller that never asks for dead heads is held back no longer than this.
const HOLD_MAX: Duration = Duration::from_secs(10);

/// Keys whose event was dead-lettered by a fetch, since it cannot be read.
///
/// What a dead letter means for the later events of its key is for the relay to decide, which
/// learns of it when it next reads the dead heads. Until then a fetch must not give it those later
/// events: it would deliver them before the one that should come first.
#[derive(Debug, Default)]
pub(crate) struct Buried(Mutex<HashMap<OrderKey, Grave>>);

#[derive(Debug, Clone, Copy)]
struct Grave {
    seq: Seq,
    dug_at: Instant,
}

impl Buried {
    pub(crate) fn add(&self, key: OrderKey, seq: Seq) {
        let grave = Grave { seq, dug_at: Instant::now() };
        self.lock().entry(key).and_modify(|known| known.seq = known.seq.min(seq)).or_insert(grave);
    }

    /// Takes out what is behind a grave.
    pub(crate) fn hold_back(&self, events: &mut Vec<PendingEvent>) {
        let mut graves = self.lock();
        if graves.is_empty() {
            return;
        }
        graves.retain(|_, grave| grave.dug_at.elapsed() < HOLD_MAX);
        events.retain(|found| {
            graves.get(found.event.order_key()).is_none_or(|grave| found.seq < grave.seq)
        });
    }

    /// What is buried now, for [`announced`](Self::announced).
    pub(crate) fn keys(&self) -> Vec<OrderKey> {
        self.lock().keys().cloned().collect()
    }

    /// The caller is being told of these.
    pub(crate) fn announced(&self, keys: &[OrderKey]) {
        let mut graves = self.lock();
        for key in keys {
            graves.remove(key);
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<OrderKey, Grave>> {
        // No method leaves the map half changed when it panics.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
