//! What outcomes mean: acknowledgements that are looked into, and failures, each with whom it is about.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use async_nats::jetstream::context::{GetStreamByNameError, GetStreamByNameErrorKind};
use futures_util::StreamExt as _;
use posthaste_bus_kit::evidence::of_address;
use posthaste_core::{Error, ErrorKind, PublishResult, Subject};
use tokio::time::Instant;

use super::acknowledgement::{Outcome, no_leader, no_stream, not_covered, over_max_payload};
use super::bus::NatsBus;
use super::check;
use super::pipelining::info_subject;
use super::reporter::Reporter;
use super::slots::{Slot, State};
use super::subject::is_covered;

/// The most subjects of a call that the server is asked about: those of the others are the same, or the
/// destination is in trouble.
const QUESTIONS_MAX: usize = 16;
const QUESTIONS_AT_ONCE: usize = 4;

/// What the server says of a subject that nobody answers for.
enum Coverage {
    /// A stream stores it, or would.
    Covered,
    /// None does; and not the others of the template either, where it is about the destination.
    NotCovered(Subject),
    /// The configured one does not, but these.
    NotByStream(Vec<String>),
    /// It does not say, and why.
    Unknown(ErrorKind, String),
}

impl NatsBus {
    /// Turns outcomes into results and reports them.
    pub(super) async fn report(
        &self,
        slots: Vec<Slot<'_>>,
        start: Instant,
        lost: bool,
        reporter: Reporter<'_>,
    ) {
        self.look_into_acknowledgements(&slots).await;
        let coverage = self.look_up(&slots, start, lost).await;
        let limit = self.limit(&slots).await;
        let mut known = Vec::with_capacity(slots.len());
        for (at, slot) in slots.into_iter().enumerate() {
            let result: PublishResult = match slot.state {
                State::Reported => continue,
                State::Done(Outcome::Acknowledged(ref ack)) => {
                    let stores =
                        |stream: &str| self.streams.stores(stream, &slot.subject) != Some(false);
                    if ack.stream.as_deref().is_none_or(stores) {
                        known.push(reporter.stored_one(at, ack));
                        continue;
                    }
                    Err(no_stream(&slot.subject).with_context(
                        "answered by",
                        "somebody who is none, in the name of a stream that does not store it",
                    ))
                }
                State::Ready(_) | State::Done(Outcome::Overtaken) => Err(Error::new(
                    ErrorKind::Failed,
                    "publish to nats",
                    "not sent, since an earlier event of its key failed",
                )),
                State::Done(Outcome::Failed(error)) => Err(error),
                State::Done(Outcome::OverMaxPayload) => Err(self.over_limit(limit)),
                State::Done(Outcome::NoStream) => {
                    let coverage = coverage.get(&*slot.subject).unwrap_or(&Coverage::Covered);
                    Err(self.not_taken(&slot.subject, coverage))
                }
                State::Done(Outcome::NoAnswer | Outcome::InProcess) | State::Waiting => {
                    Err(match coverage.get(&*slot.subject) {
                        Some(found @ Coverage::NotCovered(_)) => {
                            self.not_taken(&slot.subject, found)
                        }
                        _ => self.unanswered(&slot.subject, start, lost),
                    })
                }
            };
            let result = result.map_err(|error| match error.subject() {
                Subject::Route => error.about(of_address(slot.per_event)),
                _ => error,
            });
            known.push((reporter.offset + at, result));
        }
        reporter.outcomes.known(known);
    }

    /// Asks about the streams that acknowledged something, where it is not known what they store.
    async fn look_into_acknowledgements(&self, slots: &[Slot<'_>]) {
        let mut asked: HashSet<&str> = HashSet::new();
        for slot in slots {
            if let State::Done(Outcome::Acknowledged(ack)) = &slot.state
                && let Some(stream) = ack.stream.as_deref()
                && self.streams.stores(stream, &slot.subject).is_none()
                && asked.len() < QUESTIONS_MAX
                && asked.insert(stream)
            {
                self.streams.ask(&self.connection, stream, self.question_wait()).await;
            }
        }
    }

    /// Asks about subjects that nobody answered for.
    async fn look_up(
        &self,
        slots: &[Slot<'_>],
        start: Instant,
        lost: bool,
    ) -> HashMap<String, Coverage> {
        let is_silent = |slot: &&Slot<'_>| match &slot.state {
            State::Done(Outcome::NoStream) => true,
            // Somebody listens there who is no stream, or the stream is in trouble.
            State::Done(Outcome::NoAnswer) | State::Waiting => {
                self.config.stream.is_none()
                    && self.connection.refusal(&slot.subject, start).is_none()
            }
            _ => false,
        };
        if lost || self.connection.ready().is_err() {
            return HashMap::new();
        }
        let silent = slots.iter().filter(is_silent).map(|slot| slot.subject.to_string());
        let subjects: HashSet<String> = silent.take(QUESTIONS_MAX * 64).collect();
        let ask = |subject: String| async move {
            let coverage = self.coverage(&subject).await;
            (subject, coverage)
        };
        futures_util::stream::iter(subjects.into_iter().take(QUESTIONS_MAX))
            .map(ask)
            .buffer_unordered(QUESTIONS_AT_ONCE)
            .collect()
            .await
    }

    async fn coverage(&self, subject: &str) -> Coverage {
        let (wait, connection) = (self.question_wait(), &self.connection);
        let jetstream = &self.connection.jetstream;
        let silent = || Coverage::Unknown(ErrorKind::Timeout, "JetStream does not answer".into());
        let unknown = |error: Error| Coverage::Unknown(error.kind(), error.report());
        match self.config.stream.as_deref() {
            Some(stream) => {
                let question = check::find(jetstream, stream);
                match connection.answer(&info_subject(stream), wait, question).await {
                    Some(Ok(config)) if is_covered(&config.subjects, subject) => Coverage::Covered,
                    Some(Ok(config)) => Coverage::NotByStream(config.subjects),
                    Some(Err(error)) => unknown(error),
                    None => silent(),
                }
            }
            None => match self.stream_of(subject).await {
                Some(Ok(_)) => Coverage::Covered,
                Some(Err(error)) if error.kind() == GetStreamByNameErrorKind::NotFound => {
                    let all = self.is_all_uncovered(subject).await;
                    Coverage::NotCovered(if all { Subject::Destination } else { Subject::Route })
                }
                Some(Err(error)) => unknown(check::unanswered(error)),
                None => silent(),
            },
        }
    }

    /// The error of a subject that nobody answered for.
    fn not_taken(&self, subject: &str, coverage: &Coverage) -> Error {
        match coverage {
            Coverage::Covered => no_leader(subject),
            Coverage::NotCovered(about) => no_stream(subject).about(*about),
            Coverage::NotByStream(filters) => {
                not_covered(subject, self.config.stream.as_deref().unwrap_or_default(), filters)
            }
            Coverage::Unknown(kind, report) => Error::new(*kind, "publish to nats", report)
                .about(Subject::Destination)
                .with_context("subject", subject),
        }
    }

    /// Whether no stream stores anything of what the template makes, of which `subject` is one.
    async fn is_all_uncovered(&self, subject: &str) -> bool {
        let Some(all) = self.allowed.template_filter(subject) else { return false };
        match self.stream_of(&all).await {
            Some(Err(error)) => error.kind() == GetStreamByNameErrorKind::NotFound,
            Some(Ok(_)) | None => false,
        }
    }

    /// The name of a stream that stores something of `filter`, as the server's list says.
    async fn stream_of(&self, filter: &str) -> Option<Result<String, GetStreamByNameError>> {
        let question = self.connection.jetstream.stream_by_subject(filter);
        self.connection.answer("$JS.API.STREAM.NAMES", self.question_wait(), question).await
    }

    /// The server's limit, asked for anew where an event is over that which the client knows.
    async fn limit(&self, slots: &[Slot<'_>]) -> Option<usize> {
        let is_over = |slot: &Slot<'_>| matches!(slot.state, State::Done(Outcome::OverMaxPayload));
        if !slots.iter().any(is_over) {
            return None;
        }
        let limit = self.connection.max_payload_now(&self.config).await?;
        if limit > self.connection.client.max_payload() {
            // Only a new connection learns of it. Where that fails, there is none.
            let _ = self.connection.client.force_reconnect().await;
        }
        Some(limit)
    }

    fn over_limit(&self, limit: Option<usize>) -> Error {
        match limit {
            Some(limit) if limit <= self.connection.client.max_payload() => over_max_payload(limit),
            Some(limit) => {
                let message = "the server takes larger messages than it did; connecting again";
                Error::new(ErrorKind::Unreachable, "publish to nats", message)
                    .with_context("max_payload", limit)
            }
            None => Error::new(
                ErrorKind::Unreachable,
                "publish to nats",
                "the event is over the max_payload that the server told once, and it does not tell now",
            ),
        }
    }

    fn question_wait(&self) -> Duration {
        self.config.ack_timeout / 4
    }

    fn unanswered(&self, subject: &str, start: Instant, lost: bool) -> Error {
        if let Some(refusal) = self.connection.refusal(subject, start) {
            // Without its inbox the client gets no answer to anything.
            let is_inbox = refusal.contains("for subscription to");
            let about = if is_inbox { Subject::Destination } else { Subject::Route };
            return Error::new(ErrorKind::Unauthorized, "publish to nats", refusal)
                .about(about)
                .with_context("subject", subject);
        }
        if lost || self.connection.ready().is_err() {
            let message = "the connection was lost before the acknowledgement";
            return self.connection.lost(message, Subject::Destination);
        }
        self.no_answer("no acknowledgement in time").with_context("subject", subject)
    }
}
