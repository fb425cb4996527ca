//! What must hold of the keys between any two steps; the simulator asks after each.

use super::Keys;
use super::known::Found;

impl Keys {
    /// Panics where an invariant is broken that the module names.
    pub(crate) fn check(&self) {
        let (mut events, mut bytes, mut parked, mut blocked) = (0, 0, 0, 0);
        for (id, key) in &self.keys {
            let waiting = || key.waiting.iter().flat_map(|waiting| waiting.iter());
            assert!(
                waiting().is_sorted_by(|a, b| a.seq < b.seq),
                "{id:?} holds its events in order"
            );
            if let Some(range) = &key.unheld {
                assert!(range.first <= range.last);
                assert!(
                    waiting().all(|held| held.seq <= range.first),
                    "{id:?} holds nothing behind what it must fetch"
                );
            }
            if key.parked_until.is_some() {
                assert_eq!(waiting().count(), 0, "{id:?} waits and holds nothing");
            }
            if let Some(dead) = key.blocked_by {
                assert!(
                    waiting().all(|held| held.seq <= dead),
                    "{id:?} holds nothing behind a dead letter"
                );
            }
            for held in waiting() {
                let found = self.known.recognise(held.seq, held.event.id());
                assert_eq!(found, Found::InMemory, "what is held at {} is known", held.seq);
            }
            let queued = self.ready.iter().filter(|ready| ready.iter().any(|other| other == *id));
            assert!(queued.count() <= 1, "{id:?} is ready for one destination");
            assert!(!key.is_idle(), "{id:?} is remembered for nothing");
            events += waiting().count();
            bytes += waiting().map(super::Held::bytes).sum::<usize>();
            parked += usize::from(key.parked_until.is_some());
            blocked += usize::from(key.blocked_by.is_some());
        }
        assert_eq!((events, bytes), (self.held_events, self.held_bytes), "what is held is counted");
        assert_eq!((parked, blocked), (self.parked, self.blocked), "who is stuck is counted");
    }
}
