//! The body of an event.

use bytes::Bytes;
use serde::Serialize;

use crate::{Error, ErrorKind, Result};

/// The content type of a JSON payload.
pub const JSON_CONTENT_TYPE: &str = "application/json";

/// What an event carries: JSON text (`event_data`), or bytes with a content type of their own
/// (`payload`, `content_type`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Payload {
    /// JSON text, delivered as the store returns it. PostgreSQL's `jsonb` normalises white space
    /// and key order once, when storing; every delivery then carries the same bytes.
    Json(Bytes),
    /// Any bytes, delivered exactly.
    Bytes {
        /// The bytes; may be empty.
        data: Bytes,
        /// Their media type, `application/avro` for one.
        content_type: Box<str>,
    },
}

impl Payload {
    /// Serialises `value` to JSON text.
    ///
    /// # Errors
    /// [`ErrorKind::Malformed`] where `value` has no JSON form.
    pub fn json(value: &(impl Serialize + ?Sized)) -> Result<Self> {
        serde_json::to_vec(value).map(|text| Self::Json(text.into())).map_err(|error| {
            Error::new(ErrorKind::Malformed, "write payload", "the value has no JSON form")
                .with_source(error)
        })
    }

    /// Takes JSON text as it is, after checking that it is JSON.
    ///
    /// # Errors
    /// [`ErrorKind::Malformed`] where it is not, or is empty.
    pub fn json_text(text: impl Into<Bytes>) -> Result<Self> {
        let text = text.into();
        if text.is_empty() {
            return Err(Error::new(
                ErrorKind::Malformed,
                "read payload",
                "the payload is empty; give JSON (`{}` for none) or bytes with a content type",
            ));
        }
        serde_json::from_slice::<&serde_json::value::RawValue>(&text).map_err(|error| {
            Error::new(ErrorKind::Malformed, "read payload", "the payload is not JSON")
                .with_source(error)
        })?;
        Ok(Self::Json(text))
    }

    /// Bytes with a content type. Empty bytes are allowed (a tombstone).
    ///
    /// # Errors
    /// [`ErrorKind::Malformed`] where the content type is not of the form `type/subtype`.
    pub fn bytes(data: impl Into<Bytes>, content_type: &str) -> Result<Self> {
        let well_formed = content_type.split_once('/').is_some_and(|(kind, rest)| {
            !kind.is_empty()
                && !rest.is_empty()
                && content_type.bytes().all(|b| (b' '..=b'~').contains(&b))
        });
        if !well_formed {
            return Err(Error::new(
                ErrorKind::Malformed,
                "read payload",
                "a content type has the form type/subtype in visible ASCII",
            )
            .with_context("content_type", content_type.escape_debug()));
        }
        Ok(Self::Bytes { data: data.into(), content_type: content_type.into() })
    }

    /// The bytes that are delivered.
    #[must_use]
    pub const fn body(&self) -> &Bytes {
        match self {
            Self::Json(data) | Self::Bytes { data, .. } => data,
        }
    }

    /// The media type of the body.
    #[must_use]
    pub fn content_type(&self) -> &str {
        match self {
            Self::Json(_) => JSON_CONTENT_TYPE,
            Self::Bytes { content_type, .. } => content_type,
        }
    }

    /// Whether it is JSON from `event_data`.
    #[must_use]
    pub const fn is_json(&self) -> bool {
        matches!(self, Self::Json(_))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_text_must_be_json_and_bytes_need_a_content_type() {
        for bad in ["", " ", "{", "\u{0}", "{} {}"] {
            assert!(Payload::json_text(bad).is_err(), "{bad:?}");
        }
        assert_eq!(Payload::json_text("{ }").unwrap().body(), "{ }");
        assert!(Payload::bytes(vec![0xff, 0xfe], "nonsense").is_err());
        assert_eq!(Payload::bytes(vec![], "application/avro").unwrap().body().len(), 0);
    }
}
