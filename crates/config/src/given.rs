//! The values of one table, as settings are read from them.

use std::num::NonZeroU32;
use std::path::PathBuf;
use std::time::Duration;

use crate::value::{self, Raw, Value};
use crate::{DefaultValue, Key, Secret, ValueKind};

/// The values of the keys of one table.
#[derive(Debug, Clone, Default)]
pub struct Given(Vec<Entry>);

#[derive(Debug, Clone)]
struct Entry {
    name: &'static str,
    value: Value,
    is_default: bool,
}

impl Given {
    /// The values that keys have when nobody gives any. A required key has none.
    #[must_use]
    pub fn with_defaults(keys: &[Key]) -> Self {
        let mut given = Self::default();
        for key in keys {
            if let Some(value) = default_of(key) {
                given.add(key.path, value, true);
            }
        }
        given
    }

    /// Adds the value of a key; `is_default` where nobody gave it.
    pub fn add(&mut self, name: &'static str, value: Value, is_default: bool) {
        self.0.retain(|entry| entry.name != name);
        self.0.push(Entry { name, value, is_default });
    }

    /// The same values, with a text in the place of one: for tests, and for settings made by hand.
    #[must_use]
    pub fn with(mut self, name: &'static str, text: &str) -> Self {
        self.add(name, Value::Text(text.to_owned()), false);
        self
    }

    /// The same values, with the default of one of `keys` in the place of what was given, or with an
    /// address that nobody has where the key needs one.
    #[must_use]
    pub fn without(&self, name: &str, keys: &[Key]) -> Self {
        let mut rest = self.clone();
        rest.0.retain(|entry| entry.name != name);
        if let Some(key) = keys.iter().find(|key| key.path == name) {
            let needs_address = key.kind == ValueKind::OpaqueUrl;
            let nowhere = || needs_address.then(|| Value::Text("https://host.invalid/".to_owned()));
            if let Some(value) = default_of(key).or_else(nowhere) {
                rest.add(key.path, value, true);
            }
        }
        rest
    }

    /// Whether somebody gave this key.
    #[must_use]
    pub fn is_given(&self, name: &str) -> bool {
        self.0.iter().any(|entry| entry.name == name && !entry.is_default)
    }

    /// The value of a key; `None` where there is none, or one of another type.
    #[must_use]
    pub fn get<T: FromValue>(&self, name: &str) -> Option<T> {
        let entry = self.0.iter().find(|entry| entry.name == name)?;
        T::from_value(&entry.value)
    }
}

/// `None` for a key that must be given.
fn default_of(key: &Key) -> Option<Value> {
    match key.default {
        DefaultValue::Value(text) => value::read(&Raw::Untyped(text.to_owned()), key.kind).ok(),
        DefaultValue::Absent(_) => Some(Value::None),
        DefaultValue::Required => None,
    }
}

/// What a field of settings can be.
pub trait FromValue: Sized {
    /// Reads a value; `None` where it is none of this type, or out of its range.
    fn from_value(value: &Value) -> Option<Self>;
}

impl FromValue for NonZeroU32 {
    fn from_value(value: &Value) -> Option<Self> {
        u32::from_value(value).and_then(Self::new)
    }
}

/// `None` is what a key without a value has.
impl<T: FromValue> FromValue for Option<T> {
    fn from_value(value: &Value) -> Option<Self> {
        match value {
            Value::None => Some(None),
            value => T::from_value(value).map(Some),
        }
    }
}

impl FromValue for bool {
    fn from_value(value: &Value) -> Option<Self> {
        match value {
            Value::Bool(value) => Some(*value),
            _ => None,
        }
    }
}

impl FromValue for f64 {
    fn from_value(value: &Value) -> Option<Self> {
        match value {
            Value::Number(value) => Some(*value),
            _ => None,
        }
    }
}

impl FromValue for Duration {
    fn from_value(value: &Value) -> Option<Self> {
        match value {
            Value::Duration(value) => Some(*value),
            _ => None,
        }
    }
}

impl FromValue for String {
    fn from_value(value: &Value) -> Option<Self> {
        match value {
            Value::Text(text) => Some(text.clone()),
            _ => None,
        }
    }
}

impl FromValue for PathBuf {
    fn from_value(value: &Value) -> Option<Self> {
        String::from_value(value).map(Self::from)
    }
}

impl FromValue for Secret {
    fn from_value(value: &Value) -> Option<Self> {
        String::from_value(value).map(Self::from)
    }
}

/// What stands between commas, without blanks around it and without what is empty. A key without a value
/// has none.
impl<T: for<'a> From<&'a str>> FromValue for Vec<T> {
    fn from_value(value: &Value) -> Option<Self> {
        match value {
            Value::None => Some(Self::new()),
            Value::Text(text) => {
                let parts = text.split(',').map(str::trim).filter(|part| !part.is_empty());
                Some(parts.map(T::from).collect())
            }
            _ => None,
        }
    }
}

macro_rules! whole_numbers {
    ($($type:ty),+) => {
        $(impl FromValue for $type {
            fn from_value(value: &Value) -> Option<Self> {
                match value {
                    Value::Integer(number) => Self::try_from(*number).ok(),
                    _ => None,
                }
            }
        })+
    };
}

whole_numbers!(u16, u32, u64, usize, i64);
