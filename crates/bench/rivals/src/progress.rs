//! What the bench is told.

use std::io::Write as _;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context as _, Result};

/// Says what is done: a line for each step, seconds and events.
pub(crate) struct Progress {
    begun: Instant,
    is_told: bool,
}

impl Progress {
    pub(crate) fn told() -> Arc<Self> {
        Arc::new(Self { begun: Instant::now(), is_told: true })
    }

    /// Nobody is told.
    pub(crate) fn untold() -> Arc<Self> {
        Arc::new(Self { begun: Instant::now(), is_told: false })
    }

    /// `count` more are done, now.
    pub(crate) fn add(&self, count: usize) -> Result<()> {
        if !self.is_told {
            return Ok(());
        }
        let mut output = std::io::stdout().lock();
        // With the output locked, so that lines are in the order of their times.
        let seconds = self.begun.elapsed().as_secs_f64();
        writeln!(output, "{seconds:.6} {count}").context("the bench is gone")?;
        output.flush().context("the bench is gone")
    }
}
