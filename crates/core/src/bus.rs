//! The publishing contract: what the processor asks of a broker.

use async_trait::async_trait;

use crate::{Error, OutboxEvent, Result};

/// The outcome of publishing one event. `Ok` only after the broker's durable acknowledgement.
pub type PublishResult = Result<(), Error>;

/// Publishes events to one broker.
///
/// A bus of one's own needs [`publish`](Self::publish) and
/// [`capabilities`](Self::capabilities), nothing more:
///
/// ```
/// use async_trait::async_trait;
/// use posthaste_core::{BusCapabilities, EventBus, OutboxEvent, PublishResult};
///
/// struct Log;
///
/// #[async_trait]
/// impl EventBus for Log {
///     fn capabilities(&self) -> BusCapabilities {
///         BusCapabilities::new("log")
///     }
///
///     async fn publish(&self, events: &[OutboxEvent]) -> Vec<PublishResult> {
///         events.iter().map(|event| { println!("{}", event.id()); Ok(()) }).collect()
///     }
/// }
/// ```
#[async_trait]
pub trait EventBus: Send + Sync + 'static {
    /// What this bus can do. The processor asks before every batch, so that a bus may learn from its
    /// broker what it allows; the answer must come at once. A batch that was made for an answer given
    /// just before still comes.
    fn capabilities(&self) -> BusCapabilities;

    /// Publishes a batch and returns one result per event, in the order given.
    ///
    /// `Ok` means that the broker acknowledged the event durably. An error says what was met, and
    /// [about whom](crate::Error::about): the bus reports, and the processor decides from what other
    /// events meet whether that is an outage or the event's own trouble. A bus has no rules of its
    /// own for that. An unknown outcome is an error: the event is sent again.
    ///
    /// May be called from several tasks at once. The processor never has events of one key in two
    /// calls at the same time. Must end in bounded time; the processor adds no limit of its own.
    /// Dropping the future loses acknowledgements, not events.
    async fn publish(&self, events: &[OutboxEvent]) -> Vec<PublishResult>;

    /// Publishes a batch and reports each outcome as soon as it is known. This is what the processor
    /// calls.
    ///
    /// Default: [`publish`](Self::publish), and all outcomes at its end. A bus whose events are
    /// answered one by one overrides it, for no call may hold back what others answered. An event
    /// that is not reported when the future ends has failed; a second report of one is ignored.
    /// Events of one key are reported in their order.
    async fn publish_each(&self, events: &[OutboxEvent], outcomes: Outcomes<'_>) {
        outcomes.known(self.publish(events).await.into_iter().enumerate().collect());
    }

    /// Confirms that events could be published: reachable, authorised, the destination there.
    ///
    /// # Errors
    /// What `publish` would report. Default: nothing to check.
    async fn check(&self) -> Result<()> {
        Ok(())
    }

    /// What the other side answered to the last [`check`](Self::check) that passed, in a few words
    /// for an operator: an endpoint may be there and yet be the wrong one. Default: nothing to tell.
    fn last_answer(&self) -> Option<String> {
        None
    }

    /// Ends when the bus has connected again since the last time this ended: a destination that is
    /// paused for an outage is worth a probe at once. It may end without need. Default: never, for
    /// a bus that has no connection of its own to tell of.
    ///
    /// One caller at a time. Dropping the future loses nothing.
    async fn recovered(&self) {
        std::future::pending().await
    }

    /// Flushes and closes. No `publish` follows. Default: nothing to close.
    ///
    /// A processor calls it once, when it is shut down for good; whoever uses a bus without a
    /// processor, or stops one and drops it, calls it themselves. Must end in bounded time.
    async fn close(&self) -> Result<()> {
        Ok(())
    }
}

/// Takes the outcomes of one [call](EventBus::publish_each) as they become known.
#[derive(Clone, Copy)]
pub struct Outcomes<'a> {
    take: &'a (dyn Fn(Vec<(usize, PublishResult)>) + Sync),
    repeated: Option<&'a (dyn Fn(usize) + Sync)>,
}

impl<'a> Outcomes<'a> {
    /// Hands what is known to `take`.
    pub const fn new(take: &'a (dyn Fn(Vec<(usize, PublishResult)>) + Sync)) -> Self {
        Self { take, repeated: None }
    }

    /// Hands the positions of [repeated](Self::repeated) events to `repeated`.
    #[must_use]
    pub const fn with_repeated(self, repeated: &'a (dyn Fn(usize) + Sync)) -> Self {
        Self { repeated: Some(repeated), ..self }
    }

    /// Says that the broker dropped the event at `position`, since it held one of this id already.
    /// To be called before its `Ok` is reported.
    ///
    /// After a crash or a lost answer that is what deduplication is for. Of an event that nobody can
    /// have sent before it means that two events have one id, and that this one is lost. The bus
    /// cannot tell these apart; the processor knows what it sent.
    pub fn repeated(&self, position: usize) {
        if let Some(repeated) = self.repeated {
            repeated(position);
        }
    }

    /// Reports results, each with the position of its event in the call. What is known at one moment
    /// is best reported at once: each report wakes the processor.
    pub fn known(&self, results: Vec<(usize, PublishResult)>) {
        if !results.is_empty() {
            (self.take)(results);
        }
    }
}

impl std::fmt::Debug for Outcomes<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Outcomes")
    }
}

/// What a bus can do: data that the processor, the conformance suite and start-up checks read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BusCapabilities {
    /// `nats`, `webhook`: names the kind of bus in logs.
    pub name: &'static str,
    /// The most events one call takes; the processor cuts batches to it. At least 1.
    pub batch_events_max: usize,
    /// The most events on their way to this destination at once, over all calls; `None` leaves it to
    /// the processor's own limit. At least 1.
    pub in_flight_events_max: Option<usize>,
    /// Whether one call may hold several events of one key.
    pub key_pipelining: KeyPipelining,
    /// Whether the broker drops a repeated event by its id (within its own window).
    pub deduplicates: bool,
    /// Whether an acknowledged event survives a crash of the broker.
    pub durable: bool,
}

/// What happens to later events of a key when an earlier one in the same call fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeyPipelining {
    /// They may be delivered all the same, so a call must hold one event of a key.
    OnePerKey,
    /// They fail too: only a suffix can fail, so a call may hold many events of a key.
    SuffixFails,
}

impl BusCapabilities {
    /// The careful defaults: one event of a key at a time, batches of 100, no deduplication,
    /// durable.
    #[must_use]
    pub const fn new(name: &'static str) -> Self {
        Self {
            name,
            batch_events_max: 100,
            in_flight_events_max: None,
            key_pipelining: KeyPipelining::OnePerKey,
            deduplicates: false,
            durable: true,
        }
    }
}
