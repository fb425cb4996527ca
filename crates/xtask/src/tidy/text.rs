//! What may not be in a committed file.

use super::{TextFile, Violation};

/// Files above this are listed.
pub(super) const LINES_WANTED_MAX: usize = 500;
/// Files above this are refused.
const LINES_MAX: usize = 800;

/// Code that says "later". Spelt in halves, so that this file does not break its own rule.
const UNFINISHED: [&str; 3] =
    [concat!("to", "do!("), concat!("unimple", "mented!("), concat!("db", "g!(")];

/// Roots of paths that exist on one machine only, in halves as above.
const MACHINE_ROOTS: [&str; 4] =
    [concat!("/ro", "ot/"), concat!("/wo", "rk/"), concat!("/ho", "me/"), concat!("/Us", "ers/")];

/// The only place crates come from.
const REGISTRY: &str = "registry+https://github.com/rust-lang/crates.io-index";

/// Checks one file. `exists` says whether a path from the root is there.
pub(super) fn check_file(file: &TextFile, exists: &dyn Fn(&str) -> bool) -> Vec<Violation> {
    let mut violations = Vec::new();
    if file.path.ends_with(".rs") {
        violations.extend(check_length(file));
        violations.extend(check_unfinished(file));
    }
    if file.path.ends_with("Cargo.lock") {
        violations.extend(check_lock(file));
    } else {
        violations.extend(check_machine_paths(file));
    }
    if file.path.ends_with(".md") {
        violations.extend(check_links(file, exists));
    }
    violations
}

fn check_length(file: &TextFile) -> Option<Violation> {
    let lines = file.text.lines().count();
    (lines > LINES_MAX).then(|| Violation {
        place: file.path.clone(),
        what: format!("has {lines} lines, more than {LINES_MAX}"),
        remedy: "split it by concept",
    })
}

/// A violation for every line that `find` finds something in.
fn check_lines<'a>(
    file: &'a TextFile,
    remedy: &'static str,
    find: impl Fn(&'a str) -> Option<String>,
) -> impl Iterator<Item = Violation> {
    file.text.lines().enumerate().filter_map(move |(index, line)| {
        let what = find(line)?;
        Some(Violation { place: format!("{}:{}", file.path, index + 1), what, remedy })
    })
}

fn check_unfinished(file: &TextFile) -> impl Iterator<Item = Violation> {
    check_lines(file, "finish it, or take it out", |line| {
        let word = UNFINISHED.iter().find(|word| line.contains(**word))?;
        Some(format!("holds {word}"))
    })
}

fn check_machine_paths(file: &TextFile) -> impl Iterator<Item = Violation> {
    check_lines(file, "use a path from the repository's root, or a temporary folder", |line| {
        let root = MACHINE_ROOTS.iter().find(|root| {
            // Within a longer path or a URL it is an ordinary name; in a URL without a host it is none.
            line.match_indices(**root).any(|(at, _)| {
                let before = &line[..at];
                let is_longer = |c: char| c.is_alphanumeric() || "_-./}~*".contains(c);
                before.ends_with("://") || !before.ends_with(is_longer)
            })
        })?;
        Some(format!("names a folder of one machine, {root}"))
    })
}

fn check_lock(file: &TextFile) -> impl Iterator<Item = Violation> {
    check_lines(file, "resolve it from crates.io", |line| {
        let source = line.strip_prefix("source = \"")?.strip_suffix('"')?;
        (source != REGISTRY).then(|| format!("takes a crate from {source}"))
    })
}

/// Relative links must lead to a file.
fn check_links(file: &TextFile, exists: &dyn Fn(&str) -> bool) -> Vec<Violation> {
    let folder = file.path.rsplit_once('/').map_or("", |(folder, _)| folder);
    let links = file.text.split("](").skip(1).filter_map(|rest| rest.split([')', ' ']).next());
    links
        .map(|link| link.split_once('#').map_or(link, |(path, _)| path))
        .filter(|path| !path.is_empty() && !path.contains("://") && !path.starts_with("mailto:"))
        .filter(|path| !exists(&join(folder, path)))
        .map(|path| Violation {
            place: file.path.clone(),
            what: format!("links to {path}, which is not there"),
            remedy: "correct the link",
        })
        .collect()
}

/// A path relative to a folder, with `..` resolved.
fn join(folder: &str, path: &str) -> String {
    let mut parts: Vec<&str> = folder.split('/').filter(|part| !part.is_empty()).collect();
    for part in path.split('/') {
        match part {
            "." | "" => {}
            ".." => drop(parts.pop()),
            _ => parts.push(part),
        }
    }
    parts.join("/")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(path: &str, text: impl Into<String>) -> Vec<Violation> {
        let file = TextFile { path: path.into(), text: text.into() };
        check_file(&file, &|path| path == "docs/there.md")
    }

    #[test]
    fn a_file_may_have_800_lines_and_no_more() {
        assert!(check("a.rs", "\n".repeat(800)).is_empty());
        assert_eq!(check("a.rs", "\n".repeat(801)).len(), 1);
        assert!(check("a.md", "\n".repeat(801)).is_empty());
    }

    #[test]
    fn unfinished_code_is_found_with_its_line() {
        for word in UNFINISHED {
            let found = check("a.rs", format!("fn a() {{\n    {word});\n}}\n"));
            assert_eq!(found.len(), 1, "{word}");
            assert_eq!(found[0].place, "a.rs:2");
        }
    }

    #[test]
    fn paths_of_one_machine_are_found_and_longer_paths_are_not() {
        for root in MACHINE_ROOTS {
            assert_eq!(check("a.md", format!("see `{root}x`")).len(), 1, "{root}");
            assert_eq!(check("a.toml", format!("url = \"file://{root}x\"")).len(), 1, "{root}");
            assert!(check("a.md", format!("see target{root}x")).is_empty(), "{root}");
            assert!(check("a.md", format!("https://example.org{root}x")).is_empty(), "{root}");
        }
    }

    #[test]
    fn crates_come_from_one_registry() {
        assert!(check("Cargo.lock", format!("source = \"{REGISTRY}\"\n")).is_empty());
        for lock in ["Cargo.lock", "crates/a/Cargo.lock"] {
            assert_eq!(check(lock, "source = \"git+https://example.org/x\"\n").len(), 1);
        }
    }

    #[test]
    fn links_lead_somewhere() {
        assert!(
            check("README.md", "[a](docs/there.md#part) [b](https://x.org) [c](#d)").is_empty()
        );
        assert!(check("docs/a.md", "[a](there.md) [b](../docs/there.md)").is_empty());
        assert_eq!(check("docs/a.md", "[a](gone.md)").len(), 1);
    }
}
