//! What an answer, or none, means, and whom it is about.

use std::time::Duration;

use jiff::Timestamp;
use jiff::fmt::rfc2822::DateTimeParser;
use posthaste_bus_kit::Redactor;
use posthaste_bus_kit::evidence::of_address;
use posthaste_core::{Error, ErrorKind, Subject};
use reqwest::header::{HeaderMap, RETRY_AFTER};
use reqwest::{Response, StatusCode};
use tokio::time::timeout;

use super::address::NotPublic;

/// How much of an answer goes into the error.
const BODY_BYTES_MAX: usize = 2 * 1024;
/// How long the body of a success is waited for. A short one that is read to its end leaves the
/// connection fit for the next request; the event is delivered in any case.
const BODY_WAIT: Duration = Duration::from_millis(100);
/// How long the body of a failure is waited for: it often says why.
const REASON_WAIT: Duration = Duration::from_secs(1);

const OPERATION: &str = "post to webhook";

/// The one place that maps an answer to what was met; the module's table is this match. `None` for
/// success.
pub(super) fn meaning(status: StatusCode) -> Option<(ErrorKind, Subject)> {
    use ErrorKind::{DestinationMissing, Failed, Rejected, Throttled, TooLarge, Unauthorized};
    use Subject::{Destination, Event};
    Some(match status.as_u16() {
        200..=299 => return None,
        401 | 402 | 403 | 407 | 511 => (Unauthorized, Destination),
        // 421 and 426 are about the connection: this server, or this protocol, is the wrong one.
        100..=399 | 404 | 410 | 421 | 426 => (DestinationMissing, Destination),
        // 520 to 530 are those of a proxy whose origin is away.
        429 | 502..=504 | 507 | 520..=530 => (Throttled, Destination),
        408 | 409 | 423 | 425 => (Failed, Event),
        413 | 431 => (TooLarge, Event),
        400..=499 => (Rejected, Event),
        _ => (Failed, Event),
    })
}

/// Reads an answer to its result. What an answer says of the destination it says of the route where
/// the event chose its own (`own_path`).
pub(super) async fn judge(
    mut answer: Response,
    own_path: bool,
    redactor: &Redactor,
) -> Result<(), Error> {
    let status = answer.status();
    let Some((kind, subject)) = meaning(status) else {
        // However it ends: the status was received.
        let _ = timeout(BODY_WAIT, read(&mut answer, BODY_BYTES_MAX, &mut Vec::new())).await;
        return Ok(());
    };
    let retry_after = retry_after(answer.headers(), Timestamp::now());
    let message = match reason(&mut answer, redactor).await {
        body if body.is_empty() => describe(status),
        body => format!("{}: {body}", describe(status)),
    };
    let error = Error::new(kind, OPERATION, message).about(of_route(subject, own_path));
    Err(match retry_after {
        Some(delay) => error.with_retry_after(delay),
        None => error,
    })
}

fn describe(status: StatusCode) -> String {
    let what = if status.is_redirection() { "redirects are not followed: " } else { "" };
    format!("{what}the answer is {status}")
}

/// What an answer to a question that is no event says, for an operator.
pub(super) async fn in_words(mut answer: Response, redactor: &Redactor) -> String {
    let status = answer.status();
    if status.is_success() {
        return status.to_string();
    }
    match reason(&mut answer, redactor).await {
        body if body.is_empty() => status.to_string(),
        body => format!("{status}: {}", body.chars().take(200).collect::<String>()),
    }
}

/// The error of a request that got no answer. Never holds the URL, which may hold a secret.
pub(super) fn no_answer(error: reqwest::Error, own_path: bool) -> Error {
    let error = error.without_url();
    let mentions = |text: &str| chain(&error).any(|error| error.to_string().contains(text));
    let (kind, subject, message) = if chain(&error).any(|error| error.is::<NotPublic>()) {
        (ErrorKind::Config, Subject::Connection, "the address is refused")
    } else if error.is_connect() && error.is_timeout() {
        (ErrorKind::Timeout, Subject::Connection, "no connection in time")
    } else if error.is_connect() && mentions("UnknownIssuer") {
        let message = "the server's certificate is of an authority that is not trusted here; if it \
                       is your own, name it in tls_ca_file";
        (ErrorKind::Unreachable, Subject::Connection, message)
    } else if error.is_connect() && mentions("invalid peer certificate") {
        let message = "the server's certificate does not hold: it must name the host of url, be in \
                       force, and be signed by an authority of tls_ca_file, where that is given";
        (ErrorKind::Unreachable, Subject::Connection, message)
    } else if error.is_connect() {
        (ErrorKind::Unreachable, Subject::Connection, "cannot connect")
    } else if error.is_timeout() {
        (ErrorKind::Timeout, Subject::Destination, "no answer in time")
    } else {
        (ErrorKind::Unreachable, Subject::Destination, "the connection broke before the answer")
    };
    Error::new(kind, OPERATION, message).about(of_route(subject, own_path)).with_source(error)
}

fn of_route(subject: Subject, own_path: bool) -> Subject {
    match subject {
        Subject::Destination => of_address(own_path),
        subject => subject,
    }
}

fn chain<'a>(
    error: &'a (dyn std::error::Error + 'static),
) -> impl Iterator<Item = &'a (dyn std::error::Error + 'static)> {
    std::iter::successors(Some(error), |error| error.source())
}

/// The beginning of the body as printable text without secrets.
async fn reason(answer: &mut Response, redactor: &Redactor) -> String {
    let mut body = Vec::new();
    // What came until then is worth telling.
    let _ = timeout(REASON_WAIT, read(answer, BODY_BYTES_MAX, &mut body)).await;
    body.truncate(BODY_BYTES_MAX);
    let text = String::from_utf8_lossy(&body);
    let text = text.trim().chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    redactor.redact(text)
}

/// Reads until there are so many bytes, the end, or an error: what breaks after the status changes
/// nothing.
async fn read(answer: &mut Response, enough: usize, body: &mut Vec<u8>) {
    while body.len() < enough {
        match answer.chunk().await {
            Ok(Some(chunk)) => body.extend_from_slice(&chunk),
            Ok(None) | Err(_) => break,
        }
    }
}

/// `Retry-After` as a delay from `now`, both of its forms (RFC 9110 §10.2.3).
fn retry_after(headers: &HeaderMap, now: Timestamp) -> Option<Duration> {
    let text = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    let delay = match text.parse::<u64>() {
        Ok(seconds) => Duration::from_secs(seconds),
        Err(_) => {
            let when = DateTimeParser::new().parse_timestamp(text).ok()?;
            Duration::try_from(when.duration_since(now)).unwrap_or(Duration::ZERO)
        }
    };
    Some(delay)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_answer_has_the_meaning_of_the_table() {
        use ErrorKind::{DestinationMissing, Failed, Rejected, Throttled, TooLarge, Unauthorized};
        let cases: &[(&[u16], ErrorKind, Subject)] = &[
            (&[100, 301, 302, 304, 307, 308], DestinationMissing, Subject::Destination),
            (&[401, 402, 403, 407, 511], Unauthorized, Subject::Destination),
            (&[404, 410, 421, 426], DestinationMissing, Subject::Destination),
            (&[408, 409, 423, 425], Failed, Subject::Event),
            (&[413, 431], TooLarge, Subject::Event),
            (&[429, 502, 503, 504, 507, 522, 530], Throttled, Subject::Destination),
            (&[400, 405, 406, 415, 422, 451], Rejected, Subject::Event),
            (&[500, 501, 505, 599], Failed, Subject::Event),
        ];
        for (codes, kind, subject) in cases {
            for code in *codes {
                let code = StatusCode::from_u16(*code).unwrap();
                assert_eq!(meaning(code), Some((*kind, *subject)), "{code}");
            }
        }
        for code in 200..300 {
            assert_eq!(meaning(StatusCode::from_u16(code).unwrap()), None);
        }
    }

    #[test]
    fn a_path_of_the_events_own_speaks_for_no_other() {
        assert_eq!(of_route(Subject::Destination, true), Subject::Route);
        assert_eq!(of_route(Subject::Destination, false), Subject::Destination);
        for subject in [Subject::Connection, Subject::Event] {
            assert_eq!(of_route(subject, true), subject);
        }
    }

    #[test]
    fn retry_after_is_read_in_both_forms() {
        let now: Timestamp = "1994-11-06T08:49:00Z".parse().unwrap();
        let read = |text: &str| {
            let headers = [(RETRY_AFTER, text.parse().unwrap())].into_iter().collect();
            retry_after(&headers, now)
        };
        assert_eq!(read("120"), Some(Duration::from_secs(120)));
        assert_eq!(read("Sun, 06 Nov 1994 08:49:37 GMT"), Some(Duration::from_secs(37)));
        assert_eq!(read("Sun, 06 Nov 1994 08:00:00 GMT"), Some(Duration::ZERO));
        assert_eq!(read("99999999999"), Some(Duration::from_secs(99_999_999_999)));
        assert!(read("Thu, 31 Dec 9998 23:59:59 GMT") > Some(Duration::from_secs(99_999_999)));
        for bad in ["", "-1", "soon", "1.5"] {
            assert_eq!(read(bad), None, "{bad}");
        }
    }
}
