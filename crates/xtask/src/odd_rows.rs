//! `cargo xtask odd-rows`: odd rows, edits and locks beside a relay, for as long as one likes.

use anyhow::Result;

use crate::{process, pypi, test};

#[derive(clap::Args)]
pub(crate) struct OddRowsArguments {
    /// How many seeds to play on each database.
    #[arg(long, default_value_t = 200)]
    seeds: u64,
    /// The first of them.
    #[arg(long, default_value_t = 0)]
    from: u64,
    /// How many are played at once.
    #[arg(long, default_value_t = 4)]
    at_once: usize,
    /// `postgres` or `sqlite`; both by default.
    #[arg(long)]
    on: Option<String>,
    /// Show the relay's log: for a single seed that failed.
    #[arg(long)]
    trace: bool,
}

/// Plays the seeds on PostgreSQL and SQLite. One that fails tells what it did and what was wrong;
/// with `--from SEED --seeds 1` it does the same again, though it meets the relay at other moments.
///
/// # Errors
/// When a seed fails.
pub(crate) fn run(arguments: &OddRowsArguments) -> Result<()> {
    let environment = pypi::prepare_tests()?;
    let mut command = test::cargo();
    command.args(["test", "--quiet", "--package", "posthaste", "--test", "it", "--"]);
    let tests =
        arguments.on.as_ref().map_or("odd_rows::".to_owned(), |on| format!("odd_row_on_{on}"));
    command.args(["--nocapture", &tests]);
    command.envs(environment.iter().map(|(name, value)| (*name, value.as_str())));
    command.env("POSTHASTE_ODD_ROWS_SEED", arguments.from.to_string());
    command.env("POSTHASTE_ODD_ROWS_SEEDS", arguments.seeds.to_string());
    command.env("POSTHASTE_ODD_ROWS_AT_ONCE", arguments.at_once.to_string());
    command.env("RUST_BACKTRACE", "0");
    if arguments.trace {
        command.env("POSTHASTE_ODD_ROWS_TRACE", "1");
    }
    process::run(&mut command)
}
