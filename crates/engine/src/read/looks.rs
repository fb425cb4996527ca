//! What is known of waiting events, compared with the table: whatever was changed there, by whatever
//! means, is noticed.
//!
//! Triggers tell of most changes, and not of all: a `truncate`, a session in the role of a replica, a
//! delay that was taken back, a number below those that were read. So, one small question at a time,
//!
//! - the *heads* that keys wait for are looked at again: those of parked keys, and of keys whose
//!   destination is paused;
//! - the *low places*, below where the forward read is, are walked again for events that nobody knows of.
//!
//! Dead letters have rounds of their own (`dead_letters`). An answer decides nothing: it makes a key read
//! its head again, by which the database decides. So a look may run beside any other operation, and may be
//! as old as it likes. What looks cost is bounded, whatever waits: so many rows in one, and none before
//! fifty times the last one's time has passed.

use std::collections::HashMap;
use std::time::Duration;

use posthaste_core::{DeadHead, Head, HeadSelection, Seq};
use rustc_hash::{FxHashMap, FxHashSet};

use crate::keys::key::KeyId;
use crate::keys::known::Found;
use crate::machine::Machine;
use crate::protocol::{Command, Report};
use crate::routes::DeadHeadPolicy;

/// Rows of one look.
const ROWS_MAX: usize = 1_000;
/// Between the beginnings of two rounds over the heads.
const HEADS_EVERY: Duration = Duration::from_secs(4);
/// Between two looks of a round.
const LOOK_EVERY: Duration = Duration::from_millis(200);
/// Between the end of a walk over the low places and the next.
const LOW_EVERY: Duration = Duration::from_secs(8);
/// How much longer than a look took nothing is looked at.
const REST_FACTOR: u32 = 50;
/// Two clocks that differ by less agree.
const CLOCKS_APART: Duration = Duration::from_secs(1);

#[derive(Debug, Default)]
pub(crate) struct Looks {
    under_way: Option<(Look, Duration)>,
    /// Keys of the round that are still to be looked at.
    heads: Vec<KeyId>,
    heads_round_at: Duration,
    heads_at: Duration,
    /// Places up to here were walked.
    low_after: Seq,
    low_at: Duration,
    /// Settled since the look under way was asked for.
    settled: FxHashSet<Seq>,
}

#[derive(Debug)]
enum Look {
    /// Keys, by the places of their heads.
    Heads(FxHashMap<Seq, KeyId>),
    Low,
}

impl Looks {
    /// A round over the heads begins at once: an operator changed something.
    pub(crate) fn hurry(&mut self, now: Duration) {
        self.heads.clear();
        self.heads_round_at = now;
        self.heads_at = self.heads_at.min(now);
    }

    /// The outcome of an event is recorded.
    pub(crate) fn settled(&mut self, seq: Seq) {
        if self.under_way.is_some() {
            self.settled.insert(seq);
        }
    }

    /// When something is to be looked at.
    pub(crate) fn due(&self) -> Option<Duration> {
        let heads = if self.heads.is_empty() { self.heads_round_at } else { self.heads_at };
        self.under_way.is_none().then_some(heads.min(self.low_at))
    }
}

impl Machine {
    /// The next look, if one is due.
    pub(crate) fn look(&mut self, now: Duration) -> Option<Command> {
        if self.looks.under_way.is_some() {
            return None;
        }
        if self.looks.heads.is_empty() && now >= self.looks.heads_round_at {
            self.begin_round_of_heads(now);
        }
        let (look, selection) = match self.next_heads(now) {
            Some(places) => {
                let selection = HeadSelection::At(places.keys().copied().collect());
                (Look::Heads(places), selection)
            }
            None if now >= self.looks.low_at && self.reader.hint() > 0 => {
                let (after, up_to) = (self.looks.low_after, self.reader.hint());
                (Look::Low, HeadSelection::Between { after, up_to })
            }
            None => return None,
        };
        self.looks.settled.clear();
        self.looks.under_way = Some((look, now));
        Some(Command::Look { selection, limit: ROWS_MAX })
    }

    fn begin_round_of_heads(&mut self, now: Duration) {
        // What a paused destination keeps in memory would be sent as it was read.
        for destination in 0..self.outages.len() {
            if self.outages[destination].error().is_some() {
                self.keys.shelve(destination, 0);
            }
        }
        for (destination, outage) in self.outages.iter_mut().enumerate() {
            let unsent = self.keys.ready_count(destination) + self.keys.shelved_count(destination);
            let nothing_waits = unsent + self.in_flight.to(destination) == 0;
            outage.gone(|id| self.keys.contains(id), nothing_waits);
        }
        for name in self.unknown_names.next_round() {
            self.reports.push(Report::UnknownDestinationGone { name });
        }
        self.looks.heads = self.keys.waiting();
        self.looks.heads_round_at = now + HEADS_EVERY;
    }

    fn next_heads(&mut self, now: Duration) -> Option<FxHashMap<Seq, KeyId>> {
        if now < self.looks.heads_at {
            return None;
        }
        let mut places = FxHashMap::default();
        while places.len() < ROWS_MAX
            && let Some(id) = self.looks.heads.pop()
        {
            places.extend(self.keys.waits_for(id).map(|seq| (seq, id)));
        }
        (!places.is_empty()).then_some(places)
    }

    /// Takes what a look found.
    pub(crate) fn looked(&mut self, found: Vec<Head>, now: Duration) {
        let Some((look, asked_at)) = self.looks.under_way.take() else { return };
        let rest = (now.saturating_sub(asked_at) * REST_FACTOR).max(LOOK_EVERY);
        match look {
            Look::Heads(asked) => {
                self.looks.heads_at = now + rest;
                self.heads_seen(&asked, found, now);
            }
            Look::Low => {
                let is_last = found.len() < ROWS_MAX;
                self.looks.low_after = found.last().map_or(0, |last| last.seq);
                self.looks.low_at = now + rest;
                if is_last {
                    (self.looks.low_after, self.looks.low_at) = (0, now + rest.max(LOW_EVERY));
                }
                for head in found {
                    self.low_place_seen(&head, now);
                }
            }
        }
    }

    /// The look failed; the next one comes after the database's pause.
    pub(crate) fn look_failed(&mut self) {
        self.looks.under_way = None;
        self.unknown_names.round_is_cut();
    }

    fn heads_seen(&mut self, asked: &FxHashMap<Seq, KeyId>, found: Vec<Head>, now: Duration) {
        let found: HashMap<Seq, Head> = found.into_iter().map(|head| (head.seq, head)).collect();
        for (seq, id) in asked {
            // Its own outcome may be on its way, or was when the table was looked at.
            let is_old =
                self.settling.is_unrecorded_retry(*seq) || self.looks.settled.contains(seq);
            if is_old || self.keys.waits_for(*id) != Some(*seq) {
                continue;
            }
            match found.get(seq) {
                Some(head) if KeyId::of(&head.key, head.shard) == *id && !head.dead => {
                    self.name_looked_at(head);
                    let due = now.saturating_add(self.wait_of(head.wait, head.has_failed));
                    let goes_elsewhere = self.keys.is_shelved(*id) && !self.waits_in_vain(head);
                    if goes_elsewhere {
                        self.keys.go_on(*id, now);
                    } else {
                        self.keys.reschedule(*id, due, CLOCKS_APART, now);
                    }
                }
                Some(head) if head.dead => {
                    self.dead_heads_found(std::slice::from_ref(&dead_head(head)));
                    self.keys.go_on(*id, now);
                }
                // It is gone, or another key's.
                _ => self.keys.go_on(*id, now),
            }
        }
    }

    fn name_looked_at(&mut self, head: &Head) {
        let Some(name) = &head.destination else { return };
        if self.routes.resolve(Some(name), &head.event_type).is_none() {
            self.unknown_name_met(name);
        }
    }

    /// Whether the destination that the event goes to by now takes nothing.
    fn waits_in_vain(&self, head: &Head) -> bool {
        let to = self.routes.resolve(head.destination.as_deref(), &head.event_type);
        to.is_none_or(|to| self.outages[to.destination].error().is_some())
    }

    /// An event below the place of the forward read. Where a gap is, that one looks.
    fn low_place_seen(&mut self, head: &Head, now: Duration) {
        let id = KeyId::of(&head.key, head.shard);
        let is_known = head.dead
            || !self.leases.is_active(id.shard())
            || !self.reader.has_passed(head.seq)
            || self.looks.settled.contains(&head.seq)
            || self.keys.known.recognise(head.seq, head.id) != Found::New
            || self.keys.covers(id, head.seq);
        if !is_known {
            self.keys.found(id, head.seq, &head.key, now);
        }
    }

    /// Whether a dead letter holds back what comes after it in its key.
    pub(crate) fn blocks(&self, head: &DeadHead) -> bool {
        self.routes.dead_head(head.destination.as_deref(), &head.event_type)
            == DeadHeadPolicy::Block
    }
}

fn dead_head(head: &Head) -> DeadHead {
    DeadHead {
        seq: head.seq,
        key: head.key.clone(),
        shard: head.shard,
        event_type: head.event_type.clone(),
        destination: head.destination.clone(),
    }
}
