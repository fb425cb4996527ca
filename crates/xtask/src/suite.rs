//! Runs a test binary of the released program, whose tests print figures.

use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::Stdio;

use anyhow::{Context as _, Result, bail};

use crate::{pypi, test};

/// What one test printed: its name, and what it measured.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Figures {
    pub(crate) name: String,
    pub(crate) text: String,
}

impl Figures {
    /// The figure of that name. No value holds a comma.
    pub(crate) fn get(&self, name: &str) -> Option<&str> {
        self.text.split(", ").find_map(|figure| figure.strip_prefix(name)?.strip_prefix(' '))
    }

    /// Of a line that begins with `word`. The test harness writes the name of the test, and no
    /// line break, before it.
    fn of(word: &str, line: &str) -> Option<Self> {
        let own = line.split_once(" ... ").map_or(line, |(_, own)| own);
        let (name, text) = own.strip_prefix(word)?.strip_prefix(' ')?.split_once(": ")?;
        Some(Self { name: name.to_owned(), text: text.to_owned() })
    }
}

/// The figures in what runs have printed into a file.
///
/// # Errors
/// When it cannot be read.
pub(crate) fn printed(file: &Path, word: &str) -> Result<Vec<Figures>> {
    let text = std::fs::read_to_string(file).with_context(|| format!("read {}", file.display()))?;
    Ok(text.lines().filter_map(|line| Figures::of(word, line)).collect())
}

/// Builds for release, runs the tests of `binary` one after the other, and returns the figures in
/// lines that begin with `word`, and whether all passed.
///
/// # Errors
/// When a service is missing or cargo cannot be run.
pub(crate) fn run(binary: &str, word: &str, is_long: bool) -> Result<(Vec<Figures>, Result<()>)> {
    let environment = pypi::prepare_tests()?;
    let mut command = test::cargo();
    command.args(["test", "--release", "--package", "posthaste-cli", "--test", binary]);
    // One at a time: the figures are of a machine that does nothing else.
    command.args(["--no-fail-fast", "--", "--nocapture", "--test-threads=1"]);
    command.envs(environment).env("POSTHASTE_TEST_REQUIRE_SERVICES", "1");
    command.env("POSTHASTE_PROMISES", if is_long { "long" } else { "short" });
    let mut child = command.stdout(Stdio::piped()).spawn().context("start cargo")?;
    let output = child.stdout.take().context("the tests' output")?;
    let mut figures = Vec::new();
    for line in BufReader::new(output).lines() {
        let line = line.context("read the tests' output")?;
        println!("{line}");
        figures.extend(Figures::of(word, &line));
    }
    let status = child.wait().context("wait for the tests")?;
    let passed = if status.success() { Ok(()) } else { broken(status) };
    Ok((figures, passed))
}

fn broken(status: std::process::ExitStatus) -> Result<()> {
    bail!("a promise was broken ({status})")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_found_behind_the_harness_own_words_and_nowhere_else() {
        let expected = Figures { name: "relay killed".into(), text: "kills 5, lost 0".into() };
        let found = Figures::of("promise", "promise relay killed: kills 5, lost 0").unwrap();
        assert_eq!(found, expected);
        let line = "test crashes::a ... promise relay killed: kills 5, lost 0";
        assert_eq!(Figures::of("promise", line).unwrap(), expected);
        assert_eq!(Figures::of("promise", "test verdict::broken_promise ... ok"), None);
        assert_eq!(Figures::of("promise", "a promise relay killed: kills"), None);
        assert_eq!(Figures::of("fault", line), None);
    }

    #[test]
    fn a_figure_is_found_by_its_whole_name() {
        let figures = Figures::of("fault", "fault a: allowed lost 9, lost 0, done it all").unwrap();
        assert_eq!(figures.get("lost"), Some("0"));
        assert_eq!(figures.get("done"), Some("it all"));
        assert_eq!(figures.get("allowed"), Some("lost 9"));
        assert_eq!(figures.get("found"), None);
    }
}
