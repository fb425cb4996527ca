use std::collections::{HashMap, HashSet};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use posthaste_core::{
    BusCapabilities, Error, ErrorKind, EventBus, KeyPipelining, OrderKey, OutboxEvent,
    PublishResult, Result,
};
use uuid::Uuid;

use super::Fault;
use super::hold::Hold;

/// A bus that fails as its [`BusScript`] says and otherwise does what the bus within does.
///
/// Where only a suffix of a key can fail ([`KeyPipelining::SuffixFails`]), the later events of a
/// failed event's key fail with it, unwritten and with status `Transient`.
#[derive(Debug, Clone)]
pub struct FaultyBus<B> {
    inner: B,
    script: BusScript,
}

impl<B: EventBus> FaultyBus<B> {
    /// Wraps `inner`, with no faults yet.
    pub fn new(inner: B) -> Self {
        Self { inner, script: BusScript::default() }
    }

    /// The script, shared with the bus: keep a clone, and change it while the bus runs.
    #[must_use]
    pub fn script(&self) -> BusScript {
        self.script.clone()
    }

    /// The bus within.
    pub const fn inner(&self) -> &B {
        &self.inner
    }
}

type Plan = dyn Fn(&OutboxEvent, u32) -> Option<Fault> + Send + Sync;

/// What a [`FaultyBus`] does wrong, and what was asked of it. Clones share it.
///
/// The first that applies decides: [`set`](Self::set), then [`fail_next`](Self::fail_next), then
/// [`plan`](Self::plan).
#[derive(Clone, Default)]
pub struct BusScript(Arc<Shared>);

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    hold: Hold,
}

#[derive(Default)]
struct State {
    standing: Option<Fault>,
    next: Option<(usize, Fault)>,
    plan: Option<Box<Plan>>,
    attempts: HashMap<Uuid, u32>,
    calls: Vec<Vec<Uuid>>,
}

impl BusScript {
    /// Every event meets `fault` until it is set to `None`: an outage, for one.
    pub fn set(&self, fault: Option<Fault>) {
        self.lock().standing = fault;
    }

    /// The next `events` events meet `fault`. Replaces an earlier such order.
    pub fn fail_next(&self, events: usize, fault: Fault) {
        self.lock().next = Some((events, fault));
    }

    /// Decides for each event; the number is that of its attempt at this bus, counting from 1.
    pub fn plan(&self, plan: impl Fn(&OutboxEvent, u32) -> Option<Fault> + Send + Sync + 'static) {
        self.lock().plan = Some(Box::new(plan));
    }

    /// Ends all faults and lets held calls go.
    pub fn clear(&self) {
        let mut state = self.lock();
        (state.standing, state.next, state.plan) = (None, None, None);
        drop(state);
        self.release();
    }

    /// Lets all held calls go. They return `Ok`.
    pub fn release(&self) {
        self.0.hold.release();
    }

    /// Completes when `calls` calls or more are held.
    pub async fn until_held(&self, calls: usize) {
        self.0.hold.until_held(calls).await;
    }

    /// The ids of every call so far, in order. Failed attempts are included.
    #[must_use]
    pub fn calls(&self) -> Vec<Vec<Uuid>> {
        self.lock().calls.clone()
    }

    /// How many times the event was given to the bus.
    #[must_use]
    pub fn attempts(&self, id: Uuid) -> u32 {
        self.lock().attempts.get(&id).copied().unwrap_or(0)
    }

    /// Records a call and decides the fault of each of its events.
    fn begin_call(&self, events: &[OutboxEvent]) -> Vec<Option<Fault>> {
        let mut state = self.lock();
        state.calls.push(events.iter().map(OutboxEvent::id).collect());
        events.iter().map(|event| state.decide(event)).collect()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn decide(&mut self, event: &OutboxEvent) -> Option<Fault> {
        let attempt = self.attempts.entry(event.id()).or_default();
        *attempt += 1;
        let attempt = *attempt;
        if self.standing.is_some() {
            return self.standing;
        }
        if let Some((left, fault)) = &mut self.next
            && *left > 0
        {
            *left -= 1;
            return Some(*fault);
        }
        self.plan.as_ref().and_then(|plan| plan(event, attempt))
    }
}

impl fmt::Debug for BusScript {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.lock();
        f.debug_struct("BusScript")
            .field("standing", &state.standing)
            .field("next", &state.next)
            .field("calls", &state.calls.len())
            .finish_non_exhaustive()
    }
}

/// What is done with one event of a call.
#[derive(Clone, Copy)]
enum Step {
    /// Give it to the bus within, and then meet the fault.
    Write(Option<Fault>),
    /// Fail without writing.
    Refuse(Fault),
    /// An earlier event of its key failed in this call.
    Follow,
}

/// Where only a suffix of a key may fail, nothing follows a failure.
fn steps(events: &[OutboxEvent], faults: &[Option<Fault>], pipelining: KeyPipelining) -> Vec<Step> {
    let mut failed: HashSet<&OrderKey> = HashSet::new();
    let step = |(event, fault): (_, &Option<Fault>)| {
        let event: &OutboxEvent = event;
        if pipelining == KeyPipelining::SuffixFails && failed.contains(event.order_key()) {
            return Step::Follow;
        }
        if fault.is_some_and(|fault| fault != Fault::HoldResponse) {
            failed.insert(event.order_key());
        }
        match fault {
            Some(fault) if !fault.writes() => Step::Refuse(*fault),
            fault => Step::Write(*fault),
        }
    };
    events.iter().zip(faults).map(step).collect()
}

#[async_trait]
impl<B: EventBus> EventBus for FaultyBus<B> {
    fn capabilities(&self) -> BusCapabilities {
        self.inner.capabilities()
    }

    async fn publish(&self, events: &[OutboxEvent]) -> Vec<PublishResult> {
        let faults = self.script.begin_call(events);
        let steps = steps(events, &faults, self.capabilities().key_pipelining);
        let written: Vec<OutboxEvent> = events
            .iter()
            .zip(&steps)
            .filter(|(_, step)| matches!(step, Step::Write(_)))
            .map(|(event, _)| event.clone())
            .collect();
        let mut answers = if written.is_empty() {
            Vec::new().into_iter()
        } else {
            self.inner.publish(&written).await.into_iter()
        };
        if steps.iter().any(|step| matches!(step, Step::Write(Some(Fault::HoldResponse)))) {
            self.script.0.hold.wait().await;
        }
        let mut results = Vec::with_capacity(events.len());
        for step in steps {
            let result = match step {
                Step::Refuse(fault) => Err(failure(fault)),
                Step::Follow => Err(failure(Fault::FailBeforeWrite)
                    .with_context("because", "an earlier event of its key failed")),
                // A bus that gives too few results is passed on as such.
                Step::Write(fault) => match (answers.next(), fault) {
                    (Some(Ok(())), Some(Fault::FailAfterWrite)) => {
                        Err(failure(Fault::FailAfterWrite))
                    }
                    (Some(answer), _) => answer,
                    (None, _) => continue,
                },
            };
            results.push(result);
        }
        results
    }

    async fn check(&self) -> Result<()> {
        if self.script.lock().standing == Some(Fault::Unavailable) {
            return Err(failure(Fault::Unavailable));
        }
        self.inner.check().await
    }

    fn last_answer(&self) -> Option<String> {
        self.inner.last_answer()
    }

    async fn recovered(&self) {
        self.inner.recovered().await;
    }

    async fn close(&self) -> Result<()> {
        self.inner.close().await
    }
}

fn failure(fault: Fault) -> Error {
    let (kind, message) = match fault {
        Fault::FailBeforeWrite => (ErrorKind::Failed, "failed on purpose before writing"),
        Fault::FailAfterWrite | Fault::HoldResponse => {
            (ErrorKind::Failed, "the answer was lost on purpose after writing")
        }
        Fault::RejectPermanently => (ErrorKind::Rejected, "rejected on purpose"),
        Fault::Unavailable => (ErrorKind::Unreachable, "unavailable on purpose"),
    };
    Error::new(kind, "publish events", message)
}
