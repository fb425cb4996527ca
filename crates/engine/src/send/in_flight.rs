//! The one ledger of what was sent and is not answered: an event comes in when it is sent, and goes out
//! once, with its outcome or unsent.

use std::sync::Arc;

use posthaste_core::{OutboxEvent, Seq};
use rustc_hash::FxHashMap;

use crate::keys::key::KeyId;

/// A call of a bus: the index of its destination, and its number there.
pub type CallId = (usize, u64);

/// Where an event that was sent came from.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Place {
    pub(crate) seq: Seq,
    pub(crate) key: KeyId,
    /// Of its shard, when it was sent.
    pub(crate) generation: i64,
}

/// A call and what of it is unanswered.
#[derive(Debug)]
struct Call {
    /// Shared with the bus, which borrows them for as long as the call lasts.
    events: Arc<Vec<OutboxEvent>>,
    /// `None` for an event that is answered.
    places: Vec<Option<Place>>,
    unanswered: usize,
    /// A failed event of each of these keys was in this call: what is behind it counts nothing.
    failed_keys: Vec<KeyId>,
}

/// All calls that are under way.
#[derive(Debug)]
pub(crate) struct InFlight {
    calls: FxHashMap<CallId, Call>,
    events: Vec<usize>,
    bytes: usize,
}

impl InFlight {
    pub(crate) fn new(destinations: usize) -> Self {
        Self { calls: FxHashMap::default(), events: vec![0; destinations], bytes: 0 }
    }

    /// Events are sent in a call.
    pub(crate) fn sent(&mut self, id: CallId, events: Arc<Vec<OutboxEvent>>, places: Vec<Place>) {
        self.events[id.0] += events.len();
        self.bytes += events.iter().map(|event| event.payload().body().len()).sum::<usize>();
        let call = Call {
            unanswered: places.len(),
            places: places.into_iter().map(Some).collect(),
            failed_keys: Vec::new(),
            events,
        };
        self.calls.insert(id, call);
    }

    /// An event of a call that awaits its outcome.
    pub(crate) fn get(&self, id: CallId, number: usize) -> Option<(Place, &OutboxEvent)> {
        let call = self.calls.get(&id)?;
        Some(((*call.places.get(number)?)?, call.events.get(number)?))
    }

    /// Takes one event of a call out, for its outcome. `None` where it is out already.
    pub(crate) fn take(
        &mut self,
        id: CallId,
        number: usize,
    ) -> Option<(Place, Arc<Vec<OutboxEvent>>)> {
        let call = self.calls.get_mut(&id)?;
        let place = call.places.get_mut(number)?.take()?;
        call.unanswered -= 1;
        let events = Arc::clone(&call.events);
        self.events[id.0] -= 1;
        self.bytes -= events[number].payload().body().len();
        Some((place, events))
    }

    /// Whether an event of a call awaits its outcome.
    pub(crate) fn is_unanswered(&self, id: CallId, number: usize) -> bool {
        self.get(id, number).is_some()
    }

    /// Which events of a call are unanswered.
    pub(crate) fn unanswered(&self, id: CallId) -> Vec<usize> {
        let call = self.calls.get(&id);
        let places = call.into_iter().flat_map(|call| call.places.iter().enumerate());
        places.filter(|(_, place)| place.is_some()).map(|(number, _)| number).collect()
    }

    /// The call has ended, and nothing of it is left to ask for.
    pub(crate) fn ended(&mut self, id: CallId) {
        debug_assert!(self.calls.get(&id).is_none_or(|call| call.unanswered == 0));
        self.calls.remove(&id);
    }

    /// An event of this key failed in the call. Returns whether it is the first.
    pub(crate) fn failed(&mut self, id: CallId, key: KeyId) -> bool {
        let Some(call) = self.calls.get_mut(&id) else { return true };
        let is_first = !call.failed_keys.contains(&key);
        if is_first {
            call.failed_keys.push(key);
        }
        is_first
    }

    #[cfg(test)]
    pub(crate) fn places(&self, id: CallId) -> Vec<Place> {
        self.calls[&id].places.iter().flatten().copied().collect()
    }

    /// Events on their way to a destination.
    pub(crate) fn to(&self, destination: usize) -> usize {
        self.events[destination]
    }

    /// Events on their way.
    pub(crate) fn events(&self) -> usize {
        self.events.iter().sum()
    }

    /// Their payload bytes: they are in memory like those that wait.
    pub(crate) const fn bytes(&self) -> usize {
        self.bytes
    }
}
