//! Headers that travel with an event.

use std::collections::BTreeMap;

use crate::{Error, ErrorKind, Result};

/// The longest header name, in bytes.
pub const HEADER_NAME_BYTES_MAX: usize = 128;
/// The largest sum of all header names and values of one event, in bytes.
pub const HEADERS_BYTES_MAX: usize = 16 * 1024;

/// Names and values, ordered by name.
///
/// Names are HTTP tokens (RFC 9110 §5.6.2), which every supported broker can carry, and as there
/// upper and lower case are one; values hold no control characters. Some names are
/// [reserved](Self::reserved).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Headers(Vec<(Box<str>, Box<str>)>);

impl Headers {
    /// No headers.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Why no event can carry a header of this name, whatever the broker; `None` where it can.
    ///
    /// A broker or an envelope may take more names for itself: `Nats-…`, `ce-…`, `Host`.
    /// [`MemoryBus::strict`](crate::memory::MemoryBus::strict) refuses those in a service's tests.
    #[must_use]
    pub fn reserved(name: &str) -> Option<&'static str> {
        let begins = |prefix: &str| {
            name.get(..prefix.len()).is_some_and(|begin| begin.eq_ignore_ascii_case(prefix))
        };
        if begins("ph-") {
            Some("names starting with ph- are posthaste's own")
        } else if name.eq_ignore_ascii_case("content-type") {
            Some("the content type is the payload's: give it with Payload::bytes")
        } else {
            None
        }
    }

    /// Adds a header, or replaces the one of this name.
    ///
    /// Takes reserved names: what is stored is stored, and a bus refuses it. The
    /// [builder](crate::OutboxEventBuilder) of a new event does not take them.
    ///
    /// # Errors
    /// [`ErrorKind::Malformed`] for a name that is not a token, a value with a control character,
    /// or more than [`HEADERS_BYTES_MAX`] in all.
    pub fn insert(&mut self, name: &str, value: &str) -> Result<()> {
        let refuse = |why: &str| {
            Err(Error::new(ErrorKind::Malformed, "read header", why)
                .with_context("header", name.escape_debug()))
        };
        if name.is_empty() || name.len() > HEADER_NAME_BYTES_MAX || !name.bytes().all(is_token_byte)
        {
            return refuse("a header name is 1 to 128 of: letters, digits and !#$%&'*+-.^_`|~");
        }
        if value.chars().any(char::is_control) {
            return refuse("a header value must not hold control characters");
        }
        let others: usize = self
            .iter()
            .filter(|(other, _)| !other.eq_ignore_ascii_case(name))
            .map(|(name, value)| name.len() + value.len())
            .sum();
        if others + name.len() + value.len() > HEADERS_BYTES_MAX {
            return refuse("the headers of one event are over 16 KiB");
        }
        let header = (name.into(), value.into());
        match self.find(name) {
            Ok(there) => self.0[there] = header,
            Err(place) => self.0.insert(place, header),
        }
        Ok(())
    }

    /// Takes a header out, whatever the case of its name.
    pub fn take(&mut self, name: &str) -> Option<Box<str>> {
        let at = self.0.iter().position(|(other, _)| other.eq_ignore_ascii_case(name))?;
        Some(self.0.remove(at).1)
    }

    /// The value of a header.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&str> {
        self.find(name).ok().map(|there| &*self.0[there].1)
    }

    /// Where the header of this name is, or belongs.
    fn find(&self, name: &str) -> std::result::Result<usize, usize> {
        self.0.binary_search_by(|(other, _)| lower(other).cmp(lower(name)))
    }

    /// All headers, ordered by name.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(name, value)| (&**name, &**value))
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Reads a JSON object of strings, numbers and booleans, as the `headers` column holds it. JSON
    /// `null` means none, and as a value it means that this header is not set: some ORMs write it so.
    ///
    /// # Errors
    /// [`ErrorKind::Malformed`] where the JSON is not such an object or a header breaks a rule of
    /// [`Headers::insert`].
    pub fn from_json(json: &[u8]) -> Result<Self> {
        use serde_json::Value;
        let object: Option<BTreeMap<String, Value>> =
            serde_json::from_slice(json).map_err(|error| {
                Error::new(ErrorKind::Malformed, "read headers", "headers must be one JSON object")
                    .with_source(error)
            })?;
        let mut headers = Self::new();
        for (name, value) in object.iter().flatten() {
            match value {
                Value::String(text) => headers.insert(name, text)?,
                Value::Number(_) | Value::Bool(_) => headers.insert(name, &value.to_string())?,
                Value::Null => {}
                Value::Array(_) | Value::Object(_) => {
                    return Err(Error::new(
                        ErrorKind::Malformed,
                        "read headers",
                        "a header value must be a string, a number or a boolean",
                    )
                    .with_context("header", name.escape_debug()));
                }
            }
        }
        Ok(headers)
    }

    /// The JSON object that the `headers` column holds.
    #[must_use]
    pub fn to_json(&self) -> String {
        let object: serde_json::Map<String, serde_json::Value> =
            self.iter().map(|(name, value)| (name.to_owned(), value.into())).collect();
        serde_json::Value::Object(object).to_string()
    }
}

fn lower(name: &str) -> impl Iterator<Item = u8> {
    name.bytes().map(|byte| byte.to_ascii_lowercase())
}

const fn is_token_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric()
        || matches!(
            byte,
            b'!' | b'#'
                | b'$'
                | b'%'
                | b'&'
                | b'\''
                | b'*'
                | b'+'
                | b'-'
                | b'.'
                | b'^'
                | b'_'
                | b'`'
                | b'|'
                | b'~'
        )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn malformed_headers_are_refused_with_their_name() {
        let mut headers = Headers::new();
        for (name, value) in
            [("", "x"), ("a b", "x"), ("a:b", "x"), ("ä", "x"), ("ok", "line\nbreak")]
        {
            let error = headers.insert(name, value).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Malformed);
        }
        assert!(headers.is_empty());
    }

    #[test]
    fn upper_and_lower_case_are_one_name_and_the_later_spelling_stays() {
        let mut headers = Headers::new();
        for (name, value) in [("X-B", "1"), ("x-a", "2"), ("X-A", "3"), ("x-c", "4")] {
            headers.insert(name, value).unwrap();
        }
        assert_eq!(
            (headers.get("x-A"), headers.get("X-b"), headers.get("x")),
            (Some("3"), Some("1"), None)
        );
        let all: Vec<_> = headers.iter().collect();
        assert_eq!(all, [("X-A", "3"), ("X-B", "1"), ("x-c", "4")]);
    }

    #[test]
    fn json_round_trip_keeps_names_and_values() {
        let headers = Headers::from_json(br#"{"tenant":"a","n":7,"on":true}"#).unwrap();
        assert_eq!(headers.get("n"), Some("7"));
        assert_eq!(Headers::from_json(headers.to_json().as_bytes()).unwrap(), headers);
        assert!(Headers::from_json(b"null").unwrap().is_empty());
        assert!(Headers::from_json(b"{\"a\":null}").unwrap().is_empty());
        for bad in [&b"[]"[..], b"{\"a\":[]}", b"{\"a\":{}}", b"nonsense", b"\"x\""] {
            assert_eq!(Headers::from_json(bad).unwrap_err().kind(), ErrorKind::Malformed);
        }
    }
}
