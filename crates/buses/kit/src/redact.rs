//! Takes out of a text what must not be shown: answers of others are stored, logged and read.

use std::collections::HashSet;
use std::fmt::Write as _;
use std::ops::Range;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

use crate::Secret;

/// What stands in a text where a secret was.
const MASK: &str = "***";
/// So many bytes of a secret in a row are recognised wherever they stand. Of a shorter secret, only the
/// whole is, as a word of its own: a `1` is in every text.
const PIECE_BYTES: usize = 8;
/// The shortest beginning of a secret that is recognised where a text was cut.
const CUT_BYTES_MIN: usize = 3;
/// What most programs leave as it is in a URL.
const UNRESERVED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~');

/// Knows all that a destination's requests carry and nobody else may see. Upper and lower case are one
/// to it.
#[derive(Clone, Default)]
pub struct Redactor {
    /// In lower case, the longest first: one may hold another.
    secrets: Vec<Secret>,
    /// Each [`PIECE_BYTES`] in a row of a secret.
    pieces: HashSet<[u8; PIECE_BYTES]>,
}

impl std::fmt::Debug for Redactor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Redactor({} secrets)", self.secrets.len())
    }
}

impl Redactor {
    /// Of `texts` and of what JSON, HTML, URLs and dumps make of them.
    #[must_use]
    pub fn new<'a>(texts: impl IntoIterator<Item = &'a str>) -> Self {
        let spellings = |text: &str| {
            let json = serde_json::to_string(text).unwrap_or_default();
            let json = json.trim_matches('"').to_owned();
            [
                text.to_owned(),
                json.replace('/', "\\/"),
                json,
                html(text),
                utf8_percent_encode(text, UNRESERVED).to_string(),
                utf8_percent_encode(text, NON_ALPHANUMERIC).to_string(),
                hexadecimal(text),
            ]
        };
        let mut known: Vec<String> = texts
            .into_iter()
            .filter(|text| !text.is_empty())
            .flat_map(spellings)
            .map(|spelling| spelling.to_ascii_lowercase())
            .collect();
        known.sort_unstable_by(|a, b| b.len().cmp(&a.len()).then_with(|| a.cmp(b)));
        known.dedup();
        let pieces = known.iter().flat_map(|text| text.as_bytes().array_windows()).copied();
        Self { pieces: pieces.collect(), secrets: known.into_iter().map(Secret::from).collect() }
    }

    /// `text` without secrets and pieces of them, and without the beginning of one at its end.
    #[must_use]
    pub fn redact(&self, text: String) -> String {
        let lower = text.to_ascii_lowercase();
        let mut found = self.pieces_in(&lower);
        for secret in &self.secrets {
            let secret = secret.expose();
            if secret.len() < PIECE_BYTES {
                found.extend(words(&lower, secret));
            }
            let cut = (CUT_BYTES_MIN..secret.len())
                .rev()
                .find(|len| secret.get(..*len).is_some_and(|begin| lower.ends_with(begin)));
            found.extend(cut.map(|len| lower.len() - len..lower.len()));
        }
        masked(&text, found)
    }

    fn pieces_in(&self, lower: &str) -> Vec<Range<usize>> {
        let windows = lower.as_bytes().array_windows::<PIECE_BYTES>().enumerate();
        let known = windows.filter(|(_, window)| self.pieces.contains(*window));
        known.map(|(at, _)| at..at + PIECE_BYTES).collect()
    }
}

/// Where `secret` stands as a word.
fn words(text: &str, secret: &str) -> Vec<Range<usize>> {
    let in_word = |c: Option<char>| c.is_some_and(char::is_alphanumeric);
    let is_word = |range: &Range<usize>| {
        let (before, after) = (&text[..range.start], &text[range.end..]);
        !(in_word(before.chars().next_back()) || in_word(after.chars().next()))
    };
    text.match_indices(secret).map(|(at, found)| at..at + found.len()).filter(is_word).collect()
}

/// `text` with a mask in the place of these ranges, one for those that touch.
fn masked(text: &str, mut ranges: Vec<Range<usize>>) -> String {
    ranges.sort_unstable_by_key(|range| range.start);
    let mut out = String::with_capacity(text.len());
    let mut done = 0;
    for range in ranges {
        // A piece may begin or end within a character.
        let (start, end) =
            (text.floor_char_boundary(range.start), text.ceil_char_boundary(range.end));
        if done == 0 || start > done {
            out.push_str(&text[done..start]);
            out.push_str(MASK);
        }
        done = done.max(end);
    }
    out.push_str(&text[done..]);
    out
}

fn html(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

fn hexadecimal(text: &str) -> String {
    text.bytes().fold(String::new(), |mut out, byte| {
        // Writing to a string does not fail.
        let _ = write!(out, "{byte:02x}");
        out
    })
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
    fn a_piece_of_a_secret_is_taken_out_in_any_case_and_encoding() {
        let secret = "k3y+sEcret/va=lue99";
        let redactor = Redactor::new([secret, "B0SECRT"]);
        for (text, expected) in [
            ("bad key y+sEcret/va=lue99.", "bad key ***."),
            ("bad key K3Y+SECRET/VA=LUE99.", "bad key ***."),
            ("bad key k3y%2BsEcret%2fva%3Dlue99.", "bad key ***."),
            ("bad key 6b33792b7345637265742f76613d6c75653939.", "bad key ***."),
            ("no route services.b0secrt.x", "no route services.***.x"),
            ("a secret, and its value", "a secret, and its value"),
        ] {
            assert_eq!(redactor.redact(text.to_owned()), expected);
        }
        // Pieces begin and end within characters here.
        let redactor = Redactor::new(["éééééééé"]);
        assert_eq!(redactor.redact("aßéééééèb".to_owned()), "aß***b");
    }

    #[test]
    fn the_beginning_of_a_secret_at_a_cut_is_taken_out() {
        let redactor = Redactor::new(["topsecrettoken"]);
        assert_eq!(redactor.redact("is topsec".to_owned()), "is ***");
        assert_eq!(redactor.redact("is to".to_owned()), "is to");
        assert_eq!(Redactor::default().redact("text".to_owned()), "text");
    }
}
