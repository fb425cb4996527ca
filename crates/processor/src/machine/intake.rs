//! What is taken in from the store, and how much.

use std::time::Duration;

use posthaste_core::{DeadHead, PendingPage, Seq};
use rustc_hash::FxHashSet;

use super::keys::{Admission, CatchUp, Held, KeyId, Unheld};
use super::reader::{Operation, Purpose};
use super::{Command, FetchTicket, Machine};
use crate::DeadHeadPolicy;

impl Machine {
    /// Events and payload bytes that may be taken in.
    pub(super) fn room(&self) -> (usize, usize) {
        let capacity = 2 * self.settings.batch_size + 2 * self.settings.max_concurrent_events;
        let used = self.keys.held_events() + self.in_flight + self.settling.unrecorded();
        let bytes = self.settings.buffer_bytes_max.saturating_sub(self.keys.held_bytes());
        let fitting = bytes / self.payload_bytes_mean.max(1);
        let events = capacity.saturating_sub(used).min(self.settings.batch_size);
        (if bytes == 0 { 0 } else { events.min(fitting.max(1)) }, bytes)
    }

    pub(super) fn read(&mut self, now: Duration) -> Option<Command> {
        let (events, bytes) = self.room();
        // A fetch costs a round trip whatever it brings: not for a handful of events while many
        // are under way.
        let worthwhile = self.settings.batch_size.div_ceil(4).min(self.settings.batch_size);
        let events = if events < worthwhile && self.in_flight > worthwhile { 0 } else { events };
        match self.reader.next_operation(now, (events, bytes), &mut self.keys)? {
            Operation::Watermark => Some(Command::ReadWatermark),
            Operation::DeadHeads { after, limit } => Some(Command::ReadDeadHeads { after, limit }),
            Operation::Fetch { query, purpose } => {
                Some(Command::Fetch { query, ticket: FetchTicket(purpose) })
            }
        }
    }

    pub(super) fn fetched(
        &mut self,
        FetchTicket(purpose): FetchTicket,
        page: PendingPage,
        now: Duration,
    ) {
        let last = page.events.last().map(|pending| pending.seq);
        let places: Vec<Seq> = page.events.iter().map(|pending| pending.seq).collect();
        let bytes: usize =
            page.events.iter().map(|pending| pending.event.payload().body().len()).sum();
        if !page.events.is_empty() {
            self.payload_bytes_mean = bytes / page.events.len();
        }
        if let Purpose::CatchUp(catch_up) = &purpose {
            self.caught_up(catch_up, last.filter(|_| page.more));
        }
        let mut any_new = false;
        for pending in page.events {
            let seq = pending.seq;
            let id = KeyId::of(pending.event.order_key());
            let due = now.saturating_add(pending.wait);
            // An operator may have made a waiting head due. A row read before its own settlement
            // says nothing of that.
            if self.reader.is_rechecked(seq)
                && !self.reader.settled_meanwhile(seq)
                && !self.settling.is_unrecorded_retry(seq)
            {
                self.keys.wake_head(id, seq, due, now);
            }
            if !self.reader.is_new(seq) {
                continue;
            }
            any_new = true;
            let destination = self.routes.resolve(&pending.event).unwrap_or(self.outages.len());
            let held = Held { seq, due, destination, event: pending.event };
            let admission = match &purpose {
                Purpose::Forward => self.keys.admit(id, held, now),
                Purpose::CatchUp(_) => self.keys.hold(id, held, now),
            };
            if admission == Admission::Held {
                self.reader.remember(seq);
            }
        }
        match purpose {
            Purpose::Forward => self.reader.forward_read(&places, page.more, any_new, now),
            Purpose::CatchUp(catch_up) => {
                self.keys.catch_up_ended(ids_of(&catch_up), now);
                self.reader.catch_up_read();
            }
        }
    }

    fn caught_up(&mut self, catch_up: &CatchUp, more_after: Option<Seq>) {
        match catch_up {
            CatchUp::Key { id, range, .. } => {
                self.keys.caught_up(*id, range, more_after.map(|last| last + 1));
            }
            CatchUp::At(places) => {
                for (id, seq) in places {
                    let cut = more_after.is_some_and(|last| *seq > last);
                    let range = Unheld { first: *seq, last: *seq };
                    self.keys.caught_up(*id, &range, cut.then_some(*seq));
                }
            }
        }
    }

    pub(super) fn dead_heads_read(&mut self, heads: &[DeadHead], now: Duration) {
        for head in heads {
            if self.dead_head_policy(head.destination.as_deref(), &head.event_type)
                == DeadHeadPolicy::Block
            {
                let id = KeyId::of(&head.key);
                self.reader.blocks(head.seq, id, head.key.clone(), true);
                self.block(id, head.seq);
            }
        }
        let gone = self.reader.dead_heads_read(heads);
        let ids: FxHashSet<KeyId> = gone.iter().map(|blocked| blocked.id).collect();
        let remaining = self.reader.still_blocking(&ids);
        for blocked in gone {
            let still = remaining.get(&blocked.id).copied();
            self.keys.unblock(blocked.id, &blocked.name, still, now);
        }
    }

    pub(super) fn dead_head_policy(
        &self,
        destination: Option<&str>,
        event_type: &str,
    ) -> DeadHeadPolicy {
        self.routes
            .resolve_names(destination, event_type)
            .map_or(DeadHeadPolicy::Block, |index| self.routes.destinations()[index].dead_head)
    }
}

pub(super) fn ids_of(catch_up: &CatchUp) -> Vec<KeyId> {
    match catch_up {
        CatchUp::Key { id, .. } => vec![*id],
        CatchUp::At(places) => places.iter().map(|(id, _)| *id).collect(),
    }
}
