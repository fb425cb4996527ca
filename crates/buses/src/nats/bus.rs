//! Publishing: as one batch where the stream takes batches, else in rounds, each of chains or of one
//! event of each key, and of their answers.

use std::sync::PoisonError;
use std::time::Duration;

use async_nats::header::{HeaderMap, HeaderName, HeaderValue};
use async_nats::{Subject, Subscriber};
use async_trait::async_trait;
use futures_util::FutureExt as _;
use posthaste_core::{
    BusCapabilities, Error, ErrorKind, EventBus, KeyPipelining, OutboxEvent, Outcomes,
    PublishResult, Result, Subject as About,
};
use tokio::sync::{Mutex, Semaphore, watch};
use tokio::time::{Instant, sleep, timeout, timeout_at};
use uuid::Uuid;

use super::acknowledgement::{Ack, Outcome, not_covered};
use super::chains::{self, Disturbance, Link, Tally};
use super::check;
use super::config::NatsConfig;
use super::connection::Connection;
use super::fast_ingest::{self, Sent, Then};
use super::pace::Pace;
use super::pipelining::{Knowledge, Known, Pipelining};
use super::reporter::Reporter;
use super::slots::{Outbound, Slot, State, give_up, is_of_one_event, sendable};
use super::streams::Streams;
use super::subject::{Allowed, covers, is_covered};
use crate::TopicTemplate;
use crate::envelope::Envelope;

/// The most events one call pipelines. Past it the broker is the limit, not the round trip.
const BATCH_EVENTS_MAX: usize = 1_000;
/// How long the stream gets to store the earlier copy of an event before it is asked again.
const IN_PROCESS_WAIT: Duration = Duration::from_millis(50);
/// How old what is known of a stream may be to refuse an event: its subjects may have changed.
const REFUSAL_AGE_MAX: Duration = Duration::from_secs(1);

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

/// What is to be done after batches.
enum After {
    /// Nothing.
    Over { lost: bool },
    /// What is left goes event by event.
    Rounds,
    /// The same, and no batches any more.
    NoBatches,
}

/// Publishes events to NATS JetStream. See the [module](super) for order and errors.
#[derive(Debug)]
pub struct NatsBus {
    pub(super) connection: Connection,
    pub(super) config: NatsConfig,
    pub(super) allowed: Allowed,
    envelope: Envelope,
    /// One permit per event that waits for its acknowledgement. A call takes all of its permits at
    /// once, so that two calls never wait for each other's.
    inflight: Semaphore,
    batch_events_max: usize,
    /// What the configured stream allows.
    pub(super) knowledge: Knowledge,
    /// What is known of streams where none is configured.
    pub(super) streams: Streams,
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
        let allowed = Allowed::new(TopicTemplate::parse(&config.subject)?, &config.allow_topic)?;
        let envelope = Envelope::new(config.envelope, &config.cloudevents_source, is_reserved);
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

    /// The messages of events that were taken to be sent, and are not stored.
    fn make_again(&self, slots: &mut [Slot<'_>], which: &[usize]) {
        for at in which {
            slots[*at] = self.slot(slots[*at].event, None);
        }
    }

    /// Sends the events of each key, several behind each other or one, and waits for the answers,
    /// until none is left that can be sent. That is once, but for chains that were broken, and for a
    /// call that was made for a stream that allowed more.
    async fn send_rounds(
        &self,
        slots: &mut [Slot<'_>],
        chained: bool,
        reporter: Reporter<'_>,
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
            let lost = self.send_round(slots, &round, reporter, losses, deadline).await;
            let (again, overtaken) = chains::go_again(slots, &round);
            let in_process = again.iter().any(|at| slots[*at].is_in_process());
            self.make_again(slots, &again);
            if lost {
                give_up(slots);
                return true;
            }
            tally.add(&round, overtaken);
            if in_process {
                sleep(IN_PROCESS_WAIT).await;
            }
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
        reporter: Reporter<'_>,
        losses: &mut watch::Receiver<u64>,
        deadline: Instant,
    ) -> bool {
        let (start, mut refusals) = (Instant::now(), self.connection.refusals());
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
            _ = timeout_at(deadline, async {
                loop {
                    tokio::select! {
                        biased;
                        () = self.take_in(&mut answers, slots, &mut waiting, reporter) => return,
                        // Nobody answers what is refused.
                        _ = refusals.changed() => {
                            waiting -= self.take_refusals(slots, start);
                        }
                    }
                }
            }) => false,
            _ = losses.changed() => true,
        };
        // Answers that did arrive count. The rest will not come on this connection, or too late.
        let _ = self.take_in(&mut answers, slots, &mut waiting, reporter).now_or_never();
        lost
    }

    /// Takes answers in until all are there, or none will come.
    async fn take_in(
        &self,
        answers: &mut Subscriber,
        slots: &mut [Slot<'_>],
        waiting: &mut usize,
        reporter: Reporter<'_>,
    ) {
        let mut pace = Pace::new();
        while *waiting > 0 {
            let report = || reporter.acknowledged(slots, |slot, ack| self.is_certain(slot, ack));
            let Some(answer) = pace.wait(answers, report).await else { return };
            // The subject is ours, and ends with the number of the slot.
            let at = answer.subject.as_str().rsplit('.').next().and_then(|at| at.parse().ok());
            if let Some(slot) = at.and_then(|at: usize| slots.get_mut(at))
                && slot.is_waiting()
                && let Some(outcome) = Outcome::of_answer(&answer, self.config.stream.as_deref())
            {
                slot.state = State::Done(outcome);
                *waiting -= 1;
                pace.begin();
            }
        }
    }

    /// Whether an acknowledgement needs no more looking into.
    fn is_certain(&self, slot: &Slot<'_>, ack: &Ack) -> bool {
        let stores = |stream: &str| self.streams.stores(stream, &slot.subject) == Some(true);
        ack.stream.as_deref().is_none_or(stores)
    }

    /// Ends the wait for what was refused since `start` for lack of rights. Returns how many.
    fn take_refusals(&self, slots: &mut [Slot<'_>], start: Instant) -> usize {
        let mut refused = 0;
        for slot in slots.iter_mut().filter(|slot| slot.is_waiting()) {
            if self.connection.refusal(&slot.subject, start).is_some() {
                slot.state = State::Done(Outcome::NoAnswer);
                refused += 1;
            }
        }
        refused
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

    fn slots<'e>(&self, events: &'e [OutboxEvent], known: Option<&Known>) -> Vec<Slot<'e>> {
        events.iter().map(|event| self.slot(event, known)).collect()
    }

    fn slot<'e>(&self, event: &'e OutboxEvent, known: Option<&Known>) -> Slot<'e> {
        match self.message(event) {
            Ok((per_event, message)) => {
                let subject = message.subject.clone();
                let state = match self.refusal(&subject, known) {
                    Some(refusal) => State::Done(Outcome::Failed(refusal)),
                    None => State::Ready(message),
                };
                Slot { event, subject, per_event, state }
            }
            Err(error) => {
                let state = State::Done(Outcome::Failed(error));
                Slot { event, subject: Subject::from_static(""), per_event: true, state }
            }
        }
    }

    /// Why nothing is published to a subject that the configured stream does not store: anybody else
    /// may listen there, and answer.
    fn refusal(&self, subject: &str, known: Option<&Known>) -> Option<Error> {
        let (stream, filters) = (self.config.stream.as_deref()?, known?.filters.as_ref()?);
        if filters.is_empty() {
            return Some(check::no_such_stream(stream));
        }
        if is_covered(filters, subject) {
            return None;
        }
        let error = not_covered(subject, stream, filters);
        let is_any = filters.iter().any(|filter| covers(filter, self.allowed.template()));
        Some(if is_any { error } else { error.about(About::Destination) })
    }

    /// The message of `event`, and whether the subject is this event's own.
    fn message(&self, event: &OutboxEvent) -> Result<(bool, Outbound)> {
        let topic = self.allowed.template().topic(event)?;
        self.allowed.check(&topic.name, event.topic().is_some())?;
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
            deduplicates: true,
            ..BusCapabilities::new("nats")
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

/// Headers that JetStream acts upon: `Nats-Rollup` empties a stream, `Nats-Msg-Id` is ours.
fn is_reserved(name: &str) -> bool {
    name.starts_with("nats-")
}
