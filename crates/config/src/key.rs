//! Keys: what may be given, what holds where nothing is, and what it means.
//!
//! Parsing, environment names, suggestions, the reference and redaction all read these tables; a key that is
//! in none does not exist.

use crate::Settings;

/// One key of the configuration.
#[derive(Debug, Clone, Copy)]
pub struct Key {
    /// Its dotted path; within a kind of destination only the last part.
    pub path: &'static str,
    /// What values it takes.
    pub kind: ValueKind,
    /// The value it has when nobody gives one.
    pub default: DefaultValue,
    /// Meaning, and the danger of a wrong value. One paragraph of Markdown.
    pub doc: &'static str,
}

impl Key {
    /// The key at `path`.
    #[must_use]
    pub const fn new(path: &'static str, declared: Declared, doc: &'static str) -> Self {
        Self { path, kind: declared.kind, default: declared.default, doc }
    }
}

/// What may be given for a key, and what holds where nothing is given.
#[derive(Debug, Clone, Copy)]
pub struct Declared {
    kind: ValueKind,
    default: DefaultValue,
}

impl ValueKind {
    /// A duration above zero.
    pub const POSITIVE_DURATION: Self = Self::Duration { min_ms: 1, none: None };

    /// A key of this kind that has `value` where nothing is given, written as in an environment variable.
    #[must_use]
    pub const fn or(self, value: &'static str) -> Declared {
        Declared { kind: self, default: DefaultValue::Value(value) }
    }

    /// A key of this kind that may be left out; `meaning` says what holds then.
    #[must_use]
    pub const fn optional(self, meaning: &'static str) -> Declared {
        Declared { kind: self, default: DefaultValue::Absent(meaning) }
    }

    /// A key of this kind that must be given.
    #[must_use]
    pub const fn required(self) -> Declared {
        Declared { kind: self, default: DefaultValue::Required }
    }
}

/// What happens when a key is not given.
#[derive(Debug, Clone, Copy)]
pub enum DefaultValue {
    /// It has this value, written as in an environment variable.
    Value(&'static str),
    /// It has no value; the text says what that means.
    Absent(&'static str),
    /// It must be given.
    Required,
}

/// What values a key takes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum ValueKind {
    /// `true` or `false`.
    Bool,
    /// A whole number in a range, both ends included.
    Integer {
        /// The least.
        min: i64,
        /// The greatest.
        max: i64,
    },
    /// Any finite number.
    Number,
    /// `250ms`, `5s`, `1h30m`, `30d`, at least `min_ms` milliseconds.
    Duration {
        /// The shortest, in milliseconds.
        min_ms: u64,
        /// A word that stands for "none", where there is one.
        none: Option<&'static str>,
    },
    /// `64MiB`, `512KiB`, or a whole number of bytes.
    Bytes,
    /// One of these words.
    Choice(&'static [&'static str]),
    /// Any text.
    Text,
    /// The path of a file that has a line beginning with `-----BEGIN ` and this.
    FileWith(&'static str),
    /// Text that is never shown, and that may be an `env:` or `file:` reference.
    Secret,
    /// A URL whose user information is never shown; may be an `env:` or `file:` reference.
    SecretUrl,
    /// A URL of which scheme and host are shown and nothing else, since its path may be the secret;
    /// may be an `env:` or `file:` reference.
    OpaqueUrl,
    /// `HOST:PORT`, or `off`.
    Listen,
}

impl ValueKind {
    /// Whether its value may be a reference to a secret and must not be shown as it is.
    pub const fn is_secret(self) -> bool {
        matches!(self, Self::Secret | Self::SecretUrl | Self::OpaqueUrl)
    }

    /// The value, described for the reference and for error messages.
    pub fn describe(self) -> String {
        match self {
            Self::Bool => "`true` or `false`".into(),
            Self::Integer { min, max } => format!("a whole number from {min} to {max}"),
            Self::Number => "a number".into(),
            Self::Duration { none: None, .. } => "a duration such as `5s` or `250ms`".into(),
            Self::Duration { none: Some(none), .. } => {
                format!("a duration such as `250ms` or `30d`, or `{none}`")
            }
            Self::Bytes => "a size such as `64MiB`".into(),
            Self::Choice(words) => {
                let words: Vec<String> = words.iter().map(|word| format!("`{word}`")).collect();
                format!("one of {}", words.join(", "))
            }
            Self::Text => "text".into(),
            Self::FileWith(_) => "the path of a file".into(),
            Self::Secret => "text, or `env:NAME` or `file:PATH` that holds it (secret)".into(),
            Self::SecretUrl | Self::OpaqueUrl => {
                "a URL, or `env:NAME` or `file:PATH` that holds it (secret)".into()
            }
            Self::Listen => "`HOST:PORT`, or `off`".into(),
        }
    }
}

/// A table of the configuration: a section, or a kind of destination and the keys that only it has.
#[derive(Debug, Clone, Copy)]
pub struct Section {
    /// Its name, as in the file; of a kind of destination, the value of `type`.
    pub name: &'static str,
    /// What it is about. One paragraph of Markdown.
    pub doc: &'static str,
    /// Its keys; of a section, with whole paths.
    pub keys: &'static [Key],
}

impl Section {
    /// The table of this name with these settings.
    #[must_use]
    pub const fn of<S: Settings>(name: &'static str) -> Self {
        Self { name, doc: S::DOC, keys: S::KEYS }
    }
}

/// All that a configuration can hold.
#[derive(Debug, Clone, Copy)]
pub struct Schema {
    /// The sections with fixed names, in the order of the reference.
    pub sections: &'static [Section],
    /// The keys that every destination has.
    pub destination: &'static [Key],
    /// The kinds of destinations, in the order of the reference.
    pub kinds: &'static [Section],
    /// The keys of each `[[routes]]`, with whole paths.
    pub route: &'static [Key],
}

impl Schema {
    /// The keys with fixed paths.
    pub fn fixed_keys(&self) -> impl Iterator<Item = &'static Key> + use<> {
        self.sections.iter().flat_map(|section| section.keys)
    }

    /// The kind of destination called `name`.
    #[must_use]
    pub fn kind(&self, name: &str) -> Option<&'static Section> {
        self.kinds.iter().find(|kind| kind.name == name)
    }

    /// The keys of destinations of the kind `name`, the common ones first; only those where the kind is
    /// not known.
    pub fn destination_keys(
        &self,
        name: Option<&str>,
    ) -> impl Iterator<Item = &'static Key> + use<> {
        let own = name.and_then(|name| self.kind(name));
        self.destination.iter().chain(own.map_or(&[][..], |kind| kind.keys))
    }

    /// The keys of destinations of every kind, by the last part of their path.
    pub fn all_destination_keys(&self) -> impl Iterator<Item = &'static str> + use<> {
        let own = self.kinds.iter().flat_map(|kind| kind.keys);
        self.destination.iter().chain(own).map(|key| key.path)
    }
}

/// The section of a key path: all but its last part.
#[must_use]
pub fn section_of(path: &str) -> &str {
    path.rsplit_once('.').map_or("", |(section, _)| section)
}
