//! Publishing: all events of a call at once, then all acknowledgements.

use std::future::{Future, IntoFuture};
use std::pin::Pin;

use async_nats::Subject;
use async_nats::header::{HeaderMap, HeaderName, HeaderValue};
use async_nats::jetstream::context::PublishError;
use async_nats::jetstream::message::PublishMessage;
use async_nats::jetstream::publish::PublishAck;
use async_trait::async_trait;
use posthaste_core::{
    BusCapabilities, Error, ErrorKind, EventBus, KeyPipelining, OutboxEvent, PublishResult, Result,
};
use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout, timeout_at};

use super::acknowledgement::{Outcome, no_stream};
use super::config::NatsConfig;
use super::connection::Connection;
use super::{check, subject};
use crate::TopicTemplate;
use crate::envelope::Envelope;

/// The most events one call pipelines. Past it the broker is the limit, not the round trip.
const BATCH_EVENTS_MAX: usize = 1_000;

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
}

type Answer = Pin<Box<dyn Future<Output = Result<PublishAck, PublishError>> + Send>>;

/// One event of a call.
struct Slot {
    subject: Subject,
    /// Whether the subject is this event's own.
    per_event: bool,
    state: State,
}

enum State {
    Waiting(Answer),
    Done(Outcome),
}

impl Default for Slot {
    fn default() -> Self {
        let state = State::Done(Outcome::NoAnswer);
        Self { subject: Subject::from_static(""), per_event: true, state }
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
        Ok(Self { connection, config, template, envelope, inflight, batch_events_max })
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
        let mut losses = self.connection.losses();
        losses.mark_unchanged();
        let mut slots = self.send(events, deadline).await;
        let lost = tokio::select! {
            biased;
            () = receive(&mut slots, deadline) => false,
            _ = losses.changed() => true,
        };
        if lost {
            // Answers that did arrive count; the rest will not come on this connection.
            receive(&mut slots, Instant::now()).await;
        }
        self.judge(slots, start, lost).await
    }

    /// Sends all events in order. What cannot be sent is done already.
    async fn send(&self, events: &[OutboxEvent], deadline: Instant) -> Vec<Slot> {
        let mut slots = Vec::with_capacity(events.len());
        for event in events {
            let mut slot = Slot::default();
            slot.state = match self.message(event) {
                Err(error) => State::Done(Outcome::Failed(error)),
                Ok((subject, per_event, message)) => {
                    slot.subject = subject.clone();
                    slot.per_event = per_event;
                    let publish = self.connection.jetstream.send_publish(subject, message);
                    // Past the deadline this fails at once, and so do all that follow.
                    match timeout_at(deadline, publish).await {
                        Ok(Ok(answer)) => State::Waiting(answer.into_future()),
                        Ok(Err(error)) => State::Done(Outcome::from(error)),
                        Err(_) => State::Done(Outcome::NoAnswer),
                    }
                }
            };
            slots.push(slot);
        }
        slots
    }

    /// The subject of `event`, whether it is this event's own, and the message.
    fn message(&self, event: &OutboxEvent) -> Result<(Subject, bool, PublishMessage)> {
        let topic = self.template.topic(event)?;
        subject::check(&topic.name)?;
        let message = self.envelope.message(event)?;
        let mut headers = HeaderMap::new();
        headers.insert(async_nats::header::NATS_MESSAGE_ID, event.id().to_string());
        if let Some(stream) = &self.config.stream {
            headers.insert(async_nats::header::NATS_EXPECTED_STREAM, stream.as_str());
        }
        for (name, value) in &message.headers {
            let malformed = |why: String| {
                Error::new(ErrorKind::Malformed, "encode event", why).with_context("header", name)
            };
            let value: HeaderValue = value.parse().map_err(|_| {
                malformed("NATS carries no line break in a header value".to_owned())
            })?;
            let name: HeaderName = name
                .parse()
                .map_err(|_| malformed("NATS carries no such header name".to_owned()))?;
            headers.insert(name, value);
        }
        let subject = Subject::from(topic.name.into_owned());
        let message = PublishMessage::build().payload(message.body).headers(headers);
        Ok((subject, topic.per_event, message))
    }

    /// Turns outcomes into results.
    async fn judge(&self, slots: Vec<Slot>, start: Instant, lost: bool) -> Vec<PublishResult> {
        let uncovered = any(&slots, |outcome| matches!(outcome, Outcome::NoStream));
        let acknowledged = any(&slots, |outcome| matches!(outcome, Outcome::Acknowledged));
        let serves = uncovered && (acknowledged || self.stream_exists().await);
        let judge = |slot: Slot| match slot.state {
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
            key_pipelining: KeyPipelining::OnePerKey,
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

fn any(slots: &[Slot], wanted: impl Fn(&Outcome) -> bool) -> bool {
    slots.iter().any(|slot| matches!(&slot.state, State::Done(outcome) if wanted(outcome)))
}

/// Waits for answers in the order sent. One that is there counts even after the deadline.
async fn receive(slots: &mut [Slot], deadline: Instant) {
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
