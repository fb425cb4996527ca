//! What real brokers cannot carry.

use crate::{Error, ErrorKind, Headers, OutboxEvent, Result};

/// NATS takes no more by default (`max_payload`), and of common brokers it takes the least.
const BODY_BYTES_MAX: usize = 1024 * 1024;
/// Of a NATS subject.
const SUBJECT_BYTES_MAX: usize = 2_048;

/// Beginnings of header names that brokers and envelopes take for themselves.
const RESERVED_PREFIXES: [&str; 3] = ["ce-", "nats-", "webhook-"];
/// Headers of HTTP's own: they frame the message, route it or prove who sent it.
const RESERVED: [&str; 15] = [
    "authorization",
    "connection",
    "content-encoding",
    "content-length",
    "cookie",
    "expect",
    "host",
    "keep-alive",
    "proxy-authenticate",
    "proxy-authorization",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];

/// # Errors
/// `Malformed` or `TooLarge`, as the bus of the broker that cannot carry it says.
pub(super) fn check(event: &OutboxEvent) -> Result<()> {
    for (name, _) in event.headers().iter() {
        let lower = name.to_ascii_lowercase();
        let taken = RESERVED.contains(&&*lower)
            || RESERVED_PREFIXES.iter().any(|prefix| lower.starts_with(prefix));
        let why = Headers::reserved(name)
            .or(taken.then_some("a broker or an envelope gives this header a meaning of its own"));
        if let Some(why) = why {
            return refuse(ErrorKind::Malformed, why, "header", name);
        }
    }
    let subject = event.topic().unwrap_or_else(|| event.event_type());
    if let Some(why) = subject_fault(subject) {
        return refuse(ErrorKind::Malformed, why, "subject", subject);
    }
    let bytes = event.payload().body().len();
    if bytes > BODY_BYTES_MAX {
        let why = "the body is over 1 MiB, the most that NATS takes by default";
        return refuse(ErrorKind::TooLarge, why, "bytes", &bytes.to_string());
    }
    Ok(())
}

/// Of the topic or, without one, the event type: what a subject is made of.
fn subject_fault(subject: &str) -> Option<&'static str> {
    if subject.len() > SUBJECT_BYTES_MAX {
        Some("a subject has at most 2,048 bytes")
    } else if subject.split('.').any(str::is_empty) {
        Some("a subject has no empty part between its dots")
    } else if subject.contains(['*', '>']) {
        Some("a subject to publish to has no wildcard (* or >)")
    } else if subject.contains(|c: char| c.is_whitespace() || c.is_control()) {
        Some("a subject has no spaces and no control characters")
    } else {
        None
    }
}

fn refuse(kind: ErrorKind, why: &str, name: &'static str, value: &str) -> Result<()> {
    Err(Error::new(kind, "publish", why).with_context(name, value.escape_debug()))
}
