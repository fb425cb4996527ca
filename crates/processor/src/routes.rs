//! Which destination an event goes to.

use std::fmt;
use std::sync::Arc;

use posthaste_core::{BusCapabilities, Error, ErrorKind, EventBus, OutboxEvent, Result};

/// A bus under a name, with what happens to a key whose head is dead.
#[derive(Clone)]
pub struct Destination {
    pub(crate) name: Arc<str>,
    pub(crate) bus: Arc<dyn EventBus>,
    pub(crate) dead_head: DeadHeadPolicy,
}

impl Destination {
    /// A destination; the name is what routes, the `destination` column and metric labels use.
    pub fn new(name: &str, bus: Arc<dyn EventBus>) -> Self {
        Self { name: name.into(), bus, dead_head: DeadHeadPolicy::default() }
    }

    /// What happens to a key whose head is dead. Default: block.
    #[must_use]
    pub const fn dead_head(mut self, policy: DeadHeadPolicy) -> Self {
        self.dead_head = policy;
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
}

/// A text with `*` for any run of characters: `order.*`, `*`, `*.failed`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pattern(String);

impl Pattern {
    /// Any text is a pattern.
    pub fn new(pattern: impl Into<String>) -> Self {
        Self(pattern.into())
    }

    /// Whether all of `text` matches.
    #[must_use]
    pub fn matches(&self, text: &str) -> bool {
        let mut parts = self.0.split('*');
        let first = parts.next().unwrap_or_default();
        let Some(mut rest) = text.strip_prefix(first) else { return false };
        let Some(last) = parts.next_back() else { return rest.is_empty() };
        for part in parts {
            let Some(at) = rest.find(part) else { return false };
            rest = &rest[at + part.len()..];
        }
        rest.ends_with(last)
    }
}

/// All destinations and the routes to them.
#[derive(Debug)]
pub(crate) struct Routes {
    destinations: Vec<Destination>,
    /// One per destination; asked for once, since a bus may compute them.
    capabilities: Vec<BusCapabilities>,
    /// Index of the destination beside the pattern.
    routes: Vec<(Pattern, usize)>,
}

impl Routes {
    /// # Errors
    /// [`ErrorKind::Config`] without a destination, for a name used twice, or for a route to a
    /// name that is not there.
    pub(crate) fn new(destinations: Vec<Destination>, routes: Vec<Route>) -> Result<Self> {
        let refuse = |why: String| Err(Error::new(ErrorKind::Config, "build processor", why));
        if destinations.is_empty() {
            return refuse("no destination was given".into());
        }
        for (position, destination) in destinations.iter().enumerate() {
            if destinations[..position].iter().any(|other| other.name == destination.name) {
                return refuse(format!("destination {} is given twice", destination.name));
            }
        }
        let mut resolved = Vec::with_capacity(routes.len());
        for Route { event_type, destination } in routes {
            match destinations.iter().position(|known| *known.name == *destination) {
                Some(index) => resolved.push((event_type, index)),
                None => {
                    return refuse(format!("a route names the unknown destination {destination}"));
                }
            }
        }
        let capabilities: Vec<BusCapabilities> =
            destinations.iter().map(|destination| destination.bus.capabilities()).collect();
        if let Some(at) = capabilities.iter().position(|bus| bus.batch_events_max == 0) {
            return refuse(format!(
                "the bus of {} takes no events per call",
                destinations[at].name
            ));
        }
        Ok(Self { destinations, capabilities, routes: resolved })
    }

    pub(crate) fn destinations(&self) -> &[Destination] {
        &self.destinations
    }

    pub(crate) fn capabilities(&self, destination: usize) -> &BusCapabilities {
        &self.capabilities[destination]
    }

    /// The index of the event's destination; `None` where its `destination` column names one that
    /// is not configured.
    pub(crate) fn resolve(&self, event: &OutboxEvent) -> Option<usize> {
        self.resolve_names(event.destination(), event.event_type())
    }

    /// As [`resolve`](Self::resolve), from the two columns that decide.
    pub(crate) fn resolve_names(
        &self,
        destination: Option<&str>,
        event_type: &str,
    ) -> Option<usize> {
        if let Some(name) = destination {
            return self.destinations.iter().position(|destination| *destination.name == *name);
        }
        let matching = self.routes.iter().find(|(pattern, _)| pattern.matches(event_type));
        Some(matching.map_or(0, |(_, index)| *index))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_match_whole_texts() {
        for (pattern, text, expected) in [
            ("*", "", true),
            ("order.*", "order.placed", true),
            ("order.*", "preorder.placed", false),
            ("*.failed", "payment.failed", true),
            ("a*b*c", "aXbYc", true),
            ("a*b", "ab", true),
            ("ab*ba", "aba", false),
            ("exact", "exact", true),
            ("exact", "exactly", false),
        ] {
            assert_eq!(Pattern::new(pattern).matches(text), expected, "{pattern} {text}");
        }
    }
}
