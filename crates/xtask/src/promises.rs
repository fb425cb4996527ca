//! `cargo xtask promises`: the figures behind the promises, from the released program.

use std::io::{BufRead as _, BufReader};
use std::process::Stdio;

use anyhow::{Context as _, Result, bail};

use crate::{services, test};

#[derive(clap::Args)]
pub(crate) struct PromisesArguments {
    /// Take the sizes and times that the project states: a million events, a minute, 20 crashes.
    #[arg(long)]
    long: bool,
}

/// Builds for release, runs the tests of the promises one after the other, and shows their figures
/// together.
///
/// # Errors
/// When a service is missing, or a promise was broken; the figures are shown all the same.
pub(crate) fn run(arguments: &PromisesArguments) -> Result<()> {
    let environment = services::up()?;
    test::prepare_python()?;
    let mut command = test::cargo();
    command.args(["test", "--release", "--package", "posthaste-cli", "--test", "promises"]);
    // One at a time: the figures are of a machine that does nothing else.
    command.args(["--no-fail-fast", "--", "--nocapture", "--test-threads=1"]);
    command.envs(environment).env("POSTHASTE_TEST_REQUIRE_SERVICES", "1");
    command.env("POSTHASTE_PROMISES", if arguments.long { "long" } else { "short" });
    let mut child = command.stdout(Stdio::piped()).spawn().context("start cargo")?;
    let output = child.stdout.take().context("the tests' output")?;
    let mut figures = Vec::new();
    for line in BufReader::new(output).lines() {
        let line = line.context("read the tests' output")?;
        println!("{line}");
        if let Some((name, text)) = figures_of(&line) {
            figures.push((name.to_owned(), text.to_owned()));
        }
    }
    let status = child.wait().context("wait for the tests")?;
    print(&figures);
    if !status.success() {
        bail!("a promise was broken ({status})");
    }
    Ok(())
}

/// The name and the figures of a line that a test printed. The test harness writes the name of the
/// test, and no line break, before it.
fn figures_of(line: &str) -> Option<(&str, &str)> {
    let own = line.split_once(" ... ").map_or(line, |(_, own)| own);
    own.strip_prefix("promise ")?.split_once(": ")
}

/// One row for each test, one column for what it was and one for what came out.
fn print(figures: &[(String, String)]) {
    let width = figures.iter().map(|(name, _)| name.chars().count()).max().unwrap_or(0);
    println!();
    for (name, text) in figures {
        println!("{name:<width$}  {text}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_found_behind_the_harness_own_words_and_nowhere_else() {
        let expected = Some(("relay killed", "kills 5, lost 0"));
        assert_eq!(figures_of("promise relay killed: kills 5, lost 0"), expected);
        assert_eq!(
            figures_of("test crashes::a ... promise relay killed: kills 5, lost 0"),
            expected
        );
        assert_eq!(figures_of("test verdict::broken_promise ... ok"), None);
        assert_eq!(figures_of("a promise relay killed: kills"), None);
    }
}
