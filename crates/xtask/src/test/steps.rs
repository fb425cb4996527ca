//! Steps one after the other, and the table of them at the end.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};

/// The steps that were run.
pub(super) struct Steps {
    begun: Instant,
    done: Vec<Step>,
}

/// A step's name, how long it took, and what it met.
struct Step {
    name: &'static str,
    took: Duration,
    error: Option<String>,
}

impl Default for Steps {
    fn default() -> Self {
        Self { begun: Instant::now(), done: Vec::new() }
    }
}

impl Steps {
    /// Runs one step and notes how it went. `None` where it failed.
    pub(super) fn run<T>(
        &mut self,
        name: &'static str,
        work: impl FnOnce() -> Result<T>,
    ) -> Option<T> {
        println!("==> {name}");
        let begun = Instant::now();
        let outcome = work();
        let error = outcome.as_ref().err().map(|error| format!("{error:#}"));
        if let Some(error) = &error {
            eprintln!("{error}");
        }
        self.done.push(Step { name, took: begun.elapsed(), error });
        outcome.ok()
    }

    /// Prints the table.
    ///
    /// # Errors
    /// When a step failed.
    pub(super) fn summarise(&self) -> Result<()> {
        println!();
        for Step { name, took, error } in &self.done {
            let mark = if error.is_none() { "ok  " } else { "FAIL" };
            println!("{mark} {name:<16} {:>6.1} s", took.as_secs_f64());
        }
        println!("     {:<16} {:>6.1} s", "together", self.begun.elapsed().as_secs_f64());
        let failed: Vec<&str> =
            self.done.iter().filter(|step| step.error.is_some()).map(|step| step.name).collect();
        if failed.is_empty() {
            println!("all passed");
            return Ok(());
        }
        bail!("failed: {}", failed.join(", "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_failed_step_fails_the_run_and_is_named() {
        let mut steps = Steps::default();
        assert_eq!(steps.run("fine", || Ok(7)), Some(7));
        assert!(steps.summarise().is_ok());
        assert_eq!(steps.run("broken", || -> Result<()> { bail!("why") }), None);
        steps.run("later", || Ok(()));
        let error = steps.summarise().unwrap_err().to_string();
        assert_eq!(error, "failed: broken");
    }
}
