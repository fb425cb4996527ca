//! What is taken in from the store, and how much.

use std::time::Duration;

use posthaste_core::{DeadHead, PendingPage, Seq};
use rustc_hash::FxHashSet;

use crate::database::Work;
use crate::keys::CatchUp;
use crate::keys::key::{Held, KeyId, Unheld};
use crate::keys::known::Found;
use crate::machine::Machine;
use crate::protocol::{Command, FetchTicket, Report};
use crate::read::reader::{Allowed, Operation, Purpose};

impl Machine {
    /// Events and payload bytes that may be taken in.
    pub(crate) fn room(&self) -> (usize, usize) {
        let capacity = 2 * self.settings.batch_size + 2 * self.settings.max_concurrent_events;
        let (undecided, undecided_bytes) = self.undecided();
        let under_way = self.in_flight() + undecided + self.settling.unrecorded();
        let used = self.keys.held_events() + under_way;
        let bytes_held = self.keys.held_bytes() + self.in_flight.bytes() + undecided_bytes;
        let bytes = self.settings.buffer_bytes_max.saturating_sub(bytes_held);
        let fitting = bytes / self.payload_bytes_mean.max(1);
        let events = capacity.saturating_sub(used).min(self.settings.batch_size);
        (if bytes == 0 { 0 } else { events.min(fitting.max(1)) }, bytes)
    }

    pub(crate) fn read(&mut self, now: Duration) -> Option<Command> {
        let (mut events, mut bytes) = self.room();
        // A fetch costs a round trip whatever it brings: not for a handful of events while many
        // are under way.
        let worthwhile = self.settings.batch_size.div_ceil(4);
        if events < worthwhile && self.shelve_paused() {
            (events, bytes) = self.room();
        }
        let events = if events < worthwhile && self.in_flight() > worthwhile { 0 } else { events };
        let room = (events, bytes);
        self.reader.allow(Allowed {
            watermarks: self.database.may(Work::Watermarks, now),
            dead_letters: self.database.may(Work::DeadLetters, now),
            events: self.database.may(Work::Fetching, now),
        });
        match self.reader.next_operation(now, room, &self.leases, &mut self.keys)? {
            Operation::Watermark => Some(Command::ReadWatermark),
            Operation::DeadHeads { after, limit } => Some(Command::ReadDeadHeads { after, limit }),
            Operation::Fetch { query, purpose } => {
                Some(Command::Fetch { query, ticket: FetchTicket(purpose) })
            }
        }
    }

    /// Memory is short: one destination's outage must not keep the events of another from being
    /// read. With a single destination there is nothing to make room for.
    fn shelve_paused(&mut self) -> bool {
        let destinations = self.outages.len();
        let mut any = false;
        for destination in (0..destinations).filter(|_| destinations > 1) {
            if self.outages[destination].error().is_some() {
                any |= self.keys.shelve(destination, 1) > 0;
            }
        }
        any
    }

    pub(crate) fn fetched(
        &mut self,
        FetchTicket(purpose): FetchTicket,
        page: PendingPage,
        now: Duration,
    ) {
        if !page.buried.is_empty() {
            self.counts.dead_lettered += page.buried.len() as u64;
            self.reports.push(Report::Buried { rows: page.buried.len() });
        }
        if self.reader.discards() {
            if let Purpose::CatchUp(catch_up) = purpose {
                self.keys.catch_up_ended(ids_of(&catch_up), now);
            }
            return;
        }
        let places = places_of(&page);
        let last = places.last().copied();
        let bytes: usize =
            page.events.iter().map(|pending| pending.event.payload().body().len()).sum();
        if !page.events.is_empty() {
            self.payload_bytes_mean = bytes / page.events.len();
        }
        if let Purpose::CatchUp(catch_up) = &purpose {
            self.caught_up(catch_up, last.filter(|_| page.more));
        }
        let mut any_new = !page.buried.is_empty();
        self.dead_heads_found(&page.buried);
        for mut pending in page.events {
            let seq = pending.seq;
            let id = KeyId::of(pending.event.order_key(), pending.shard);
            if !self.leases.is_active(id.shard()) {
                continue;
            }
            let due = now.saturating_add(self.wait_of(pending.wait, pending.event.has_failed()));
            let found = self.keys.known.recognise(seq, pending.event.id());
            // An operator may have made a waiting head due. A row read before its own settlement
            // says nothing of that.
            if self.reader.is_rechecked(seq)
                && matches!(found, Found::New | Found::InMemory)
                && !self.settling.is_unrecorded_retry(seq)
            {
                self.keys.wake_head(id, seq, due, now);
            }
            match found {
                Found::New => {}
                Found::InMemory | Found::Settled => continue,
                Found::Outdated => {
                    self.keys.leave(id, seq, pending.event.order_key(), now);
                    continue;
                }
            }
            any_new = true;
            // Its latest attempt may not be recorded yet.
            if let Some(count) = self.settling.unrecorded_retry(seq)
                && count > pending.event.retry_count()
            {
                pending.event = pending.event.with_retry_count(count);
            }
            let routed =
                self.routes.resolve(pending.event.destination(), pending.event.event_type());
            let destination = routed.map_or(self.outages.len(), |routed| routed.destination);
            let held = Held { seq, due, destination, event: pending.event };
            match &purpose {
                Purpose::Forward => self.keys.admit(id, held, now),
                Purpose::CatchUp(_) => self.keys.hold(id, held, now),
            }
        }
        match purpose {
            Purpose::Forward => self.reader.forward_read(&places, page.more, any_new, now),
            Purpose::CatchUp(catch_up) => {
                self.keys.catch_up_ended(ids_of(&catch_up), now);
                self.reader.answered();
            }
        }
    }

    /// How long an event in the table still waits. After a failure nothing here asks for longer than the
    /// longest delay: more was recorded by a clock that was wrong, by years it may be, and says nothing.
    pub(crate) fn wait_of(&self, wait: Duration, has_failed: bool) -> Duration {
        if !has_failed {
            return wait;
        }
        if wait > self.longest_wait { Duration::ZERO } else { wait }
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

    pub(crate) fn dead_heads_read(&mut self, heads: &[DeadHead], now: Duration) {
        if self.reader.discards() {
            return;
        }
        self.dead_heads_found(heads);
        self.reader.answered();
        let hint = self.reader.hint();
        let blocking: FxHashSet<Seq> =
            heads.iter().filter(|head| self.blocks(head)).map(|head| head.seq).collect();
        let blocks = |head: &DeadHead| blocking.contains(&head.seq);
        for freed in self.reader.dead_letters.page_read(heads, blocks, now) {
            self.keys.unblock(freed.id, &freed.name, freed.still_blocked_by, hint, now);
        }
    }

    /// Dead letters that the database knows of: they block their keys where the route says so.
    pub(crate) fn dead_heads_found(&mut self, heads: &[DeadHead]) {
        for head in heads {
            let id = KeyId::of(&head.key, head.shard);
            if self.leases.is_active(id.shard()) && self.blocks(head) {
                self.reader.dead_letters.add(head.seq, id, head.key.clone(), true);
                self.keys.block(id, head.seq);
            }
        }
    }
}

pub(crate) fn ids_of(catch_up: &CatchUp) -> Vec<KeyId> {
    match catch_up {
        CatchUp::Key { id, .. } => vec![*id],
        CatchUp::At(places) => places.iter().map(|(id, _)| *id).collect(),
    }
}

/// Every place that a page tells of, ascending.
fn places_of(page: &PendingPage) -> Vec<Seq> {
    let mut places: Vec<Seq> = page.events.iter().map(|pending| pending.seq).collect();
    if !page.buried.is_empty() {
        places.extend(page.buried.iter().map(|head| head.seq));
        places.sort_unstable();
    }
    places
}
