//! What JetStream's answer to a publish means.

use std::borrow::Cow;

use async_nats::jetstream::{self, ErrorCode};
use async_nats::{Message, StatusCode};
use posthaste_core::{Error, ErrorKind, Subject};
use serde::Deserialize;

/// What became of one publish.
#[derive(Debug)]
pub(super) enum Outcome {
    Acknowledged(Ack),
    /// Nobody stores this subject at the moment. What that means, the server's list of streams says.
    NoStream,
    /// No answer in time.
    NoAnswer,
    /// The last message of the stream is not the one that it had to be stored behind.
    Overtaken,
    /// An earlier copy of this event is on its way into the stream: it is asked again.
    InProcess,
    /// Over the limit that the client heard of when it connected. It did not leave the client.
    OverMaxPayload,
    /// What is said of a route here is said of the destination where all events go that way.
    Failed(Error),
}

/// That a stream holds the event.
#[derive(Debug)]
pub(super) struct Ack {
    /// Which stream, where none is configured: others may answer, too.
    pub(super) stream: Option<Box<str>>,
    /// The stream held an event of this id already, and dropped this one.
    pub(super) is_repeat: bool,
}

impl Outcome {
    /// Stored, by the stream that is configured.
    pub(super) const STORED: Self = Self::Acknowledged(Ack { stream: None, is_repeat: false });
}

/// What JetStream answers.
#[derive(Deserialize)]
struct Answer<'a> {
    /// Where the message is stored.
    #[serde(borrow)]
    stream: Option<Cow<'a, str>>,
    seq: Option<u64>,
    #[serde(default)]
    duplicate: bool,
    error: Option<jetstream::Error>,
}

impl Outcome {
    /// What an answer says. `None` where it is not JetStream's, or of another stream than the
    /// configured one: others may answer, too.
    pub(super) fn of_answer(message: &Message, configured: Option<&str>) -> Option<Self> {
        if message.status == Some(StatusCode::NO_RESPONDERS) {
            return Some(Self::NoStream);
        }
        let answer: Answer<'_> = serde_json::from_slice(&message.payload).ok()?;
        if let Some(error) = answer.error {
            return Some(Self::from(&error));
        }
        let stream = answer.stream.filter(|_| answer.seq.is_some_and(|seq| seq > 0))?;
        let stream = match configured {
            None => Some(stream.into()),
            Some(configured) if configured == stream => None,
            Some(_) => return None,
        };
        Some(Self::Acknowledged(Ack { stream, is_repeat: answer.duplicate }))
    }
}

impl From<&jetstream::Error> for Outcome {
    fn from(answer: &jetstream::Error) -> Self {
        match answer.error_code() {
            ErrorCode::STREAM_WRONG_LAST_MESSAGE_ID => Self::Overtaken,
            ErrorCode::STREAM_DUPLICATE_MESSAGE_CONFLICT => Self::InProcess,
            _ => Self::Failed(answered(answer)),
        }
    }
}

/// Of a message that did not leave the client.
impl From<async_nats::PublishError> for Outcome {
    fn from(error: async_nats::PublishError) -> Self {
        let failed = match error.kind() {
            async_nats::client::PublishErrorKind::MaxPayloadExceeded => {
                return Self::OverMaxPayload;
            }
            async_nats::client::PublishErrorKind::InvalidSubject => {
                new(ErrorKind::Malformed, "NATS carries no such subject")
            }
            async_nats::client::PublishErrorKind::Send => {
                new(ErrorKind::Unreachable, "the connection broke")
            }
        };
        Self::Failed(failed.with_source(error))
    }
}

fn new(kind: ErrorKind, message: &str) -> Error {
    Error::new(kind, "publish to nats", message)
}

fn answered(answer: &jetstream::Error) -> Error {
    let (kind, message) = meaning(answer);
    let subject = match kind {
        // It was answered: there is a connection.
        ErrorKind::Unreachable => Subject::Destination,
        _ if is_of_one_subject(answer) => Subject::Route,
        _ => kind.subject(),
    };
    new(kind, message).about(subject).with_source(answer.clone())
}

/// Whether an answer says nothing of events with another subject.
fn is_of_one_subject(answer: &jetstream::Error) -> bool {
    match answer.error_code() {
        ErrorCode::STREAM_NOT_MATCH => true,
        // There is one code for all reasons to store nothing.
        ErrorCode::STREAM_STORE_FAILED => answer.to_string().contains("per subject"),
        _ => false,
    }
}

/// The one place that reads JetStream's error codes.
pub(super) fn meaning(answer: &jetstream::Error) -> (ErrorKind, &'static str) {
    match answer.error_code() {
        ErrorCode::STREAM_STORE_FAILED if is_of_one_subject(answer) => {
            (ErrorKind::Throttled, "the stream holds as much of this subject as it may")
        }
        ErrorCode::STREAM_MESSAGE_EXCEEDS_MAXIMUM => {
            (ErrorKind::TooLarge, "the event is over the stream's max_msg_size")
        }
        ErrorCode::STREAM_HEADER_EXCEEDS_MAXIMUM => {
            (ErrorKind::TooLarge, "the event's headers are over 64 KiB")
        }
        ErrorCode::STREAM_STORE_FAILED => {
            (ErrorKind::Throttled, "the stream is full or cannot store")
        }
        ErrorCode::ACCOUNT_RESOURCES_EXCEEDED
        | ErrorCode::INSUFFICIENT_RESOURCES
        | ErrorCode::MEMORY_RESOURCES_EXCEEDED
        | ErrorCode::STORAGE_RESOURCES_EXCEEDED
        | ErrorCode::STREAM_TOO_MANY_REQUESTS => {
            (ErrorKind::Throttled, "the server or account is out of resources")
        }
        ErrorCode::STREAM_NOT_FOUND | ErrorCode::STREAM_NOT_MATCH => {
            (ErrorKind::DestinationMissing, "the configured stream does not store this subject")
        }
        ErrorCode::STREAM_SEALED => (ErrorKind::DestinationMissing, "the stream is sealed"),
        ErrorCode::JETSTREAM_NOT_ENABLED
        | ErrorCode::JETSTREAM_NOT_ENABLED_FOR_ACCOUNT
        | ErrorCode::NO_ACCOUNT => {
            (ErrorKind::DestinationMissing, "JetStream is not enabled for this account")
        }
        // Whatever else is 503 is the cluster's state: no leader, offline, shutting down.
        _ if answer.code() == 503 => (ErrorKind::Unreachable, "JetStream is not available"),
        _ => (ErrorKind::Failed, "JetStream refused the event"),
    }
}

/// Of a subject that no stream covers, as the server's list of streams says.
pub(super) fn no_stream(subject: &str) -> Error {
    let message =
        "no JetStream stream covers the subject; create a stream that covers it, or correct it";
    new(ErrorKind::DestinationMissing, message)
        .about(Subject::Route)
        .with_context("subject", subject)
}

/// Of a subject that the configured stream does not cover.
pub(super) fn not_covered(subject: &str, stream: &str, filters: &[String]) -> Error {
    let message = "the stream does not cover the subject; add it to the stream, or correct it";
    new(ErrorKind::DestinationMissing, message)
        .about(Subject::Route)
        .with_context("subject", subject)
        .with_context("stream", stream)
        .with_context("stream subjects", filters.join(" "))
}

/// Of a stream that is there, and whose servers do not answer: a leader is being elected, for one.
pub(super) fn no_leader(subject: &str) -> Error {
    let message = "a stream covers the subject, and none of its servers answers; it may be electing \
                   a leader";
    new(ErrorKind::Unreachable, message)
        .about(Subject::Destination)
        .with_context("subject", subject)
}

/// Of an event over the server's limit, which was asked for anew.
pub(super) fn over_max_payload(limit: usize) -> Error {
    new(ErrorKind::TooLarge, "the event is over the server's max_payload")
        .with_context("max_payload", limit)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kind(code: usize, err_code: u64) -> ErrorKind {
        let json = format!("{{\"code\":{code},\"err_code\":{err_code},\"description\":\"d\"}}");
        meaning(&serde_json::from_str(&json).unwrap()).0
    }

    #[test]
    fn codes_become_kinds() {
        for (code, err_code, expected) in [
            (400, 10_054, ErrorKind::TooLarge),
            (400, 10_097, ErrorKind::TooLarge),
            (503, 10_077, ErrorKind::Throttled),
            (400, 10_002, ErrorKind::Throttled),
            (503, 10_023, ErrorKind::Throttled),
            (500, 10_047, ErrorKind::Throttled),
            (404, 10_059, ErrorKind::DestinationMissing),
            (400, 10_060, ErrorKind::DestinationMissing),
            (503, 10_076, ErrorKind::DestinationMissing),
            (503, 10_008, ErrorKind::Unreachable),
            (503, 10_118, ErrorKind::Unreachable),
            (400, 10_071, ErrorKind::Failed),
            (400, 99_999, ErrorKind::Failed),
        ] {
            assert_eq!(kind(code, err_code), expected, "{err_code}");
        }
    }

    #[test]
    fn only_jetstreams_answers_count() {
        let message = |payload: &'static str, status| Message {
            subject: "_INBOX.a.0".into(),
            reply: None,
            payload: payload.into(),
            headers: None,
            status,
            description: None,
            length: 0,
        };
        let of = |payload| Outcome::of_answer(&message(payload, None), Some("S"));
        let repeated = r#"{"stream":"S","seq":7,"duplicate":true}"#;
        assert!(matches!(of(repeated), Some(Outcome::Acknowledged(Ack { is_repeat: true, .. }))));
        let stored = r#"{"stream":"S","seq":7}"#;
        assert!(matches!(of(stored), Some(Outcome::Acknowledged(Ack { is_repeat: false, .. }))));
        let unnamed = Outcome::of_answer(&message(stored, None), None);
        let Some(Outcome::Acknowledged(Ack { stream, .. })) = unnamed else {
            panic!("{unnamed:?}")
        };
        assert_eq!(stream.as_deref(), Some("S"));
        let refused = |err_code: u64| {
            let text = format!(
                r#"{{"error":{{"code":400,"err_code":{err_code},"description":"d"}},"stream":"S","seq":0}}"#
            );
            Outcome::of_answer(&message(text.leak(), None), Some("S"))
        };
        assert!(matches!(refused(10_070), Some(Outcome::Overtaken)));
        assert!(matches!(refused(10_158), Some(Outcome::InProcess)));
        assert!(matches!(refused(10_054), Some(Outcome::Failed(_))));
        let nobody = Outcome::of_answer(&message("", Some(StatusCode::NO_RESPONDERS)), None);
        assert!(matches!(nobody, Some(Outcome::NoStream)));
        for payload in [
            "",
            "thank you",
            "{}",
            "{\"stream\":\"S\"}",
            "{\"seq\":7}",
            r#"{"stream":"T","seq":7}"#,
        ] {
            assert!(of(payload).is_none(), "{payload}");
        }
    }

    #[test]
    fn what_is_full_for_one_subject_says_nothing_of_others() {
        let full = |description: &str| {
            let json = format!(r#"{{"code":503,"err_code":10077,"description":"{description}"}}"#);
            let error = answered(&serde_json::from_str(&json).unwrap());
            (error.kind(), error.subject())
        };
        let of_subject = full("maximum messages per subject exceeded");
        assert_eq!(of_subject, (ErrorKind::Throttled, Subject::Route));
        let of_stream = full("maximum messages exceeded");
        assert_eq!(of_stream, (ErrorKind::Throttled, Subject::Destination));
    }

    #[test]
    fn a_subject_without_a_stream_says_what_to_do() {
        let error = no_stream("events.a");
        assert_eq!(error.subject(), Subject::Route);
        assert!(error.to_string().contains("create a stream that covers it"), "{error}");
        assert!(error.to_string().contains("events.a"), "{error}");
    }
}
