use std::sync::Arc;

use posthaste_core::{EventBus, OutboxRepository, Result, RetryPolicy};

use crate::destinations::Destinations;
use crate::telemetry::Telemetry;
use crate::{Destination, OutboxProcessor, ProcessorSettings, Route};

/// Collects what a processor needs; [`build`](Self::build) checks it.
#[derive(Debug)]
pub struct OutboxProcessorBuilder {
    repository: RepositoryHandle,
    destinations: Vec<Destination>,
    routes: Vec<Route>,
    settings: ProcessorSettings,
    name: Option<Arc<str>>,
}

struct RepositoryHandle(Arc<dyn OutboxRepository>);

impl std::fmt::Debug for RepositoryHandle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.0.capabilities().name)
    }
}

impl OutboxProcessorBuilder {
    pub(crate) fn new(repository: Arc<dyn OutboxRepository>) -> Self {
        Self {
            repository: RepositoryHandle(repository),
            destinations: Vec::new(),
            routes: Vec::new(),
            settings: ProcessorSettings::default(),
            name: None,
        }
    }

    /// Names the outbox where a process has several: each metric and span carries the name as the
    /// label or field `outbox`. Default: no name, and no such label.
    ///
    /// A name must be one of few: a tenant's, say, and nothing that is made up at run time.
    #[must_use]
    pub fn name(mut self, name: &str) -> Self {
        self.name = Some(name.into());
        self
    }

    /// Adds a bus as a destination named `default`.
    #[must_use]
    pub fn bus(self, bus: impl EventBus) -> Self {
        self.destination(Destination::new("default", Arc::new(bus)))
    }

    /// Adds a destination. The first one takes every event that no route and no `destination`
    /// column sends elsewhere.
    #[must_use]
    pub fn destination(mut self, destination: Destination) -> Self {
        self.destinations.push(destination);
        self
    }

    /// Adds a route; the first that matches wins.
    #[must_use]
    pub fn route(mut self, route: Route) -> Self {
        self.routes.push(route);
        self
    }

    /// Replaces all settings.
    #[must_use]
    pub fn settings(mut self, settings: ProcessorSettings) -> Self {
        self.settings = settings;
        self
    }

    /// See [`ProcessorSettings::batch_size`].
    #[must_use]
    pub fn batch_size(mut self, events: usize) -> Self {
        self.settings.batch_size = events;
        self
    }

    /// See [`ProcessorSettings::poll_interval`].
    #[must_use]
    pub fn poll_interval(mut self, interval: std::time::Duration) -> Self {
        self.settings.poll_interval = interval;
        self
    }

    /// See [`ProcessorSettings::max_concurrent_events`].
    #[must_use]
    pub fn max_concurrent_events(mut self, events: usize) -> Self {
        self.settings.max_concurrent_events = events;
        self
    }

    /// See [`ProcessorSettings::retry_policy`].
    #[must_use]
    pub fn retry_policy(mut self, policy: RetryPolicy) -> Self {
        self.settings.retry_policy = policy;
        self
    }

    /// Checks settings, destinations and routes.
    ///
    /// # Errors
    /// [`ErrorKind::Config`](posthaste_core::ErrorKind::Config), naming what is wrong.
    pub fn build(self) -> Result<OutboxProcessor> {
        self.settings.validate()?;
        let destinations = Destinations::new(self.destinations)?;
        let routes = destinations.routed(self.routes)?;
        let telemetry = Telemetry::new(self.name);
        Ok(OutboxProcessor::new(self.repository.0, destinations, routes, self.settings, telemetry))
    }
}
