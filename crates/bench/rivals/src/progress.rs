//! What the bench is told.

use std::io::Write as _;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use anyhow::{Context as _, Result};

/// Counts events that are done and says so: a line for each step, seconds and events.
pub(crate) struct Progress {
    begun: Instant,
    events: usize,
    done: Mutex<usize>,
}

impl Progress {
    pub(crate) fn new(events: usize) -> Arc<Self> {
        Arc::new(Self { begun: Instant::now(), events, done: Mutex::new(0) })
    }

    /// How many there are altogether.
    pub(crate) fn events(&self) -> usize {
        self.events
    }

    /// `count` more are done, now.
    pub(crate) fn add(&self, count: usize) -> Result<()> {
        let mut done = self.done.lock().ok().context("a task panicked")?;
        *done += count;
        // Within the lock, so that lines are in the order of their times.
        let seconds = self.begun.elapsed().as_secs_f64();
        let mut output = std::io::stdout().lock();
        writeln!(output, "{seconds:.6} {count}").context("the bench is gone")?;
        output.flush().context("the bench is gone")
    }
}
