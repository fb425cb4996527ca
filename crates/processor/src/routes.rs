//! Which destination an event goes to.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use posthaste_core::{
    BusCapabilities, Error, ErrorKind, EventBus, OutboxEvent, Pattern, Result, RetryPolicy,
};
use rustc_hash::FxHashMap;

use crate::telemetry;

/// A bus under a name, with what happens to a key whose head is dead.
#[derive(Clone)]
pub struct Destination {
    pub(crate) name: Arc<str>,
    pub(crate) bus: Arc<dyn EventBus>,
    pub(crate) dead_head: DeadHeadPolicy,
    pub(crate) retry_policy: Option<RetryPolicy>,
    pub(crate) max_attempts: Option<u32>,
}

impl Destination {
    /// A destination; the name is what routes, the `destination` column and metric labels use.
    pub fn new(name: &str, bus: Arc<dyn EventBus>) -> Self {
        let dead_head = DeadHeadPolicy::default();
        Self { name: name.into(), bus, dead_head, retry_policy: None, max_attempts: None }
    }

    /// What happens to a key whose head is dead. Default: block.
    #[must_use]
    pub const fn dead_head(mut self, policy: DeadHeadPolicy) -> Self {
        self.dead_head = policy;
        self
    }
}

impl Destination {
    /// When an event that failed here is tried again. Default: as the processor's settings say.
    #[must_use]
    pub const fn retry_policy(mut self, policy: RetryPolicy) -> Self {
        self.retry_policy = Some(policy);
        self
    }

    /// How many attempts an event has here, whatever its row says; at least 1. Default: the
    /// `max_retries` of each row, which is the writer's to say.
    #[must_use]
    pub const fn max_attempts(mut self, attempts: u32) -> Self {
        self.max_attempts = Some(attempts);
        self
    }
}

impl fmt::Debug for Destination {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Destination")
            .field("name", &self.name)
            .field("dead_head", &self.dead_head)
            .finish_non_exhaustive()
    }
}

/// What happens to an event whose `destination` column names one that is not configured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum UnknownDestination {
    /// It waits in the store, and its key with it, until a relay knows the name: writers may be
    /// deployed before the relay's configuration. Operators are told.
    #[default]
    Hold,
    /// It is a dead letter at once.
    Dead,
}

/// What happens to the later events of a key when its first one is a dead letter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum DeadHeadPolicy {
    /// They wait until someone retries or discards the dead letter: the key's order is kept.
    #[default]
    Block,
    /// They go on without it.
    Skip,
}

/// Sends events to a destination by their type. The first route that matches wins; without a
/// match an event goes to the first destination. A `destination` column overrules all routes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Route {
    /// Which event types.
    pub event_type: Pattern,
    /// The name of the destination.
    pub destination: String,
    /// What happens to a key whose head came this way and is dead; `None` leaves it to the
    /// destination.
    pub dead_head: Option<DeadHeadPolicy>,
}

/// Where events go, by names alone: for the processor, and for tools that have no buses.
#[derive(Debug, Clone)]
pub struct RouteTable {
    destinations: Vec<(Arc<str>, DeadHeadPolicy)>,
    /// Index of each destination, by its name.
    by_name: FxHashMap<Arc<str>, usize>,
    /// Index of the destination beside the pattern.
    routes: Vec<(Pattern, usize, Option<DeadHeadPolicy>)>,
}

/// Where an event goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Routed {
    /// The index of its destination, in the order in which they were given.
    pub destination: usize,
    /// What happens to its key when it is dead.
    pub dead_head: DeadHeadPolicy,
}

impl RouteTable {
    /// Of destinations, each with its policy, and the routes to them.
    ///
    /// # Errors
    /// [`ErrorKind::Config`] without a destination, for a name used twice, or for a route to a
    /// name that is not there.
    pub fn new(
        destinations: impl IntoIterator<Item = (Arc<str>, DeadHeadPolicy)>,
        routes: impl IntoIterator<Item = Route>,
    ) -> Result<Self> {
        let destinations: Vec<(Arc<str>, DeadHeadPolicy)> = destinations.into_iter().collect();
        if destinations.is_empty() {
            return refuse("no destination was given".into());
        }
        let mut by_name = FxHashMap::default();
        for (index, (name, _)) in destinations.iter().enumerate() {
            if by_name.insert(Arc::clone(name), index).is_some() {
                return refuse(format!("destination {name} is given twice"));
            }
        }
        let mut resolved = Vec::new();
        for Route { event_type, destination, dead_head } in routes {
            match by_name.get(&*destination) {
                Some(index) => resolved.push((event_type, *index, dead_head)),
                None => {
                    return refuse(format!("a route names the unknown destination {destination}"));
                }
            }
        }
        Ok(Self { destinations, by_name, routes: resolved })
    }

    /// Where an event goes, from the two columns that decide; `None` where its `destination`
    /// column names one that is not configured. Such an event becomes a dead letter and blocks its
    /// key.
    #[must_use]
    pub fn resolve(&self, destination: Option<&str>, event_type: &str) -> Option<Routed> {
        let (index, dead_head) = match destination {
            Some(name) => (*self.by_name.get(name)?, None),
            None => self
                .routes
                .iter()
                .find(|(pattern, _, _)| pattern.matches(event_type))
                .map_or((0, None), |(_, index, dead_head)| (*index, *dead_head)),
        };
        let dead_head = dead_head.unwrap_or(self.destinations[index].1);
        Some(Routed { destination: index, dead_head })
    }

    /// The name of a destination.
    ///
    /// # Panics
    /// For an index that is not of [`resolve`](Self::resolve).
    #[must_use]
    pub fn name(&self, destination: usize) -> &str {
        &self.destinations[destination].0
    }
}

/// All destinations and the routes to them.
#[derive(Debug)]
pub(crate) struct Routes {
    table: RouteTable,
    destinations: Vec<Destination>,
    /// For each destination, whether its bus panicked when last asked what it can do.
    silent: Vec<AtomicBool>,
}

impl Routes {
    /// # Errors
    /// As [`RouteTable::new`]; also for a bus that takes nothing.
    pub(crate) fn new(destinations: Vec<Destination>, routes: Vec<Route>) -> Result<Self> {
        let names = destinations
            .iter()
            .map(|destination| (Arc::clone(&destination.name), destination.dead_head));
        let table = RouteTable::new(names, routes)?;
        for Destination { name, bus, .. } in &destinations {
            if telemetry::capabilities(&**bus)?.batch_events_max == 0 {
                return refuse(format!("the bus of {name} takes no events per call"));
            }
        }
        let silent = destinations.iter().map(|_| AtomicBool::new(false)).collect();
        Ok(Self { table, destinations, silent })
    }

    pub(crate) fn destinations(&self) -> &[Destination] {
        &self.destinations
    }

    pub(crate) fn destination(&self, index: usize) -> &Destination {
        &self.destinations[index]
    }

    /// What the destination's bus can do now. One that panics instead of saying so is used with
    /// care, an event at a time, and told of once.
    pub(crate) fn capabilities(&self, destination: usize) -> BusCapabilities {
        let Destination { name, bus, .. } = &self.destinations[destination];
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

    /// The index of the event's destination; `None` where its `destination` column names one that
    /// is not configured.
    pub(crate) fn resolve(&self, event: &OutboxEvent) -> Option<usize> {
        self.destination_of(event.destination(), event.event_type())
    }

    /// The same, of an event with these two columns.
    pub(crate) fn destination_of(
        &self,
        destination: Option<&str>,
        event_type: &str,
    ) -> Option<usize> {
        self.table.resolve(destination, event_type).map(|routed| routed.destination)
    }

    /// What happens to a key when an event with these two columns is dead.
    pub(crate) fn dead_head(&self, destination: Option<&str>, event_type: &str) -> DeadHeadPolicy {
        let routed = self.table.resolve(destination, event_type);
        routed.map_or(DeadHeadPolicy::Block, |routed| routed.dead_head)
    }
}

fn refuse<T>(why: String) -> Result<T> {
    Err(Error::new(ErrorKind::Config, "build processor", why))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_routes_policy_goes_before_its_destinations_and_only_on_its_way() {
        let route = |pattern: &str, dead_head| Route {
            event_type: Pattern::new(pattern),
            destination: "first".into(),
            dead_head,
        };
        let table = RouteTable::new(
            [("first".into(), DeadHeadPolicy::Block), ("second".into(), DeadHeadPolicy::Skip)],
            [route("audit.*", Some(DeadHeadPolicy::Skip)), route("order.*", None)],
        )
        .unwrap();
        let policy = |destination, event_type| {
            table.resolve(destination, event_type).map(|routed| routed.dead_head)
        };
        assert_eq!(policy(None, "audit.seen"), Some(DeadHeadPolicy::Skip));
        assert_eq!(policy(None, "order.placed"), Some(DeadHeadPolicy::Block));
        assert_eq!(policy(None, "other"), Some(DeadHeadPolicy::Block));
        // Its writer sent it there; no route did.
        assert_eq!(policy(Some("first"), "audit.seen"), Some(DeadHeadPolicy::Block));
        assert_eq!(policy(Some("second"), "order.placed"), Some(DeadHeadPolicy::Skip));
        assert_eq!(policy(Some("nowhere"), "audit.seen"), None);
    }

    /// A table of destinations for tenants is a long one, and is asked for each event.
    #[test]
    fn a_hundred_thousand_destinations_are_looked_up_by_name() {
        let name = |number: usize| Arc::<str>::from(format!("tenant-{number}"));
        let names = || (0..100_000).map(|number| (name(number), DeadHeadPolicy::Block));
        let routes = (0..100_000).map(|number| Route {
            event_type: Pattern::new(format!("{number}.*")),
            destination: name(number).to_string(),
            dead_head: None,
        });
        let table = RouteTable::new(names(), routes).unwrap();
        for number in 0..100_000 {
            let routed = table.resolve(Some(&name(number)), "any").unwrap();
            assert_eq!(routed.destination, number);
        }
        let twice = names().chain([(name(7), DeadHeadPolicy::Block)]);
        let error = RouteTable::new(twice, []).unwrap_err().report();
        assert!(error.contains("tenant-7 is given twice"), "{error}");
    }
}
