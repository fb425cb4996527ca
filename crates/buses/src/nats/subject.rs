//! What NATS takes as the subject of a publish, and which stream covers it.

use posthaste_core::{Error, ErrorKind, Result};

use crate::TopicTemplate;

/// The longest subject: the server closes the connection over a longer protocol line (4 KiB with
/// the reply subject and sizes).
const SUBJECT_BYTES_MAX: usize = 2_048;

/// Checks the literal parts of a template by filling its placeholders.
///
/// # Errors
/// [`ErrorKind::Config`].
pub(super) fn check_template(template: &TopicTemplate) -> Result<()> {
    let filled = template.to_string().replace(['{', '}'], "");
    match fault(&filled) {
        None => Ok(()),
        Some(why) => {
            Err(Error::new(ErrorKind::Config, "configure nats", format!("subject: {why}"))
                .with_context("subject", template))
        }
    }
}

/// Checks the subject of one event.
///
/// # Errors
/// [`ErrorKind::Malformed`].
pub(super) fn check(subject: &str) -> Result<()> {
    match fault(subject) {
        None => Ok(()),
        Some(why) => Err(Error::new(ErrorKind::Malformed, "choose subject", why)
            .with_context("subject", subject.escape_debug())),
    }
}

fn fault(subject: &str) -> Option<&'static str> {
    if subject.len() > SUBJECT_BYTES_MAX {
        return Some("a subject has at most 2,048 bytes");
    }
    if subject.split('.').any(str::is_empty) {
        return Some("a subject has no empty part between its dots");
    }
    if subject.contains(['*', '>']) {
        return Some("a subject to publish to has no wildcard (* or >)");
    }
    if subject.contains(|c: char| c.is_whitespace() || c.is_control()) {
        return Some("a subject has no spaces and no control characters");
    }
    // Whoever may write an event must not get to call the server's own API with the relay's
    // rights: $JS.API.STREAM.DELETE.x is a subject like any other.
    let reserved = subject.starts_with('$') && !subject.starts_with("$KV.");
    if reserved || subject.starts_with("_INBOX.") {
        return Some("subjects starting with $ or _INBOX are the server's own");
    }
    None
}

/// Whether a stream's subject filter covers what a template makes. Where the template has
/// placeholders: whether it can.
pub(super) fn covers(filter: &str, template: &TopicTemplate) -> bool {
    if template.is_literal() {
        return matches(filter, template.literal_prefix(), false);
    }
    // The part before the last dot is whole parts; what follows is not known.
    let prefix = template.literal_prefix();
    prefix.rsplit_once('.').is_none_or(|(whole, _)| matches(filter, whole, true))
}

/// Whether `filter` covers `subject`, or, with `open_end`, something that begins with it.
fn matches(filter: &str, subject: &str, open_end: bool) -> bool {
    let mut filter = filter.split('.');
    for part in subject.split('.') {
        match filter.next() {
            Some(">") => return true,
            Some(want) if want == "*" || want == part => {}
            _ => return false,
        }
    }
    if open_end { filter.next().is_some() } else { filter.next().is_none() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn subjects_nats_cannot_carry_are_malformed() {
        for bad in [
            "",
            ".",
            "a.",
            ".a",
            "a..b",
            "a b",
            "a\tb",
            "a\nb",
            "a.*",
            "a.>",
            "a*b",
            "a\u{0}b",
            "$JS.API.STREAM.DELETE.x",
            "$SYS.x",
            "_INBOX.x",
        ] {
            assert_eq!(check(bad).unwrap_err().kind(), ErrorKind::Malformed, "{bad:?}");
        }
        assert!(check(&"x".repeat(2_049)).is_err());
        for good in ["a", "orders.placed", "order-1.ü", "$KV.bucket.key", "a$b"] {
            check(good).unwrap();
        }
    }

    #[test]
    fn a_filter_covers_a_literal_subject_as_the_server_says() {
        for (filter, subject, expected) in [
            ("events", "events", true),
            ("events.*", "events.a", true),
            ("events.*", "events.a.b", false),
            ("events.>", "events.a.b", true),
            ("events.>", "events", false),
            (">", "x", true),
            ("*.a", "events.a", true),
            ("events.b", "events.a", false),
        ] {
            let template = TopicTemplate::parse(subject).unwrap();
            assert_eq!(covers(filter, &template), expected, "{filter} {subject}");
        }
    }

    #[test]
    fn a_filter_may_cover_a_template_when_their_beginnings_agree() {
        for (filter, template, expected) in [
            ("events.>", "events.{event_type}", true),
            ("events.*.b", "events.{event_type}", true),
            ("events", "events.{event_type}", false),
            ("other.>", "events.{event_type}", false),
            ("other.>", "{event_type}", true),
            ("a.b.>", "a.b-{key}", true),
        ] {
            let parsed = TopicTemplate::parse(template).unwrap();
            assert_eq!(covers(filter, &parsed), expected, "{filter} {template}");
        }
    }
}
