//! The choice of envelope, as a setting.

use std::fmt;
use std::str::FromStr;

use posthaste_config::value::Value;
use posthaste_config::{FromValue, ValueKind};
use posthaste_core::{Error, ErrorKind};
use serde::{Deserialize, Serialize};

/// How an event is laid out at the broker. Written as in [`EnvelopeFormat::NAMES`].
///
/// | format | headers | body |
/// |---|---|---|
/// | `plain` | `ph-id`, `ph-type`, `ph-key`, `ph-aggregate-id`, `ph-aggregate-type`, `ph-created-at`, `content-type` | the data |
/// | `cloudevents` | `ce-id`, `ce-type`, `ce-source`, `ce-specversion`, `ce-time`, `ce-subject` (the key), `ce-aggregateid`, `ce-aggregatetype`, `content-type` | the data |
/// | `cloudevents-structured` | `content-type: application/cloudevents+json` | one JSON object; data that is not JSON as `data_base64` |
///
/// The event's own headers follow. Header values are ASCII: in `ce-` headers space, `"`, `%` and what
/// is not visible ASCII are percent-encoded, as the CloudEvents bindings have it; in all others, `ph-`
/// and the event's own, what is not ASCII, and then `%` too. An ASCII value of these stays as it is.
/// The structured format encodes nothing. An event's header named `content-type`, or starting with `ph-`
/// (with `ce-` in a CloudEvents format), makes the event malformed: it would say something else
/// than the event does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum EnvelopeFormat {
    /// posthaste's own header names.
    #[default]
    #[serde(rename = "plain")]
    Plain,
    /// CloudEvents 1.0, binary content mode.
    #[serde(rename = "cloudevents")]
    CloudEvents,
    /// CloudEvents 1.0, structured content mode (JSON).
    #[serde(rename = "cloudevents-structured")]
    CloudEventsStructured,
}

impl EnvelopeFormat {
    /// All formats as they are written in settings.
    pub const NAMES: [&'static str; 3] = ["plain", "cloudevents", "cloudevents-structured"];

    /// What a setting that chooses one takes.
    pub const KIND: ValueKind = ValueKind::Choice(&Self::NAMES);

    /// Its name in settings.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Plain => "plain",
            Self::CloudEvents => "cloudevents",
            Self::CloudEventsStructured => "cloudevents-structured",
        }
    }

    /// Whether its names and rules are those of CloudEvents.
    #[must_use]
    pub const fn is_cloudevents(self) -> bool {
        !matches!(self, Self::Plain)
    }
}

impl fmt::Display for EnvelopeFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for EnvelopeFormat {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        [Self::Plain, Self::CloudEvents, Self::CloudEventsStructured]
            .into_iter()
            .find(|format| format.as_str() == text)
            .ok_or_else(|| {
                let known = Self::NAMES.join(", ");
                Error::new(ErrorKind::Config, "read envelope format", format!("not one of {known}"))
                    .with_context("envelope", text.escape_debug())
            })
    }
}

impl FromValue for EnvelopeFormat {
    fn from_value(value: &Value) -> Option<Self> {
        String::from_value(value)?.parse().ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_reads_back() {
        for name in EnvelopeFormat::NAMES {
            assert_eq!(name.parse::<EnvelopeFormat>().unwrap().to_string(), name);
            let json = format!("\"{name}\"");
            assert_eq!(serde_json::from_str::<EnvelopeFormat>(&json).unwrap().as_str(), name);
        }
        assert_eq!("xml".parse::<EnvelopeFormat>().unwrap_err().kind(), ErrorKind::Config);
    }
}
