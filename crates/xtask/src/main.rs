//! Developer commands: `cargo xtask services`, `test`, `postgres-versions`, `promises`, `faults`, `sim`,
//! `odd-rows`, `mutants`, `bench`, `deny`, `tidy`.

mod bench;
mod deny;
mod faults;
mod mutants;
mod odd_rows;
mod postgres_versions;
mod process;
mod promises;
mod pypi;
mod services;
mod sim;
mod suite;
mod test;
mod tidy;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(name = "cargo xtask", about = "Developer commands of posthaste")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// The servers that tests talk to.
    Services {
        #[command(subcommand)]
        command: ServicesCommand,
    },
    /// Starts the services, then runs everything that CI runs.
    Test(test::TestArguments),
    /// Runs the tests that talk to PostgreSQL on every version that is supported.
    PostgresVersions(postgres_versions::PostgresVersionsArguments),
    /// Breaks things around the released program and shows what its promises come to.
    Promises(promises::PromisesArguments),
    /// Breaks one thing after the other under several relays and writes a report of it.
    Faults(faults::FaultsArguments),
    /// Runs the simulator over many seeds, or one seed again.
    Sim(sim::SimArguments),
    /// Plays odd rows, edits and locks beside a relay on PostgreSQL and SQLite.
    OddRows(odd_rows::OddRowsArguments),
    /// Takes one mechanism after the other out and shows which test misses it.
    Mutants(mutants::MutantsArguments),
    /// Measures the released program beside the limits of database and broker.
    Bench(bench::BenchArguments),
    /// Checks licences, sources, bans and duplicates of all dependencies.
    Deny(deny::DenyArguments),
    /// Checks dependency direction, TLS providers, file lengths, forbidden text, alert rules and the
    /// systemd unit.
    Tidy,
}

#[derive(Subcommand)]
enum ServicesCommand {
    /// Finds each server; installs and starts what is missing on Debian as root.
    Up,
    /// Says which servers answer, and changes nothing.
    Status,
    /// Stops the servers that `up` started, and no others.
    Down,
}

fn main() -> ExitCode {
    let outcome = match Arguments::parse().command {
        Command::Services { command: ServicesCommand::Up } => services::up().map(|_| ()),
        Command::Services { command: ServicesCommand::Status } => services::status(),
        Command::Services { command: ServicesCommand::Down } => services::down(),
        Command::Test(arguments) => test::run(&arguments),
        Command::PostgresVersions(arguments) => postgres_versions::run(&arguments),
        Command::Promises(arguments) => promises::run(&arguments),
        Command::Faults(arguments) => faults::run(&arguments),
        Command::Sim(arguments) => sim::run(&arguments),
        Command::OddRows(arguments) => odd_rows::run(&arguments),
        Command::Mutants(arguments) => mutants::run(&arguments),
        Command::Bench(arguments) => bench::run(&arguments),
        Command::Deny(arguments) => deny::run(&arguments),
        Command::Tidy => tidy::run(),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// The root of the workspace: this crate is two folders below it.
fn workspace_root() -> PathBuf {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR"));
    manifest.ancestors().nth(2).unwrap_or(manifest).to_path_buf()
}

/// Where cargo builds, and where what these commands make is kept.
fn target_dir() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR")
        .map_or_else(|| workspace_root().join("target"), |dir| workspace_root().join(dir))
}
