//! `cargo xtask bench`: what posthaste reaches beside what database and broker can give.

use anyhow::Result;

use crate::{process, target_dir, test, workspace_root};

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
    let mut bench = std::process::Command::new(target_dir().join("release/posthaste-bench"));
    if arguments.arguments.first().is_some_and(|first| first == "page") {
        let page = workspace_root().join("docs/performance.md");
        return process::run(bench.arg("page").arg(&results).arg(page));
    }
    bench.envs(test::prepare_python()?);
    process::run(bench.arg("run").arg("--results").arg(&results).args(&arguments.arguments))
}
