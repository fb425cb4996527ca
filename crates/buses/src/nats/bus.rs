//! Publishing: as one batch where the stream takes batches, else in rounds, each of chains or of one
//! event of each key, and of their answers.

use async_nats::header::{HeaderMap, HeaderName, HeaderValue};
use async_nats::{Subject, Subscriber};
use async_trait::async_trait;
use futures_util::{FutureExt as _, StreamExt as _};
use posthaste_core::{
    BusCapabilities, Error, ErrorKind, EventBus, KeyPipelining, OutboxEvent, PublishResult, Result,
};
use tokio::sync::{Mutex, Semaphore, watch};
use tokio::time::{Instant, timeout, timeout_at};
use uuid::Uuid;

use super::acknowledgement::{Outcome, no_stream};
use super::chains::{self, Disturbance, Link, Tally};
use super::config::NatsConfig;
use super::connection::Connection;
use super::fast_ingest::{self, Sent, Then};
use super::pipelining::{Knowledge, Pipelining};
use super::slots::{Outbound, Slot, State, any, give_up, is_own_fault, sendable};
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
    /// What the configured stream allows.
    knowledge: Knowledge,
    disturbance: Disturbance,
    /// Held while the messages of a call are handed to the client, so that those of a chain are not
    /// apart.
    turn: Mutex<()>,
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
        let bus = Self {
            connection,
            config,
            template,
            envelope,
            inflight,
            batch_events_max,
            knowledge: Knowledge::default(),
            disturbance: Disturbance::default(),
            turn: Mutex::default(),
        };
        if bus.connection.ready().is_ok() {
            // The first call is to be of the right kind already.
            bus.pipelining(Instant::now() + bus.config.ack_timeout).await;
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
        let mut pipelining = Pipelining::OnePerKey;
        if slots.len() > 1 {
            pipelining = self.pipelining(deadline).await;
        }
        if pipelining == Pipelining::Batches {
            match self.send_batches(slots, &mut losses, deadline).await {
                Some(lost) => return lost,
                None => self.knowledge.refused(&self.connection),
            }
        }
        let chained = pipelining == Pipelining::Chains;
        self.send_rounds(slots, chained, &mut losses, deadline).await
    }

    /// What the stream allows. Only one that is configured can be asked.
    async fn pipelining(&self, by: Instant) -> Pipelining {
        match &self.config.stream {
            Some(stream) => self.knowledge.ask(&self.connection, stream, by).await,
            None => Pipelining::OnePerKey,
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

    /// Sends the events of each key, several behind each other or one, and waits for the answers,
    /// until none is left that can be sent. That is once, but for chains that were broken, and for a
    /// call that was made for a stream that allowed more.
    async fn send_rounds(
        &self,
        slots: &mut [Slot<'_>],
        chained: bool,
        losses: &mut watch::Receiver<u64>,
        deadline: Instant,
    ) -> bool {
        let mut longest = if chained { slots.len() } else { 1 };
        let mut tally = Tally::default();
        loop {
            let round = chains::of_keys(slots, longest);
            if round.is_empty() {
                break;
            }
            if Instant::now() >= deadline {
                give_up(slots);
                return false;
            }
            let lost = self.send_round(slots, &round, losses, deadline).await;
            let (again, overtaken) = chains::go_again(slots, &round);
            self.make_again(slots, &again);
            if lost {
                give_up(slots);
                return true;
            }
            tally.add(&round, overtaken);
            if chained {
                longest = chains::longest_after(longest, overtaken > 0);
            }
        }
        if self.disturbance.note(tally) {
            self.knowledge.refused(&self.connection);
        }
        false
    }

    /// Sends messages and takes their answers in. Returns whether the connection was lost.
    ///
    /// All answers come to one subscription. Of the client's own way, a channel, two timers, two permits
    /// and a random subject for each message, nothing is needed here.
    async fn send_round(
        &self,
        slots: &mut [Slot<'_>],
        round: &[Link],
        losses: &mut watch::Receiver<u64>,
        deadline: Instant,
    ) -> bool {
        let client = &self.connection.client;
        let inbox = client.new_inbox();
        let Ok(Ok(mut answers)) =
            timeout_at(deadline, client.subscribe(format!("{inbox}.*"))).await
        else {
            return true;
        };
        self.hand_over(slots, round, &inbox, deadline).await;
        let mut waiting = slots.iter().filter(|slot| slot.is_waiting()).count();
        let lost = tokio::select! {
            biased;
            _ = timeout_at(deadline, take_in(&mut answers, slots, &mut waiting)) => false,
            _ = losses.changed() => true,
        };
        // Answers that did arrive count. The rest will not come on this connection, or too late.
        let _ = take_in(&mut answers, slots, &mut waiting).now_or_never();
        lost
    }

    /// Hands messages to the client, and nothing of another call between them.
    async fn hand_over(
        &self,
        slots: &mut [Slot<'_>],
        round: &[Link],
        inbox: &str,
        deadline: Instant,
    ) {
        let Ok(_turn) = timeout_at(deadline, self.turn.lock()).await else { return };
        let mut before = None;
        for link in round {
            // What did not leave the client breaks its chain.
            let is_broken = before.is_some_and(|at: usize| slots[at].has_failed());
            if link.behind.is_none() || !is_broken {
                let reply = format!("{inbox}.{}", link.at);
                self.send_one(&mut slots[link.at], link.behind, reply, deadline).await;
                before = Some(link.at);
            }
        }
    }

    async fn send_one(
        &self,
        slot: &mut Slot<'_>,
        behind: Option<Uuid>,
        reply: String,
        deadline: Instant,
    ) {
        let Some(Outbound { subject, mut headers, body }) = slot.take_message() else { return };
        if let Some(id) = behind {
            headers.insert(async_nats::header::NATS_EXPECTED_LAST_MESSAGE_ID, id.to_string());
        }
        let client = &self.connection.client;
        let publish = client.publish_with_reply_and_headers(subject, reply, headers, body);
        slot.state = match timeout_at(deadline, publish).await {
            Ok(Ok(())) => State::Waiting,
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
            State::Ready(_) | State::Done(Outcome::Overtaken) => Err(Error::new(
                ErrorKind::Failed,
                "publish to nats",
                "not sent, since an earlier event of its key failed",
            )),
            State::Done(Outcome::Acknowledged) => Ok(()),
            State::Done(Outcome::Failed(error)) => Err(error),
            State::Done(Outcome::NoStream) => {
                Err(no_stream(&slot.subject, serves && slot.per_event))
            }
            State::Done(Outcome::NoAnswer) | State::Waiting => {
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
            key_pipelining: match self.knowledge.get() {
                Pipelining::Batches | Pipelining::Chains => KeyPipelining::SuffixFails,
                Pipelining::OnePerKey => KeyPipelining::OnePerKey,
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

/// Takes answers in until all are there, or none will come.
async fn take_in(answers: &mut Subscriber, slots: &mut [Slot<'_>], waiting: &mut usize) {
    while *waiting > 0 {
        let Some(answer) = answers.next().await else { return };
        // The subject is ours, and ends with the number of the slot.
        let at = answer.subject.as_str().rsplit('.').next().and_then(|at| at.parse().ok());
        if let Some(slot) = at.and_then(|at: usize| slots.get_mut(at))
            && slot.is_waiting()
            && let Some(outcome) = Outcome::of_answer(&answer)
        {
            slot.state = State::Done(outcome);
            *waiting -= 1;
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
