//! Runs checks one after another and keeps what came of them.

use std::fmt;
use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::time::Duration;

use futures_util::FutureExt;

/// A check that takes longer has hung: it fails, and the next one runs.
const CHECK_TIMEOUT: Duration = Duration::from_secs(30);

/// What came of a suite: one entry per check, in the order they ran.
#[derive(Debug, Clone)]
#[must_use = "a report that nobody reads proves nothing: call `assert_passed`"]
pub struct Report {
    /// The suite and the adapter it ran against: `repository suite on sqlite`.
    pub title: String,
    /// All checks.
    pub checks: Vec<Check>,
}

/// One check and its outcome.
#[derive(Debug, Clone)]
pub struct Check {
    /// The rule it proves.
    pub name: &'static str,
    /// What came of it.
    pub outcome: Outcome,
}

/// What came of a check.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// The rule holds.
    Passed,
    /// The rule does not apply here, and why.
    Skipped(String),
    /// The rule is broken, and how.
    Failed(String),
}

impl Report {
    /// The checks that failed.
    pub fn failures(&self) -> impl Iterator<Item = &Check> {
        self.checks.iter().filter(|check| matches!(check.outcome, Outcome::Failed(_)))
    }

    /// Whether the check called `name` failed.
    #[must_use]
    pub fn has_failed(&self, name: &str) -> bool {
        self.failures().any(|check| check.name == name)
    }

    /// Ends the test unless every check passed or was skipped.
    ///
    /// # Panics
    /// Where a check failed, with the whole report.
    #[track_caller]
    pub fn assert_passed(&self) {
        assert!(self.failures().next().is_none(), "{self}");
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.title)?;
        for check in &self.checks {
            writeln!(f, "  {check}")?;
        }
        Ok(())
    }
}

impl fmt::Display for Check {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.outcome {
            Outcome::Passed => write!(f, "ok {}", self.name),
            Outcome::Skipped(reason) => write!(f, "skipped {}: {reason}", self.name),
            Outcome::Failed(reason) => write!(f, "FAILED {}: {reason}", self.name),
        }
    }
}

/// Ends a check as skipped: return this error from a harness's method that cannot do what it is
/// asked.
#[must_use]
pub fn skip(reason: impl Into<String>) -> anyhow::Error {
    Skipped(reason.into()).into()
}

#[derive(Debug)]
struct Skipped(String);

impl fmt::Display for Skipped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Skipped {}

/// A suite that is running.
pub(crate) struct Suite {
    report: Report,
}

impl Suite {
    pub(crate) fn new(title: impl Into<String>) -> Self {
        let title = title.into();
        println!("{title}");
        Self { report: Report { title, checks: Vec::new() } }
    }

    /// Runs one check. A panic and a hang are failures of this check alone.
    pub(crate) async fn run(
        &mut self,
        name: &'static str,
        check: impl Future<Output = anyhow::Result<()>>,
    ) {
        let guarded = AssertUnwindSafe(check).catch_unwind();
        let outcome = match tokio::time::timeout(CHECK_TIMEOUT, guarded).await {
            Err(_) => Outcome::Failed(format!("no end within {CHECK_TIMEOUT:?}")),
            Ok(Err(panic)) => Outcome::Failed(format!("panicked: {}", panic_text(&*panic))),
            Ok(Ok(Ok(()))) => Outcome::Passed,
            Ok(Ok(Err(error))) => match error.downcast_ref::<Skipped>() {
                Some(skipped) => Outcome::Skipped(skipped.0.clone()),
                None => Outcome::Failed(format!("{error:#}")),
            },
        };
        let check = Check { name, outcome };
        println!("  {check}");
        self.report.checks.push(check);
    }

    pub(crate) fn end(self) -> Report {
        self.report
    }
}

fn panic_text(panic: &(dyn std::any::Any + Send)) -> &str {
    panic
        .downcast_ref::<String>()
        .map(String::as_str)
        .or_else(|| panic.downcast_ref::<&str>().copied())
        .unwrap_or("(no text)")
}

/// Runs each named function on the harness under its own name, unless the harness skips it.
macro_rules! run_checks {
    ($suite:ident, $harness:ident: $($($path:ident)::+),+ $(,)?) => {
        $({
            let name = $crate::report::last_segment(stringify!($($path)::+));
            match $harness.skips(name) {
                Some(reason) => $suite.run(name, async { Err($crate::skip(reason)) }).await,
                None => $suite.run(name, $($path)::+($harness)).await,
            }
        })+
    };
}
pub(crate) use run_checks;

/// `store::rule` is known as `rule`.
pub(crate) fn last_segment(path: &'static str) -> &'static str {
    path.rsplit("::").next().unwrap_or(path).trim()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_check_that_fails_panics_or_is_skipped_is_told_apart() {
        let mut suite = Suite::new("suite");
        suite.run("passes", async { Ok(()) }).await;
        suite.run("fails", async { anyhow::bail!("broken") }).await;
        suite.run("panics", async { panic!("oh") }).await;
        suite.run("skips", async { Err(skip("not here")) }).await;
        let report = suite.end();
        let lines: Vec<String> = report.checks.iter().map(Check::to_string).collect();
        assert_eq!(
            lines,
            [
                "ok passes",
                "FAILED fails: broken",
                "FAILED panics: panicked: oh",
                "skipped skips: not here"
            ]
        );
        assert!(std::panic::catch_unwind(|| report.assert_passed()).is_err());
    }
}
