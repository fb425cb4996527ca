//! What is wrong with a setting.

use posthaste_config::Key;
use posthaste_core::Error;

/// What is wrong with the value of a key, and how to mend it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Complaint {
    /// The key, `type` where it is none of the kind's own.
    pub key: &'static str,
    /// What is wrong. No secret is in it.
    pub why: String,
    /// How to mend it.
    pub help: String,
}

/// Operations of this crate that fail for one setting, and the keys that buses have it under.
const OPERATIONS: [(&str, &[&str]); 2] = [
    ("read topic template", &["subject", "topic"]),
    ("read cloudevents source", &["cloudevents_source"]),
];

impl Complaint {
    /// A complaint about `key`.
    #[must_use]
    pub fn new(key: &'static str, why: impl Into<String>, help: impl Into<String>) -> Self {
        Self { key, why: why.into(), help: help.into() }
    }

    /// The complaint that an error of a bus's own settings is. The key is the one of `keys` that the
    /// error's text begins with, or else names first.
    #[must_use]
    pub fn of(error: &Error, keys: &[Key]) -> Self {
        let text = error.report();
        // Without the operation, which is "configure" and the kind.
        let why =
            text.strip_prefix(error.operation()).map_or(&*text, |why| why.trim_start_matches(": "));
        let key = key_of_operation(error.operation(), keys).unwrap_or_else(|| named_in(why, keys));
        // `user and password belong together` names both.
        let rest = why.strip_prefix(key).filter(|rest| !rest.starts_with(" and "));
        let why = rest.map_or(why, |rest| rest.trim_start_matches([':', ' ']));
        Self::new(key, why, "correct the value; `posthaste config reference` describes it")
    }
}

fn key_of_operation(operation: &str, keys: &[Key]) -> Option<&'static str> {
    let (_, names) = OPERATIONS.iter().find(|(known, _)| *known == operation)?;
    keys.iter().map(|key| key.path).find(|path| names.contains(path))
}

fn named_in(why: &str, keys: &[Key]) -> &'static str {
    let names = || keys.iter().map(|key| key.path);
    let begins = names().filter(|name| why.starts_with(name)).max_by_key(|name| name.len());
    let first = || {
        let found = names().filter_map(|name| Some((why.find(name)?, name)));
        found.min_by_key(|(at, _)| *at).map(|(_, name)| name)
    };
    begins.or_else(first).unwrap_or("type")
}

#[cfg(test)]
mod tests {
    use posthaste_config::ValueKind;
    use posthaste_core::ErrorKind;

    use super::*;

    const fn key(path: &'static str) -> Key {
        Key::new(path, ValueKind::Text.required(), "")
    }

    #[test]
    fn an_error_is_about_the_key_that_it_names() {
        const KEYS: &[Key] = &[key("url"), key("tls_file"), key("subject"), key("timeout")];
        for (operation, message, expected) in [
            ("configure x", "url: no scheme", ("url", "no scheme")),
            ("configure x", "timeout must be above zero", ("timeout", "must be above zero")),
            ("configure x", "see tls_file and url", ("tls_file", "see tls_file and url")),
            ("configure x", "url and subject clash", ("url", "url and subject clash")),
            ("read topic template", "a brace", ("subject", "a brace")),
            ("configure x", "nothing known", ("type", "nothing known")),
        ] {
            let error = Error::new(ErrorKind::Config, operation, message);
            let complaint = Complaint::of(&error, KEYS);
            assert_eq!((complaint.key, complaint.why.as_str()), expected);
        }
    }
}
