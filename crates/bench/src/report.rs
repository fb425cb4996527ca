//! What a run found: figures of each contender in each round, kept as JSON.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;

use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};

/// The figure of a drain.
pub(crate) const RATE: &str = "events/s";

/// A workload's results.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Report {
    pub(crate) workload: String,
    /// One sentence: what is shown.
    pub(crate) caption: String,
    /// What it ran with, in words.
    pub(crate) settings: BTreeMap<String, String>,
    /// How busy the machine was with other things when it began: processes that wanted to run.
    pub(crate) load_before: f64,
    pub(crate) contenders: Vec<Contender>,
    /// The figure that the plot shows.
    pub(crate) plotted: String,
}

/// Who was measured, and what came out.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Contender {
    pub(crate) name: String,
    pub(crate) rounds: Vec<Figures>,
}

/// One round of one contender.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct Figures {
    pub(crate) values: Vec<(String, f64)>,
    /// Rates by tenth of the events, where it is a drain.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) deciles: Vec<f64>,
}

impl Figures {
    pub(crate) fn with(mut self, name: &str, value: f64) -> Self {
        self.values.push((name.to_owned(), value));
        self
    }

    fn get(&self, name: &str) -> Option<f64> {
        self.values.iter().find(|(known, _)| known == name).map(|(_, value)| *value)
    }
}

impl Contender {
    /// Over all rounds: lowest, median, highest.
    pub(crate) fn spread(&self, figure: &str) -> Option<(f64, f64, f64)> {
        let mut values: Vec<f64> =
            self.rounds.iter().filter_map(|round| round.get(figure)).collect();
        values.sort_by(f64::total_cmp);
        Some((*values.first()?, median(&values), *values.last()?))
    }

    /// The median of each tenth's rate.
    pub(crate) fn deciles(&self) -> Vec<f64> {
        let tenths = self.rounds.iter().map(|round| round.deciles.len()).max().unwrap_or(0);
        let median_of = |tenth: usize| {
            let mut rates: Vec<f64> =
                self.rounds.iter().filter_map(|round| round.deciles.get(tenth).copied()).collect();
            rates.sort_by(f64::total_cmp);
            median(&rates)
        };
        (0..tenths).map(median_of).collect()
    }
}

/// A table with more columns is turned.
const COLUMNS_MAX: usize = 7;

fn markdown(rows: &[&str], columns: &[&str], cell: impl Fn(usize, usize) -> String) -> String {
    let rule = "--:|".repeat(columns.len());
    let mut text = format!("| | {} |\n|---|{rule}\n", columns.join(" | "));
    for (row, name) in rows.iter().enumerate() {
        let cells: Vec<String> = (0..columns.len()).map(|column| cell(row, column)).collect();
        let _ = writeln!(text, "| {name} | {} |", cells.join(" | "));
    }
    text
}

fn median(sorted: &[f64]) -> f64 {
    let middle = sorted.len() / 2;
    match sorted.len() {
        0 => 0.0,
        count if count % 2 == 1 => sorted[middle],
        _ => f64::midpoint(sorted[middle - 1], sorted[middle]),
    }
}

impl Report {
    pub(crate) fn new(workload: &str, caption: &str, plotted: &str) -> Self {
        Self {
            workload: workload.to_owned(),
            caption: caption.to_owned(),
            settings: BTreeMap::new(),
            load_before: load(),
            contenders: Vec::new(),
            plotted: plotted.to_owned(),
        }
    }

    pub(crate) fn set(&mut self, name: &str, value: impl ToString) {
        self.settings.insert(name.to_owned(), value.to_string());
    }

    pub(crate) fn add(&mut self, contender: &str, figures: Figures) {
        eprintln!("  {contender}: {}", one_line(&figures));
        match self.contenders.iter_mut().find(|known| known.name == contender) {
            Some(known) => known.rounds.push(figures),
            None => self
                .contenders
                .push(Contender { name: contender.to_owned(), rounds: vec![figures] }),
        }
    }

    /// Adds `figure`: the rate of `of` by that of `to`, of the same round, so that what disturbs the
    /// machine for minutes disturbs both.
    pub(crate) fn add_ratio(&mut self, figure: &str, rate: &str, of: &str, to: &str) {
        let base: Vec<Option<f64>> = match self.contenders.iter().find(|known| known.name == to) {
            Some(base) => base.rounds.iter().map(|round| round.get(rate)).collect(),
            None => return,
        };
        let Some(contender) = self.contenders.iter_mut().find(|known| known.name == of) else {
            return;
        };
        for (round, base) in contender.rounds.iter_mut().zip(base) {
            if let (Some(own), Some(base)) = (round.get(rate), base) {
                round.values.push((figure.to_owned(), own / base));
            }
        }
    }

    /// As a Markdown table: medians, with lowest and highest where there are several rounds.
    pub(crate) fn table(&self) -> String {
        let mut columns: Vec<&str> = Vec::new();
        for round in self.contenders.iter().flat_map(|contender| &contender.rounds) {
            for (name, _) in &round.values {
                if !columns.contains(&name.as_str()) {
                    columns.push(name);
                }
            }
        }
        let names: Vec<&str> = self.contenders.iter().map(|known| known.name.as_str()).collect();
        // Many figures of few contenders are read downwards.
        if columns.len() > COLUMNS_MAX && names.len() < columns.len() {
            let cell = |row: usize, column: usize| self.cell(column, columns[row]);
            return markdown(&columns, &names, cell);
        }
        markdown(&names, &columns, |row, column| self.cell(row, columns[column]))
    }

    fn cell(&self, contender: usize, figure: &str) -> String {
        match self.contenders[contender].spread(figure) {
            None => String::new(),
            Some((low, median, high)) if low < high => {
                format!("{} ({}–{})", number(median), number(low), number(high))
            }
            Some((_, median, _)) => number(median),
        }
    }

    pub(crate) fn save(&self, folder: &Path) -> Result<()> {
        std::fs::create_dir_all(folder)?;
        let path = folder.join(format!("{}.json", self.workload));
        std::fs::write(&path, serde_json::to_string_pretty(self)?)
            .with_context(|| format!("write {}", path.display()))
    }

    pub(crate) fn load(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path)?;
        serde_json::from_str(&text).with_context(|| format!("read {}", path.display()))
    }
}

fn one_line(figures: &Figures) -> String {
    let values = figures.values.iter().map(|(name, value)| format!("{name} {}", number(*value)));
    values.collect::<Vec<_>>().join(", ")
}

/// Three digits that count, thousands set apart.
pub(crate) fn number(value: f64) -> String {
    match value.abs() {
        size if size < 10.0 => format!("{value:.2}"),
        size if size < 100.0 => format!("{value:.1}"),
        _ => {
            let digits = format!("{value:.0}");
            let mut text = String::new();
            for (place, digit) in digits.chars().enumerate() {
                let left = digits.len() - place;
                if place > 0 && left.is_multiple_of(3) && !text.ends_with('-') {
                    text.push(',');
                }
                text.push(digit);
            }
            text
        }
    }
}

/// The average number of processes that wanted to run, in the last minute.
fn load() -> f64 {
    let text = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split(' ').next().and_then(|first| first.parse().ok()).unwrap_or(0.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(rates: &[(&str, &[f64])]) -> Report {
        let mut report = Report::new("drain", "", "events/s");
        for (name, rounds) in rates {
            for rate in *rounds {
                report.add(name, Figures::default().with("events/s", *rate));
            }
        }
        report
    }

    #[test]
    fn a_ratio_compares_rounds_that_ran_together() {
        // The machine was half as fast in the second round.
        let mut report = report(&[("loop", &[100.0, 50.0]), ("relay", &[90.0, 45.0])]);
        report.add_ratio("of loop", "events/s", "relay", "loop");
        let (low, median, high) = report.contenders[1].spread("of loop").unwrap();
        assert!((low - 0.9).abs() < 1e-9 && (median - 0.9).abs() < 1e-9 && high <= 0.9 + 1e-9);
    }

    #[test]
    fn a_table_shows_medians_and_spread() {
        let report = report(&[("relay", &[1_000.0, 3_000.0, 2_000.0])]);
        let table = report.table();
        assert!(table.contains("| relay | 2,000 (1,000–3,000) |"), "{table}");
    }

    #[test]
    fn numbers_are_short() {
        for (value, expected) in
            [(0.876, "0.88"), (12.34, "12.3"), (999.6, "1,000"), (1_234_567.0, "1,234,567")]
        {
            assert_eq!(number(value), expected);
        }
    }
}
