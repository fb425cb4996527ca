//! Rivals that run as processes of their own, and tell on their standard output what they have done: a
//! line for each step, seconds since they began and events.

use std::ops::Range;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::Command;

use crate::bed::Completions;
use crate::relay::Usage;
use crate::report::Figures;

/// Where the rivals of `crates/bench/rivals` are: the program that `cargo xtask bench` builds.
pub(crate) const RIVALS: &str = "POSTHASTE_BENCH_RIVALS";

/// A rival that is silent for so long does not run. Some look again only once a minute.
const SILENCE_MAX: Duration = Duration::from_secs(150);

/// What a rival did.
pub(crate) struct Drained {
    completions: Completions,
    /// Without what starting up took.
    cpu_micros_per_event: f64,
    peak_mb: f64,
}

impl Drained {
    pub(crate) fn figures(&self) -> Figures {
        let figures = self.completions.figures();
        figures.with("CPU µs/event", self.cpu_micros_per_event).with("peak MB", self.peak_mb)
    }
}

/// A call of the rivals' program.
///
/// # Errors
/// When nobody said where it is.
pub(crate) fn rivals() -> Result<Command> {
    let program = std::env::var_os(RIVALS).with_context(|| {
        format!("{RIVALS} does not say where the rivals are; `cargo xtask bench` builds them")
    })?;
    Ok(Command::new(program))
}

/// Runs `command` until it has done `events` events, then ends it. Only those of `measured` count, so
/// that a rival may warm up before and run dry behind them.
///
/// # Errors
/// When it ends by itself, is silent for too long, or says something else.
pub(crate) async fn drain(
    mut command: Command,
    events: u64,
    measured: Range<u64>,
) -> Result<Drained> {
    command.stdin(Stdio::null()).stdout(Stdio::piped()).kill_on_drop(true);
    let mut child = command.spawn().with_context(|| format!("start {command:?}"))?;
    let process = child.id().context("it ended at once")?.to_string();
    let mut lines = BufReader::new(child.stdout.take().context("no standard output")?).lines();
    let (mut steps, mut usages, mut done) = (Vec::new(), Vec::new(), 0);
    while done < events {
        let line = tokio::time::timeout(SILENCE_MAX, lines.next_line()).await;
        let Ok(line) = line else {
            bail!("it did nothing for {} s; {done} events were done", SILENCE_MAX.as_secs())
        };
        let Some(line) = line? else {
            bail!("it ended by itself ({}); {done} events were done", child.wait().await?)
        };
        let (seconds, count) = line.split_once(' ').with_context(|| format!("it said: {line}"))?;
        let (seconds, count): (f64, u32) = (seconds.parse()?, count.parse()?);
        done += u64::from(count);
        if (measured.start..=measured.end).contains(&done) {
            steps.push((seconds, i64::from(count)));
        }
        // After the first step that counts, and after the last.
        let is_begun = usages.is_empty() && done >= measured.start;
        if is_begun || (usages.len() == 1 && done >= measured.end) {
            usages.push((Usage::of(&process)?, done));
        }
    }
    let [(before, first), (after, last)] = usages[..] else {
        bail!("it did all {done} events in one step");
    };
    child.kill().await?;
    Ok(Drained {
        completions: Completions::of(steps),
        cpu_micros_per_event: (after.cpu - before.cpu).as_secs_f64() * 1e6 / (last - first) as f64,
        peak_mb: after.peak_mb,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::RATE;

    fn script(text: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", text]);
        command
    }

    #[tokio::test]
    async fn what_warms_up_and_what_runs_dry_does_not_count() {
        let says = "printf '1 90\\n2 10\\n3 10\\n4 10\\n9 80\\n'; exec sleep 60";
        let drained = drain(script(says), 200, 100..120).await.unwrap();
        let rate = drained.figures().values.into_iter().find(|(name, _)| name == RATE);
        assert!((rate.unwrap().1 - 10.0).abs() < 1e-6);
    }

    #[tokio::test]
    async fn a_rival_that_ends_before_it_is_done_did_not_run() {
        let error = drain(script("echo 1 10; exit 3"), 20, 15..20).await.err().unwrap();
        assert!(error.to_string().contains("10 events were done"), "{error}");
    }
}
