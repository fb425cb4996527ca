//! `cargo xtask promises`: the figures behind the promises, from the released program.

use anyhow::Result;

use crate::suite::{self, Figures};

#[derive(clap::Args)]
pub(crate) struct PromisesArguments {
    /// Take the sizes and times that the project states: a million events, a minute, 20 crashes.
    #[arg(long)]
    long: bool,
}

/// Builds for release, runs the tests of the promises one after the other, and shows their figures
/// together.
///
/// # Errors
/// When a service is missing, or a promise was broken; the figures are shown all the same.
pub(crate) fn run(arguments: &PromisesArguments) -> Result<()> {
    let (figures, passed) = suite::run("promises", "promise", arguments.long)?;
    print(&figures);
    passed
}

/// One row for each test, one column for what it was and one for what came out.
fn print(figures: &[Figures]) {
    let width = figures.iter().map(|figures| figures.name.chars().count()).max().unwrap_or(0);
    println!();
    for Figures { name, text } in figures {
        println!("{name:<width$}  {text}");
    }
}
