//! Whether what arrived is what was committed.

use std::collections::HashMap;

use uuid::Uuid;

use super::{Delivery, Figures};

/// How far deliveries are from what was committed.
#[derive(Debug)]
pub(crate) struct Verdict {
    pub(crate) committed: usize,
    /// Committed, and never delivered.
    pub(crate) lost: usize,
    /// Delivered, and never committed.
    pub(crate) phantom: usize,
    /// Deliveries of an event after its first one.
    pub(crate) duplicates: usize,
    /// Repeated deliveries that differ from the first.
    pub(crate) changed: usize,
    /// First deliveries of a key that came after a later event of the key.
    pub(crate) disordered: usize,
}

impl Verdict {
    /// Compares `deliveries` with the committed events and their numbers within their keys.
    pub(crate) fn of(committed: &HashMap<Uuid, i64>, deliveries: &[Delivery]) -> Self {
        let mut first: HashMap<Uuid, u64> = HashMap::with_capacity(committed.len());
        let mut last_number: HashMap<u64, i64> = HashMap::new();
        let (mut duplicates, mut changed, mut phantom, mut disordered) = (0, 0, 0, 0);
        for delivery in deliveries {
            if let Some(fingerprint) = first.get(&delivery.id) {
                duplicates += 1;
                changed += usize::from(*fingerprint != delivery.fingerprint);
                continue;
            }
            first.insert(delivery.id, delivery.fingerprint);
            phantom += usize::from(!committed.contains_key(&delivery.id));
            let last = last_number.entry(delivery.key).or_insert(0);
            disordered += usize::from(delivery.number <= *last);
            *last = delivery.number.max(*last);
        }
        let lost = committed.keys().filter(|id| !first.contains_key(id)).count();
        Self { committed: committed.len(), lost, phantom, duplicates, changed, disordered }
    }

    /// Adds it to the test's line.
    pub(crate) fn add_to(&self, figures: &mut Figures) {
        figures
            .add("events", self.committed)
            .add("lost", self.lost)
            .add("phantom", self.phantom)
            .add("duplicates", self.duplicates)
            .add("out of order", self.disordered);
    }

    /// Nothing lost, nothing invented, nothing changed, first deliveries in order; at most
    /// `duplicates_max` repeated.
    #[track_caller]
    pub(crate) fn assert_kept(&self, duplicates_max: usize) {
        assert!(self.committed > 0, "nothing was committed: {self:?}");
        let broken = self.lost + self.phantom + self.changed + self.disordered;
        assert!(broken == 0, "{self:?}");
        assert!(self.duplicates <= duplicates_max, "more than {duplicates_max} twice: {self:?}");
    }
}

#[test]
fn the_verdict_sees_each_kind_of_broken_promise() {
    use std::time::SystemTime;
    let ids: Vec<Uuid> = (1..=4).map(Uuid::from_u128).collect();
    let delivery = |id: usize, number, fingerprint| Delivery {
        id: ids[id],
        key: 1,
        number,
        fingerprint,
        stored_at: SystemTime::UNIX_EPOCH,
    };
    let committed: HashMap<Uuid, i64> = [(ids[0], 1), (ids[1], 2), (ids[2], 3)].into();
    let arrived = [
        delivery(1, 2, 7),
        delivery(0, 1, 8),
        delivery(0, 1, 8),
        delivery(1, 2, 9),
        delivery(3, 4, 0),
    ];
    let verdict = Verdict::of(&committed, &arrived);
    assert_eq!((verdict.lost, verdict.phantom, verdict.disordered), (1, 1, 1), "{verdict:?}");
    assert_eq!((verdict.duplicates, verdict.changed), (2, 1), "{verdict:?}");
}
