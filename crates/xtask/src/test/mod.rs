//! `cargo xtask test`: what CI runs, with the services it needs, each step once.

mod changed;
mod runner;
mod steps;

use std::process::Command;

use anyhow::Result;

use self::changed::Selection;
use self::runner::Runner;
use self::steps::Steps;
use crate::{deny, process, pypi, services, tidy, workspace_root};

#[derive(clap::Args)]
pub(crate) struct TestArguments {
    /// Start no service. Tests that find none print why they are skipped.
    #[arg(long)]
    no_services: bool,
    /// Run the tests alone: no formatting, lints, documentation or tidy.
    #[arg(long)]
    tests_only: bool,
    /// For between two edits: formatting, tidy, lints, and the tests of crates that changed since they
    /// left BASE, and of those that depend on them.
    #[arg(long, value_name = "BASE", num_args = 0..=1, default_missing_value = "main", require_equals = true)]
    changed: Option<String>,
}

/// Runs every step, even after a failed one, and sums up.
///
/// # Errors
/// When a step failed; it has said why.
pub(crate) fn run(arguments: &TestArguments) -> Result<()> {
    let mut steps = Steps::default();
    let is_whole = arguments.changed.is_none();
    let mut selection = Selection::Everything;
    if let Some(base) = &arguments.changed {
        let found = steps.run("changed", || changed::since(base));
        let Some(found) = found else { return steps.summarise() };
        selection = found;
    }
    if !arguments.tests_only {
        // What takes seconds comes first.
        steps.run("format", || lint("rustfmt", &["fmt", "--all", "--check"]));
        steps.run("tidy", tidy::run);
        if is_whole && !arguments.no_services {
            steps.run("dependencies", || deny::run(&deny::DenyArguments::default()));
        }
        steps.run("clippy", clippy);
        if is_whole {
            steps.run("documentation", documentation);
        }
    }
    let mut environment = Vec::new();
    if !arguments.no_services {
        let Some(found) = steps.run("services", services::up) else { return steps.summarise() };
        environment = found;
        environment.push(("POSTHASTE_TEST_REQUIRE_SERVICES", "1".to_owned()));
        let Some(found) = steps.run("python", pypi::prepare_python) else {
            return steps.summarise();
        };
        environment.extend(found);
    }
    let runner = Runner::find(environment);
    if steps.run("build", || runner.build()).is_some() {
        steps.run("tests", || runner.run(&selection));
        if is_whole {
            steps.run("examples in docs", || runner.run_documentation());
        }
    }
    steps.summarise()
}

pub(crate) fn cargo() -> Command {
    // The cargo that runs this command, so that a toolchain chosen by `+name` is kept.
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(workspace_root());
    command
}

/// Runs a cargo command that a minimal toolchain may lack; then it says so and goes on.
fn lint(component: &str, arguments: &[&str]) -> Result<()> {
    if process::output(cargo().args([arguments[0], "--version"])).is_err() {
        println!("skipped: {component} is not installed");
        return Ok(());
    }
    process::run(cargo().args(arguments))
}

/// Also refuses a Cargo.lock that does not match the manifests.
fn clippy() -> Result<()> {
    let what = ["clippy", "--locked", "--workspace", "--all-targets", "--quiet"];
    lint("cargo-clippy", &[&what[..], &["--", "-D", "warnings"]].concat())
}

fn documentation() -> Result<()> {
    process::run(
        cargo()
            .args(["doc", "--locked", "--workspace", "--no-deps", "--quiet"])
            .env("RUSTDOCFLAGS", "-D warnings"),
    )
}
