//! Publishing: as one batch where the stream takes batches, else all events of a call at once, then
//! all acknowledgements.

use std::collections::HashSet;
use std::future::{Future, IntoFuture};
use std::pin::Pin;

use async_nats::Subject;
use async_nats::header::{HeaderMap, HeaderName, HeaderValue};
use async_nats::jetstream::context::PublishError;
use async_nats::jetstream::message::PublishMessage;
use async_nats::jetstream::publish::PublishAck;
use async_trait::async_trait;
use posthaste_core::{
    BusCapabilities, Error, ErrorKind, ErrorStatus, EventBus, KeyPipelining, OrderKey, OutboxEvent,
    PublishResult, Result,
};
use tokio::sync::{Semaphore, watch};
use tokio::time::{Instant, timeout, timeout_at};

use super::acknowledgement::{Outcome, no_stream};
use super::config::NatsConfig;
use super::connection::Connection;
use super::fast_ingest::{self, Outbound, Permission, Sent, Then};
use super::{check, subject};
use crate::TopicTemplate;
use crate::envelope::Envelope;

/// The most events one call pipelines. Past it the broker is the limit, not the round trip.
const BATCH_EVENTS_MAX: usize = 1_000;

/// The names of the plain envelope, made once: a name that is parsed is allocated.
static HEADER_NAMES: [(&str, HeaderName); 7] = [
    ("ph-id", HeaderName::from_static("ph-id")),
    ("ph-type", HeaderName::from_static("ph-type")),
    ("ph-key", HeaderName::from_static("ph-key")),
    ("ph-aggregate-id", HeaderName::from_static("ph-aggregate-id")),
    ("ph-aggregate-type", HeaderName::from_static("ph-aggregate-type")),
    ("ph-created-at", HeaderName::from_static("ph-created-at")),
    ("content-type", HeaderName::from_static("content-type")),
];

/// Publishes events to NATS JetStream. See the [module](super) for order and errors.
#[derive(Debug)]
pub struct NatsBus {
    connection: Connection,
    config: NatsConfig,
    template: TopicTemplate,
    envelope: Envelope,
    /// One permit per event that waits for its acknowledgement. A call takes all of its permits at
    /// once, so that two calls never wait for each other's.
    inflight: Semaphore,
    batch_events_max: usize,
    /// Whether the configured stream takes batches.
    batches: Permission,
}

type Answer = Pin<Box<dyn Future<Output = Result<PublishAck, PublishError>> + Send>>;

/// One event of a call.
struct Slot<'e> {
    event: &'e OutboxEvent,
    subject: Subject,
    /// Whether the subject is this event's own.
    per_event: bool,
    state: State,
}

enum State {
    Ready(Outbound),
    Waiting(Answer),
    Done(Outcome),
}

impl<'e> Slot<'e> {
    const fn key(&self) -> &'e OrderKey {
        self.event.order_key()
    }

    fn is_ready(&self) -> bool {
        matches!(self.state, State::Ready(_))
    }

    fn has_failed(&self) -> bool {
        match &self.state {
            State::Done(outcome) => !matches!(outcome, Outcome::Acknowledged),
            State::Ready(_) | State::Waiting(_) => false,
        }
    }

    fn take_message(&mut self) -> Option<Outbound> {
        match std::mem::replace(&mut self.state, State::Done(Outcome::NoAnswer)) {
            State::Ready(message) => Some(message),
            State::Waiting(_) | State::Done(_) => None,
        }
    }
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
        let template = TopicTemplate::parse(&config.subject)?;
        let envelope = Envelope::new(config.envelope, &config.cloudevents_source, is_reserved);
        let connection = Connection::open(&config).await?;
        let batch_events_max = config.max_ack_inflight.min(BATCH_EVENTS_MAX);
        let inflight = Semaphore::new(config.max_ack_inflight.min(Semaphore::MAX_PERMITS));
        let batches = Permission::default();
        let bus =
            Self { connection, config, template, envelope, inflight, batch_events_max, batches };
        if bus.connection.ready().is_ok() {
            // The first batch is to be of the right kind already.
            bus.takes_batches(Instant::now() + bus.config.ack_timeout).await;
        }
        Ok(bus)
    }

    async fn publish_window(&self, events: &[OutboxEvent]) -> Vec<PublishResult> {
        let start = Instant::now();
        let deadline = start + self.config.ack_timeout;
        if let Err(error) = self.connection.ready() {
            return all(events, error, || self.connection.lost("not connected"));
        }
        let permits = u32::try_from(events.len()).unwrap_or(u32::MAX);
        let Ok(Ok(_permits)) = timeout_at(deadline, self.inflight.acquire_many(permits)).await
        else {
            let busy = || self.no_answer("all of max_ack_inflight wait for acknowledgements");
            return all(events, busy(), busy);
        };
        let mut slots: Vec<Slot<'_>> = events.iter().map(|event| self.slot(event)).collect();
        let lost = self.send(&mut slots, deadline).await;
        self.judge(slots, start, lost).await
    }

    /// Sends all events and waits for what becomes of them. Returns whether the connection was lost.
    async fn send(&self, slots: &mut [Slot<'_>], deadline: Instant) -> bool {
        let mut losses = self.connection.losses();
        losses.mark_unchanged();
        if slots.len() > 1 && self.takes_batches(deadline).await {
            match self.send_batches(slots, &mut losses, deadline).await {
                Some(lost) => return lost,
                None => self.batches.refused(&self.connection),
            }
        }
        self.send_one_per_key(slots, &mut losses, deadline).await
    }

    /// Whether the stream takes batches. Only one that is configured can be asked.
    async fn takes_batches(&self, by: Instant) -> bool {
        match &self.config.stream {
            Some(stream) => self.batches.ask(&self.connection, stream, by).await,
            None => false,
        }
    }

    /// Sends batches: another one only where an event failed by its own fault, without its key.
    /// Returns whether the connection was lost; `None` where the stream takes no batches any more.
    async fn send_batches(
        &self,
        slots: &mut [Slot<'_>],
        losses: &mut watch::Receiver<u64>,
        deadline: Instant,
    ) -> Option<bool> {
        loop {
            let batch = sendable(slots);
            if batch.is_empty() {
                return Some(false);
            }
            let client = &self.connection.client;
            let messages = batch.iter().filter_map(|at| slots[*at].take_message()).collect();
            let Sent { stored, then } =
                fast_ingest::publish(client, messages, losses, deadline).await;
            for at in &batch[..stored] {
                slots[*at].state = State::Done(Outcome::Acknowledged);
            }
            match then {
                Then::AllStored => return Some(false),
                Then::Lost => return Some(true),
                Then::NoBatches => {
                    self.make_again(slots, &batch);
                    return None;
                }
                Then::Failed(outcome) => {
                    let slot = &mut slots[batch[stored]];
                    let goes_on = is_own_fault(&outcome, slot.per_event);
                    slot.state = State::Done(outcome);
                    if !goes_on {
                        return Some(false);
                    }
                    self.make_again(slots, &batch[stored + 1..]);
                }
            }
        }
    }

    /// The messages of events that were taken to be sent, and are not stored.
    fn make_again(&self, slots: &mut [Slot<'_>], which: &[usize]) {
        for at in which {
            slots[*at] = self.slot(slots[*at].event);
        }
    }

    /// Sends one event of each key and waits for the answers, until none is left. That is once, but
    /// for a call that was made for a stream that took batches.
    async fn send_one_per_key(
        &self,
        slots: &mut [Slot<'_>],
        losses: &mut watch::Receiver<u64>,
        deadline: Instant,
    ) -> bool {
        loop {
            let round = first_of_keys(slots);
            if round.is_empty() {
                return false;
            }
            for at in &round {
                self.send_one(&mut slots[*at], deadline).await;
            }
            let lost = tokio::select! {
                biased;
                () = receive(slots, deadline) => false,
                _ = losses.changed() => true,
            };
            if lost {
                // Answers that did arrive count; the rest will not come on this connection.
                receive(slots, Instant::now()).await;
            }
            if lost || Instant::now() >= deadline {
                give_up(slots);
                return lost;
            }
        }
    }

    async fn send_one(&self, slot: &mut Slot<'_>, deadline: Instant) {
        let Some(Outbound { subject, headers, body }) = slot.take_message() else { return };
        let message = PublishMessage::build().payload(body).headers(headers);
        let publish = self.connection.jetstream.send_publish(subject, message);
        // Past the deadline this fails at once, and so do all that follow.
        slot.state = match timeout_at(deadline, publish).await {
            Ok(Ok(answer)) => State::Waiting(answer.into_future()),
            Ok(Err(error)) => State::Done(Outcome::from(error)),
            Err(_) => State::Done(Outcome::NoAnswer),
        };
    }

    fn slot<'e>(&self, event: &'e OutboxEvent) -> Slot<'e> {
        match self.message(event) {
            Ok((per_event, message)) => {
                let subject = message.subject.clone();
                Slot { event, subject, per_event, state: State::Ready(message) }
            }
            Err(error) => {
                let state = State::Done(Outcome::Failed(error));
                Slot { event, subject: Subject::from_static(""), per_event: true, state }
            }
        }
    }

    /// The message of `event`, and whether the subject is this event's own.
    fn message(&self, event: &OutboxEvent) -> Result<(bool, Outbound)> {
        let topic = self.template.topic(event)?;
        subject::check(&topic.name)?;
        let message = self.envelope.message(event)?;
        let mut headers = HeaderMap::new();
        headers.insert(async_nats::header::NATS_MESSAGE_ID, event.id().to_string());
        if let Some(stream) = &self.config.stream {
            headers.insert(async_nats::header::NATS_EXPECTED_STREAM, stream.as_str());
        }
        for (name, value) in message.headers {
            let malformed = |why| {
                Error::new(ErrorKind::Malformed, "encode event", why).with_context("header", name)
            };
            if value.contains(['\r', '\n']) {
                return Err(malformed("NATS carries no line break in a header value"));
            }
            let name = match HEADER_NAMES.iter().find(|(known, _)| *known == name) {
                Some((_, known)) => known.clone(),
                None => name.parse().map_err(|_| malformed("NATS carries no such header name"))?,
            };
            headers.insert(name, HeaderValue::from(value.into_owned()));
        }
        let subject = Subject::from(topic.name.into_owned());
        Ok((topic.per_event, Outbound { subject, headers, body: message.body }))
    }

    /// Turns outcomes into results.
    async fn judge(&self, slots: Vec<Slot<'_>>, start: Instant, lost: bool) -> Vec<PublishResult> {
        let uncovered = any(&slots, |outcome| matches!(outcome, Outcome::NoStream));
        let acknowledged = any(&slots, |outcome| matches!(outcome, Outcome::Acknowledged));
        let serves = uncovered && (acknowledged || self.stream_exists().await);
        let judge = |slot: Slot<'_>| match slot.state {
            State::Ready(_) => Err(Error::new(
                ErrorKind::Failed,
                "publish to nats",
                "not sent, since an earlier event of its key failed",
            )),
            State::Done(Outcome::Acknowledged) => Ok(()),
            State::Done(Outcome::Failed(error)) => Err(error),
            State::Done(Outcome::NoStream) => {
                Err(no_stream(&slot.subject, serves && slot.per_event))
            }
            State::Done(Outcome::NoAnswer) | State::Waiting(_) => {
                Err(self.unanswered(&slot.subject, start, lost))
            }
        };
        slots.into_iter().map(judge).collect()
    }

    /// Whether the configured stream is there: then a subject it does not cover is its event's own
    /// fault. Without a configured stream nobody can say.
    async fn stream_exists(&self) -> bool {
        match &self.config.stream {
            Some(stream) => self.connection.jetstream.get_stream(stream).await.is_ok(),
            None => false,
        }
    }

    fn unanswered(&self, subject: &str, start: Instant, lost: bool) -> Error {
        if let Some(refusal) = self.connection.refusal(subject, start) {
            return Error::new(ErrorKind::Unauthorized, "publish to nats", refusal)
                .with_context("subject", subject);
        }
        if lost || self.connection.ready().is_err() {
            return self.connection.lost("the connection was lost before the acknowledgement");
        }
        self.no_answer("no acknowledgement in time")
    }

    fn no_answer(&self, message: &'static str) -> Error {
        Error::new(ErrorKind::Timeout, "publish to nats", message)
            .with_context("ack_timeout", format_args!("{:?}", self.config.ack_timeout))
    }
}

#[async_trait]
impl EventBus for NatsBus {
    fn capabilities(&self) -> BusCapabilities {
        BusCapabilities {
            batch_events_max: self.batch_events_max,
            key_pipelining: if self.batches.is_granted() {
                KeyPipelining::SuffixFails
            } else {
                KeyPipelining::OnePerKey
            },
            deduplicates: true,
            ..BusCapabilities::new("nats")
        }
    }

    async fn publish(&self, events: &[OutboxEvent]) -> Vec<PublishResult> {
        let mut results = Vec::with_capacity(events.len());
        for window in events.chunks(self.batch_events_max) {
            results.append(&mut self.publish_window(window).await);
        }
        results
    }

    async fn check(&self) -> Result<()> {
        self.connection.ready()?;
        let template = &self.template;
        check::check(&self.connection.jetstream, self.config.stream.as_deref(), template).await
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

/// The events that can be sent now: those of keys without a failure.
fn sendable(slots: &[Slot<'_>]) -> Vec<usize> {
    let mut failed: HashSet<&OrderKey> = HashSet::new();
    let mut ready = Vec::with_capacity(slots.len());
    for (at, slot) in slots.iter().enumerate() {
        if slot.has_failed() {
            failed.insert(slot.key());
        } else if slot.is_ready() && !failed.contains(slot.key()) {
            ready.push(at);
        }
    }
    ready
}

/// The first event of each key that can be sent now.
fn first_of_keys(slots: &[Slot<'_>]) -> Vec<usize> {
    let mut seen: HashSet<&OrderKey> = HashSet::with_capacity(slots.len());
    let ready = sendable(slots);
    ready.into_iter().filter(|at| seen.insert(slots[*at].key())).collect()
}

/// Whether other events may do better.
fn is_own_fault(outcome: &Outcome, per_event: bool) -> bool {
    match outcome {
        Outcome::Failed(error) => error.status() != ErrorStatus::Unavailable,
        Outcome::NoStream => per_event,
        Outcome::NoAnswer | Outcome::Acknowledged => false,
    }
}

/// Nothing more is sent in this call.
fn give_up(slots: &mut [Slot<'_>]) {
    for slot in slots.iter_mut().filter(|slot| slot.is_ready()) {
        slot.state = State::Done(Outcome::NoAnswer);
    }
}

fn any(slots: &[Slot<'_>], wanted: impl Fn(&Outcome) -> bool) -> bool {
    slots.iter().any(|slot| matches!(&slot.state, State::Done(outcome) if wanted(outcome)))
}

/// Waits for answers in the order sent. One that is there counts even after the deadline.
async fn receive(slots: &mut [Slot<'_>], deadline: Instant) {
    for slot in slots {
        if let State::Waiting(answer) = &mut slot.state
            && let Ok(answer) = timeout_at(deadline, answer).await
        {
            slot.state = State::Done(match answer {
                Ok(_) => Outcome::Acknowledged,
                Err(error) => Outcome::from(error),
            });
        }
    }
}

/// `first` for the first event and another of its like for each of the rest.
fn all(events: &[OutboxEvent], first: Error, another: impl Fn() -> Error) -> Vec<PublishResult> {
    let mut first = Some(first);
    events.iter().map(|_| Err(first.take().unwrap_or_else(&another))).collect()
}

/// Headers that JetStream acts upon: `Nats-Rollup` empties a stream, `Nats-Msg-Id` is ours.
fn is_reserved(name: &str) -> bool {
    name.starts_with("nats-")
}
