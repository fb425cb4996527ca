//! A memory repository that tells a test of every call.

use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::SeqCst;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use posthaste_core::memory::MemoryRepository;
use posthaste_core::{
    Backlog, DeadHead, Error, ErrorKind, Head, HeadSelection, Lease, LeaseRequest, OpenWriter,
    OutboxEvent, OutboxRepository, PendingPage, PendingQuery, RepositoryCapabilities, Result, Seq,
    Settlement, Watermark,
};
use posthaste_testkit::faults::Operation;
use serde_json::Value;
use uuid::Uuid;

type Around = dyn Fn(Operation) + Send + Sync;
type Fetched = dyn Fn(&PendingPage) + Send + Sync;

#[derive(Clone)]
pub(crate) struct Hooked {
    inner: MemoryRepository,
    around: Arc<Around>,
    fetched: Arc<Fetched>,
    open_writers: Vec<OpenWriter>,
    /// How often a lease is granted, where there are leases.
    leases: Option<Arc<AtomicUsize>>,
    stands_still: Arc<Mutex<Option<Duration>>>,
    capabilities_panic: bool,
    told: Arc<Mutex<(usize, Option<Value>)>>,
}

impl Hooked {
    pub(crate) fn new(inner: MemoryRepository) -> Self {
        let open_writers = Vec::new();
        Self {
            inner,
            around: Arc::new(|_| {}),
            fetched: Arc::new(|_| {}),
            open_writers,
            leases: None,
            stands_still: Arc::default(),
            capabilities_panic: false,
            told: Arc::default(),
        }
    }

    /// Called before each call and, for `settle`, once more after it was carried out.
    pub(crate) fn around(mut self, hook: impl Fn(Operation) + Send + Sync + 'static) -> Self {
        self.around = Arc::new(hook);
        self
    }

    /// Called with every page before it is handed out.
    pub(crate) fn fetched(mut self, hook: impl Fn(&PendingPage) + Send + Sync + 'static) -> Self {
        self.fetched = Arc::new(hook);
        self
    }

    /// A store that several relays share, though there is but one. It grants so many leases and then
    /// fails.
    pub(crate) fn leased(mut self, times: usize) -> Self {
        self.leases = Some(Arc::new(AtomicUsize::new(times)));
        self
    }

    /// Before the first settlement the process stands still for so long of paused time.
    pub(crate) fn stands_still(self, time: Duration) -> Self {
        *self.stands_still.lock().unwrap() = Some(time);
        self
    }

    /// It panics when it is asked what it can do.
    pub(crate) fn capabilities_panic(mut self) -> Self {
        self.capabilities_panic = true;
        self
    }

    /// What a relay told last.
    pub(crate) fn told(&self) -> Option<Value> {
        self.told.lock().unwrap().1.clone()
    }

    /// How often a relay told something.
    pub(crate) fn times_told(&self) -> usize {
        self.told.lock().unwrap().0
    }

    /// A transaction that may have stored events, and never ends.
    pub(crate) fn open_writer(mut self, token: &str) -> Self {
        self.open_writers.push(OpenWriter { token: token.into() });
        self
    }
}

#[async_trait]
impl OutboxRepository for Hooked {
    fn capabilities(&self) -> RepositoryCapabilities {
        assert!(!self.capabilities_panic, "on purpose");
        let late_commits = !self.open_writers.is_empty();
        RepositoryCapabilities {
            late_commits,
            leases: self.leases.is_some(),
            ..self.inner.capabilities()
        }
    }

    async fn check(&self) -> Result<()> {
        self.inner.check().await
    }

    async fn store(&self, events: &[OutboxEvent]) -> Result<()> {
        self.inner.store(events).await
    }

    async fn fetch_pending(&self, query: &PendingQuery) -> Result<PendingPage> {
        (self.around)(Operation::Fetch);
        let page = self.inner.fetch_pending(query).await?;
        (self.fetched)(&page);
        Ok(page)
    }

    async fn heads(&self, selection: &HeadSelection, limit: usize) -> Result<Vec<Head>> {
        self.inner.heads(selection, limit).await
    }

    async fn watermark(&self) -> Result<Watermark> {
        (self.around)(Operation::Watermark);
        let watermark = self.inner.watermark().await?;
        Ok(Watermark { writers: self.open_writers.clone(), ..watermark })
    }

    async fn settle(&self, settlements: &[Settlement]) -> Result<u64> {
        let stands_still = self.stands_still.lock().unwrap().take();
        if let Some(time) = stands_still {
            tokio::time::advance(time).await;
        }
        (self.around)(Operation::Settle);
        let changed = self.inner.settle(settlements).await;
        (self.around)(Operation::Settle);
        changed
    }

    async fn dead_heads(&self, after: Seq, limit: usize) -> Result<Vec<DeadHead>> {
        (self.around)(Operation::DeadLetters);
        self.inner.dead_heads(after, limit).await
    }

    async fn failed_events(&self, limit: usize) -> Result<Vec<OutboxEvent>> {
        self.inner.failed_events(limit).await
    }

    async fn backlog(&self, from: Seq) -> Result<Backlog> {
        (self.around)(Operation::Backlog);
        self.inner.backlog(from).await
    }

    async fn cleanup_processed(&self, older_than: Duration) -> Result<u64> {
        (self.around)(Operation::Upkeep);
        self.inner.cleanup_processed(older_than).await
    }

    async fn maintain(&self) -> Result<()> {
        (self.around)(Operation::Upkeep);
        self.inner.maintain().await
    }

    async fn lease(&self, request: &LeaseRequest) -> Result<Lease> {
        (self.around)(Operation::Lease);
        let left = self.leases.as_ref().expect("a store with leases");
        let granted = left.fetch_update(SeqCst, SeqCst, |left| left.checked_sub(1));
        if granted.is_err() {
            return Err(Error::new(ErrorKind::Unreachable, "renew lease", "no answer"));
        }
        self.inner.lease(request).await
    }

    async fn tell(&self, _relay: Uuid, _name: &str, report: &str) -> Result<()> {
        let mut told = self.told.lock().unwrap();
        *told = (told.0 + 1, Some(serde_json::from_str(report).unwrap()));
        Ok(())
    }

    async fn leave(&self, _relay: Uuid) -> Result<()> {
        self.told.lock().unwrap().1 = None;
        Ok(())
    }

    async fn wait_for_events(&self) {
        self.inner.wait_for_events().await;
    }
}
