//! `cargo xtask sim`: the simulator for as long as one likes.

use anyhow::{Result, bail};

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

/// Runs the seeds, half of them on each of two threads of the optimised program. A seed that fails is
/// printed, and replays exactly with `--from SEED --seeds 1`.
///
/// # Errors
/// When a seed fails.
pub(crate) fn run(arguments: &SimArguments) -> Result<()> {
    let SimArguments { seeds, from, trace } = *arguments;
    let run = |from: u64, seeds: u64| {
        let mut command = test::cargo();
        command.args(["test", "--release", "--package", "posthaste-engine", "--lib", "--"]);
        command.args(["--exact", TEST, "--nocapture"]);
        command.env("POSTHASTE_SIM_SEED", from.to_string());
        command.env("POSTHASTE_SIM_SEEDS", seeds.to_string());
        if trace {
            command.env("POSTHASTE_SIM_TRACE", "1");
        }
        process::run(&mut command)
    };
    // Built once, before both ask for it.
    process::run(test::cargo().args(["test", "--release", "--no-run", "--quiet"]).args([
        "--package",
        "posthaste-engine",
        "--lib",
    ]))?;
    let half = seeds / 2;
    let outcome = std::thread::scope(|scope| {
        let other = scope.spawn(|| if half > 0 { run(from, half) } else { Ok(()) });
        let own = run(from + half, seeds - half);
        other.join().map_or_else(|_| bail!("a thread panicked"), |other| own.and(other))
    });
    if outcome.is_ok() {
        println!("seeds {from} to {}: no promise was broken", from + seeds.saturating_sub(1));
    }
    outcome
}

const TEST: &str = "simulation::the_promises_hold_under_faults_for_thousands_of_seeds";
