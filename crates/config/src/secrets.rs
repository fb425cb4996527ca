//! Secrets: taken by reference, never shown.

use std::path::Path;
use std::sync::{Mutex, PoisonError};

use crate::ValueKind;
use crate::bounded;
use crate::value::Refusal;

/// Shown in place of a secret.
pub const REDACTED: &str = "***";
/// Shorter secrets are not searched for in texts: they would blacken innocent words.
const SEARCHED_BYTES_MIN: usize = 8;

/// What must not appear in any text that we write.
static KNOWN: Mutex<Vec<(String, String)>> = Mutex::new(Vec::new());

/// The secret that `text` stands for: itself, or what an `env:` or `file:` reference points to.
///
/// # Errors
/// A reference to what is not there, or is empty.
pub fn resolve(text: &str, kind: ValueKind) -> Result<String, Refusal> {
    let secret = if let Some(name) = text.strip_prefix("env:") {
        std::env::var(name).ok().filter(|value| !value.is_empty()).ok_or_else(|| {
            (
                format!(
                    "refers to the environment variable {name:?}, which is not set or is empty"
                ),
                format!("set {name}, or correct the reference"),
            )
        })?
    } else if let Some(path) = text.strip_prefix("file:") {
        let help = || "correct the path, or let posthaste's user read the file".to_owned();
        let unreadable = |why: &dyn std::fmt::Display| {
            (format!("refers to the file {path:?}, which cannot be read: {why}"), help())
        };
        let content = bounded::read(Path::new(path), bounded::SECRET_BYTES_MAX)
            .map_err(|error| unreadable(&error))?;
        let content = String::from_utf8(content).map_err(|_| unreadable(&"it is not UTF-8"))?;
        let content = content.trim_end_matches(['\r', '\n']);
        if content.is_empty() {
            return Err((format!("refers to the file {path:?}, which is empty"), help()));
        }
        content.to_owned()
    } else {
        text.to_owned()
    };
    remember(&secret, kind);
    Ok(secret)
}

/// Makes [`redact`] hide a secret from now on.
fn remember(secret: &str, kind: ValueKind) {
    let mut known = KNOWN.lock().unwrap_or_else(PoisonError::into_inner);
    if kind == ValueKind::OpaqueUrl {
        known.push((secret.to_owned(), shown(secret, kind)));
        // Alone, too: an error may name the path.
        if let Some((_, path)) =
            split_host(secret).filter(|(_, path)| path.len() > SEARCHED_BYTES_MIN)
        {
            known.push((path.to_owned(), format!("/{REDACTED}")));
        }
    }
    if kind != ValueKind::Secret {
        known.push((secret.to_owned(), redact_url(secret)));
        for (_, value) in hidden_parameters(secret) {
            if value.len() >= SEARCHED_BYTES_MIN {
                known.push((value.to_owned(), REDACTED.to_owned()));
            }
        }
        // A password alone is often an innocent word ("postgres"); with its signs it is not.
        if let Some((_, userinfo, _)) = split_userinfo(secret) {
            let password = userinfo.split_once(':').map_or(userinfo, |(_, password)| password);
            if !password.is_empty() {
                known.push((format!(":{password}@"), format!(":{REDACTED}@")));
            }
        }
        return;
    }
    // A value may hold several secrets (`whsec_a,whsec_b`), or a name before one
    // (`Authorization: Bearer x`).
    let parts = secret.split(['\n', ',']).filter_map(|part| part.trim().rsplit([' ', ':']).next());
    for part in parts.chain([secret]).filter(|part| part.len() >= SEARCHED_BYTES_MIN) {
        known.push((part.to_owned(), REDACTED.to_owned()));
    }
}

/// `text` without any secret that was resolved so far.
pub fn redact(text: &str) -> String {
    let known = KNOWN.lock().unwrap_or_else(PoisonError::into_inner);
    let mut clean = text.to_owned();
    for (secret, replacement) in known.iter() {
        if clean.contains(secret.as_str()) {
            clean = clean.replace(secret.as_str(), replacement);
        }
    }
    clean
}

/// How a secret value is shown.
pub fn shown(secret: &str, kind: ValueKind) -> String {
    if secret.starts_with("env:") || secret.starts_with("file:") {
        // A reference is no secret, and tells where to look.
        return secret.to_owned();
    }
    match kind {
        ValueKind::SecretUrl => redact_url(secret),
        ValueKind::OpaqueUrl => match split_host(&redact_url(secret)) {
            Some((host, "" | "/")) => host.to_owned(),
            Some((host, _)) => format!("{host}/{REDACTED}"),
            None => REDACTED.to_owned(),
        },
        _ => REDACTED.to_owned(),
    }
}

/// What comes before the path of a URL, and the rest.
fn split_host(url: &str) -> Option<(&str, &str)> {
    let start = url.find("://")? + 3;
    let end = url[start..].find(['/', '?', '#']).map_or(url.len(), |at| start + at);
    Some(url.split_at(end))
}

/// A URL, or several with commas between, without passwords and tokens.
///
/// Errs on the side of hiding too much: all up to the last `@` counts as user information, since
/// a password with an unescaped `/` or `,` is still a password.
pub fn redact_url(url: &str) -> String {
    let mut clean = match split_userinfo(url) {
        None => url.to_owned(),
        Some((before, userinfo, after)) => match userinfo.split_once(':') {
            Some((user, _)) => format!("{before}{user}:{REDACTED}@{after}"),
            // NATS takes a bare token in the place of a user.
            None if before.starts_with("nats") || before.starts_with("tls") => {
                format!("{before}{REDACTED}@{after}")
            }
            None => format!("{before}{userinfo}@{after}"),
        },
    };
    if let Some((before, query)) = clean.split_once('?') {
        let hidden = |pair: &str| match pair.split_once('=') {
            Some((name, _)) if !is_open_parameter(name) => format!("{name}={REDACTED}"),
            Some(_) => pair.to_owned(),
            // No name of ours: it may be the rest of a password.
            None => REDACTED.to_owned(),
        };
        let query: Vec<String> = query.split('&').map(hidden).collect();
        clean = format!("{before}?{}", query.join("&"));
    }
    clean
}

/// Parameters whose values are no secret. All others are taken for one: what is misspelt, too.
const OPEN_PARAMETERS: &[&str] = &[
    "application_name",
    "channel_binding",
    "connect_timeout",
    "currentSchema",
    "dbname",
    "host",
    "hostaddr",
    "options",
    "port",
    "schema",
    "service",
    "sslcert",
    "sslkey",
    "sslmode",
    "sslrootcert",
    "target_session_attrs",
    "user",
];

fn is_open_parameter(name: &str) -> bool {
    OPEN_PARAMETERS.contains(&name)
}

/// The parameters of a URL that are not shown.
fn hidden_parameters(url: &str) -> impl Iterator<Item = (&str, &str)> {
    let query = url.split_once('?').map_or("", |(_, query)| query);
    let pairs = query.split('&').filter_map(|pair| pair.split_once('='));
    pairs.filter(|(name, _)| !is_open_parameter(name))
}

/// The parts before, of and after the user information (`@` dropped).
fn split_userinfo(url: &str) -> Option<(&str, &str, &str)> {
    let start = url.find("://")? + 3;
    let at = start + url[start..].rfind('@')?;
    Some((&url[..start], &url[start..at], &url[at + 1..]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passwords_and_tokens_are_hidden_however_odd_the_url() {
        for (url, shown) in [
            ("postgres://u:pa:ss@h/db", "postgres://u:***@h/db"),
            ("postgres://u:p/a@s,s@h/db", "postgres://u:***@h/db"),
            ("postgres://u@h/db", "postgres://u@h/db"),
            ("postgres://h/db?user=u&password=x", "postgres://h/db?user=u&password=***"),
            (
                "postgres://h/d?sslmode=require&passwd=x",
                "postgres://h/d?sslmode=require&passwd=***",
            ),
            ("postgres://h/d?sslpassword=x&y", "postgres://h/d?sslpassword=***&***"),
            ("nats://token@h:4222", "nats://***@h:4222"),
            ("nats://a:b@h,nats://c:d@i", "nats://a:***@i"),
            ("sqlite:posthaste.db", "sqlite:posthaste.db"),
            ("env:DB", "env:DB"),
        ] {
            assert_eq!(redact_url(url), shown);
        }
    }

    #[test]
    fn of_a_webhook_only_scheme_and_host_are_shown() {
        for (url, expected) in [
            ("https://hooks.example.com/services/T0/B0/s3cr3t", "https://hooks.example.com/***"),
            ("https://u:pw@example.com:8443?code=s3cr3t", "https://u:***@example.com:8443/***"),
            ("https://example.com/", "https://example.com"),
            ("not a url s3cr3t", "***"),
        ] {
            assert_eq!(shown(url, ValueKind::OpaqueUrl), expected);
        }
        resolve("https://example.com/services/T0/B0/s3cr3t", ValueKind::OpaqueUrl).unwrap();
        assert_eq!(redact("POST /services/T0/B0/s3cr3t: no"), "POST /***: no");
    }

    #[test]
    fn a_resolved_secret_vanishes_from_later_texts() {
        resolve("postgres://someone:hunter2hunter2@h/db", ValueKind::SecretUrl).unwrap();
        resolve("whsec_abcdefgh,whsec_ijklmnop", ValueKind::Secret).unwrap();
        resolve("Authorization: Bearer tokentoken", ValueKind::Secret).unwrap();
        let text = "url someone:hunter2hunter2@h, whsec_ijklmnop, Authorization: tokentoken";
        assert_eq!(redact(text), "url someone:***@h, ***, Authorization: ***");
    }

    #[test]
    fn a_reference_to_nothing_is_refused_by_name() {
        let (why, _) = resolve("env:POSTHASTE_NO_SUCH_VARIABLE", ValueKind::Secret).unwrap_err();
        assert!(why.contains("POSTHASTE_NO_SUCH_VARIABLE"));
        let (why, _) = resolve("file:/no/such/file", ValueKind::Secret).unwrap_err();
        assert!(why.contains("/no/such/file"));
    }
}
