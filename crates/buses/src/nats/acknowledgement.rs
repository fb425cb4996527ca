//! What JetStream's answer to a publish means.

use async_nats::jetstream::{self, ErrorCode};
use async_nats::{Message, StatusCode};
use posthaste_core::{Error, ErrorKind, Subject};
use serde::Deserialize;

const OVER_MAX_PAYLOAD: &str = "the event is over the server's max_payload";

/// What became of one publish.
#[derive(Debug)]
pub(super) enum Outcome {
    Acknowledged,
    /// Nobody stores this subject. Whose fault that is, the whole call decides.
    NoStream,
    /// No answer in time.
    NoAnswer,
    /// The last message of the stream is not the one that it had to be stored behind.
    Overtaken,
    Failed(Error),
}

/// What JetStream answers.
#[derive(Deserialize)]
struct Answer {
    /// Where the message is stored.
    stream: Option<String>,
    seq: Option<u64>,
    error: Option<jetstream::Error>,
}

impl Outcome {
    /// What an answer says. `None` where it is not JetStream's: others may answer, too.
    pub(super) fn of_answer(message: &Message) -> Option<Self> {
        if message.status == Some(StatusCode::NO_RESPONDERS) {
            return Some(Self::NoStream);
        }
        let Answer { stream, seq, error } = serde_json::from_slice(&message.payload).ok()?;
        match error {
            Some(error) if error.error_code() == ErrorCode::STREAM_WRONG_LAST_MESSAGE_ID => {
                Some(Self::Overtaken)
            }
            Some(error) => Some(Self::from(&error)),
            None => stream.and(seq).map(|_| Self::Acknowledged),
        }
    }
}

impl From<&jetstream::Error> for Outcome {
    fn from(answer: &jetstream::Error) -> Self {
        Self::Failed(answered(answer))
    }
}

/// Of a message that did not leave the client.
impl From<async_nats::PublishError> for Outcome {
    fn from(error: async_nats::PublishError) -> Self {
        let failed = match error.kind() {
            async_nats::client::PublishErrorKind::MaxPayloadExceeded => {
                new(ErrorKind::TooLarge, OVER_MAX_PAYLOAD)
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
    new(kind, message).with_source(answer.clone())
}

/// The one place that reads JetStream's error codes.
pub(super) fn meaning(answer: &jetstream::Error) -> (ErrorKind, &'static str) {
    match answer.error_code() {
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

/// The error of an event whose subject no stream covers.
///
/// `own_fault`: the destination evidently serves and only this event's subject is not covered.
pub(super) fn no_stream(subject: &str, own_fault: bool) -> Error {
    let error = new(
        ErrorKind::DestinationMissing,
        "no JetStream stream covers the subject; create a stream that covers it, or correct it",
    )
    .with_context("subject", subject);
    if own_fault { error.about(Subject::Route) } else { error }
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
        let of = |payload| Outcome::of_answer(&message(payload, None));
        let acknowledged = r#"{"stream":"S","seq":7,"duplicate":true}"#;
        assert!(matches!(of(acknowledged), Some(Outcome::Acknowledged)));
        let refused = |err_code: u64| {
            let text = format!(
                r#"{{"error":{{"code":400,"err_code":{err_code},"description":"d"}},"stream":"S","seq":0}}"#
            );
            Outcome::of_answer(&message(text.leak(), None))
        };
        assert!(matches!(refused(10_070), Some(Outcome::Overtaken)));
        assert!(matches!(refused(10_054), Some(Outcome::Failed(_))));
        let nobody = Outcome::of_answer(&message("", Some(StatusCode::NO_RESPONDERS)));
        assert!(matches!(nobody, Some(Outcome::NoStream)));
        for payload in ["", "thank you", "{}", "{\"stream\":\"S\"}", "{\"seq\":7}"] {
            assert!(of(payload).is_none(), "{payload}");
        }
    }

    #[test]
    fn a_subject_without_a_stream_says_what_to_do() {
        let error = no_stream("events.a", false);
        assert_eq!(error.subject(), Subject::Destination);
        assert!(error.to_string().contains("create a stream that covers it"), "{error}");
        assert!(error.to_string().contains("events.a"), "{error}");
        assert_eq!(no_stream("events.a", true).subject(), Subject::Route);
    }
}
