//! Every metric is explained to operators, and nothing is explained that is not there.

use std::collections::BTreeSet;

use super::{TextFile, Violation};

/// Where metrics are recorded.
const SOURCES: [&str; 2] = ["crates/processor/src/telemetry.rs", "crates/cli/src/logs.rs"];
/// Where they are explained.
const PAGE: &str = "docs/operating.md";

/// Compares the metrics' names in the source with those on the page.
pub(super) fn check(files: &[TextFile]) -> Vec<Violation> {
    let names_in = |path: &str, before: &str| {
        let file = files.iter().find(|file| file.path == path);
        file.map(|file| names(&file.text, before)).unwrap_or_default()
    };
    let recorded: BTreeSet<String> =
        SOURCES.into_iter().flat_map(|source| names_in(source, "\"")).collect();
    let explained = names_in(PAGE, "\n| `");
    let violation = |place: &str, what, remedy| Violation { place: place.to_owned(), what, remedy };
    let unexplained = recorded.difference(&explained).map(|name| {
        violation(SOURCES[0], format!("{name} is not explained"), "explain it in docs/operating.md")
    });
    let unknown = explained.difference(&recorded).map(|name| {
        violation(PAGE, format!("{name} is not recorded"), "correct the name, or take it out")
    });
    unexplained.chain(unknown).collect()
}

/// The names that stand directly behind `before`.
fn names(text: &str, before: &str) -> BTreeSet<String> {
    let name = |rest: &str| {
        let end = rest.find(|c: char| !(c.is_ascii_lowercase() || c == '_')).unwrap_or(rest.len());
        rest[..end].to_owned()
    };
    text.split(before).skip(1).filter(|rest| rest.starts_with("outbox_")).map(name).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check_texts(source: &str, page: &str) -> Vec<String> {
        let file = |path: &str, text: &str| TextFile { path: path.into(), text: text.into() };
        check(&[file(SOURCES[0], source), file(PAGE, page)]).into_iter().map(|v| v.what).collect()
    }

    #[test]
    fn source_and_page_name_the_same_metrics() {
        let source = "counter!(\"outbox_retries_total\"); gauge!(\"outbox_dead_events\")";
        let page = "\n| `outbox_retries_total` | x |\n| `outbox_dead_events{a}` | `outbox_other` |";
        assert_eq!(check_texts(source, page), Vec::<String>::new());
        let page = "\n| `outbox_retries_total` | x |\n| `outbox_made_up` | y |";
        let expected = ["outbox_dead_events is not explained", "outbox_made_up is not recorded"];
        assert_eq!(check_texts(source, page), expected);
    }
}
