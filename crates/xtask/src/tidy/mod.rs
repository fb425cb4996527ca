//! `cargo xtask tidy`: rules of the code base that the compiler does not know.

mod alerts;
mod dependencies;
mod metrics;
mod operations;
mod text;

use std::process::Command;

use anyhow::{Context as _, Result, bail};

use crate::{process, workspace_root};

/// A broken rule: where, what, and what to do.
#[derive(Debug, PartialEq, Eq)]
struct Violation {
    place: String,
    what: String,
    remedy: &'static str,
}

/// Checks all rules and prints what breaks one.
///
/// # Errors
/// When a rule is broken, or cargo or git cannot be asked.
pub(crate) fn run() -> Result<()> {
    let mut violations = dependencies::check_direction(&metadata()?)?;
    violations.extend(dependencies::check_tls(&dependency_tree()?));
    let files = committed_files()?;
    for file in &files {
        violations.extend(text::check_file(file, &|path| workspace_root().join(path).exists()));
    }
    violations.extend(metrics::check(&files));
    violations.extend(alerts::check(&files));
    operations::check()?;
    print_long_files(&files);
    for Violation { place, what, remedy } in &violations {
        println!("{place}: {what}\n    {remedy}");
    }
    if violations.is_empty() {
        println!("tidy: {} files, no violation", files.len());
        return Ok(());
    }
    bail!("tidy: {} violations", violations.len())
}

/// A file of the repository, by its path from the root.
struct TextFile {
    path: String,
    text: String,
}

/// Every text file that git knows or would add.
fn committed_files() -> Result<Vec<TextFile>> {
    let mut command = Command::new("git");
    command.args(["ls-files", "--cached", "--others", "--exclude-standard"]);
    let list = process::output(command.current_dir(workspace_root()))?;
    let mut files = Vec::new();
    for path in list.lines() {
        // Deleted but not yet committed, or not text: nothing to check.
        if let Ok(text) = std::fs::read_to_string(workspace_root().join(path)) {
            files.push(TextFile { path: path.to_owned(), text });
        }
    }
    Ok(files)
}

/// The report of files that are long, but not yet too long.
fn print_long_files(files: &[TextFile]) {
    let mut long: Vec<(usize, &str)> = files
        .iter()
        .filter(|file| file.path.ends_with(".rs"))
        .map(|file| (file.text.lines().count(), file.path.as_str()))
        .filter(|(lines, _)| *lines > text::LINES_WANTED_MAX)
        .collect();
    long.sort_unstable_by(|a, b| b.cmp(a));
    for (lines, path) in long {
        println!("long: {path} has {lines} lines; split by concept where one shows");
    }
}

pub(crate) fn metadata() -> Result<serde_json::Value> {
    let mut command = Command::new("cargo");
    command.args(["metadata", "--format-version", "1", "--no-deps"]);
    let text = process::output(command.current_dir(workspace_root()))?;
    serde_json::from_str(&text).context("read cargo metadata")
}

/// Every package that a build of the workspace with default features compiles, tests included.
fn dependency_tree() -> Result<String> {
    let mut command = Command::new("cargo");
    command.args(["tree", "--workspace", "--edges", "normal,build,dev", "--prefix", "none"]);
    process::output(command.args(["--format", "{p}"]).current_dir(workspace_root()))
}
