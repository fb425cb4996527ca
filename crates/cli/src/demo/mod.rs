//! `posthaste demo`: a small shop on an embedded outbox, broken on purpose.

use std::process::ExitCode;

/// Options of `posthaste demo`.
#[derive(Debug, clap::Args)]
pub(crate) struct DemoArgs {}

/// Runs the demo and reports its verdict.
pub(crate) async fn run(_args: DemoArgs) -> anyhow::Result<ExitCode> {
    anyhow::bail!("the demo is not part of this build yet")
}
