//! What must be true of a table beside which a relay runs.

use std::collections::{HashMap, HashSet};

use uuid::Uuid;

use super::bus::{KeyedBus, Nature};
use super::database::Stored;
use super::rows::{ALIVE, PLAIN};

/// What waits without a reason that shows: neither scheduled, nor behind such a one or a dead letter
/// of its key, nor for a destination that is not there.
pub(crate) fn waits_without_a_reason(rows: &[Stored]) -> Vec<&Stored> {
    let mut held: HashSet<&str> = HashSet::new();
    let mut unexplained = Vec::new();
    for row in rows.iter().filter(|row| !row.delivered) {
        let nowhere = !matches!(&*row.destination, "" | "default");
        if row.dead || row.scheduled || nowhere {
            held.insert(&row.key);
        } else if !held.contains(&*row.key) && row.key != ALIVE {
            unexplained.push(row);
        }
    }
    unexplained
}

/// What is wrong with rows that are as every writer means them.
pub(crate) fn wrong_with_plain(rows: &[Stored], bus: &KeyedBus) -> Vec<String> {
    let taken: HashMap<Uuid, usize> =
        bus.taken().iter().enumerate().map(|(place, (id, _))| (*id, place)).collect();
    let mut latest: HashMap<&str, usize> = HashMap::new();
    let mut wrong = Vec::new();
    for row in rows.iter().filter(|row| row.event_type == PLAIN) {
        let place = row.id.and_then(|id| taken.get(&id)).copied();
        let mut complain = |why: &str| wrong.push(format!("{why}: {}", row.text));
        if row.delivered && place.is_none() {
            complain("recorded as delivered, and the bus never took it");
        }
        if row.dead {
            let expected = match bus.nature(&row.key) {
                Nature::Poison => Some("retries_exhausted"),
                Nature::Rejected => Some("rejected"),
                _ => None,
            };
            if row.dead_reason.as_deref() != expected {
                complain("dead, and not for what the bus answered");
            } else if row.error.as_deref().is_none_or(|error| !error.contains("on purpose")) {
                complain("dead without the words of the bus");
            }
        }
        if let Some(place) = place {
            let latest = latest.entry(&row.key).or_insert(place);
            if place < *latest {
                complain("taken before one that stands in front of it");
            }
            *latest = place;
        }
    }
    wrong
}
