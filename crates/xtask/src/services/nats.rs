//! A NATS server of our own, with JetStream, outside every service manager.

use std::fs::{self, File};
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result};

use super::probe::Health;
use super::{NATS, Url, debian, free_port, wait_until_ready};
use crate::process;

/// Starts `nats-server` where `url` says, or beside it where something else is there.
///
/// # Errors
/// When it cannot be installed or does not come up; the log's place is in the error.
pub(crate) fn start(url: &Url, health: &Health) -> Result<Url> {
    if process::find_program("nats-server").is_none() {
        debian::install(&["nats-server"])?;
        // A server the package started itself has no JetStream.
        let _ = process::output(Command::new("service").args(["nats-server", "stop"]));
    }
    let program = process::find_program("nats-server").context("nats-server is not in PATH")?;
    let port = match health {
        Health::Absent(_) => url.port,
        _ => free_port(url.port + 1)?,
    };
    let folder = folder();
    fs::create_dir_all(&folder).with_context(|| format!("create {}", folder.display()))?;
    let log = folder.join("log");
    let output = File::create(&log).with_context(|| format!("create {}", log.display()))?;
    let child = Command::new(program)
        .args(["-js", "-a", "127.0.0.1", "-p", &port.to_string(), "-sd"])
        .arg(folder.join("data"))
        .stdin(Stdio::null())
        .stdout(output.try_clone()?)
        .stderr(output)
        // A group of its own: Ctrl-C in the terminal that started it does not reach it.
        .process_group(0)
        .spawn()
        .context("start nats-server")?;
    fs::write(folder.join("pid"), child.id().to_string())?;
    let started = Url::parse(&format!("nats://127.0.0.1:{port}"), port)?;
    wait_until_ready(&NATS, &started, Duration::from_secs(20))
        .with_context(|| format!("see {}", log.display()))?;
    Ok(started)
}

/// Stops the server that [`start`] started, if it still runs.
///
/// # Errors
/// When it runs and cannot be told to stop.
pub(crate) fn stop() -> Result<()> {
    let file = folder().join("pid");
    let Ok(pid) = fs::read_to_string(&file) else { return Ok(()) };
    // The number may belong to another program by now.
    let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    if name.trim() == "nats-server" {
        // The shell's own `kill`: a lean system has no such program.
        process::run(Command::new("sh").args(["-c", "kill \"$0\"", &pid]))?;
        println!("stopped NATS");
    }
    fs::remove_file(&file).with_context(|| format!("remove {}", file.display()))
}

fn folder() -> PathBuf {
    crate::target_dir().join("services").join("nats")
}
