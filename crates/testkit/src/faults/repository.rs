use std::collections::{HashMap, HashSet};
use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use posthaste_core::{
    Backlog, Claim, DeadHead, Error, ErrorKind, EventFilter, EventPlace, Head, HeadSelection,
    Lease, LeaseRequest, OpenTransaction, OutboxAdmin, OutboxEvent, OutboxRepository, PendingPage,
    PendingQuery, RepositoryCapabilities, Result, Seq, Settlement, StuckKeyPage, StuckKeyQuery,
    Unsettled, Watermark,
};
use uuid::Uuid;

use super::Fault;
use super::hold::Hold;

/// A repository that fails as its [`RepositoryScript`] says and otherwise does what the one within
/// does. Operators' tools ([`OutboxAdmin`]) are passed on and never fail on purpose.
#[derive(Debug, Clone)]
pub struct FaultyRepository<R> {
    inner: R,
    script: RepositoryScript,
}

/// A method of [`OutboxRepository`] that can fail on purpose.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Operation {
    /// [`OutboxRepository::check`].
    Check,
    /// [`OutboxRepository::store`].
    Store,
    /// [`OutboxRepository::fetch_pending`].
    Fetch,
    /// [`OutboxRepository::heads`].
    Look,
    /// [`OutboxRepository::watermark`].
    Watermark,
    /// [`OutboxRepository::settle`].
    Settle,
    /// [`OutboxRepository::dead_heads`] and [`OutboxRepository::failed_events`].
    DeadLetters,
    /// [`OutboxRepository::lease`] and [`OutboxRepository::leave`].
    Lease,
    /// [`OutboxRepository::backlog`].
    Backlog,
    /// [`OutboxRepository::cleanup_processed`] and [`OutboxRepository::maintain`].
    Upkeep,
}

impl Operation {
    /// All of them: for an outage of the whole database.
    pub const ALL: [Self; 10] = [
        Self::Check,
        Self::Store,
        Self::Fetch,
        Self::Look,
        Self::Watermark,
        Self::Settle,
        Self::DeadLetters,
        Self::Lease,
        Self::Backlog,
        Self::Upkeep,
    ];

    const fn as_str(self) -> &'static str {
        match self {
            Self::Check => "check database",
            Self::Store => "store events",
            Self::Fetch => "fetch pending events",
            Self::Look => "look at heads",
            Self::Watermark => "read watermark",
            Self::Settle => "settle events",
            Self::DeadLetters => "read dead letters",
            Self::Lease => "renew lease",
            Self::Backlog => "count backlog",
            Self::Upkeep => "maintain outbox",
        }
    }
}

impl<R: OutboxRepository> FaultyRepository<R> {
    /// Wraps `inner`, with no faults yet.
    pub fn new(inner: R) -> Self {
        Self { inner, script: RepositoryScript::default() }
    }

    /// The script, shared with the repository: keep a clone, and change it while a relay runs.
    #[must_use]
    pub fn script(&self) -> RepositoryScript {
        self.script.clone()
    }

    /// The repository within.
    pub const fn inner(&self) -> &R {
        &self.inner
    }

    async fn guarded<T: Send>(
        &self,
        operation: Operation,
        call: impl Future<Output = Result<T>> + Send,
    ) -> Result<T> {
        let fault = self.script.begin_call(operation);
        match fault {
            None => call.await,
            Some(Fault::HoldResponse) => {
                let answer = call.await;
                self.script.0.hold.wait().await;
                answer
            }
            Some(Fault::FailAfterWrite) => {
                call.await?;
                Err(failure(operation, ErrorKind::Timeout, "answer lost on purpose after writing"))
            }
            Some(Fault::RejectPermanently) => {
                Err(failure(operation, ErrorKind::Rejected, "rejected on purpose"))
            }
            Some(Fault::FailBeforeWrite | Fault::Unavailable) => {
                Err(failure(operation, ErrorKind::Unreachable, "unavailable on purpose"))
            }
        }
    }
}

/// What a [`FaultyRepository`] does wrong, and what was asked of it. Clones share it.
///
/// [`set`](Self::set) goes before [`fail_next`](Self::fail_next).
#[derive(Debug, Clone, Default)]
pub struct RepositoryScript(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    hold: Hold,
}

#[derive(Debug, Default)]
struct State {
    standing: HashMap<Operation, Fault>,
    next: HashMap<Operation, (usize, Fault)>,
    calls: HashMap<Operation, u64>,
    settlements: Vec<Vec<Settlement>>,
    refused: HashSet<Uuid>,
}

impl RepositoryScript {
    /// Every call of `operation` meets `fault` until it is set to `None`.
    pub fn set(&self, operation: Operation, fault: Option<Fault>) {
        let mut state = self.lock();
        match fault {
            Some(fault) => state.standing.insert(operation, fault),
            None => state.standing.remove(&operation),
        };
    }

    /// Every call of every operation meets `fault` until it is set to `None`.
    pub fn set_all(&self, fault: Option<Fault>) {
        for operation in Operation::ALL {
            self.set(operation, fault);
        }
    }

    /// The next `calls` calls of `operation` meet `fault`. Replaces an earlier such order.
    pub fn fail_next(&self, operation: Operation, calls: usize, fault: Fault) {
        self.lock().next.insert(operation, (calls, fault));
    }

    /// Recording these events is refused, with all that one call records beside them: a check or a trigger
    /// of the database's owner.
    pub fn refuse_rows(&self, ids: impl IntoIterator<Item = Uuid>) {
        self.lock().refused = ids.into_iter().collect();
    }

    /// Lets all held calls go, with the answer they hold.
    pub fn release(&self) {
        self.0.hold.release();
    }

    /// Completes when `calls` calls or more are held.
    pub async fn until_held(&self, calls: usize) {
        self.0.hold.until_held(calls).await;
    }

    /// How many times `operation` was called. Failed calls are included.
    #[must_use]
    pub fn calls(&self, operation: Operation) -> u64 {
        self.lock().calls.get(&operation).copied().unwrap_or(0)
    }

    /// The batches given to `settle` so far, in order. Failed calls are included.
    #[must_use]
    pub fn settlements(&self) -> Vec<Vec<Settlement>> {
        self.lock().settlements.clone()
    }

    fn begin_call(&self, operation: Operation) -> Option<Fault> {
        let mut state = self.lock();
        *state.calls.entry(operation).or_default() += 1;
        if let Some(fault) = state.standing.get(&operation) {
            return Some(*fault);
        }
        let (left, fault) = state.next.get_mut(&operation)?;
        *left = left.checked_sub(1)?;
        Some(*fault)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[async_trait]
impl<R: OutboxRepository> OutboxRepository for FaultyRepository<R> {
    fn capabilities(&self) -> RepositoryCapabilities {
        self.inner.capabilities()
    }

    async fn check(&self) -> Result<()> {
        self.guarded(Operation::Check, self.inner.check()).await
    }

    async fn claim(&self) -> Result<Claim> {
        self.inner.claim().await
    }

    async fn store(&self, events: &[OutboxEvent]) -> Result<()> {
        self.guarded(Operation::Store, self.inner.store(events)).await
    }

    async fn fetch_pending(&self, query: &PendingQuery) -> Result<PendingPage> {
        self.guarded(Operation::Fetch, self.inner.fetch_pending(query)).await
    }

    async fn watermark(&self) -> Result<Watermark> {
        self.guarded(Operation::Watermark, self.inner.watermark()).await
    }

    async fn settle(&self, settlements: &[Settlement]) -> Result<u64> {
        {
            let mut state = self.script.lock();
            state.settlements.push(settlements.to_vec());
            if settlements.iter().any(|settlement| state.refused.contains(&settlement.id)) {
                return Err(failure(
                    Operation::Settle,
                    ErrorKind::Rejected,
                    "row refused on purpose",
                ));
            }
        }
        self.guarded(Operation::Settle, self.inner.settle(settlements)).await
    }

    async fn unsettled(&self, settlements: &[Settlement]) -> Result<Vec<Unsettled>> {
        self.guarded(Operation::Settle, self.inner.unsettled(settlements)).await
    }

    async fn heads(&self, selection: &HeadSelection, limit: usize) -> Result<Vec<Head>> {
        self.guarded(Operation::Look, self.inner.heads(selection, limit)).await
    }

    async fn dead_heads(&self, after: Seq, limit: usize) -> Result<Vec<DeadHead>> {
        self.guarded(Operation::DeadLetters, self.inner.dead_heads(after, limit)).await
    }

    async fn failed_events(&self, limit: usize) -> Result<Vec<OutboxEvent>> {
        self.guarded(Operation::DeadLetters, self.inner.failed_events(limit)).await
    }

    async fn backlog(&self, from: Seq) -> Result<Backlog> {
        self.guarded(Operation::Backlog, self.inner.backlog(from)).await
    }

    async fn cleanup_processed(&self, older_than: Duration) -> Result<u64> {
        self.guarded(Operation::Upkeep, self.inner.cleanup_processed(older_than)).await
    }

    async fn maintain(&self) -> Result<()> {
        self.guarded(Operation::Upkeep, self.inner.maintain()).await
    }

    async fn lease(&self, request: &LeaseRequest) -> Result<Lease> {
        self.guarded(Operation::Lease, self.inner.lease(request)).await
    }

    async fn leave(&self, relay: Uuid) -> Result<()> {
        self.guarded(Operation::Lease, self.inner.leave(relay)).await
    }

    async fn wait_for_events(&self) {
        self.inner.wait_for_events().await;
    }
}

#[async_trait]
impl<R: OutboxAdmin> OutboxAdmin for FaultyRepository<R> {
    async fn find_event(&self, id: Uuid) -> Result<Option<OutboxEvent>> {
        self.inner.find_event(id).await
    }

    async fn list_events(&self, filter: &EventFilter, limit: usize) -> Result<Vec<OutboxEvent>> {
        self.inner.list_events(filter, limit).await
    }

    async fn event_place(&self, id: Uuid) -> Result<Option<EventPlace>> {
        self.inner.event_place(id).await
    }

    async fn count_events(&self, filter: &EventFilter, limit: u64) -> Result<u64> {
        self.inner.count_events(filter, limit).await
    }

    async fn retry_events(&self, filter: &EventFilter) -> Result<u64> {
        self.inner.retry_events(filter).await
    }

    async fn release_events(&self, filter: &EventFilter) -> Result<u64> {
        self.inner.release_events(filter).await
    }

    async fn reroute_events(&self, filter: &EventFilter, to: Option<&str>) -> Result<u64> {
        self.inner.reroute_events(filter, to).await
    }

    async fn discard_events(&self, filter: &EventFilter) -> Result<u64> {
        self.inner.discard_events(filter).await
    }

    async fn stuck_keys(&self, query: &StuckKeyQuery) -> Result<StuckKeyPage> {
        self.inner.stuck_keys(query).await
    }

    async fn open_transactions(
        &self,
        older_than: Duration,
        limit: usize,
    ) -> Result<Vec<OpenTransaction>> {
        self.inner.open_transactions(older_than, limit).await
    }
}

fn failure(operation: Operation, kind: ErrorKind, message: &'static str) -> Error {
    Error::new(kind, operation.as_str(), message)
}
