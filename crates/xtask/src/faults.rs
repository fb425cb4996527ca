//! `cargo xtask faults`: everything breaks while relays deliver, and a report of what it came to.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

use crate::suite::{self, Figures};
use crate::{target_dir, workspace_root};

/// Where the report of a long run is kept, from the root of the workspace.
const REPORT: &str = "docs/reliability.md";

#[derive(clap::Args)]
pub(crate) struct FaultsArguments {
    /// Take the sizes and times that the project states: a million events, minutes of outage; about
    /// half an hour.
    #[arg(long)]
    long: bool,
    /// Runs nothing, and writes the report of what runs have printed into this file.
    #[arg(long, value_name = "FILE")]
    printed: Option<PathBuf>,
    /// Where to write the report; default: docs/reliability.md for a long run, and a file in the
    /// build folder for a short one.
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,
}

/// Builds for release, breaks one thing after the other, and writes the report.
///
/// # Errors
/// When a service is missing, the report cannot be written, or a promise was broken; the table is
/// shown all the same, and the report is then not written.
pub(crate) fn run(arguments: &FaultsArguments) -> Result<()> {
    let (figures, passed) = match &arguments.printed {
        Some(file) => (suite::printed(file, "fault")?, Ok(())),
        None => suite::run("faults", "fault", arguments.long)?,
    };
    let table = table(&figures);
    println!("\n{table}");
    passed?;
    let default =
        if arguments.long { workspace_root().join(REPORT) } else { target_dir().join("faults.md") };
    let path = arguments.report.clone().unwrap_or(default);
    write(&path, &report(&figures, &table, arguments.long))
}

fn write(path: &Path, text: &str) -> Result<()> {
    std::fs::write(path, text).with_context(|| format!("write {}", path.display()))?;
    println!("written: {}", path.display());
    Ok(())
}

/// The columns of the table: what stands above, and the figure below.
const COLUMNS: [(&str, &str); 8] = [
    ("what was done", "done"),
    ("events", "events"),
    ("lost", "lost"),
    ("phantoms", "phantom"),
    ("duplicates", "duplicates"),
    ("allowed", "allowed duplicates"),
    ("order violations", "out of order"),
    ("s to recover", "recovered in s"),
];

/// A row for each fault, and their sum.
fn table(figures: &[Figures]) -> String {
    let heads: Vec<&str> = COLUMNS.iter().map(|(head, _)| *head).collect();
    let mut table = format!("| fault | {} |\n|---|---|{}\n", heads.join(" | "), "--:|".repeat(7));
    for one in figures {
        let values: Vec<&str> =
            COLUMNS.iter().map(|(_, figure)| one.get(figure).unwrap_or("?")).collect();
        let _ = writeln!(table, "| {} | {} |", one.name, values.join(" | "));
    }
    let sum = |name: &str| -> u64 { numbers(figures, name).sum() };
    let _ = writeln!(
        table,
        "| **all** | | {} | {} | {} | {} | {} | {} | |",
        sum("events"),
        sum("lost"),
        sum("phantom"),
        sum("duplicates"),
        sum("allowed duplicates"),
        sum("out of order"),
    );
    table
}

fn numbers<'f>(figures: &'f [Figures], name: &'f str) -> impl Iterator<Item = u64> + 'f {
    figures.iter().filter_map(move |one| one.get(name)?.parse().ok())
}

fn report(figures: &[Figures], table: &str, is_long: bool) -> String {
    let option = if is_long { " --long" } else { "" };
    let relays = figures.first().and_then(|one| one.get("relays")).unwrap_or("?");
    let seconds: f64 =
        figures.iter().filter_map(|one| one.get("seconds")?.parse::<f64>().ok()).sum();
    let minutes = seconds / 60.0;
    let events: u64 = numbers(figures, "events").sum();
    let unknown: u64 = numbers(figures, "transactions of unknown outcome").sum();
    let mut text = TEMPLATE
        .replace("{option}", option)
        .replace("{relays}", relays)
        .replace("{events}", &events.to_string())
        .replace("{faults}", &figures.len().to_string())
        .replace("{minutes}", &format!("{minutes:.0}"))
        .replace("{unknown}", &unknown.to_string())
        .replace("{table}", table);
    let known: Vec<&str> =
        COLUMNS.iter().map(|(_, figure)| *figure).chain(["relays", "seconds"]).collect();
    for one in figures {
        let own: Vec<&str> = one
            .text
            .split(", ")
            .filter(|figure| {
                !known.iter().any(|name| figure.strip_prefix(name).is_some_and(begins_value))
            })
            .collect();
        let _ = writeln!(text, "- {}: {}", one.name, own.join(", "));
    }
    text
}

fn begins_value(rest: &str) -> bool {
    rest.starts_with(' ')
}

/// What stands around the table.
const TEMPLATE: &str = "\
# Reliability, measured by breaking things

<!-- Written by `cargo xtask faults{option}`. Do not edit: change crates/xtask/src/faults.rs. -->

    cargo xtask faults{option}

{faults} faults, {events} committed events, {relays} relays of one outbox at the same time (on SQLite
one), {minutes} minutes: the released program between a database and NATS JetStream, all on one
machine. Each fault happens to an outbox of its own while writers commit; when it has ended, all that waits is delivered,
the relays stop, the stream is read back as a whole and compared with what the database holds.

{table}
- **lost**: committed, and not in the stream. **Phantoms**: in the stream, and not committed.
- **duplicates**: publishes of an event that reached the broker after its first one, whether
  JetStream dropped them by their id or not; without those that it refused since a message of another
  relay came between two of a key, which nobody gets and which go again. **Allowed**: each
  time a relay is interrupted, it may deliver again what it holds: `2 * batch_size +
  2 * max_concurrent_events` events at most, 400 here; and a database that takes over from one that it
  was behind has forgotten of some events that they were delivered.
- **order violations**: first deliveries of a key after a later event of the key.
- **s to recover**: the longest time from the end of a fault, or from its begin where other relays
  make up for it, until every event that waited at that moment was delivered.

The writers lock a few of 200 accounts, a fifth of the transactions the same one; store several
events for each as their last act; roll back one transaction in six, and some by a savepoint after
events were stored; lose some connections at COMMIT ({unknown} transactions failed, so that only the
database knows their outcome); and hold some transactions open for seconds, with events stored early
and late. What a repeated delivery carries is compared with the first, byte for byte. Events that only a
lost database had are left out: their data is gone with it, whether they were delivered or not.

Further figures:

";

#[cfg(test)]
mod tests {
    use super::*;

    fn figures(name: &str, text: &str) -> Figures {
        Figures { name: name.into(), text: text.into() }
    }

    #[test]
    fn the_table_has_a_row_for_each_fault_and_their_sum() {
        let rest = "phantom 0, duplicates 7, out of order 0, allowed duplicates 400";
        let both = [
            figures("one", &format!("events 10, lost 0, {rest}, recovered in s 1.5, done a thing")),
            figures("two", &format!("events 20, lost 1, {rest}, done another, relays 3")),
        ];
        let rows: Vec<String> = table(&both).lines().map(str::to_owned).collect();
        assert_eq!(rows.len(), 5);
        assert_eq!(rows[2], "| one | a thing | 10 | 0 | 0 | 7 | 400 | 0 | 1.5 |");
        assert_eq!(rows[3], "| two | another | 20 | 1 | 0 | 7 | 400 | 0 | ? |");
        assert_eq!(rows[4], "| **all** | | 30 | 1 | 0 | 14 | 800 | 0 | |");
    }

    #[test]
    fn the_report_says_how_it_was_made_and_keeps_what_the_table_leaves_out() {
        let one = [figures("one", "ratio 0.98, events 1000, done it, relays 3, seconds 60.0")];
        let text = report(&one, "the table", true);
        assert!(text.contains("cargo xtask faults --long"), "{text}");
        assert!(text.contains("1 faults, 1000 committed events, 3 relays"), "{text}");
        assert!(text.ends_with("- one: ratio 0.98\n"), "{text}");
        assert!(!text.contains('{'), "{text}");
    }
}
