//! Where below the configured URL an event goes that has a topic of its own.

use posthaste_core::{Error, ErrorKind, Result};
use reqwest::Url;

/// `base` with the parts of `topic` as further parts of its path.
///
/// Whoever writes a row must not reach anything beside what the operator configured, and servers
/// differ in what they take for a step up (`%2e`, `..;`, `\`, a tab between two dots). So only
/// characters that mean nothing to any of them are let through: the unreserved ones of RFC 3986.
///
/// # Errors
/// [`ErrorKind::Malformed`].
pub(super) fn below(base: &Url, topic: &str) -> Result<Url> {
    let malformed = || {
        Error::new(
            ErrorKind::Malformed,
            "choose path",
            "a webhook's topic is a relative path of letters, digits, - . _ ~ and /, without empty \
             parts, `.` and `..`",
        )
        .with_context("topic", topic.escape_debug())
    };
    let parts: Vec<&str> = topic.split('/').collect();
    if !parts.iter().all(|part| is_plain(part)) {
        return Err(malformed());
    }
    let mut url = base.clone();
    url.path_segments_mut().map_err(|()| malformed())?.pop_if_empty().extend(&parts);
    // Whatever the library made of it: it is below the base, and as many steps.
    let prefix = base.path().strip_suffix('/').unwrap_or(base.path());
    let rest = url.path().strip_prefix(prefix).and_then(|rest| rest.strip_prefix('/'));
    if rest.is_some_and(|rest| rest.split('/').eq(parts)) { Ok(url) } else { Err(malformed()) }
}

fn is_plain(part: &str) -> bool {
    let unreserved = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_' | '~');
    !matches!(part, "" | "." | "..") && part.chars().all(unreserved)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_topic_stays_below_the_configured_path() {
        for (base, topic, expected) in [
            (
                "https://h/hooks/in?tok=abc",
                "orders/placed",
                "https://h/hooks/in/orders/placed?tok=abc",
            ),
            ("https://h/hooks/", "a", "https://h/hooks/a"),
            ("https://h", "a.b/c-d_e~f/...", "https://h/a.b/c-d_e~f/..."),
        ] {
            assert_eq!(below(&base.parse().unwrap(), topic).unwrap().as_str(), expected);
        }
        let base: Url = "https://h/hooks/in".parse().unwrap();
        for topic in [
            "",
            ".",
            "..",
            "/a",
            "a/",
            "a//b",
            "a/../../b",
            "%2e%2E/x",
            ".\t./.\t./admin/delete",
            ".\n./.\r./internal",
            "a/;/..;/admin",
            "..;/admin",
            "%5C..%5Cadmin",
            "a\\b",
            "a b",
            "a?b=c",
            "a#b",
            "//evil",
            "@evil",
            "ü",
            "a\u{0}",
        ] {
            assert_eq!(below(&base, topic).unwrap_err().kind(), ErrorKind::Malformed, "{topic:?}");
        }
    }
}
