//! `cargo xtask sim`: the simulator for as long as one likes.

use anyhow::Result;

use crate::{process, test};

#[derive(clap::Args)]
pub(crate) struct SimArguments {
    /// How many seeds to run.
    #[arg(long, default_value_t = 100_000)]
    seeds: u64,
    /// The first of them.
    #[arg(long, default_value_t = 0)]
    from: u64,
    /// Show every step: for a single seed that failed.
    #[arg(long)]
    trace: bool,
}

/// Runs the seeds on all cores with the optimised program. A seed that fails is printed, and replays
/// exactly with `--from SEED --seeds 1`.
///
/// # Errors
/// When a seed fails.
pub(crate) fn run(arguments: &SimArguments) -> Result<()> {
    let SimArguments { seeds, from, trace } = *arguments;
    let mut command = test::cargo();
    command.args(["test", "--release", "--package", "posthaste-engine", "--lib", "--"]);
    command.args(["--exact", TEST, "--nocapture"]);
    command.env("POSTHASTE_SIM_SEED", from.to_string());
    command.env("POSTHASTE_SIM_SEEDS", seeds.to_string());
    if trace {
        command.env("POSTHASTE_SIM_TRACE", "1");
    }
    process::run(&mut command)?;
    println!("seeds {from} to {}: no promise was broken", from + seeds.saturating_sub(1));
    Ok(())
}

const TEST: &str = "simulation::the_promises_hold_under_faults_for_thousands_of_seeds";
