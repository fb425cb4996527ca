//! What an answer, or none, means.

use std::time::Duration;

use jiff::Timestamp;
use jiff::fmt::rfc2822::DateTimeParser;
use posthaste_core::{Error, ErrorKind, Subject};
use reqwest::header::{HeaderMap, RETRY_AFTER};
use reqwest::{Response, StatusCode};

use super::address::NotPublic;

/// How much of an answer goes into the error.
const BODY_BYTES_MAX: usize = 2 * 1024;

const OPERATION: &str = "post to webhook";

/// The one place that maps an answer to what is done about it; the module's table is this match.
///
/// `own_path`: the event chose the path itself, so that what is wrong with the path is wrong with
/// this event alone. `None` for success.
pub(super) fn meaning(status: StatusCode, own_path: bool) -> Option<(ErrorKind, Subject)> {
    let kind = match status.as_u16() {
        200..=299 => return None,
        404 | 410 if own_path => {
            return Some((ErrorKind::DestinationMissing, Subject::Route));
        }
        401 | 403 | 407 => ErrorKind::Unauthorized,
        100..=399 | 404 | 410 => ErrorKind::DestinationMissing,
        408 | 409 | 423 | 425 => ErrorKind::Failed,
        413 | 431 => ErrorKind::TooLarge,
        429 | 502 | 503 | 504 => ErrorKind::Throttled,
        400..=499 => ErrorKind::Rejected,
        _ => ErrorKind::Failed,
    };
    Some((kind, kind.subject()))
}

/// Reads an answer to its result.
pub(super) async fn judge(mut answer: Response, own_path: bool) -> Result<(), Error> {
    let status = answer.status();
    let Some((kind, subject)) = meaning(status, own_path) else {
        // Read to its end a short answer leaves the connection fit for the next request; a long
        // one is not worth the time.
        read_start(&mut answer).await;
        return Ok(());
    };
    let retry_after = retry_after(answer.headers(), Timestamp::now());
    let body = read_start(&mut answer).await;
    let what = if status.is_redirection() { "redirects are not followed: " } else { "" };
    let message = format!("{what}the answer is {status}");
    let mut error = Error::new(kind, OPERATION, message).about(subject);
    if !body.is_empty() {
        error = error.with_context("body", body);
    }
    match retry_after {
        Some(delay) => Err(error.with_retry_after(delay)),
        None => Err(error),
    }
}

/// The error of a request that got no answer. Never holds the URL, which may hold a secret.
pub(super) fn no_answer(error: reqwest::Error) -> Error {
    let error = error.without_url();
    let not_public = chain(&error).any(|error| error.is::<NotPublic>());
    let (kind, message) = if not_public {
        (ErrorKind::Config, "the address is refused")
    } else if error.is_timeout() {
        (ErrorKind::Timeout, "no answer in time")
    } else if error.is_connect() {
        (ErrorKind::Unreachable, "cannot connect")
    } else {
        (ErrorKind::Unreachable, "the connection broke before the answer")
    };
    Error::new(kind, OPERATION, message).with_source(error)
}

fn chain<'a>(
    error: &'a (dyn std::error::Error + 'static),
) -> impl Iterator<Item = &'a (dyn std::error::Error + 'static)> {
    std::iter::successors(Some(error), |error| error.source())
}

/// The beginning of the body as printable text.
async fn read_start(answer: &mut Response) -> String {
    let mut body = Vec::new();
    while body.len() < BODY_BYTES_MAX {
        match answer.chunk().await {
            Ok(Some(chunk)) => body.extend_from_slice(&chunk),
            // The status was received: what breaks after it changes nothing.
            Ok(None) | Err(_) => break,
        }
    }
    body.truncate(BODY_BYTES_MAX);
    let text = String::from_utf8_lossy(&body);
    text.trim().chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
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
            (&[401, 403, 407], Unauthorized, Subject::Destination),
            (&[404, 410], DestinationMissing, Subject::Destination),
            (&[408, 409, 423, 425], Failed, Subject::Event),
            (&[413, 431], TooLarge, Subject::Event),
            (&[429, 502, 503, 504], Throttled, Subject::Destination),
            (&[400, 402, 405, 406, 415, 422, 451], Rejected, Subject::Event),
            (&[500, 501, 505, 507, 599], Failed, Subject::Event),
        ];
        for (codes, kind, subject) in cases {
            for code in *codes {
                let code = StatusCode::from_u16(*code).unwrap();
                assert_eq!(meaning(code, false), Some((*kind, *subject)), "{code}");
            }
        }
        for code in 200..300 {
            assert_eq!(meaning(StatusCode::from_u16(code).unwrap(), false), None);
        }
    }

    #[test]
    fn a_path_the_event_chose_is_its_own_fault() {
        for code in [404, 410] {
            let (_, subject) = meaning(StatusCode::from_u16(code).unwrap(), true).unwrap();
            assert_eq!(subject, Subject::Route);
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
