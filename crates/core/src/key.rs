//! The order key: events of one key are delivered in order.

use std::fmt;

use uuid::Uuid;

use crate::{Error, ErrorKind, Result};

/// The longest order key, in bytes.
pub const ORDER_KEY_BYTES_MAX: usize = 512;

/// What orders events: the writer's own key, or the aggregate's id where none was given.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum OrderKey {
    /// No key of its own: the aggregate's id orders it.
    Aggregate(Uuid),
    /// The `partition_key` column.
    Named(Box<str>),
}

impl OrderKey {
    /// A named key: 1 to [`ORDER_KEY_BYTES_MAX`] bytes, no control characters.
    pub fn named(key: &str) -> Result<Self> {
        let refuse = |why: String| Err(Error::new(ErrorKind::Malformed, "read order key", why));
        if key.is_empty() {
            return refuse("the order key is empty; leave it out to order by aggregate id".into());
        }
        if key.len() > ORDER_KEY_BYTES_MAX {
            let length = key.len();
            return refuse(format!("{length} bytes are over the limit of {ORDER_KEY_BYTES_MAX}"));
        }
        if key.chars().any(char::is_control) {
            return refuse("control characters are not allowed".into());
        }
        Ok(Self::Named(key.into()))
    }

    /// The writer's own key, if it gave one.
    #[must_use]
    pub fn as_named(&self) -> Option<&str> {
        match self {
            Self::Aggregate(_) => None,
            Self::Named(key) => Some(key),
        }
    }
}

impl fmt::Display for OrderKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Aggregate(id) => id.fmt(f),
            Self::Named(key) => f.write_str(key),
        }
    }
}
