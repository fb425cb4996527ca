//! What operators do with an outbox in memory.

use std::cmp::Reverse;

use async_trait::async_trait;
use uuid::Uuid;

use super::repository::{MemoryRepository, State};
use super::stuck_keys;
use crate::{
    EventFilter, EventPlace, EventRecord, EventState, OutboxAdmin, OutboxEvent, Result, Seq,
    StuckKeyPage, StuckKeyQuery, check_destination,
};

impl MemoryRepository {
    /// Gives what matches another value, where `change` has one, and tells relays.
    fn change(
        &self,
        filter: &EventFilter,
        change: impl Fn(&OutboxEvent) -> Option<OutboxEvent>,
    ) -> u64 {
        let mut state = self.lock();
        let mut changed = 0;
        for seq in state.matching(filter) {
            let Some(event) = state.events.get_mut(&seq) else { continue };
            if let Some(other) = change(event) {
                *event = other;
                changed += 1;
            }
        }
        state.revision += 1;
        state.wake_all();
        changed
    }
}

impl State {
    fn matching(&self, filter: &EventFilter) -> Vec<Seq> {
        self.events
            .iter()
            .filter(|(seq, event)| {
                filter.after.is_none_or(|after| is_behind(**seq, event, after))
                    && matches(filter, event)
            })
            .map(|(seq, _)| *seq)
            .collect()
    }
}

/// In the order of a list of one kind.
fn is_behind(seq: Seq, event: &OutboxEvent, place: EventPlace) -> bool {
    match (event.processed_at(), place.delivered_at) {
        (None, None) => seq > place.seq,
        // Delivered ones come behind the others, latest first.
        (Some(_), None) => true,
        (None, Some(_)) => false,
        (Some(at), Some(last)) => (at, seq) < (last, place.seq),
    }
}

fn matches(filter: &EventFilter, event: &OutboxEvent) -> bool {
    let state_matches = match filter.state {
        None => true,
        Some(EventState::Pending) => event.is_pending(),
        Some(state) => event.state() == state,
    };
    state_matches
        && filter.ids.as_ref().is_none_or(|ids| ids.contains(&event.id()))
        && filter.ids_between.is_none_or(|(from, to)| (from..=to).contains(&event.id()))
        && filter.event_type.as_ref().is_none_or(|wanted| wanted.matches(event.event_type()))
        && filter.order_key.as_deref().is_none_or(|wanted| wanted == event.order_key().to_string())
        && filter.created_from.is_none_or(|from| event.created_at() >= from)
        && filter.created_before.is_none_or(|before| event.created_at() < before)
}

#[async_trait]
impl OutboxAdmin for MemoryRepository {
    async fn find_event(&self, id: Uuid) -> Result<Option<OutboxEvent>> {
        Ok(self.lock().events.values().find(|event| event.id() == id).cloned())
    }

    async fn list_events(&self, filter: &EventFilter, limit: usize) -> Result<Vec<OutboxEvent>> {
        let state = self.lock();
        let mut events: Vec<(Seq, OutboxEvent)> = state
            .matching(filter)
            .into_iter()
            .filter_map(|seq| Some((seq, state.events.get(&seq)?.clone())))
            .collect();
        // Delivered ones come behind the others, latest first.
        events.sort_by_key(|(seq, event)| match event.processed_at() {
            None => (None, Reverse(-seq)),
            Some(at) => (Some(Reverse(at)), Reverse(*seq)),
        });
        let mut events: Vec<OutboxEvent> = events.into_iter().map(|(_, event)| event).collect();
        events.truncate(limit);
        Ok(events)
    }

    async fn event_place(&self, id: Uuid) -> Result<Option<EventPlace>> {
        let state = self.lock();
        let found = state.events.iter().find(|(_, event)| event.id() == id);
        let place = |(seq, event): (&Seq, &OutboxEvent)| EventPlace {
            seq: *seq,
            delivered_at: event.processed_at(),
        };
        Ok(found.map(place))
    }

    async fn count_events(&self, filter: &EventFilter, limit: u64) -> Result<u64> {
        Ok((self.lock().matching(filter).len() as u64).min(limit))
    }

    async fn retry_events(&self, filter: &EventFilter) -> Result<u64> {
        Ok(self.change(filter, |event| {
            matches!(event.state(), EventState::Dead | EventState::Retrying)
                .then(|| event.clone().revived())
        }))
    }

    async fn release_events(&self, filter: &EventFilter) -> Result<u64> {
        let now = self.now();
        Ok(self.change(filter, |event| {
            let waits = event.is_pending() && event.available_at().is_some_and(|due| due > now);
            waits.then(|| {
                OutboxEvent::restore(EventRecord { available_at: None, ..event.record().clone() })
            })
        }))
    }

    async fn reroute_events(&self, filter: &EventFilter, to: Option<&str>) -> Result<u64> {
        check_destination(to)?;
        Ok(self.change(filter, |event| {
            let other = event.processed_at().is_none() && event.destination() != to;
            let destination = to.map(Into::into);
            other.then(|| {
                OutboxEvent::restore(EventRecord { destination, ..event.record().clone() })
            })
        }))
    }

    async fn discard_events(&self, filter: &EventFilter) -> Result<u64> {
        let mut state = self.lock();
        let mut removed = 0;
        for seq in state.matching(filter) {
            if state.events.get(&seq).is_some_and(|event| event.processed_at().is_none()) {
                state.events.remove(&seq);
                removed += 1;
            }
        }
        state.revision += 1;
        Ok(removed)
    }

    async fn stuck_keys(&self, query: &StuckKeyQuery) -> Result<StuckKeyPage> {
        Ok(stuck_keys::page(&self.lock().events, query, self.now()))
    }
}
