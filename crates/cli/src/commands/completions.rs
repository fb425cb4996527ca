//! `posthaste completions`.

use clap::CommandFactory;
use clap_complete::Shell;

use crate::arguments::Arguments;
use crate::output::write_text;

/// Writes the script for `shell`.
pub(crate) fn run(shell: Shell) -> anyhow::Result<()> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Arguments::command(), "posthaste", &mut script);
    write_text(&String::from_utf8(script)?)
}
