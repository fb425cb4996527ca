//! `cargo xtask mutants`: takes each mechanism out, and shows which test misses it.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Instant;

use anyhow::{Context as _, Result, bail, ensure};
use serde::Deserialize;

use crate::{process, pypi, target_dir, test, workspace_root};

/// The defects.
const LIST: &str = "crates/xtask/mutants.toml";
/// What came of them.
const REPORT: &str = "docs/mutants.md";

#[derive(clap::Args)]
pub(crate) struct MutantsArguments {
    /// Only those whose description holds this text; the report is then not written.
    #[arg(long)]
    only: Option<String>,
}

#[derive(Deserialize)]
struct List {
    mutant: Vec<Mutant>,
}

/// A defect: in `file`, `old` (which stands there once) becomes `new`.
#[derive(Deserialize)]
struct Mutant {
    /// What is wrong with it.
    defect: String,
    file: String,
    old: String,
    new: String,
    /// Arguments of `cargo test`: where a test should miss it.
    tests: Vec<String>,
}

/// Applies each defect to a copy of the sources and runs its tests, which must fail.
///
/// # Errors
/// When a defect is not caught, does not apply, or does not compile.
pub(crate) fn run(arguments: &MutantsArguments) -> Result<()> {
    let environment = pypi::prepare_tests()?;
    let text = std::fs::read_to_string(workspace_root().join(LIST)).context(LIST)?;
    let List { mutant: mutants } = toml::from_str(&text).context(LIST)?;
    let chosen = |mutant: &&Mutant| {
        arguments.only.as_ref().is_none_or(|only| mutant.defect.contains(only.as_str()))
    };
    let mutants: Vec<&Mutant> = mutants.iter().filter(chosen).collect();
    ensure!(!mutants.is_empty(), "no such mutant");
    let tree = Tree::copy()?;
    let mut suites: Vec<&[String]> = mutants.iter().map(|mutant| &mutant.tests[..]).collect();
    suites.sort_unstable();
    suites.dedup();
    for suite in suites {
        println!("without a defect: {}", suite.join(" "));
        let failed = tree.test(suite, &environment)?;
        ensure!(failed.is_empty(), "fails without a defect, too: {}", failed.join(", "));
    }
    let mut caught = Vec::new();
    let mut survived = Vec::new();
    for mutant in mutants {
        let begun = Instant::now();
        let failed = tree.mutated(mutant, || tree.test(&mutant.tests, &environment))?;
        let seconds = begun.elapsed().as_secs();
        println!("{:>4} s  {}: {}", seconds, mutant.defect, failed.join(", "));
        if failed.is_empty() {
            survived.push(&*mutant.defect)
        } else {
            caught.push((mutant, failed))
        }
    }
    if !survived.is_empty() {
        bail!("not caught: {}", survived.join("; "));
    }
    if arguments.only.is_none() {
        std::fs::write(workspace_root().join(REPORT), report(&caught)).context(REPORT)?;
        println!("written: {REPORT}");
    }
    Ok(())
}

/// A copy of the sources with a build folder of its own.
struct Tree {
    root: PathBuf,
    build: PathBuf,
}

impl Tree {
    fn copy() -> Result<Self> {
        let folder = target_dir().join("mutants");
        let tree = Self { root: folder.join("tree"), build: folder.join("build") };
        let mut list = std::process::Command::new("git");
        list.args(["ls-files", "--cached", "--others", "--exclude-standard"]);
        for path in process::output(list.current_dir(workspace_root()))?.lines() {
            let (from, to) = (workspace_root().join(path), tree.root.join(path));
            if from.is_file() {
                // Only what differs, so that little is built again; also what a run that was killed
                // left defective.
                let wanted = std::fs::read(&from)?;
                if std::fs::read(&to).is_ok_and(|there| there == wanted) {
                    continue;
                }
                std::fs::create_dir_all(to.parent().unwrap_or(Path::new("/")))?;
                std::fs::write(&to, wanted)?;
            }
        }
        Ok(tree)
    }

    fn mutated<T>(&self, mutant: &Mutant, work: impl FnOnce() -> Result<T>) -> Result<T> {
        let path = self.root.join(&mutant.file);
        let original = std::fs::read_to_string(&path).with_context(|| mutant.file.clone())?;
        let places = original.matches(&mutant.old).count();
        ensure!(places == 1, "{}: what it changes is there {places} times", mutant.defect);
        std::fs::write(&path, original.replacen(&mutant.old, &mutant.new, 1))?;
        let outcome = work();
        std::fs::write(&path, original)?;
        outcome
    }

    /// Runs tests and returns the names of those that failed.
    fn test(
        &self,
        suite: &[String],
        environment: &[(&'static str, String)],
    ) -> Result<Vec<String>> {
        let mut command = test::cargo();
        command.current_dir(&self.root).env("CARGO_TARGET_DIR", &self.build);
        command.envs(environment.iter().map(|(name, value)| (*name, value.as_str())));
        command.args(["test", "--quiet", "--no-fail-fast"]).args(suite);
        let has_filters = suite.iter().any(|word| word == "--");
        command.args((!has_filters).then_some("--"));
        command.args(["--format", "pretty"]).env("RUST_BACKTRACE", "0");
        let output = command.stdin(Stdio::null()).output().context("start cargo")?;
        let text = String::from_utf8_lossy(&output.stdout);
        let failed: Vec<String> = text
            .lines()
            .filter_map(|line| line.strip_prefix("test ")?.strip_suffix(" ... FAILED"))
            .map(str::to_owned)
            .collect();
        if failed.is_empty() && !output.status.success() {
            bail!("does not build:\n{}", String::from_utf8_lossy(&output.stderr));
        }
        Ok(failed)
    }
}

fn report(caught: &[(&Mutant, Vec<String>)]) -> String {
    let mut text = String::from(
        "# What the tests miss when it is gone\n\n\
         `cargo xtask mutants` takes one mechanism after the other out of a copy of the sources and \
         runs the\ntests, which must fail. It wrote this page. The defects are in \
         [mutants.toml](../crates/xtask/mutants.toml).\n\n\
         | defect | in | missed by |\n|---|---|---|\n",
    );
    for (mutant, failed) in caught {
        let tests: Vec<String> = failed.iter().take(3).map(|test| format!("`{test}`")).collect();
        let more = failed.len().saturating_sub(3);
        let more = if more > 0 { format!(" and {more} more") } else { String::new() };
        let file = mutant.file.trim_start_matches("crates/");
        let _ = writeln!(text, "| {} | `{file}` | {}{more} |", mutant.defect, tests.join(", "));
    }
    text
}
