//! Standard output: tables for people, JSON for programs.

use std::io::{self, IsTerminal, Write};

use comfy_table::{ContentArrangement, Table, presets};
use jiff::Timestamp;
use serde::Serialize;

use crate::exit::OutputClosed;
use crate::plain;

/// The form of results on standard output.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum OutputFormat {
    /// Text and tables.
    Human,
    /// One JSON document; its field names are stable.
    Json,
}

/// Writes results.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Output {
    format: OutputFormat,
}

impl Output {
    /// An output of this form.
    pub(crate) const fn new(format: OutputFormat) -> Self {
        Self { format }
    }

    /// Whether results are read by a program.
    pub(crate) fn is_json(self) -> bool {
        self.format == OutputFormat::Json
    }

    /// Writes `value` as JSON, or what `human` makes, as the form demands. Nothing of it steers a
    /// terminal; that a value begins no line of its own is for `human` to see to ([`plain::line`]).
    ///
    /// # Errors
    /// [`OutputClosed`] where nobody reads any more; otherwise the write's error.
    pub(crate) fn write(
        self,
        value: &impl Serialize,
        human: impl FnOnce() -> String,
    ) -> anyhow::Result<()> {
        match self.format {
            OutputFormat::Human => write_text(&plain::lines(&human())),
            OutputFormat::Json => write_text(&plain::json(&serde_json::to_string_pretty(value)?)),
        }
    }
}

/// Writes text and a line break.
///
/// # Errors
/// As [`Output::write`].
pub(crate) fn write_text(text: &str) -> anyhow::Result<()> {
    let mut out = io::stdout().lock();
    let written = out
        .write_all(text.as_bytes())
        .and_then(|()| if text.ends_with('\n') { Ok(()) } else { out.write_all(b"\n") })
        .and_then(|()| out.flush());
    match written {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Err(OutputClosed.into()),
        Err(error) => Err(anyhow::Error::from(error).context("write to standard output")),
    }
}

/// An empty table in the house form: as wide as the terminal, unbounded elsewhere.
pub(crate) fn table<const N: usize>(header: [&str; N]) -> Table {
    let mut table = Table::new();
    // Without rules, which take a line of the screen for each row.
    table.load_style(presets::NOTHING).set_header(header);
    if io::stdout().is_terminal() {
        table.set_content_arrangement(ContentArrangement::Dynamic);
    } else {
        table.force_no_tty();
    }
    table
}

/// A time in UTC to the second.
pub(crate) fn time(time: Timestamp) -> String {
    time.strftime("%Y-%m-%d %H:%M:%SZ").to_string()
}

/// `1 event`, `2 events`.
pub(crate) fn count(number: u64, noun: &str) -> String {
    let plural = if number == 1 { "" } else { "s" };
    format!("{number} {noun}{plural}")
}

/// Whether a person can be asked: both sides of the dialogue are terminals.
pub(crate) fn can_ask() -> bool {
    io::stdin().is_terminal() && io::stderr().is_terminal()
}

/// Asks a yes-or-no question on standard error. Anything but yes means no.
///
/// # Errors
/// Those of reading and writing.
pub(crate) fn ask(question: &str) -> anyhow::Result<bool> {
    write!(io::stderr(), "{question} [y/N] ")?;
    io::stderr().flush()?;
    let mut answer = String::new();
    io::stdin().read_line(&mut answer)?;
    Ok(matches!(answer.trim().to_lowercase().as_str(), "y" | "yes"))
}
