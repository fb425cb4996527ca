//! One line of figures for each test.

use std::fmt::{Display, Write as _};
use std::time::Instant;

/// Collects figures and prints them as one line, which `cargo xtask promises` and `cargo xtask
/// faults` look for.
pub(crate) struct Figures {
    line: String,
    begun: Instant,
}

impl Figures {
    /// Of a promise.
    pub(crate) fn of(name: &str) -> Self {
        Self { line: format!("promise {name}:"), begun: Instant::now() }
    }

    /// Of what a fault came to. No value of it may hold a comma.
    pub(crate) fn of_fault(name: &str) -> Self {
        Self { line: format!("fault {name}:"), begun: Instant::now() }
    }

    pub(crate) fn add(&mut self, name: &str, value: impl Display) -> &mut Self {
        let separator = if self.line.ends_with(':') { " " } else { ", " };
        let _ = write!(self.line, "{separator}{name} {value}");
        self
    }

    /// Prints them, with the seconds since the test began.
    pub(crate) fn print(&mut self) {
        let seconds = format!("{:.1}", self.begun.elapsed().as_secs_f64());
        self.add("seconds", seconds);
        println!("{}", self.line);
    }
}
