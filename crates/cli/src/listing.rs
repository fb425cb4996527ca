//! Lists for people: one line a row where the terminal has room for it, a few short lines where not.
//!
//! Ids and keys are there to be copied, so nothing is ever broken in two: what gives way is the one
//! column that explains.

use std::io::{self, IsTerminal};

use crate::plain;

/// A column gets two spaces on its right.
const GAP: usize = 2;
/// The column that gives way keeps so many characters, or the list is written in short lines.
const ELASTIC_MIN: usize = 24;
const INDENT: &str = "    ";

/// Rows under a header. The last column may be cut.
#[derive(Debug)]
pub(crate) struct Listing<const N: usize> {
    header: [&'static str; N],
    /// How many columns, from the first, tell what a row is about.
    lead: usize,
    rows: Vec<[String; N]>,
}

impl<const N: usize> Listing<N> {
    /// Of these columns, the first `lead` of which begin a row that finds no room on one line.
    pub(crate) fn new(header: [&'static str; N], lead: usize) -> Self {
        Self { header, lead, rows: Vec::new() }
    }

    /// Adds a row, each cell of which is shown on one line whatever it holds.
    pub(crate) fn add(&mut self, row: [String; N]) {
        self.rows.push(row.map(|cell| plain::line(&cell)));
    }

    /// For standard output, as wide as its terminal; elsewhere as wide as it is.
    pub(crate) fn for_stdout(&self) -> String {
        self.within(terminal_width())
    }

    fn within(&self, width: Option<usize>) -> String {
        let Some(width) = width else { return self.as_table(usize::MAX) };
        let fixed: usize = self.widths()[..N - 1].iter().map(|width| width + GAP).sum();
        let last = self.widths()[N - 1];
        if fixed + last.min(ELASTIC_MIN) <= width {
            self.as_table(width - fixed)
        } else {
            self.as_blocks(width)
        }
    }

    fn widths(&self) -> [usize; N] {
        let mut widths = self.header.map(length);
        for row in &self.rows {
            for (width, cell) in widths.iter_mut().zip(row) {
                *width = (*width).max(length(cell));
            }
        }
        widths
    }

    fn as_table(&self, last_max: usize) -> String {
        let widths = self.widths();
        let line = |cells: &[&str]| {
            let mut line = String::new();
            for (position, cell) in cells.iter().enumerate() {
                if position + 1 == N {
                    line.push_str(&cut(cell, last_max));
                } else {
                    let padding = widths[position] + GAP - length(cell);
                    line.push_str(cell);
                    line.extend(std::iter::repeat_n(' ', padding));
                }
            }
            line.trim_end().to_owned()
        };
        let rows = self.rows.iter().map(|row| line(&row.each_ref().map(String::as_str)));
        std::iter::once(line(&self.header)).chain(rows).collect::<Vec<_>>().join("\n")
    }

    /// What a row is about on the first line, and below it the rest by name, as much on a line as
    /// there is room for.
    fn as_blocks(&self, width: usize) -> String {
        let mut lines = Vec::new();
        for row in &self.rows {
            lines.push(row[..self.lead].join("  ").trim_end().to_owned());
            let named = self.header.iter().zip(row).skip(self.lead);
            let mut line = String::new();
            for (name, cell) in named.filter(|(_, cell)| !cell.is_empty()) {
                let item =
                    cut(&format!("{name} {cell}"), width.saturating_sub(INDENT.len()).max(80));
                if !line.is_empty() && INDENT.len() + length(&line) + GAP + length(&item) > width {
                    lines.push(format!("{INDENT}{line}"));
                    line.clear();
                }
                if !line.is_empty() {
                    line.push_str("  ");
                }
                line.push_str(&item);
            }
            if !line.is_empty() {
                lines.push(format!("{INDENT}{line}"));
            }
        }
        lines.join("\n")
    }
}

fn length(text: &str) -> usize {
    text.chars().count()
}

fn cut(text: &str, max: usize) -> String {
    if length(text) <= max {
        return text.to_owned();
    }
    let mut short: String = text.chars().take(max.saturating_sub(1)).collect();
    short.push('…');
    short
}

/// How many columns the terminal has; `None` where standard output is none.
fn terminal_width() -> Option<usize> {
    let stdout = io::stdout();
    if !stdout.is_terminal() {
        return None;
    }
    let size = rustix::termios::tcgetwinsize(&stdout).ok()?;
    Some(usize::from(size.ws_col)).filter(|columns| *columns > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "01890a5d-ac96-774b-bcce-b302099a8057";

    fn listing() -> Listing<4> {
        let mut listing = Listing::new(["id", "state", "key", "why"], 2);
        let why = "retries_exhausted: the receiver answered 422 Unprocessable Entity";
        listing.add([ID.into(), "dead".into(), ID.into(), why.into()]);
        listing.add([ID.into(), "pending".into(), "short".into(), String::new()]);
        listing
    }

    #[test]
    fn a_row_is_one_line_where_there_is_room_and_only_the_reason_is_cut() {
        let text = listing().within(Some(120));
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 3, "{text}");
        assert!(lines[0].starts_with("id  "), "{text}");
        assert_eq!(lines[1].matches(ID).count(), 2, "{text}");
        assert!(lines[1].ends_with('…') && length(lines[1]) == 120, "{text}");
        assert!(!lines[2].ends_with(' '), "{text}");
    }

    #[test]
    fn without_room_ids_stay_whole_and_the_rest_is_named_below() {
        let text = listing().within(Some(80));
        assert_eq!(text.matches(ID).count(), 3, "{text}");
        assert!(text.lines().all(|line| length(line) <= 84), "{text}");
        assert!(text.starts_with(&format!("{ID}  dead\n    key {ID}")), "{text}");
        assert!(text.contains("\n    why retries_exhausted"), "{text}");
    }

    #[test]
    fn into_a_pipe_nothing_is_cut() {
        let text = listing().within(None);
        assert!(text.lines().count() == 3 && text.contains("Unprocessable Entity"), "{text}");
    }
}
