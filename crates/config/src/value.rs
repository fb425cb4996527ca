//! Values: as they were given, and as they are used.

use std::fmt;
use std::time::Duration;

use crate::ValueKind;
use crate::units;

/// Where a value came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// The schema's default.
    Default,
    /// A place in the file.
    File(String),
    /// An environment variable, or a group of them.
    Environment(String),
    /// An option on the command line.
    Option(&'static str),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::File(place) | Self::Environment(place) => f.write_str(place),
            Self::Option(name) => f.write_str(name),
        }
    }
}

/// A value as it was given.
#[derive(Debug, Clone, PartialEq)]
pub enum Raw {
    /// Text from the environment or the command line: its type is the key's.
    Untyped(String),
    /// A TOML string.
    Text(String),
    /// A TOML integer.
    Integer(i64),
    /// A TOML float.
    Number(f64),
    /// A TOML boolean.
    Bool(bool),
    /// A TOML table.
    Section,
    /// Anything else, named for the error message.
    Other(&'static str),
}

impl Raw {
    const fn type_name(&self) -> &'static str {
        match self {
            Self::Untyped(_) | Self::Text(_) => "text",
            Self::Integer(_) => "a whole number",
            Self::Number(_) => "a number",
            Self::Bool(_) => "a boolean",
            Self::Section => "a table",
            Self::Other(name) => name,
        }
    }
}

/// A value as it is used.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// No value: the key is absent, or says "none".
    None,
    /// A boolean.
    Bool(bool),
    /// A whole number, or a number of bytes.
    Integer(i64),
    /// A number.
    Number(f64),
    /// A duration.
    Duration(Duration),
    /// Text.
    Text(String),
}

/// Why a value is refused; the second part says how to mend it.
pub type Refusal = (String, String);

/// Reads `raw` as `kind`. Secret references are resolved before this.
pub fn read(raw: &Raw, kind: ValueKind) -> Result<Value, Refusal> {
    let wrong_type = || (format!("is {}, not {}", raw.type_name(), kind.describe()), mend(kind));
    let text = match raw {
        Raw::Untyped(text) | Raw::Text(text) => Some(text.as_str()),
        _ => None,
    };
    // A TOML string where a TOML number or boolean belongs is refused; the environment has only
    // strings.
    let untyped = match raw {
        Raw::Untyped(text) => Some(text.trim()),
        _ => None,
    };
    match kind {
        ValueKind::Bool => match (raw, untyped) {
            (Raw::Bool(value), _) => Ok(Value::Bool(*value)),
            (_, Some("true")) => Ok(Value::Bool(true)),
            (_, Some("false")) => Ok(Value::Bool(false)),
            _ => Err(wrong_type()),
        },
        ValueKind::Integer { min, max } => {
            let value = match (raw, untyped) {
                (Raw::Integer(value), _) => Some(*value),
                (_, Some(text)) => text.parse().ok(),
                _ => None,
            };
            let value = value.ok_or_else(wrong_type)?;
            if (min..=max).contains(&value) {
                Ok(Value::Integer(value))
            } else {
                Err((format!("{value} is out of range"), format!("give {}", kind.describe())))
            }
        }
        ValueKind::Number => {
            let value = match (raw, untyped) {
                (Raw::Number(value), _) => Some(*value),
                #[expect(clippy::cast_precision_loss, reason = "no setting is near 2^53")]
                (Raw::Integer(value), _) => Some(*value as f64),
                (_, Some(text)) => text.parse().ok(),
                _ => None,
            };
            value.filter(|value| value.is_finite()).map(Value::Number).ok_or_else(wrong_type)
        }
        ValueKind::Duration { min_ms, none } => {
            let text = text.ok_or_else(wrong_type)?;
            // In capitals as the words of other keys.
            if none.is_some_and(|word| word.eq_ignore_ascii_case(text.trim())) {
                return Ok(Value::None);
            }
            let duration = units::parse_duration(text).map_err(|why| (why, mend(kind)))?;
            if duration < Duration::from_millis(min_ms) {
                return Err((
                    format!("{text:?} is too short"),
                    format!("give at least {min_ms}ms"),
                ));
            }
            Ok(Value::Duration(duration))
        }
        ValueKind::Bytes => match (raw, text) {
            (Raw::Integer(bytes), _) if *bytes >= 0 => Ok(Value::Integer(*bytes)),
            (_, Some(text)) => {
                units::parse_bytes(text).map(Value::Integer).map_err(|why| (why, mend(kind)))
            }
            _ => Err(wrong_type()),
        },
        ValueKind::Choice(words) => {
            let text = text.ok_or_else(wrong_type)?;
            // In capitals as in other programs' settings: INFO.
            let word = words.iter().find(|word| word.eq_ignore_ascii_case(text.trim()));
            if let Some(word) = word {
                return Ok(Value::Text((*word).to_owned()));
            }
            let near = crate::suggest::nearest(text, words.iter().copied());
            let near = near.map(|word| format!("; did you mean {word:?}?")).unwrap_or_default();
            Err((format!("{text:?} is not known{near}"), format!("give {}", kind.describe())))
        }
        ValueKind::Listen => {
            let text = text.ok_or_else(wrong_type)?;
            if text == "off" || is_listen_address(text) {
                Ok(Value::Text(text.to_owned()))
            } else {
                Err((format!("{text:?} is no address to listen on"), mend(kind)))
            }
        }
        ValueKind::Text
        | ValueKind::FileWith(_)
        | ValueKind::Secret
        | ValueKind::SecretUrl
        | ValueKind::OpaqueUrl => {
            let text = text.ok_or_else(wrong_type)?;
            if text.is_empty() {
                return Err(("is empty".into(), "give a value or leave the key out".into()));
            }
            Ok(Value::Text(text.to_owned()))
        }
    }
}

fn is_listen_address(text: &str) -> bool {
    text.rsplit_once(':')
        .is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok())
}

/// An example of the right form.
fn mend(kind: ValueKind) -> String {
    let example = match kind {
        ValueKind::Bool => "write true or false, without quotes",
        ValueKind::Integer { .. } | ValueKind::Number => "write a number without quotes",
        ValueKind::Duration { none, .. } => {
            let or = none.map_or_else(String::new, |word| format!("; or \"{word}\""));
            return format!(
                "write a whole number and a unit in quotes: \"250ms\", \"5s\", \"1h30m\", \"30d\"{or}"
            );
        }
        ValueKind::Bytes => {
            "write a whole number and a unit in quotes: \"512KiB\", \"64MiB\", \"1GB\""
        }
        ValueKind::Listen => "write HOST:PORT, for example \"127.0.0.1:9464\", or \"off\"",
        ValueKind::Choice(_)
        | ValueKind::Text
        | ValueKind::FileWith(_)
        | ValueKind::Secret
        | ValueKind::SecretUrl
        | ValueKind::OpaqueUrl => "write text in quotes",
    };
    example.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quoted_number_is_refused_in_the_file_and_taken_from_the_environment() {
        let kind = ValueKind::Integer { min: 1, max: 10 };
        assert!(read(&Raw::Text("5".into()), kind).is_err());
        assert_eq!(read(&Raw::Untyped("5".into()), kind), Ok(Value::Integer(5)));
        assert!(read(&Raw::Untyped("11".into()), kind).unwrap_err().0.contains("out of range"));
    }

    #[test]
    fn a_duration_without_a_unit_is_refused_with_an_example() {
        let kind = ValueKind::Duration { min_ms: 1, none: Some("forever") };
        for bad in [Raw::Integer(5), Raw::Text("5".into()), Raw::Text("5 parsecs".into())] {
            let (_, help) = read(&bad, kind).unwrap_err();
            assert!(help.contains("\"5s\"") && help.contains("\"forever\""), "{help}");
        }
        for word in ["forever", "Forever"] {
            assert_eq!(read(&Raw::Text(word.into()), kind), Ok(Value::None));
        }
        assert!(read(&Raw::Text("0s".into()), kind).is_err());
    }

    #[test]
    fn a_choice_may_be_written_in_capitals() {
        let level = read(&Raw::Text("INFO".into()), ValueKind::Choice(&["warn", "info"]));
        assert_eq!(level, Ok(Value::Text("info".into())));
    }

    #[test]
    fn a_misspelt_choice_names_the_nearest() {
        let refusal = read(&Raw::Text("webhok".into()), ValueKind::Choice(&["nats", "webhook"]));
        assert!(refusal.unwrap_err().0.contains("did you mean \"webhook\""));
    }

    #[test]
    fn listen_addresses_need_host_and_port() {
        for good in ["127.0.0.1:9464", "localhost:1", "[::1]:80", "off", "0.0.0.0:0"] {
            assert!(read(&Raw::Text(good.into()), ValueKind::Listen).is_ok(), "{good}");
        }
        for bad in ["9464", ":9464", "host", "host:99999", ""] {
            assert!(read(&Raw::Text(bad.into()), ValueKind::Listen).is_err(), "{bad}");
        }
    }
}
