//! The buses that events go to, each under its name.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use posthaste_core::{BusCapabilities, Error, ErrorKind, EventBus, Result, RetryPolicy};
use posthaste_engine::{DeadHeadPolicy, DestinationRules, Route, RouteTable};

use crate::telemetry;

/// A bus under a name, with what is set for it.
#[derive(Clone)]
pub struct Destination {
    pub(crate) name: Arc<str>,
    pub(crate) bus: Arc<dyn EventBus>,
    rules: DestinationRules,
}

impl Destination {
    /// A destination; the name is what routes, the `destination` column and metric labels use.
    pub fn new(name: &str, bus: Arc<dyn EventBus>) -> Self {
        let name: Arc<str> = name.into();
        Self { rules: DestinationRules::new(Arc::clone(&name)), name, bus }
    }

    /// What happens to a key whose head is dead. Default: block.
    #[must_use]
    pub fn dead_head(mut self, policy: DeadHeadPolicy) -> Self {
        self.rules = self.rules.dead_head(policy);
        self
    }

    /// When an event that failed here is tried again. Default: as the processor's settings say.
    #[must_use]
    pub fn retry_policy(mut self, policy: RetryPolicy) -> Self {
        self.rules = self.rules.retry_policy(policy);
        self
    }

    /// How many attempts an event has here, whatever its row says; at least 1. Default: the
    /// `max_retries` of each row, which is the writer's to say.
    #[must_use]
    pub fn max_attempts(mut self, attempts: u32) -> Self {
        self.rules = self.rules.max_attempts(attempts);
        self
    }
}

impl fmt::Debug for Destination {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Destination").field("rules", &self.rules).finish_non_exhaustive()
    }
}

/// All destinations.
#[derive(Debug)]
pub(crate) struct Destinations {
    all: Vec<Destination>,
    /// For each, whether its bus panicked when last asked what it can do.
    silent: Vec<AtomicBool>,
}

impl Destinations {
    /// # Errors
    /// [`ErrorKind::Config`] for a bus that takes nothing.
    pub(crate) fn new(all: Vec<Destination>) -> Result<Self> {
        for Destination { name, bus, .. } in &all {
            if telemetry::capabilities(&**bus)?.batch_events_max == 0 {
                let why = format!("the bus of {name} takes no events per call");
                return Err(Error::new(ErrorKind::Config, "build processor", why));
            }
        }
        let silent = all.iter().map(|_| AtomicBool::new(false)).collect();
        Ok(Self { all, silent })
    }

    pub(crate) fn all(&self) -> &[Destination] {
        &self.all
    }

    /// # Errors
    /// As [`RouteTable::new`].
    pub(crate) fn routed(&self, routes: Vec<Route>) -> Result<RouteTable> {
        RouteTable::new(self.all.iter().map(|destination| destination.rules.clone()), routes)
    }

    /// What the destination's bus can do now. One that panics instead of saying so is used with
    /// care, an event at a time, and told of once.
    pub(crate) fn capabilities(&self, destination: usize) -> BusCapabilities {
        let Destination { name, bus, .. } = &self.all[destination];
        let silent = &self.silent[destination];
        match telemetry::capabilities(&**bus) {
            Ok(capabilities) => {
                silent.store(false, Ordering::Relaxed);
                capabilities
            }
            Err(error) => {
                if !silent.swap(true, Ordering::Relaxed) {
                    let error = error.report();
                    tracing::error!(destination = &**name, error, "the bus cannot say what it can");
                }
                BusCapabilities { batch_events_max: 1, ..BusCapabilities::new("silent") }
            }
        }
    }
}
