//! The database of the simulation: what it answers a relay, and what it records.

use std::collections::HashSet;

use posthaste_core::{
    DeadHead, Error, ErrorKind, Head, HeadSelection, OpenWriter, PendingEvent, PendingPage,
    PendingQuery, PendingSelection, Seq, Settlement, SettlementOutcome, Shard, Watermark,
};
use rand::RngExt;
use uuid::Uuid;

use super::relay::Identity;
use super::world::{Row, RowState, TTL, World};
use crate::protocol::{Command, FetchTicket, Input};

impl World {
    /// Carries out what a relay asked for.
    pub(super) fn perform(&mut self, relay: &Identity, command: Command) -> Option<Input> {
        let fails = self.faults && self.random.random_bool(0.03);
        let broken = || Error::new(ErrorKind::Unreachable, "simulate", "no answer");
        Some(match command {
            Command::Report(_) => return None,
            // Its row is gone and another relay holds the lock: what lease.rs answers then.
            Command::Lease { .. }
                if self.faults
                    && !self.leases.has_row(relay.id)
                    && self.random.random_bool(0.5) =>
            {
                Input::Leased(Ok(posthaste_core::Lease {
                    shards: Vec::new(),
                    fair_share: Shard::COUNT,
                    relays: 1,
                }))
            }
            Command::Lease { release, leaving } => {
                // The answer may be lost after the write, as with a settlement.
                let lease = (!fails || self.random.random_bool(0.5))
                    .then(|| self.leases.lease(relay.id, TTL, (&release, leaving), self.now));
                Input::Leased(lease.filter(|_| !fails).ok_or_else(broken))
            }
            Command::ReadWatermark if fails => Input::Watermark(Err(broken())),
            Command::ReadWatermark => Input::Watermark(Ok(self.watermark())),
            Command::ReadDeadHeads { .. } if fails => Input::DeadHeads(Err(broken())),
            Command::ReadDeadHeads { after, limit } => {
                Input::DeadHeads(Ok(self.dead_heads(after, limit)))
            }
            Command::Fetch { ticket, .. } if fails => {
                Input::Fetched { ticket, page: Err(broken()) }
            }
            Command::Fetch { query, ticket } => self.fetch(&query, ticket),
            Command::Look { .. } if fails => Input::Looked(Err(broken())),
            Command::Look { selection, limit } => Input::Looked(Ok(self.heads(&selection, limit))),
            Command::Settle(settlements) => {
                // The answer may be lost after the write.
                if !fails || self.random.random_bool(0.5) {
                    self.settle(relay.id, &settlements);
                }
                let result = if fails { Err(broken()) } else { Ok(Vec::new()) };
                Input::Settled { settlements, result }
            }
            // As the shell does.
            Command::Publish { call, not_after, .. } if relay.now(self) >= not_after => {
                Input::CallEnded { call, given_up: true }
            }
            Command::Publish { call, events, .. } => self.publish(relay, call, &events),
        })
    }

    pub(super) fn let_a_ghost_act(&mut self) {
        if self.ghosts.is_empty() {
            return;
        }
        let index = self.random.random_range(0..self.ghosts.len());
        match self.ghosts.swap_remove(index) {
            (relay, Command::Settle(settlements)) => self.settle(relay, &settlements),
            (relay, Command::Lease { release, leaving }) => {
                self.leases.lease(relay, TTL, (&release, leaving), self.now);
            }
            _ => unreachable!("nothing else outlives its process"),
        }
    }

    fn watermark(&self) -> Watermark {
        let writers = self
            .transactions
            .iter()
            .map(|transaction| OpenWriter { token: transaction.token.as_str().into() })
            .collect();
        Watermark {
            high: self.high,
            writers,
            revision: self.revision,
            incarnation: self.incarnation,
        }
    }

    fn heads(&self, selection: &HeadSelection, limit: usize) -> Vec<Head> {
        let is_selected = |seq: Seq| match selection {
            HeadSelection::At(places) => places.contains(&seq),
            HeadSelection::Between { after, up_to } => seq > *after && seq <= *up_to,
        };
        let heads = self.rows.iter().filter(|(seq, row)| {
            is_selected(**seq)
                && row.committed
                && matches!(row.state, RowState::Pending | RowState::Dead)
        });
        let head = |(seq, row): (&Seq, &Row)| Head {
            seq: *seq,
            id: row.event.id(),
            key: row.event.order_key().clone(),
            shard: row.shard,
            event_type: row.event.event_type().into(),
            destination: row.event.destination().map(Into::into),
            wait: row.available_at.saturating_sub(self.now),
            has_failed: row.event.has_failed(),
            dead: row.state == RowState::Dead,
        };
        heads.take(limit).map(head).collect()
    }

    fn dead_heads(&self, after: Seq, limit: usize) -> Vec<DeadHead> {
        let dead = self.rows.range(after + 1..).filter(|(_, row)| row.state == RowState::Dead);
        dead.take(limit).map(|(seq, row)| head_of(*seq, row)).collect()
    }

    pub(super) fn fetch(&mut self, query: &PendingQuery, ticket: FetchTicket) -> Input {
        if let PendingSelection::Forward { gaps, after } = &query.selection {
            let ascending = gaps.windows(2).all(|pair| pair[0].1 < pair[1].0);
            let below = gaps.iter().all(|(low, high)| low <= high && high <= after);
            assert!(ascending && below, "gaps {gaps:?} are not disjoint and below {after}");
        }
        let mut page = PendingPage::default();
        for (seq, row) in &mut self.rows {
            let selected = match &query.selection {
                PendingSelection::Forward { gaps, after } => {
                    seq > after || gaps.iter().any(|(low, high)| (low..=high).contains(&seq))
                }
                PendingSelection::At(places) => places.contains(seq),
                PendingSelection::Key { key, after, up_to } => {
                    seq > after && seq <= up_to && row.event.order_key() == key
                }
            };
            let forward = matches!(query.selection, PendingSelection::Forward { .. });
            let lease = query
                .leases
                .as_ref()
                .map(|leases| leases.iter().find(|lease| lease.shard == row.shard));
            if (forward && lease == Some(None))
                || !selected
                || !row.committed
                || row.state != RowState::Pending
            {
                continue;
            }
            if page.events.len() + page.buried.len() == query.events_max {
                page.more = true;
                break;
            }
            if row.corrupt {
                let fenced = lease.is_some_and(|lease| {
                    !lease.is_some_and(|lease| self.leases.is_current(*lease))
                });
                if !fenced {
                    row.state = RowState::Dead;
                }
                page.buried.push(head_of(*seq, row));
                continue;
            }
            let wait = row.available_at.saturating_sub(self.now);
            let (shard, event) = (row.shard, row.event.clone());
            page.events.push(PendingEvent { seq: *seq, wait, shard, event });
        }
        Input::Fetched { ticket, page: Ok(page) }
    }

    pub(super) fn settle(&mut self, relay: Uuid, settlements: &[Settlement]) {
        let places: HashSet<Seq> = settlements.iter().map(|settlement| settlement.seq).collect();
        assert_eq!(places.len(), settlements.len(), "one statement changes an event twice");
        for settlement in settlements {
            let row = self.rows.get_mut(&settlement.seq).expect("settled events exist");
            let fenced = settlement.lease.is_some_and(|lease| !self.leases.is_current(lease));
            if row.state != RowState::Pending || fenced {
                continue;
            }
            assert!(
                self.leases.owner(row.shard).is_none_or(|owner| owner == relay),
                "{relay} changes an event that another relay sees to"
            );
            match &settlement.outcome {
                SettlementOutcome::Delivered => row.state = RowState::Delivered,
                SettlementOutcome::DeliveredAndRemoved => row.state = RowState::Removed,
                SettlementOutcome::Retry { retry_count, delay, .. } => {
                    row.available_at = self.now + *delay;
                    row.event = row.event.clone().with_retry_count(*retry_count);
                }
                SettlementOutcome::Dead { retry_count, .. } => {
                    row.state = RowState::Dead;
                    row.event = row.event.clone().with_retry_count(*retry_count);
                }
            }
            let blamed = self.blamed.get(&row.event.id()).copied().unwrap_or_default();
            assert!(row.event.retry_count() <= blamed, "an outage took an attempt");
        }
    }
}

fn head_of(seq: Seq, row: &Row) -> DeadHead {
    DeadHead {
        seq,
        key: row.event.order_key().clone(),
        shard: row.shard,
        event_type: row.event.event_type().into(),
        destination: row.event.destination().map(Into::into),
    }
}
