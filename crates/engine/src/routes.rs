//! Which destination an event goes to, and what is set for each.

use std::sync::Arc;
use std::time::Duration;

use posthaste_core::{Error, ErrorKind, Pattern, Result, RetryPolicy};
use rustc_hash::FxHashMap;

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

/// What is set for a destination, whatever its bus.
#[derive(Debug, Clone)]
pub struct DestinationRules {
    pub(crate) name: Arc<str>,
    pub(crate) dead_head: DeadHeadPolicy,
    pub(crate) retry_policy: Option<RetryPolicy>,
    pub(crate) max_attempts: Option<u32>,
}

impl DestinationRules {
    /// Nothing but a name: what routes, the `destination` column and metric labels use.
    pub fn new(name: impl Into<Arc<str>>) -> Self {
        let dead_head = DeadHeadPolicy::default();
        Self { name: name.into(), dead_head, retry_policy: None, max_attempts: None }
    }

    /// What happens to a key whose head is dead. Default: block.
    #[must_use]
    pub const fn dead_head(mut self, policy: DeadHeadPolicy) -> Self {
        self.dead_head = policy;
        self
    }

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

/// Where events go, by names alone: for the processor, and for tools that have no buses.
#[derive(Debug, Clone)]
pub struct RouteTable {
    destinations: Vec<DestinationRules>,
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
    /// Of destinations and the routes to them.
    ///
    /// # Errors
    /// [`ErrorKind::Config`] without a destination, for a name used twice, or for a route to a
    /// name that is not there.
    pub fn new(
        destinations: impl IntoIterator<Item = DestinationRules>,
        routes: impl IntoIterator<Item = Route>,
    ) -> Result<Self> {
        let destinations: Vec<DestinationRules> = destinations.into_iter().collect();
        if destinations.is_empty() {
            return refuse("no destination was given".into());
        }
        let mut by_name = FxHashMap::default();
        for (index, DestinationRules { name, .. }) in destinations.iter().enumerate() {
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
        let dead_head = dead_head.unwrap_or(self.destinations[index].dead_head);
        Some(Routed { destination: index, dead_head })
    }

    /// The name of a destination.
    ///
    /// # Panics
    /// For an index that is not of [`resolve`](Self::resolve).
    #[must_use]
    pub fn name(&self, destination: usize) -> &str {
        &self.destinations[destination].name
    }

    /// The number of destinations, at least one.
    #[must_use]
    pub(crate) fn len(&self) -> usize {
        self.destinations.len()
    }

    /// What is set for a destination.
    pub(crate) fn rules(&self, destination: usize) -> &DestinationRules {
        &self.destinations[destination]
    }

    /// The longest delay that a destination sets for a retry.
    pub(crate) fn longest_delay(&self) -> Option<Duration> {
        let policies = self.destinations.iter().filter_map(|rules| rules.retry_policy);
        policies.map(|policy| policy.max_delay).max()
    }

    /// What happens to a key when an event with these two columns is dead.
    pub(crate) fn dead_head(&self, destination: Option<&str>, event_type: &str) -> DeadHeadPolicy {
        let routed = self.resolve(destination, event_type);
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
            [
                DestinationRules::new("first"),
                DestinationRules::new("second").dead_head(DeadHeadPolicy::Skip),
            ],
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
        let names = || (0..100_000).map(|number| DestinationRules::new(name(number)));
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
        let twice = names().chain([DestinationRules::new(name(7))]);
        let error = RouteTable::new(twice, []).unwrap_err().report();
        assert!(error.contains("tenant-7 is given twice"), "{error}");
    }
}
