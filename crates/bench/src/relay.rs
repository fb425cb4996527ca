//! Relay processes: the released program, and one that publishes into nothing.

use std::fs;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result};
use posthaste_testkit::servers::free_port;
use tempfile::TempDir;

use crate::bed::Database;
use crate::stream::Stream;

/// Where a relay publishes.
pub(crate) enum Sink<'s> {
    /// A bus of nothing, in a process of the bench's own around the same processor and store: the
    /// program has no such destination.
    Null,
    /// The program, lines of JSON into `/dev/null`.
    Lines,
    /// The program, into JetStream.
    Stream(&'s Stream),
}

/// What a relay is told besides addresses. The rest are defaults.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct RelaySettings {
    pub(crate) batch_size: usize,
    pub(crate) max_concurrent_events: usize,
    /// Whether delivered events are kept. If not, the retention is zero.
    pub(crate) keeps_history: bool,
}

impl RelaySettings {
    /// The program's own, and the sizes of the bare loop.
    pub(crate) const DEFAULT: Self =
        Self { batch_size: 1_000, max_concurrent_events: 1_000, keeps_history: true };
    /// Less memory, fewer repeats after a crash.
    pub(crate) const SMALL: Self =
        Self { batch_size: 250, max_concurrent_events: 250, ..Self::DEFAULT };
    /// What is delivered is deleted.
    pub(crate) const NO_HISTORY: Self = Self { keeps_history: false, ..Self::DEFAULT };
}

/// A running relay. Killed when dropped.
pub(crate) struct Relay {
    child: Child,
    _folder: TempDir,
}

/// What a process took until now.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Usage {
    pub(crate) cpu: Duration,
    /// The most memory it ever held in RAM, in MB (10^6 bytes).
    pub(crate) peak_mb: f64,
}

impl Relay {
    pub(crate) fn start(
        database: &Database,
        sink: &Sink<'_>,
        settings: RelaySettings,
    ) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let RelaySettings { batch_size, max_concurrent_events, keeps_history } = settings;
        let mut command = match sink {
            Sink::Null => {
                let mut command = Command::new(std::env::current_exe()?);
                command.arg("null-relay").arg(&database.url);
                command.arg(batch_size.to_string()).arg(max_concurrent_events.to_string());
                if !keeps_history {
                    command.arg("--no-history");
                }
                command
            }
            Sink::Lines | Sink::Stream(_) => {
                let destination = match sink {
                    Sink::Stream(stream) => format!(
                        "type = \"nats\"\nurl = \"{}\"\nstream = \"{}\"\nsubject = \"{}\"",
                        stream.url,
                        stream.name,
                        stream.subject()
                    ),
                    _ => "type = \"file\"\npath = \"/dev/null\"".to_owned(),
                };
                let retention = if keeps_history { "30d" } else { "0s" };
                let text = format!(
                    "[database]\nurl = \"{}\"\n[relay]\nbatch_size = {batch_size}\n\
                     max_concurrent_events = {max_concurrent_events}\n\
                     retention = \"{retention}\"\n\
                     [ops]\nlisten = \"127.0.0.1:{}\"\n[log]\nlevel = \"warn\"\n\
                     [destinations.default]\n{destination}\n",
                    database.url,
                    free_port(),
                );
                fs::write(folder.path().join("posthaste.toml"), text)?;
                let mut command = Command::new(program()?);
                command.arg("run");
                command
            }
        };
        command.current_dir(folder.path()).env_clear().stdin(Stdio::null()).stdout(Stdio::null());
        let child = command.spawn().with_context(|| format!("start {command:?}"))?;
        Ok(Self { child, _folder: folder })
    }

    /// What it took until now.
    ///
    /// # Errors
    /// When it has ended, or the system has no `/proc`.
    pub(crate) fn usage(&mut self) -> Result<Usage> {
        if let Some(status) = self.child.try_wait()? {
            anyhow::bail!("the relay ended by itself: {status}");
        }
        Usage::of(&self.child.id().to_string())
    }
}

impl Usage {
    /// Of this process, loops by hand included.
    pub(crate) fn own() -> Result<Self> {
        Self::of("self")
    }

    /// Of the process with that number.
    pub(crate) fn of(process: &str) -> Result<Self> {
        let folder = PathBuf::from(format!("/proc/{process}"));
        let stat = fs::read_to_string(folder.join("stat"))?;
        let status = fs::read_to_string(folder.join("status"))?;
        Ok(Self { cpu: cpu(&stat)?, peak_mb: peak_mb(&status)? })
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The program, which is built beside this one.
fn program() -> Result<PathBuf> {
    let program = std::env::current_exe()?.with_file_name("posthaste");
    anyhow::ensure!(program.exists(), "{} is not built", program.display());
    Ok(program)
}

/// The 14th and 15th field: time in the program and in the kernel for it. Linux counts in
/// hundredths of a second, whatever its own clock.
fn cpu(stat: &str) -> Result<Duration> {
    let (_, fields) = stat.rsplit_once(") ").context("no name in /proc/PID/stat")?;
    let mut fields = fields.split(' ').skip(11).map(str::parse::<u64>);
    let mut next = || fields.next().context("/proc/PID/stat is short");
    Ok(Duration::from_millis((next()?? + next()??) * 10))
}

fn peak_mb(status: &str) -> Result<f64> {
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).context("no VmHWM")?;
    let kibibytes: f64 = line.trim().trim_end_matches(" kB").parse()?;
    Ok(kibibytes * 1024.0 / 1e6)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_and_memory_are_read_from_what_linux_writes() {
        let stat = "7 (a (b) c) S 1 7 7 0 -1 4194560 900 0 0 0 123 45 0 0 20 0 9 0 1 2 3";
        assert_eq!(cpu(stat).unwrap(), Duration::from_millis(1_680));
        let status = "Name:\tx\nVmPeak:\t   9 kB\nVmHWM:\t   2000 kB\n";
        assert!((peak_mb(status).unwrap() - 2.048).abs() < 1e-9);
    }
}
