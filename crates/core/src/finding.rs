//! What somebody found who looked for whatever keeps events from being delivered.

use crate::Error;

/// How bad a finding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Severity {
    /// Nothing is wrong.
    Fine,
    /// Some events wait, or will; or something is odd that can do harm.
    Warning,
    /// Nothing is delivered or recorded, or a promise is broken: order, for one.
    Error,
}

impl Severity {
    /// Its lower-case name: `ok`, `warning` or `error`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Fine => "ok",
            Self::Warning => "warning",
            Self::Error => "error",
        }
    }
}

/// One look and what it found.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Finding {
    /// What was looked at, in a word or two: `rights`, `replica identity`.
    pub about: Box<str>,
    /// How bad it is.
    pub severity: Severity,
    /// What was found, and where.
    pub message: String,
    /// What to do next.
    pub hint: Option<String>,
}

impl Finding {
    /// A finding without a hint.
    pub fn new(about: impl Into<Box<str>>, severity: Severity, message: impl Into<String>) -> Self {
        Self { about: about.into(), severity, message: message.into(), hint: None }
    }

    /// Nothing is wrong with `about`.
    pub fn fine(about: impl Into<Box<str>>, message: impl Into<String>) -> Self {
        Self::new(about, Severity::Fine, message)
    }

    /// A look that failed: what it was for is not known.
    pub fn unknown(about: impl Into<Box<str>>, error: &Error) -> Self {
        Self::new(about, Severity::Error, error.report()).with_hint(error.kind().hint())
    }

    /// Says what to do.
    #[must_use]
    pub fn with_hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }
}
