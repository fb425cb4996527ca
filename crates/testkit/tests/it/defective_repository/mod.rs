//! The in-memory repository with one defect at a time.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use posthaste_core::memory::MemoryRepository;
use posthaste_core::{
    Backlog, DeadHead, EventFilter, EventPlace, EventRecord, EventState, Headers, OutboxAdmin,
    OutboxEvent, OutboxRepository, Payload, PendingPage, PendingQuery, PendingSelection,
    RepositoryCapabilities, Result, Seq, Settlement, SettlementOutcome, StuckKeyPage,
    StuckKeyQuery, Watermark,
};
use posthaste_testkit::RepositoryHarness;
use uuid::Uuid;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum RepositoryDefect {
    None,
    StoresEventByEvent,
    ForgetsHeaders,
    LosesEverySeventhEvent,
    MangleBytes,
    FetchesBackwards,
    IgnoresEventsMax,
    IgnoresBytesMax,
    IgnoresUpTo,
    HidesDelayed,
    WatermarkLags,
    SettlesWhateverTheId,
    SettlesAnew,
    CountsRetries,
    SettlesOnlyTheFirst,
    KeepsAll,
    RemovesTheDead,
    ForgetsSettlements,
    IgnoresDeadAfter,
    RevivesSilently,
    RetriesEverything,
    TakesNoIdsForAny,
    CleansUpTheDead,
    CleansUpNothing,
    CountsNoRetries,
    IgnoresTime,
    ListsStuckKeysOnce,
    ForgetsWhatWaits,
}

use RepositoryDefect as Defect;

#[derive(Debug, Clone)]
pub(crate) struct Defective {
    inner: MemoryRepository,
    defect: Defect,
    stored: Arc<AtomicU64>,
    retries: Arc<Mutex<HashMap<Seq, u32>>>,
}

impl Defective {
    fn has(&self, defect: Defect) -> bool {
        self.defect == defect
    }

    fn mangled(&self, event: &OutboxEvent) -> OutboxEvent {
        let record = event.record().clone();
        OutboxEvent::restore(match (self.defect, &record.payload) {
            (Defect::ForgetsHeaders, _) => EventRecord { headers: Headers::new(), ..record },
            (Defect::MangleBytes, Payload::Bytes { data, content_type }) => {
                let text = String::from_utf8_lossy(data).into_owned();
                let payload = Payload::bytes(text, content_type).unwrap();
                EventRecord { payload, ..record }
            }
            _ => record,
        })
    }

    /// The id that really is at the place, whatever the settlement says.
    async fn id_at(&self, seq: Seq) -> Option<Uuid> {
        let selection = PendingSelection::At(vec![seq]);
        let query = PendingQuery { leases: None, selection, events_max: 1, bytes_max: usize::MAX };
        let page = self.inner.fetch_pending(&query).await.unwrap();
        page.events.first().map(|found| found.event.id())
    }

    async fn settle_defectively(&self, settlement: &mut Settlement) {
        if self.has(Defect::SettlesWhateverTheId) {
            settlement.id = self.id_at(settlement.seq).await.unwrap_or(settlement.id);
        }
        if self.has(Defect::CountsRetries)
            && let SettlementOutcome::Retry { retry_count, .. } = &mut settlement.outcome
        {
            let mut retries = self.retries.lock().unwrap();
            let count = retries.entry(settlement.seq).or_default();
            *count += 1;
            *retry_count = *count;
        }
        if settlement.outcome == SettlementOutcome::DeliveredAndRemoved {
            match self.defect {
                Defect::KeepsAll => settlement.outcome = SettlementOutcome::Delivered,
                Defect::RemovesTheDead => {
                    let event = EventFilter::with_ids([settlement.id]);
                    self.inner.discard_events(&event).await.unwrap();
                }
                _ => {}
            }
        }
    }
}

#[async_trait]
impl OutboxRepository for Defective {
    fn capabilities(&self) -> RepositoryCapabilities {
        RepositoryCapabilities { name: "defective", ..self.inner.capabilities() }
    }

    async fn check(&self) -> Result<()> {
        self.inner.check().await
    }

    async fn store(&self, events: &[OutboxEvent]) -> Result<()> {
        let mut kept = Vec::new();
        for event in events {
            let number = self.stored.fetch_add(1, Ordering::Relaxed) + 1;
            if self.has(Defect::LosesEverySeventhEvent) && number.is_multiple_of(7) {
                continue;
            }
            kept.push(self.mangled(event));
        }
        if self.has(Defect::StoresEventByEvent) {
            for event in kept {
                self.inner.store(&[event]).await?;
            }
            return Ok(());
        }
        self.inner.store(&kept).await
    }

    async fn fetch_pending(&self, query: &PendingQuery) -> Result<PendingPage> {
        let mut query = query.clone();
        if self.has(Defect::IgnoresEventsMax) {
            query.events_max = usize::MAX;
        }
        if self.has(Defect::IgnoresBytesMax) {
            query.bytes_max = usize::MAX;
        }
        if self.has(Defect::IgnoresUpTo)
            && let PendingSelection::Key { up_to, .. } = &mut query.selection
        {
            *up_to = Seq::MAX;
        }
        let mut page = self.inner.fetch_pending(&query).await?;
        if self.has(Defect::FetchesBackwards) {
            page.events.reverse();
        }
        if self.has(Defect::HidesDelayed) {
            page.events.retain(|found| found.wait.is_zero());
        }
        Ok(page)
    }

    async fn watermark(&self) -> Result<Watermark> {
        let mut watermark = self.inner.watermark().await?;
        if self.has(Defect::WatermarkLags) {
            watermark.high = (watermark.high - 1).max(0);
        }
        if self.has(Defect::RevivesSilently) {
            watermark.revision = 0;
        }
        Ok(watermark)
    }

    async fn settle(&self, settlements: &[Settlement]) -> Result<u64> {
        let mut settlements = settlements.to_vec();
        match self.defect {
            Defect::ForgetsSettlements => return Ok(settlements.len() as u64),
            Defect::SettlesOnlyTheFirst => settlements.truncate(1),
            Defect::SettlesAnew => {
                let ids = settlements.iter().map(|settlement| settlement.id);
                self.inner.retry_events(&EventFilter::with_ids(ids)).await?;
            }
            _ => {}
        }
        for settlement in &mut settlements {
            self.settle_defectively(settlement).await;
        }
        self.inner.settle(&settlements).await
    }

    async fn dead_heads(&self, after: Seq, limit: usize) -> Result<Vec<DeadHead>> {
        let after = if self.has(Defect::IgnoresDeadAfter) { 0 } else { after };
        self.inner.dead_heads(after, limit).await
    }

    async fn failed_events(&self, limit: usize) -> Result<Vec<OutboxEvent>> {
        self.inner.failed_events(limit).await
    }

    async fn backlog(&self, from: Seq) -> Result<Backlog> {
        let mut backlog = self.inner.backlog(from).await?;
        if self.has(Defect::CountsNoRetries) {
            backlog.retrying = 0;
        }
        Ok(backlog)
    }

    async fn cleanup_processed(&self, older_than: Duration) -> Result<u64> {
        if self.has(Defect::CleansUpNothing) {
            return Ok(0);
        }
        if self.has(Defect::CleansUpTheDead) {
            self.inner.discard_events(&EventFilter::in_state(EventState::Dead)).await?;
        }
        self.inner.cleanup_processed(older_than).await
    }

    async fn maintain(&self) -> Result<()> {
        self.inner.maintain().await
    }

    async fn wait_for_events(&self) {
        self.inner.wait_for_events().await;
    }
}

#[async_trait]
impl OutboxAdmin for Defective {
    async fn find_event(&self, id: Uuid) -> Result<Option<OutboxEvent>> {
        self.inner.find_event(id).await
    }

    async fn list_events(&self, filter: &EventFilter, limit: usize) -> Result<Vec<OutboxEvent>> {
        let mut filter = filter.clone();
        if self.has(Defect::IgnoresTime) {
            filter = EventFilter { created_from: None, created_before: None, ..filter };
        }
        self.inner.list_events(&filter, limit).await
    }

    async fn event_place(&self, id: Uuid) -> Result<Option<EventPlace>> {
        self.inner.event_place(id).await
    }

    async fn count_events(&self, filter: &EventFilter, limit: u64) -> Result<u64> {
        self.inner.count_events(filter, limit).await
    }

    async fn retry_events(&self, filter: &EventFilter) -> Result<u64> {
        if self.has(Defect::RetriesEverything) {
            return self.inner.retry_events(&EventFilter::all()).await;
        }
        self.inner.retry_events(filter).await
    }

    async fn release_events(&self, filter: &EventFilter) -> Result<u64> {
        self.inner.release_events(filter).await
    }

    async fn reroute_events(&self, filter: &EventFilter, to: Option<&str>) -> Result<u64> {
        self.inner.reroute_events(filter, to).await
    }

    async fn discard_events(&self, filter: &EventFilter) -> Result<u64> {
        if self.has(Defect::TakesNoIdsForAny) && filter.ids == Some(Vec::new()) {
            let any = EventFilter { ids: None, ..filter.clone() };
            return self.inner.discard_events(&any).await;
        }
        self.inner.discard_events(filter).await
    }

    async fn stuck_keys(&self, query: &StuckKeyQuery) -> Result<StuckKeyPage> {
        let mut page = self.inner.stuck_keys(query).await?;
        if self.has(Defect::ListsStuckKeysOnce) {
            page.next = None;
        }
        if self.has(Defect::ForgetsWhatWaits) {
            page.keys.iter_mut().for_each(|key| key.waiting = 0);
        }
        Ok(page)
    }
}

pub(crate) struct RepositoryHarnessWith {
    pub(crate) defect: Defect,
    /// The one check to run.
    pub(crate) only: Option<&'static str>,
}

#[async_trait]
impl RepositoryHarness for RepositoryHarnessWith {
    type Repository = Defective;

    async fn fresh(&self) -> anyhow::Result<Defective> {
        Ok(Defective {
            inner: MemoryRepository::new(),
            defect: self.defect,
            stored: Arc::default(),
            retries: Arc::default(),
        })
    }

    fn skips(&self, check: &str) -> Option<String> {
        self.only.is_some_and(|only| only != check).then(|| "another defect's".to_owned())
    }
}
