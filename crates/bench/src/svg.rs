//! Plots, written by hand: two kinds, no library.

use std::fmt::Write as _;

use crate::report::{Report, number};

const WIDTH: f64 = 860.0;
const LABEL_WIDTH: f64 = 330.0;
const VALUE_WIDTH: f64 = 110.0;
const BAR_HEIGHT: f64 = 18.0;
const BAR_STEP: f64 = 28.0;
const COLORS: [&str; 8] =
    ["#3566a5", "#c4562f", "#3f8f5b", "#8a5aa8", "#b08a1e", "#4aa3b5", "#a33c5c", "#6b6b6b"];

/// One bar for each contender: the median of the plotted figure, with a line from the lowest round to
/// the highest.
pub(crate) fn bars(report: &Report) -> String {
    let rows: Vec<(&str, (f64, f64, f64))> = report
        .contenders
        .iter()
        .filter_map(|contender| Some((contender.name.as_str(), contender.spread(&report.plotted)?)))
        .collect();
    let most = rows.iter().map(|(_, (_, _, high))| *high).fold(1e-9, f64::max);
    let scale = (WIDTH - LABEL_WIDTH - VALUE_WIDTH) / most;
    let mut body = String::new();
    for (index, (name, (low, median, high))) in rows.iter().enumerate() {
        let y = 34.0 + BAR_STEP * index as f64;
        let middle = y + BAR_HEIGHT / 2.0;
        let ours = name.contains("posthaste");
        let color = if ours { COLORS[0] } else { "#9aa5b1" };
        let _ = writeln!(
            body,
            "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>\
             <rect x=\"{LABEL_WIDTH}\" y=\"{y:.1}\" width=\"{:.1}\" height=\"{BAR_HEIGHT}\" \
             fill=\"{color}\"/>\
             <line x1=\"{:.1}\" x2=\"{:.1}\" y1=\"{middle:.1}\" y2=\"{middle:.1}\" \
             stroke=\"#222\"/>\
             <text x=\"{:.1}\" y=\"{:.1}\">{}</text>",
            LABEL_WIDTH - 8.0,
            middle + 4.5,
            escape(name),
            median * scale,
            LABEL_WIDTH + low * scale,
            LABEL_WIDTH + high * scale,
            LABEL_WIDTH + high * scale + 8.0,
            middle + 4.5,
            number(*median),
        );
    }
    frame(&report.caption, &report.plotted, 44.0 + BAR_STEP * rows.len() as f64, &body)
}

/// One line for each contender that has deciles: its rate from the first tenth to the last.
/// `None` where there is none.
pub(crate) fn deciles(report: &Report) -> Option<String> {
    const HEIGHT: f64 = 260.0;
    let lines: Vec<(&str, Vec<f64>)> = report
        .contenders
        .iter()
        .map(|contender| (contender.name.as_str(), contender.deciles()))
        .filter(|(name, deciles)| name.contains("posthaste") && !deciles.is_empty())
        .collect();
    if lines.is_empty() {
        return None;
    }
    let most = lines.iter().flat_map(|(_, rates)| rates).copied().fold(1e-9, f64::max);
    let mut body = String::new();
    for (index, (name, rates)) in lines.iter().enumerate() {
        let color = COLORS[index % COLORS.len()];
        let step = 440.0 / (rates.len().max(2) - 1) as f64;
        let points: Vec<String> = rates
            .iter()
            .enumerate()
            .map(|(tenth, rate)| {
                let x = 20.0 + step * tenth as f64;
                format!("{x:.1},{:.1}", 40.0 + (HEIGHT - 60.0) * (1.0 - rate / most))
            })
            .collect();
        let y = 54.0 + 20.0 * index as f64;
        let _ = writeln!(
            body,
            "<polyline points=\"{}\" fill=\"none\" stroke=\"{color}\" stroke-width=\"2\"/>\
             <text x=\"480\" y=\"{y:.1}\" fill=\"{color}\">{}</text>",
            points.join(" "),
            escape(name),
        );
    }
    let zero = HEIGHT - 20.0;
    let _ = writeln!(
        body,
        "<line x1=\"20\" x2=\"460\" y1=\"{zero}\" y2=\"{zero}\" stroke=\"#888\"/>\
         <text x=\"20\" y=\"{:.1}\">first tenth</text>\
         <text x=\"460\" y=\"{:.1}\" text-anchor=\"end\">last tenth</text>",
        zero + 15.0,
        zero + 15.0,
    );
    let height = (HEIGHT + 4.0).max(60.0 + 20.0 * lines.len() as f64);
    Some(frame(&report.caption, "events/s by tenth, from zero", height, &body))
}

fn frame(title: &str, unit: &str, height: f64, body: &str) -> String {
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height:.0}\" \
         font-family=\"sans-serif\" font-size=\"13\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"#fff\"/>\n\
         <text x=\"12\" y=\"20\" font-weight=\"bold\">{} ({})</text>\n{body}</svg>\n",
        escape(title),
        escape(unit),
    )
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::Figures;

    #[test]
    fn a_plot_shows_every_contender_and_escapes_names() {
        let mut report = Report::new("drain", "a < b", "events/s");
        for rate in [1.0, 2.0] {
            let figures = Figures { deciles: vec![1.0, 2.0], ..Figures::default() };
            report.add("posthaste & more", figures.with("events/s", rate));
        }
        report.add("other", Figures::default().with("events/s", 3.0));
        let svg = bars(&report);
        assert_eq!(svg.matches("<rect").count(), 3, "{svg}");
        assert!(svg.contains("posthaste &amp; more") && svg.contains("a &lt; b"), "{svg}");
        assert_eq!(deciles(&report).unwrap().matches("<polyline").count(), 1);
    }
}
