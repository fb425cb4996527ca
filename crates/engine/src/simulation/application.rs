//! The application of the simulation: transactions that hold keys, draw numbers, and end in any order.

use std::time::Duration;

use posthaste_core::{OutboxEvent, Payload, Shard};
use rand::RngExt;
use uuid::Uuid;

use super::world::{DESTINATIONS, FAR_OFF, Row, RowState, Transaction, World};

impl World {
    pub(super) fn begin(&mut self) {
        let key = self.random.random_range(0..self.keys);
        if !self.locked.insert(key) {
            return;
        }
        self.begun += 1;
        self.tokens += 1;
        self.transactions.push(Transaction {
            number: self.begun,
            token: self.tokens.to_string(),
            prepared: false,
            keys: vec![key],
            drawn: Vec::new(),
        });
    }

    pub(super) fn draw(&mut self) {
        if self.transactions.is_empty() {
            return;
        }
        let index = self.random.random_range(0..self.transactions.len());
        if self.transactions[index].prepared {
            return;
        }
        let key = self.transactions[index].keys[0];
        self.high += 1;
        let seq = self.high;
        // Mostly by key, but a key may also send to several.
        let stray = self.random.random_bool(0.1);
        let destination = DESTINATIONS[(key + usize::from(stray)) % DESTINATIONS.len()];
        let event = OutboxEvent::builder(Uuid::from_u128(key as u128), "t")
            .destination(destination)
            .payload(Payload::json_text("{}").expect("JSON"))
            .build()
            .expect("an event");
        self.places.insert(event.id(), seq);
        let delay =
            if self.random.random_bool(0.1) { self.random.random_range(0..50_000) } else { 0 };
        let is_far_off = self.faults && self.random.random_bool(0.01);
        let delay = if is_far_off { FAR_OFF } else { Duration::from_millis(delay) };
        let available_at = self.now + delay;
        let corrupt = self.random.random_bool(0.02);
        let shard = shard_of(key);
        let row =
            Row { event, shard, state: RowState::Pending, available_at, committed: false, corrupt };
        self.rows.insert(seq, row);
        self.transactions[index].drawn.push(seq);
    }

    pub(super) fn end(&mut self) {
        if self.transactions.is_empty() {
            return;
        }
        let index = self.random.random_range(0..self.transactions.len());
        // One that is prepared waits for somebody else, and mostly longer.
        if self.transactions[index].prepared && self.faults && self.random.random_bool(0.7) {
            return;
        }
        let commit = self.random.random_bool(0.8);
        self.end_one(index, commit);
    }

    /// The first phase of a commit in two.
    pub(super) fn prepare(&mut self) {
        if !self.transactions.is_empty() {
            let index = self.random.random_range(0..self.transactions.len());
            self.transactions[index].prepared = true;
        }
    }

    /// The database is started anew: open transactions are gone, but for what was prepared, which has
    /// another name now. Names are given out from the first again.
    pub(super) fn restart(&mut self) {
        while let Some(index) = self.transactions.iter().position(|open| !open.prepared) {
            self.end_one(index, false);
        }
        for transaction in &mut self.transactions {
            transaction.token = format!("-1/{}", transaction.number);
        }
        self.tokens = 0;
        self.incarnation += 1;
    }

    fn end_one(&mut self, index: usize, commit: bool) {
        let transaction = self.transactions.swap_remove(index);
        for seq in transaction.drawn {
            if commit {
                self.rows.get_mut(&seq).expect("a row").committed = true;
            } else {
                self.rows.remove(&seq);
            }
        }
        for key in transaction.keys {
            self.locked.remove(&key);
        }
    }

    /// A writer that chooses its places itself takes one below those that were read.
    pub(super) fn insert_low(&mut self) {
        let Some(seq) = (1..self.high).find(|seq| !self.rows.contains_key(seq)) else { return };
        let event =
            OutboxEvent::builder(Uuid::from_u128(u128::from(1_000_000 + seq.unsigned_abs())), "t")
                .destination(DESTINATIONS[0])
                .payload(Payload::json_text("{}").expect("JSON"))
                .build()
                .expect("an event");
        self.places.insert(event.id(), seq);
        let row = Row {
            event,
            shard: shard_of(0),
            state: RowState::Pending,
            available_at: Duration::ZERO,
            committed: true,
            corrupt: false,
        };
        self.rows.insert(seq, row);
    }
}

/// Two keys have a shard in common, and the next two one far away.
fn shard_of(key: usize) -> Shard {
    Shard::from_index(key / 2 * 37 % Shard::COUNT).expect("a shard")
}
