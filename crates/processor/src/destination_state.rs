//! How a destination is doing, for those who ask.

use std::time::Duration;

use jiff::Timestamp;
use posthaste_core::ErrorKind;
use posthaste_engine::UncountedKey;
use serde_json::{Value, json};

/// How a destination is doing.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DestinationState {
    /// Its name.
    pub name: String,
    /// The error it is paused for; `None` while it works.
    pub paused_for: Option<String>,
    /// Since when, by this machine's clock.
    pub paused_since: Option<Timestamp>,
    /// When it is tried again; `None` while it works, and while a try is under way.
    pub retry_at: Option<Timestamp>,
    /// Keys whose first event failed here and was not taken since, up to about a thousand.
    pub failing_keys: usize,
    /// How long it has taken nothing: since the first failure after its last success, be it paused or
    /// not. `None` while nothing fails, and where others are taken beside what does.
    pub failing_for: Option<Duration>,
    /// The beginning of that, by this machine's clock.
    pub failing_since: Option<Timestamp>,
    /// Its latest error, while something fails.
    pub last_error: Option<String>,
    /// The kind of that error.
    pub last_error_kind: Option<ErrorKind>,
    /// Of the failing keys, those that no attempt was counted of. The table need not know of them.
    pub uncounted_keys: usize,
    /// Some of those, the lowest places first.
    pub uncounted: Vec<UncountedKey>,
}

impl DestinationState {
    /// What operators read of it in the database.
    pub(crate) fn as_report(&self) -> Value {
        let named = |key: &UncountedKey| json!({ "seq": key.seq, "id": key.id, "key": key.key });
        let time = |at: Option<Timestamp>| at.map(|at| at.to_string());
        json!({
            "name": self.name,
            "paused_for": self.paused_for,
            "paused_since": time(self.paused_since),
            "retry_at": time(self.retry_at),
            "failing_keys": self.failing_keys,
            "failing_since": time(self.failing_since),
            "last_error": self.last_error,
            "last_error_kind": self.last_error_kind.map(ErrorKind::as_str),
            "uncounted_keys": self.uncounted_keys,
            "uncounted": self.uncounted.iter().map(named).collect::<Vec<_>>(),
        })
    }

    /// What is wrong with it, if anything is.
    pub(crate) fn trouble(&self) -> Option<String> {
        let name = &self.name;
        if let Some(why) = &self.paused_for {
            return Some(format!("destination {name} is paused: {why}"));
        }
        let error = self.last_error.as_deref()?;
        let keys = match self.failing_keys {
            1 => "1 key fails".to_owned(),
            keys => format!("{keys} keys fail"),
        };
        Some(match self.failing_for {
            Some(time) => {
                let seconds = time.as_secs();
                format!("destination {name} takes nothing for {seconds} s, {keys}: {error}")
            }
            None => format!("destination {name}: {keys}, others are taken: {error}"),
        })
    }
}
