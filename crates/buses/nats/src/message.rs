//! Events as messages: their subjects, headers and bodies, and which are not sent at all.

use async_nats::Subject;
use async_nats::header::{HeaderMap, HeaderName, HeaderValue};
use posthaste_core::{Error, ErrorKind, OutboxEvent, Result, Subject as About};

use super::acknowledgement::{Outcome, not_covered};
use super::bus::NatsBus;
use super::check;
use super::pipelining::Known;
use super::slots::{Outbound, Slot, State};
use super::subject::{covers, is_covered};

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

impl NatsBus {
    /// The messages of events that were taken to be sent, and are not stored.
    pub(super) fn make_again(&self, slots: &mut [Slot<'_>], which: &[usize]) {
        for at in which {
            slots[*at] = self.slot(slots[*at].event, None);
        }
    }

    pub(super) fn slots<'e>(
        &self,
        events: &'e [OutboxEvent],
        known: Option<&Known>,
    ) -> Vec<Slot<'e>> {
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
}

/// Headers that JetStream acts upon: `Nats-Rollup` empties a stream, `Nats-Msg-Id` is ours.
pub(super) fn is_reserved(name: &str) -> bool {
    name.starts_with("nats-")
}
