//! What NATS takes as the subject of a publish, and which stream covers it.

use posthaste_bus_kit::TopicTemplate;
use posthaste_core::{Error, ErrorKind, Result};

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

/// Which subjects the events of a destination may have. Whoever may write an event publishes with the
/// relay's rights, so that is for the operator to say.
#[derive(Debug)]
pub(super) struct Allowed {
    template: TopicTemplate,
    /// Subject filters that events may choose a topic of besides what is below the template.
    topics: Vec<String>,
}

impl Allowed {
    /// # Errors
    /// [`ErrorKind::Config`] where a filter is none.
    pub(super) fn new(template: TopicTemplate, topics: &[String]) -> Result<Self> {
        for topic in topics {
            let parts: Vec<&str> = topic.split('.').collect();
            let is_whole = |part: &&str| !part.contains(['*', '>']) || part.len() == 1;
            let ends = parts.iter().position(|part| *part == ">").unwrap_or(parts.len() - 1);
            let filled = topic.replace(['*', '>'], "x");
            if fault(&filled).is_some() || !parts.iter().all(is_whole) || ends + 1 != parts.len() {
                return Err(Error::new(
                    ErrorKind::Config,
                    "configure nats",
                    "allow_topic: not a subject with whole parts `*`, and `>` at its end",
                )
                .with_context("allow_topic", topic.escape_debug()));
            }
        }
        Ok(Self { template, topics: topics.to_vec() })
    }

    pub(super) const fn template(&self) -> &TopicTemplate {
        &self.template
    }

    /// Checks the subject of an event, of its own or as the template makes it.
    ///
    /// # Errors
    /// [`ErrorKind::Malformed`].
    pub(super) fn check(&self, subject: &str, is_own: bool) -> Result<()> {
        let why = match fault(subject) {
            Some(why) => why,
            None if is_own && !self.is_below_template(subject) && !self.is_listed(subject) => {
                "an event's own topic must be below the subject of the destination, or in allow_topic"
            }
            None if is_reserved(subject) && !self.may_be_reserved(subject) => {
                "subjects starting with $ or _INBOX are the server's own"
            }
            None => return Ok(()),
        };
        Err(Error::new(ErrorKind::Malformed, "choose subject", why)
            .with_context("subject", subject.escape_debug()))
    }

    /// A filter of all subjects that begin as the template does, if `subject` is one of them.
    pub(super) fn template_filter(&self, subject: &str) -> Option<String> {
        let prefix = self.template.literal_prefix();
        subject.starts_with(prefix).then(|| match prefix.rsplit_once('.') {
            Some((whole, _)) => format!("{whole}.>"),
            None => ">".to_owned(),
        })
    }

    fn is_below_template(&self, subject: &str) -> bool {
        let prefix = self.template.literal_prefix();
        let rest = subject.strip_prefix(prefix);
        if self.template.is_literal() {
            rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
        } else {
            rest.is_some()
        }
    }

    fn is_listed(&self, subject: &str) -> bool {
        self.topics.iter().any(|filter| matches(filter, subject, false))
    }

    /// `$KV.bucket.key` is a subject like any other where the operator named it, in so many letters.
    fn may_be_reserved(&self, subject: &str) -> bool {
        let first = |text: &str| text.split('.').next().map(str::to_owned);
        let whole = self.template.literal_prefix().rsplit_once('.').map(|(whole, _)| whole);
        let named = whole.and_then(first) == first(subject);
        let listed =
            |filter: &&String| first(filter) == first(subject) && matches(filter, subject, false);
        named || self.topics.iter().any(|filter| listed(&filter))
    }
}

/// Whether one of a stream's filters covers what an event is published to.
pub(super) fn is_covered(filters: &[String], subject: &str) -> bool {
    filters.iter().any(|filter| matches(filter, subject, false))
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
    None
}

/// Whoever may write an event must not get to call the server's own API with the relay's rights:
/// `$JS.API.STREAM.DELETE.x` is a subject like any other.
fn is_reserved(subject: &str) -> bool {
    subject.starts_with('$') || subject.starts_with("_INBOX.")
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

    fn allowed(template: &str, topics: &[&str]) -> Allowed {
        let topics: Vec<String> = topics.iter().map(|topic| (*topic).to_owned()).collect();
        Allowed::new(TopicTemplate::parse(template).unwrap(), &topics).unwrap()
    }

    #[test]
    fn an_events_own_topic_is_below_the_template_or_listed() {
        for (template, topics, subject, expected) in [
            ("events.{event_type}", &[][..], "events.a.b", true),
            ("events.{event_type}", &[], "victim.written", false),
            ("events.{event_type}", &[], "events", false),
            ("events.{event_type}", &[], "eventsa", false),
            ("events", &[], "events", true),
            ("events", &[], "events.a", true),
            ("events", &[], "events2", false),
            ("a.b-{key}", &[], "a.b-1.c", true),
            ("a.b-{key}", &[], "a.c", false),
            ("{event_type}", &[], "anything", true),
            ("{event_type}", &[], "$KV.conf.key", false),
            ("{event_type}", &[], "$JS.API.STREAM.DELETE.x", false),
            ("events", &["orders.>", "bills.*"], "orders.a.b", true),
            ("events", &["orders.>", "bills.*"], "bills.a", true),
            ("events", &["orders.>", "bills.*"], "bills.a.b", false),
            ("events", &[">"], "$KV.conf.key", false),
            ("events", &[">"], "_INBOX.a", false),
            ("events", &["$KV.conf.>"], "$KV.conf.key", true),
            ("events", &["$KV.conf.>"], "$KV.other.key", false),
            ("$KV.conf.{key}", &[], "$KV.conf.key", true),
            ("$KV.conf.{key}", &[], "$KV.other.key", false),
        ] {
            let allowed = allowed(template, topics);
            let checked = allowed.check(subject, true);
            assert_eq!(checked.is_ok(), expected, "{template} {topics:?} {subject}: {checked:?}");
        }
        // What the template makes needs no list, but does not become the server's own either.
        assert!(allowed("{event_type}", &[]).check("$SYS.x", false).is_err());
        assert!(allowed("$KV.conf.{key}", &[]).check("$KV.conf.a", false).is_ok());
    }

    #[test]
    fn a_list_of_topics_that_is_none_is_refused() {
        for topic in ["", "a..b", "a.>.b", "a.b*", "a b"] {
            let template = TopicTemplate::parse("events").unwrap();
            let error = Allowed::new(template, &[topic.to_owned()]).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Config, "{topic}");
        }
    }

    #[test]
    fn subjects_nats_cannot_carry_are_malformed() {
        let check = |subject: &str| allowed("{event_type}", &[]).check(subject, true);
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
        for good in ["a", "orders.placed", "order-1.ü", "a$b"] {
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
