//! What is stored and sent: everything from one seed.

use rand::rngs::SmallRng;
use rand::{RngExt as _, SeedableRng as _};
use uuid::Uuid;

/// The type of every event.
pub(crate) const EVENT_TYPE: &str = "account.changed";

/// How keys share the events.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Keys {
    /// The first key has a tenth of all events, the second half as many, and so on: Zipf's law.
    Zipf,
    /// Each key as many as the next.
    Uniform,
}

/// Which events there are. Equal values give equal events.
#[derive(Debug, Clone)]
pub(crate) struct Workload {
    pub(crate) seed: u64,
    pub(crate) events: u64,
    pub(crate) keys: usize,
    pub(crate) distribution: Keys,
    /// Bytes of the JSON text.
    pub(crate) payload_bytes: usize,
}

/// One event.
pub(crate) struct Event {
    pub(crate) id: Uuid,
    pub(crate) key: Uuid,
    pub(crate) data: String,
}

impl Workload {
    /// A name for what this value describes, for databases that hold it.
    pub(crate) fn name(&self) -> String {
        let Self { seed, events, keys, distribution, payload_bytes } = self;
        format!("{seed}_{events}_{keys}_{distribution:?}_{payload_bytes}").to_lowercase()
    }

    /// The events, in the order in which they are stored.
    pub(crate) fn events(&self) -> impl Iterator<Item = Event> + use<> {
        let mut random = SmallRng::seed_from_u64(self.seed);
        let keys = KeyChoice::new(self.keys, self.distribution);
        let payload_bytes = self.payload_bytes;
        (0..self.events).map(move |number| Event {
            // As the table's default draws them.
            id: uuid::Builder::from_random_bytes(random.random()).into_uuid(),
            key: keys.draw(&mut random),
            data: payload(&mut random, number, payload_bytes),
        })
    }
}

/// Draws keys.
pub(crate) struct KeyChoice {
    /// The share of all keys up to each one, of 1.
    cumulative: Vec<f64>,
}

impl KeyChoice {
    pub(crate) fn new(keys: usize, distribution: Keys) -> Self {
        let weight = |rank: usize| match distribution {
            Keys::Zipf => 1.0 / rank as f64,
            Keys::Uniform => 1.0,
        };
        let total: f64 = (1..=keys).map(weight).sum();
        let mut sum = 0.0;
        let cumulative = (1..=keys).map(|rank| {
            sum += weight(rank) / total;
            sum
        });
        Self { cumulative: cumulative.collect() }
    }

    pub(crate) fn draw(&self, random: &mut SmallRng) -> Uuid {
        let place: f64 = random.random();
        let rank = self.cumulative.partition_point(|sum| *sum < place);
        // Spread over all values, as real identifiers are: neighbours in rank are none in an index.
        let bits = (rank as u128 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835);
        uuid::Builder::from_u128(bits).with_version(uuid::Version::Random).into_uuid()
    }
}

/// JSON of `bytes` bytes that does not compress much: PostgreSQL would store text of one letter in
/// next to nothing.
pub(crate) fn payload(random: &mut SmallRng, number: u64, bytes: usize) -> String {
    const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let mut text = format!("{{\"number\":{number},\"note\":\"");
    while text.len() + 2 < bytes {
        let bits: u64 = random.random();
        for place in 0..10 {
            if text.len() + 2 >= bytes {
                break;
            }
            let index = usize::try_from((bits >> (6 * place)) & 63).unwrap_or(0);
            text.push(char::from(LETTERS[index]));
        }
    }
    text.push_str("\"}");
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashMap;

    fn workload(events: u64, distribution: Keys) -> Workload {
        Workload { seed: 7, events, keys: 10_000, distribution, payload_bytes: 200 }
    }

    #[test]
    fn equal_seeds_give_equal_events() {
        let text = |seed| {
            let workload = Workload { seed, ..workload(50, Keys::Zipf) };
            workload.events().map(|e| format!("{} {} {}", e.id, e.key, e.data)).collect::<String>()
        };
        assert_eq!(text(1), text(1));
        assert_ne!(text(1), text(2));
    }

    #[test]
    fn the_first_key_has_a_tenth_of_the_events_or_no_more_than_others() {
        for (distribution, low, high) in [(Keys::Zipf, 900, 1_150), (Keys::Uniform, 1, 12)] {
            let mut counts = HashMap::new();
            for event in workload(10_000, distribution).events() {
                *counts.entry(event.key).or_insert(0) += 1;
            }
            let most = counts.values().max().copied().unwrap_or(0);
            assert!((low..=high).contains(&most), "{distribution:?}: {most}");
        }
    }

    #[test]
    fn payloads_are_json_of_the_wanted_size() {
        for bytes in [200, 1_024, 8_192] {
            let workload = Workload { payload_bytes: bytes, ..workload(3, Keys::Zipf) };
            for event in workload.events() {
                assert_eq!(event.data.len(), bytes);
                serde_json::from_str::<serde_json::Value>(&event.data).unwrap();
            }
        }
    }
}
