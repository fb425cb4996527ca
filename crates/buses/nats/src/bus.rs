//! The bus: what it holds, and a call from its events to their outcomes. As one batch where the stream
//! takes batches, else in [rounds](super::rounds).

use std::sync::PoisonError;
use std::time::Duration;

use async_trait::async_trait;
use posthaste_bus_kit::{Envelope, TopicTemplate};
use posthaste_core::{
    BusCapabilities, Error, ErrorKind, EventBus, KeyPipelining, OutboxEvent, Outcomes,
    PublishResult, Result, Subject as About,
};
use tokio::sync::{Mutex, Semaphore, watch};
use tokio::time::{Instant, sleep, timeout, timeout_at};

use super::acknowledgement::Outcome;
use super::chains::Disturbance;
use super::config::NatsConfig;
use super::connection::Connection;
use super::fast_ingest::{self, Sent, Then};
use super::pipelining::{Knowledge, Known, Pipelining};
use super::reporter::Reporter;
use super::slots::{Slot, State, is_of_one_event, sendable};
use super::streams::Streams;
use super::subject::Allowed;
use super::{check, message};

/// The most events one call pipelines. Past it the broker is the limit, not the round trip.
const BATCH_EVENTS_MAX: usize = 1_000;
/// What is known before the stream is asked.
pub(super) const CAPABILITIES: BusCapabilities = BusCapabilities {
    batch_events_max: BATCH_EVENTS_MAX,
    deduplicates: true,
    ..BusCapabilities::new("nats")
};
/// How long the stream gets to store the earlier copy of an event before it is asked again.
pub(super) const IN_PROCESS_WAIT: Duration = Duration::from_millis(50);
/// How old what is known of a stream may be to refuse an event: its subjects may have changed.
const REFUSAL_AGE_MAX: Duration = Duration::from_secs(1);

/// What is to be done after batches.
enum After {
    /// Nothing.
    Over { lost: bool },
    /// What is left goes event by event.
    Rounds,
    /// The same, and no batches any more.
    NoBatches,
}

/// Publishes events to NATS JetStream. See the [crate] for order and errors.
#[derive(Debug)]
pub struct NatsBus {
    pub(super) connection: Connection,
    pub(super) config: NatsConfig,
    pub(super) allowed: Allowed,
    pub(super) envelope: Envelope,
    /// One permit per event that waits for its acknowledgement. A call takes all of its permits at
    /// once, so that two calls never wait for each other's.
    inflight: Semaphore,
    batch_events_max: usize,
    /// What the configured stream allows.
    pub(super) knowledge: Knowledge,
    /// What is known of streams where none is configured.
    pub(super) streams: Streams,
    pub(super) disturbance: Disturbance,
    /// Held while the messages of a call are handed to the client, so that those of a chain are not
    /// apart.
    pub(super) turn: Mutex<()>,
}

impl NatsBus {
    /// Starts connecting, waits up to 2 s for the first connection, and returns in any case.
    ///
    /// # Errors
    /// [`ErrorKind::Config`] for a wrong setting or an unreadable file. A server that is down or
    /// refuses us is no error here: [`publish`](EventBus::publish) and
    /// [`check`](EventBus::check) report it until it mends.
    pub async fn connect(config: NatsConfig) -> Result<Self> {
        config.validate()?;
        let allowed = Allowed::new(TopicTemplate::parse(&config.subject)?, &config.allow_topic)?;
        let envelope =
            Envelope::new(config.envelope, &config.cloudevents_source, message::is_reserved);
        let connection = Connection::open(&config).await?;
        let batch_events_max = config.max_ack_inflight.min(BATCH_EVENTS_MAX);
        let inflight = Semaphore::new(config.max_ack_inflight.min(Semaphore::MAX_PERMITS));
        let bus = Self {
            connection,
            config,
            allowed,
            envelope,
            inflight,
            batch_events_max,
            knowledge: Knowledge::default(),
            streams: Streams::default(),
            disturbance: Disturbance::default(),
            turn: Mutex::default(),
        };
        if bus.connection.ready().is_ok() {
            // The first call is to be of the right kind already.
            bus.known(Instant::now() + bus.config.ack_timeout, Duration::MAX).await;
        }
        Ok(bus)
    }

    async fn publish_window(&self, events: &[OutboxEvent], reporter: Reporter<'_>) {
        let start = Instant::now();
        let deadline = start + self.config.ack_timeout;
        if self.connection.ready().is_err() {
            return reporter
                .all(events, || self.connection.lost("not connected", About::Connection));
        }
        let permits = u32::try_from(events.len()).unwrap_or(u32::MAX);
        let Ok(Ok(_permits)) = timeout_at(deadline, self.inflight.acquire_many(permits)).await
        else {
            // Nothing was sent.
            let message = "all of max_ack_inflight wait for acknowledgements";
            return reporter.all(events, || self.no_answer(message).about(About::Connection));
        };
        let known = self.known(deadline, Duration::MAX).await;
        let mut slots = self.slots(events, known.as_ref());
        if slots.iter().any(Slot::is_uncovered) {
            let known = self.known(deadline, REFUSAL_AGE_MAX).await;
            slots = self.slots(events, known.as_ref());
        }
        let pipelining = known.map_or(Pipelining::OnePerKey, |known| known.pipelining);
        let lost = self.send(&mut slots, pipelining, reporter, deadline).await;
        self.report(slots, start, lost, reporter).await;
    }

    /// Sends all events and waits for what becomes of them. Returns whether the connection was lost.
    async fn send(
        &self,
        slots: &mut [Slot<'_>],
        pipelining: Pipelining,
        reporter: Reporter<'_>,
        deadline: Instant,
    ) -> bool {
        let mut losses = self.connection.losses();
        losses.mark_unchanged();
        if pipelining == Pipelining::Batches && slots.len() > 1 {
            match self.send_batches(slots, reporter, &mut losses, deadline).await {
                After::Over { lost } => return lost,
                After::NoBatches => self.knowledge.refused(&self.connection),
                After::Rounds => {}
            }
        }
        let chained = pipelining == Pipelining::Chains;
        self.send_rounds(slots, chained, reporter, &mut losses, deadline).await
    }

    /// What the stream allows and stores. Only one that is configured can be asked.
    async fn known(&self, by: Instant, age_max: Duration) -> Option<Known> {
        let stream = self.config.stream.as_deref()?;
        self.knowledge.ask(&self.connection, stream, by, age_max).await
    }

    /// Sends batches: another one where what failed says nothing of other keys.
    async fn send_batches(
        &self,
        slots: &mut [Slot<'_>],
        reporter: Reporter<'_>,
        losses: &mut watch::Receiver<u64>,
        deadline: Instant,
    ) -> After {
        loop {
            let batch = sendable(slots);
            if batch.is_empty() {
                return After::Over { lost: false };
            }
            let client = &self.connection.client;
            let messages = batch.iter().filter_map(|at| slots[*at].take_message()).collect();
            let mut reported = 0;
            let mut report = |stored: usize| {
                reporter.stored(slots, &batch[reported..stored]);
                reported = stored;
            };
            let refusals = self.connection.refusals();
            let Sent { stored, then } =
                fast_ingest::publish(client, messages, losses, refusals, deadline, &mut report)
                    .await;
            for at in &batch[reported..stored] {
                slots[*at].state = State::Done(Outcome::STORED);
            }
            let failure = match then {
                Then::AllStored => return After::Over { lost: false },
                Then::Lost => return After::Over { lost: true },
                Then::NoBatches => {
                    self.make_again(slots, &batch);
                    return After::NoBatches;
                }
                Then::Failed(failure) => failure,
            };
            if Instant::now() >= deadline {
                return After::Over { lost: false };
            }
            self.make_again(slots, &batch[stored + 1..]);
            let goes_on = is_of_one_event(&failure);
            if matches!(failure, Outcome::InProcess) {
                self.make_again(slots, &batch[stored..=stored]);
                sleep(IN_PROCESS_WAIT).await;
                continue;
            }
            slots[batch[stored]].state = State::Done(failure);
            if !goes_on {
                // Each gets an answer of its own, of which nobody else is in the way.
                return After::Rounds;
            }
        }
    }

    pub(super) fn no_answer(&self, message: &'static str) -> Error {
        Error::new(ErrorKind::Timeout, "publish to nats", message)
            .with_context("ack_timeout", format_args!("{:?}", self.config.ack_timeout))
    }
}

#[async_trait]
impl EventBus for NatsBus {
    fn capabilities(&self) -> BusCapabilities {
        BusCapabilities {
            batch_events_max: self.batch_events_max,
            key_pipelining: match self.knowledge.get() {
                Pipelining::Batches | Pipelining::Chains => KeyPipelining::SuffixFails,
                Pipelining::OnePerKey => KeyPipelining::OnePerKey,
            },
            in_flight_events_max: Some(self.config.max_ack_inflight),
            ..CAPABILITIES
        }
    }

    async fn publish(&self, events: &[OutboxEvent]) -> Vec<PublishResult> {
        let known = std::sync::Mutex::new(Vec::with_capacity(events.len()));
        let take = |mut results: Vec<_>| {
            known.lock().unwrap_or_else(PoisonError::into_inner).append(&mut results);
        };
        self.publish_each(events, Outcomes::new(&take)).await;
        let mut known = known.into_inner().unwrap_or_else(PoisonError::into_inner);
        known.sort_unstable_by_key(|(position, _)| *position);
        known.into_iter().map(|(_, result)| result).collect()
    }

    async fn publish_each(&self, events: &[OutboxEvent], outcomes: Outcomes<'_>) {
        for (number, window) in events.chunks(self.batch_events_max).enumerate() {
            let reporter = Reporter { outcomes, offset: number * self.batch_events_max };
            self.publish_window(window, reporter).await;
        }
    }

    async fn check(&self) -> Result<()> {
        self.connection.ready()?;
        let template = self.allowed.template();
        check::check(&self.connection.jetstream, self.config.stream.as_deref(), template).await
    }

    async fn recovered(&self) {
        self.connection.recovered().await;
    }

    async fn close(&self) -> Result<()> {
        // Without a connection there is nothing to flush, and asking would wait for one.
        if self.connection.ready().is_err() {
            return Ok(());
        }
        let failed = |message| Error::new(ErrorKind::Unreachable, "close nats", message);
        match timeout(self.config.ack_timeout, self.connection.client.drain()).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(failed("cannot drain the connection").with_source(error)),
            Err(_) => Err(failed("the connection did not drain in time")),
        }
    }
}
