//! Runs tests with nextest, which starts many at once from all crates, or with `cargo test` where it
//! cannot be installed.

use std::num::NonZero;
use std::path::PathBuf;
use std::process::Command;

use anyhow::Result;

use super::cargo;
use super::changed::Selection;
use crate::{process, pypi, workspace_root};

/// What runs the tests, and in which environment.
pub(super) struct Runner {
    nextest: Option<PathBuf>,
    environment: Vec<(&'static str, String)>,
}

impl Runner {
    /// With nextest, installed now where it is not there; without it, having said why.
    pub(super) fn find(environment: Vec<(&'static str, String)>) -> Self {
        let nextest = match pypi::program("cargo-nextest") {
            Ok(program) => Some(program),
            Err(error) => {
                println!("cargo test runs the tests, which takes longer; no nextest: {error:#}");
                None
            }
        };
        Self { nextest, environment }
    }

    /// Builds all tests and examples.
    ///
    /// # Errors
    /// When something does not build.
    pub(super) fn build(&self) -> Result<()> {
        process::run(cargo().args(["test", "--locked", "--workspace", "--no-run", "--quiet"]))
    }

    /// Runs the tests that are selected, those in documentation apart.
    ///
    /// # Errors
    /// When one fails.
    pub(super) fn run(&self, selection: &Selection) -> Result<()> {
        let mut command = match &self.nextest {
            Some(program) => {
                let mut command = Command::new(program);
                command.current_dir(workspace_root());
                command.args(["nextest", "run", "--locked", "--workspace", "--no-fail-fast"]);
                command.args(["--test-threads", &at_once().to_string()]);
                command.args(selection.filter().iter().flat_map(|filter| ["-E", filter]));
                command
            }
            None => {
                let mut command = cargo();
                command.args(["test", "--locked", "--no-fail-fast", "--all-targets"]);
                command.args(selection.packages());
                command
            }
        };
        process::run(command.envs(self.environment()))
    }

    /// Runs the examples in documentation.
    ///
    /// # Errors
    /// When one fails.
    pub(super) fn run_documentation(&self) -> Result<()> {
        let mut command = cargo();
        command.args(["test", "--locked", "--workspace", "--no-fail-fast", "--doc", "--quiet"]);
        process::run(command.envs(self.environment()))
    }

    fn environment(&self) -> impl Iterator<Item = (&'static str, &str)> {
        self.environment.iter().map(|(name, value)| (*name, value.as_str()))
    }
}

/// How many tests run at once: most of them wait. No more than the shared PostgreSQL has connections for,
/// of which there are a hundred by default.
fn at_once() -> usize {
    const CONNECTIONS_BEAR: usize = 8;
    let cores = std::thread::available_parallelism().map_or(1, NonZero::get);
    (4 * cores).min(CONNECTIONS_BEAR)
}
