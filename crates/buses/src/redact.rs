//! Takes out of a text what must not be shown: answers of others are stored, logged and read.

use crate::Secret;

/// What stands in a text where a secret was.
const MASK: &str = "***";
/// A secret shorter than this is only recognised as a word of its own: a `1` is in every text.
const ANYWHERE_BYTES_MIN: usize = 8;
/// The shortest beginning of a secret that is recognised where a text was cut.
const CUT_BYTES_MIN: usize = 3;

/// Knows all that a destination's requests carry and nobody else may see.
#[derive(Clone, Default)]
pub(crate) struct Redactor {
    /// The longest first: one may hold another.
    secrets: Vec<Secret>,
}

impl std::fmt::Debug for Redactor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Redactor({} secrets)", self.secrets.len())
    }
}

impl Redactor {
    /// Of `texts` and of what JSON and HTML make of them.
    pub(crate) fn new<'a>(texts: impl IntoIterator<Item = &'a str>) -> Self {
        let mut known: Vec<String> = texts
            .into_iter()
            .filter(|text| !text.is_empty())
            .flat_map(|text| {
                let json = serde_json::to_string(text).unwrap_or_default();
                let json = json.trim_matches('"').to_owned();
                [text.to_owned(), json.replace('/', "\\/"), json, html(text)]
            })
            .collect();
        known.sort_unstable_by(|a, b| b.len().cmp(&a.len()).then_with(|| a.cmp(b)));
        known.dedup();
        Self { secrets: known.into_iter().map(Secret::from).collect() }
    }

    /// `text` without secrets, and without the beginning of one at its end.
    pub(crate) fn redact(&self, mut text: String) -> String {
        for secret in &self.secrets {
            text = replace(&text, secret.expose());
        }
        for secret in &self.secrets {
            let secret = secret.expose();
            let cut = (CUT_BYTES_MIN..secret.len())
                .rev()
                .find(|len| secret.get(..*len).is_some_and(|begin| text.ends_with(begin)));
            if let Some(len) = cut {
                text.truncate(text.len() - len);
                text.push_str(MASK);
            }
        }
        text
    }
}

fn replace(text: &str, secret: &str) -> String {
    let anywhere = secret.len() >= ANYWHERE_BYTES_MIN;
    let in_word = |c: Option<char>| c.is_some_and(char::is_alphanumeric);
    let mut out = String::with_capacity(text.len());
    let mut done = 0;
    for (at, found) in text.match_indices(secret) {
        let (before, after) = (&text[..at], &text[at + found.len()..]);
        if anywhere || !(in_word(before.chars().next_back()) || in_word(after.chars().next())) {
            out.push_str(&text[done..at]);
            out.push_str(MASK);
            done = at + found.len();
        }
    }
    out.push_str(&text[done..]);
    out
}

fn html(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_taken_out_whatever_its_length_and_spelling() {
        let redactor = Redactor::new(["Bearer topsecrettoken", "topsecrettoken", "k1", "a/b\"c&d"]);
        for (text, expected) in [
            ("authorization: Bearer topsecrettoken!", "authorization: ***!"),
            ("xtopsecrettokenx", "x***x"),
            ("X-Api-Key: k1", "X-Api-Key: ***"),
            ("the task1 of k12 stays", "the task1 of k12 stays"),
            ("{\"a\":\"a\\/b\\\"c&d\"}", "{\"a\":\"***\"}"),
            ("<p>a/b&quot;c&amp;d</p>", "<p>***</p>"),
            ("nothing", "nothing"),
        ] {
            assert_eq!(redactor.redact(text.to_owned()), expected);
        }
        assert!(!format!("{redactor:?}").contains("topsecret"));
    }

    #[test]
    fn the_beginning_of_a_secret_at_a_cut_is_taken_out() {
        let redactor = Redactor::new(["topsecrettoken"]);
        assert_eq!(redactor.redact("is topsec".to_owned()), "is ***");
        assert_eq!(redactor.redact("is to".to_owned()), "is to");
        assert_eq!(Redactor::default().redact("text".to_owned()), "text");
    }
}
