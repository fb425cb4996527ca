//! Where an event goes within a destination: a template, or what the event itself says.

use std::borrow::Cow;
use std::fmt;

use posthaste_core::{Error, ErrorKind, OutboxEvent, Result};

/// A subject, topic or path with placeholders: `events.{event_type}`.
///
/// Placeholders: `{event_type}`, `{aggregate_type}`, `{aggregate_id}`, `{key}`. An event's own
/// topic, where its writer gave one, takes the place of the whole template.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TopicTemplate {
    text: Box<str>,
    parts: Box<[Part]>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Part {
    Text(Box<str>),
    EventType,
    AggregateType,
    AggregateId,
    Key,
}

/// A rendered topic and what chose it.
#[derive(Debug, PartialEq, Eq)]
pub struct Topic<'a> {
    /// The topic.
    pub name: Cow<'a, str>,
    /// Whether other events of the destination may go elsewhere: the event chose its topic, or the
    /// template has placeholders.
    pub per_event: bool,
}

const PLACEHOLDERS: &str = "{event_type}, {aggregate_type}, {aggregate_id}, {key}";

impl TopicTemplate {
    /// Reads a template.
    ///
    /// # Errors
    /// [`ErrorKind::Config`] where it is empty, a brace has no partner or a placeholder is unknown.
    pub fn parse(text: &str) -> Result<Self> {
        let refuse = |why: String| {
            Err(Error::new(ErrorKind::Config, "read topic template", why)
                .with_context("template", text.escape_debug()))
        };
        if text.is_empty() {
            return refuse("the template is empty".to_owned());
        }
        let mut parts = Vec::new();
        let mut rest = text;
        while !rest.is_empty() {
            let literal = rest.find(['{', '}']).unwrap_or(rest.len());
            if literal > 0 {
                parts.push(Part::Text(rest[..literal].into()));
            }
            rest = &rest[literal..];
            if rest.is_empty() {
                break;
            }
            let Some((name, after)) = rest.strip_prefix('{').and_then(|r| r.split_once('}')) else {
                return refuse("a brace has no partner".to_owned());
            };
            parts.push(match name {
                "event_type" => Part::EventType,
                "aggregate_type" => Part::AggregateType,
                "aggregate_id" => Part::AggregateId,
                "key" => Part::Key,
                unknown => {
                    let unknown = unknown.escape_debug();
                    return refuse(format!("{{{unknown}}} is not one of {PLACEHOLDERS}"));
                }
            });
            rest = after;
        }
        Ok(Self { text: text.into(), parts: parts.into() })
    }

    /// The text before the first placeholder; all of it where there is none.
    #[must_use]
    pub fn literal_prefix(&self) -> &str {
        match self.parts.first() {
            Some(Part::Text(text)) => text,
            _ => "",
        }
    }

    /// Whether it has no placeholder: every event goes to the same place.
    #[must_use]
    pub fn is_literal(&self) -> bool {
        matches!(&*self.parts, [Part::Text(_)])
    }

    /// Where `event` goes.
    ///
    /// # Errors
    /// [`ErrorKind::Malformed`] where the template needs an aggregate type and the event has none.
    pub fn topic<'a>(&'a self, event: &'a OutboxEvent) -> Result<Topic<'a>> {
        if let Some(own) = event.topic() {
            return Ok(Topic { name: Cow::Borrowed(own), per_event: true });
        }
        if self.is_literal() {
            return Ok(Topic { name: Cow::Borrowed(&self.text), per_event: false });
        }
        let mut name = String::with_capacity(self.text.len() + 32);
        for part in &self.parts {
            match part {
                Part::Text(text) => name.push_str(text),
                Part::EventType => name.push_str(event.event_type()),
                Part::AggregateId => name.push_str(&event.aggregate_id().to_string()),
                Part::Key => name.push_str(&event.order_key().to_string()),
                Part::AggregateType => name.push_str(event.aggregate_type().ok_or_else(|| {
                    Error::new(
                        ErrorKind::Malformed,
                        "choose topic",
                        "the template needs an aggregate_type and the event has none",
                    )
                    .with_context("template", &self.text)
                })?),
            }
        }
        Ok(Topic { name: Cow::Owned(name), per_event: true })
    }
}

impl fmt::Display for TopicTemplate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

#[cfg(test)]
mod tests {
    use posthaste_core::Payload;
    use uuid::Uuid;

    use super::*;

    fn event() -> posthaste_core::OutboxEventBuilder {
        OutboxEvent::builder(Uuid::nil(), "order.placed")
            .order_key("customer-7")
            .payload(Payload::json_text("{}").unwrap())
    }

    #[test]
    fn placeholders_are_filled_from_the_event() {
        let template = TopicTemplate::parse("a.{aggregate_type}.{event_type}.{key}").unwrap();
        let event = event().aggregate_type("order").build().unwrap();
        let topic = template.topic(&event).unwrap();
        assert_eq!(topic.name, "a.order.order.placed.customer-7");
        assert_eq!(template.literal_prefix(), "a.");
        let template = TopicTemplate::parse("{aggregate_id}").unwrap();
        assert_eq!(template.topic(&event).unwrap().name, Uuid::nil().to_string());
        assert_eq!(template.literal_prefix(), "");
    }

    #[test]
    fn the_events_own_topic_takes_the_place_of_the_template() {
        let template = TopicTemplate::parse("events").unwrap();
        let plain = event().build().unwrap();
        let own = event().topic("special").build().unwrap();
        assert!(!template.topic(&plain).unwrap().per_event);
        let topic = template.topic(&own).unwrap();
        assert_eq!((topic.name.as_ref(), topic.per_event), ("special", true));
    }

    #[test]
    fn a_missing_aggregate_type_is_the_events_fault() {
        let template = TopicTemplate::parse("{aggregate_type}").unwrap();
        let error = template.topic(&event().build().unwrap()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Malformed);
    }

    #[test]
    fn a_wrong_template_is_refused_with_what_is_known() {
        for text in ["", "a.{nonsense}", "a.{key", "a.}key", "{}", "{a{key}}"] {
            let error = TopicTemplate::parse(text).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Config, "{text}");
        }
        let error = TopicTemplate::parse("{type}").unwrap_err();
        assert!(error.to_string().contains("{event_type}"), "{error}");
    }
}
