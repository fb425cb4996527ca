//! Tables and plots in a page: what stands between a workload's marks is replaced, the rest is kept.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result};

use crate::report::Report;
use crate::svg;

/// Puts every result of the folder `results` in its place in `page`, and its plots beside it.
///
/// # Errors
/// When there is no result, a file cannot be read or written, or the page has no place for a result.
pub(crate) fn write(results: &Path, page: &Path) -> Result<()> {
    let mut text = fs::read_to_string(page).with_context(|| page.display().to_string())?;
    let plots = page.with_extension("");
    fs::create_dir_all(&plots)?;
    let folder = plots.file_name().and_then(|name| name.to_str()).context("a page with a name")?;
    let mut files: Vec<_> = fs::read_dir(results)
        .with_context(|| format!("{}: run the bench first", results.display()))?
        .collect::<std::io::Result<Vec<_>>>()?;
    files.sort_by_key(fs::DirEntry::file_name);
    files.retain(|file| file.path().extension().is_some_and(|extension| extension == "json"));
    anyhow::ensure!(!files.is_empty(), "{} holds no full result", results.display());
    for file in files {
        let report = Report::load(&file.path())?;
        let name = &report.workload;
        let mut block = settings(&report);
        block.push_str(&report.table());
        let mut plot = |suffix: &str, content: String| -> Result<()> {
            let file = format!("{name}{suffix}.svg");
            fs::write(plots.join(&file), content)?;
            block.push_str(&format!("\n![{}]({folder}/{file})\n", report.caption));
            Ok(())
        };
        plot("", svg::bars(&report))?;
        if let Some(lines) = svg::deciles(&report) {
            plot("-deciles", lines)?;
        }
        text = replace(&text, name, &block)?;
    }
    fs::write(page, text)?;
    Ok(())
}

fn settings(report: &Report) -> String {
    let settings = report.settings.iter().map(|(name, value)| format!("{name}: {value}"));
    let settings: Vec<String> = settings.collect();
    let rounds = report.contenders.iter().map(|contender| contender.rounds.len()).max();
    format!(
        "{}; rounds: {}; load of the machine before: {:.1}.\n\n",
        settings.join("; "),
        rounds.unwrap_or(0),
        report.load_before
    )
}

/// The page with `block` between the marks of `workload`.
fn replace(page: &str, workload: &str, block: &str) -> Result<String> {
    let (begin, end) = (format!("<!-- bench:{workload} -->"), "<!-- end -->");
    let missing = || format!("the page has no {begin} … {end}");
    let (before, rest) = page.split_once(&begin).with_context(missing)?;
    let (_, after) = rest.split_once(end).with_context(missing)?;
    Ok(format!("{before}{begin}\n\n{block}\n{end}{after}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_stands_between_the_marks_is_replaced() {
        let page =
            "intro\n<!-- bench:a -->\nold\n<!-- end -->\ntext\n<!-- bench:b -->x<!-- end -->";
        let once = replace(page, "a", "new").unwrap();
        assert_eq!(
            once,
            "intro\n<!-- bench:a -->\n\nnew\n<!-- end -->\ntext\n<!-- bench:b -->x<!-- end -->"
        );
        assert_eq!(replace(&once, "a", "new").unwrap(), once);
        assert!(replace(page, "c", "new").is_err());
    }
}
