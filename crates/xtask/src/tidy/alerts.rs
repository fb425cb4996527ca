//! Every alert has a case in which it fires.

use std::collections::BTreeSet;

use super::{TextFile, Violation};

const RULES: &str = "monitoring/alerts.yaml";
const CASES: &str = "monitoring/alerts_test.yaml";

/// Compares the rules' names with those that the cases expect to fire.
pub(super) fn check(files: &[TextFile]) -> Vec<Violation> {
    let text = |path: &str| {
        files.iter().find(|file| file.path == path).map_or("", |file| file.text.as_str())
    };
    let rules: BTreeSet<&str> =
        text(RULES).lines().filter_map(|line| line.trim().strip_prefix("- alert: ")).collect();
    let lines: Vec<&str> = text(CASES).lines().map(str::trim).collect();
    let fired: BTreeSet<&str> = lines
        .windows(2)
        .filter(|pair| pair[1] == "exp_alerts:")
        .filter_map(|pair| pair[0].strip_prefix("alertname: "))
        .collect();
    let violation = |place: &str, what, remedy| Violation { place: place.to_owned(), what, remedy };
    let untested = rules.difference(&fired).map(|name| {
        violation(RULES, format!("{name} is not seen to fire"), "add a case to alerts_test.yaml")
    });
    let unknown = fired
        .difference(&rules)
        .map(|name| violation(CASES, format!("{name} is no rule"), "correct the name"));
    untested.chain(unknown).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_alert_has_a_case_that_expects_it() {
        let file = |path: &str, text: &str| TextFile { path: path.into(), text: text.into() };
        let rules = "- alert: A\n  expr: x\n- alert: B\n";
        let cases = "  alertname: A\n  exp_alerts:\n- eval_time: 1m\n  alertname: B\n  alertname: C\n  exp_alerts:\n";
        let found = check(&[file(RULES, rules), file(CASES, cases)]);
        let found: Vec<&str> = found.iter().map(|violation| violation.what.as_str()).collect();
        assert_eq!(found, ["B is not seen to fire", "C is no rule"]);
    }
}
