//! The outbox in memory, as a relay sees it.

use std::collections::{BTreeMap, HashSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use jiff::Timestamp;
use uuid::Uuid;

use super::limits;
use crate::{
    Backlog, DeadHead, Error, ErrorKind, EventRecord, Head, HeadSelection, OutboxEvent,
    OutboxRepository, PendingEvent, PendingPage, PendingQuery, PendingSelection,
    RepositoryCapabilities, Result, Seq, Settlement, SettlementOutcome, Shard, Watermark,
};

/// An outbox in memory. Clones share their events.
#[derive(Clone)]
pub struct MemoryRepository {
    state: Arc<Mutex<State>>,
    clock: Arc<dyn Fn() -> Timestamp + Send + Sync>,
}

impl Default for MemoryRepository {
    fn default() -> Self {
        Self::with_clock(Timestamp::now)
    }
}

impl std::fmt::Debug for MemoryRepository {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("MemoryRepository").field("state", &self.state).finish_non_exhaustive()
    }
}

#[derive(Debug, Default)]
pub(super) struct State {
    last_seq: Seq,
    pub(super) revision: i64,
    pub(super) events: BTreeMap<Seq, OutboxEvent>,
    /// Wakers of [`OutboxRepository::wait_for_events`].
    waiting: VecDeque<std::task::Waker>,
    /// Grows with every store, so that a waiter sees what came before it was polled.
    stored: u64,
}

impl State {
    /// Whoever waits looks again.
    pub(super) fn wake_all(&mut self) {
        self.stored += 1;
        for waker in self.waiting.drain(..) {
            waker.wake();
        }
    }
}

impl MemoryRepository {
    /// An empty outbox.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// An empty outbox whose time is what `clock` says. For tests whose runtime's time stands still or
    /// jumps: delays and retries are counted by the outbox's clock, so it must go along.
    #[must_use]
    pub fn with_clock(clock: impl Fn() -> Timestamp + Send + Sync + 'static) -> Self {
        Self { state: Arc::default(), clock: Arc::new(clock) }
    }

    pub(super) fn now(&self) -> Timestamp {
        (self.clock)()
    }

    /// Every event, by place, whatever its state.
    #[must_use]
    pub fn events(&self) -> Vec<OutboxEvent> {
        self.lock().events.values().cloned().collect()
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        // No method leaves the state half changed when it panics.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn store_all(&self, events: &[OutboxEvent]) -> Result<()> {
        events.iter().try_for_each(limits::check)?;
        let mut state = self.lock();
        let mut ids: HashSet<Uuid> = state
            .events
            .values()
            .filter(|event| event.processed_at().is_none())
            .map(OutboxEvent::id)
            .collect();
        if let Some(twice) = events.iter().find(|event| !ids.insert(event.id())) {
            return Err(Error::new(
                ErrorKind::Rejected,
                "store events",
                "the event is stored already",
            )
            .with_context("id", twice.id()));
        }
        for event in events {
            state.last_seq += 1;
            let seq = state.last_seq;
            state.events.insert(seq, new(event));
        }
        state.wake_all();
        Ok(())
    }
}

/// An event as a database takes it in: what happened to it before is not stored.
fn new(event: &OutboxEvent) -> OutboxEvent {
    OutboxEvent::restore(EventRecord {
        processed_at: None,
        dead_at: None,
        dead_reason: None,
        retry_count: 0,
        error_message: None,
        ..event.record().clone()
    })
}

fn selects(selection: &PendingSelection, seq: Seq, event: &OutboxEvent) -> bool {
    match selection {
        PendingSelection::Forward { gaps, after } => {
            seq > *after || gaps.iter().any(|(low, high)| (*low..=*high).contains(&seq))
        }
        PendingSelection::At(places) => places.contains(&seq),
        PendingSelection::Key { key, after, up_to } => {
            seq > *after && seq <= *up_to && event.order_key() == key
        }
    }
}

/// From `now` until `then`; zero when it has passed.
fn until(then: Option<Timestamp>, now: Timestamp) -> Duration {
    then.map_or(Duration::ZERO, |then| {
        Duration::try_from(then.duration_since(now)).unwrap_or_default()
    })
}

#[async_trait]
impl OutboxRepository for MemoryRepository {
    fn capabilities(&self) -> RepositoryCapabilities {
        RepositoryCapabilities {
            name: "memory",
            durable: false,
            late_commits: false,
            wakes: true,
            leases: false,
        }
    }

    async fn check(&self) -> Result<()> {
        Ok(())
    }

    async fn store(&self, events: &[OutboxEvent]) -> Result<()> {
        self.store_all(events)
    }

    async fn fetch_pending(&self, query: &PendingQuery) -> Result<PendingPage> {
        let state = self.lock();
        let now = self.now();
        let mut page = PendingPage::default();
        let mut bytes = 0;
        for (seq, event) in &state.events {
            if !event.is_pending() || !selects(&query.selection, *seq, event) {
                continue;
            }
            if page.events.len() >= query.events_max
                || (bytes >= query.bytes_max && !page.events.is_empty())
            {
                page.more = true;
                break;
            }
            bytes += event.payload().body().len();
            let wait = until(event.available_at(), now);
            let (shard, event) = (Shard::default(), event.clone());
            page.events.push(PendingEvent { seq: *seq, wait, shard, event });
        }
        Ok(page)
    }

    async fn watermark(&self) -> Result<Watermark> {
        let state = self.lock();
        Ok(Watermark {
            high: state.last_seq,
            writers: Vec::new(),
            revision: state.revision,
            incarnation: 0,
        })
    }

    async fn settle(&self, settlements: &[Settlement]) -> Result<u64> {
        let mut state = self.lock();
        let now = self.now();
        let mut changed = 0;
        for settlement in settlements {
            let Some(event) = state.events.get_mut(&settlement.seq) else { continue };
            if !event.is_pending() || event.id() != settlement.id {
                continue;
            }
            match settled(event.record().clone(), &settlement.outcome, now) {
                Some(record) => *event = OutboxEvent::restore(record),
                None => drop(state.events.remove(&settlement.seq)),
            }
            changed += 1;
        }
        Ok(changed)
    }

    async fn heads(&self, selection: &HeadSelection, limit: usize) -> Result<Vec<Head>> {
        let state = self.lock();
        let now = self.now();
        let is_selected = |seq: Seq| match selection {
            HeadSelection::At(places) => places.contains(&seq),
            HeadSelection::Between { after, up_to } => seq > *after && seq <= *up_to,
        };
        let undelivered = state
            .events
            .iter()
            .filter(|(seq, event)| is_selected(**seq) && (event.is_pending() || event.is_dead()));
        Ok(undelivered.take(limit).map(|(seq, event)| head(*seq, event, now)).collect())
    }

    async fn dead_heads(&self, after: Seq, limit: usize) -> Result<Vec<DeadHead>> {
        let state = self.lock();
        let dead =
            state.events.range(after.saturating_add(1)..).filter(|(_, event)| event.is_dead());
        Ok(dead.take(limit).map(|(seq, event)| dead_head(*seq, event)).collect())
    }

    async fn failed_events(&self, limit: usize) -> Result<Vec<OutboxEvent>> {
        Ok(self
            .lock()
            .events
            .values()
            .filter(|event| event.is_dead())
            .take(limit)
            .cloned()
            .collect())
    }

    async fn backlog(&self, _from: Seq) -> Result<Backlog> {
        let state = self.lock();
        let now = self.now();
        let mut backlog = Backlog::default();
        for event in state.events.values() {
            if event.is_dead() {
                backlog.dead += 1;
            } else if event.is_pending() {
                let due = until(event.available_at(), now).is_zero();
                match (event.has_failed(), due) {
                    (false, false) => backlog.scheduled += 1,
                    (false, true) => backlog.ready += 1,
                    (_, _) => backlog.retrying += 1,
                }
                if due && backlog.oldest_pending_at.is_none() {
                    backlog.oldest_pending_at = Some(event.created_at());
                    backlog.oldest_pending_age = until(Some(now), event.created_at());
                }
            }
        }
        Ok(backlog)
    }

    async fn cleanup_processed(&self, older_than: Duration) -> Result<u64> {
        let mut state = self.lock();
        let now = self.now();
        let before = state.events.len();
        state.events.retain(|_, event| {
            event
                .processed_at()
                .is_none_or(|processed_at| until(Some(now), processed_at) <= older_than)
        });
        Ok((before - state.events.len()) as u64)
    }

    async fn maintain(&self) -> Result<()> {
        Ok(())
    }

    async fn wait_for_events(&self) {
        let seen = self.lock().stored;
        std::future::poll_fn(|context| {
            let mut state = self.lock();
            if state.stored > seen {
                return std::task::Poll::Ready(());
            }
            state.waiting.push_back(context.waker().clone());
            std::task::Poll::Pending
        })
        .await;
    }
}

fn dead_head(seq: Seq, event: &OutboxEvent) -> DeadHead {
    let record = event.record();
    DeadHead {
        seq,
        key: record.order_key.clone(),
        shard: Shard::default(),
        event_type: record.event_type.clone(),
        destination: record.destination.clone(),
    }
}

fn head(seq: Seq, event: &OutboxEvent, now: Timestamp) -> Head {
    Head {
        seq,
        id: event.id(),
        key: event.order_key().clone(),
        shard: Shard::default(),
        event_type: event.event_type().into(),
        destination: event.destination().map(Into::into),
        wait: until(event.available_at(), now),
        has_failed: event.has_failed(),
        dead: event.is_dead(),
    }
}

/// What is left of an event, if anything is.
fn settled(
    record: EventRecord,
    outcome: &SettlementOutcome,
    now: Timestamp,
) -> Option<EventRecord> {
    Some(match outcome {
        SettlementOutcome::Delivered => EventRecord { processed_at: Some(now), ..record },
        SettlementOutcome::DeliveredAndRemoved => return None,
        SettlementOutcome::Retry { retry_count, delay, error } => EventRecord {
            retry_count: *retry_count,
            available_at: Some(now.checked_add(*delay).unwrap_or(Timestamp::MAX)),
            error_message: Some(error.clone()),
            ..record
        },
        SettlementOutcome::Dead { retry_count, reason, error } => EventRecord {
            retry_count: *retry_count,
            dead_at: Some(now),
            dead_reason: Some((*reason).into()),
            error_message: Some(error.clone()),
            ..record
        },
    })
}
