//! Runs the real binary in a folder of its own, and makes databases for it.

#![allow(dead_code, reason = "each test binary uses its own part of this")]

pub(crate) mod database;
pub(crate) mod roles;

use std::io::{BufRead, BufReader, Read, Write};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;

pub(crate) const AGGREGATE: &str = "01890a5d-ac96-774b-bcce-b302099a8057";

/// A folder, and an environment that holds nothing of the machine's.
pub(crate) struct Cli {
    folder: TempDir,
    environment: Vec<(String, String)>,
}

/// How a run ended.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) code: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Cli {
    /// With `posthaste.db` for its outbox.
    pub(crate) fn new() -> Self {
        Self::without_database().env("DATABASE_URL", "sqlite:posthaste.db")
    }

    /// With nothing that names an outbox.
    pub(crate) fn without_database() -> Self {
        Self { folder: tempfile::tempdir().unwrap(), environment: Vec::new() }
    }

    /// With an outbox in posthaste.db.
    pub(crate) fn migrated() -> Self {
        let cli = Self::new();
        cli.run(&["migrate", "up"]).succeeded();
        cli
    }

    pub(crate) fn env(mut self, name: &str, value: &str) -> Self {
        self.environment.retain(|(known, _)| known != name);
        self.environment.push((name.into(), value.into()));
        self
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub(crate) fn write(&self, name: &str, content: impl AsRef<[u8]>) -> &Self {
        std::fs::write(self.path(name), content).unwrap();
        self
    }

    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_posthaste"));
        command.args(arguments).current_dir(self.folder.path()).env_clear();
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        command
    }

    pub(crate) fn run(&self, arguments: &[&str]) -> Ended {
        self.run_with_input(arguments, b"")
    }

    pub(crate) fn run_with_input(&self, arguments: &[&str], input: &[u8]) -> Ended {
        let mut child = self
            .command(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut stdin = child.stdin.take().unwrap();
        let input = input.to_vec();
        // The program may end without reading all of it.
        let writer = std::thread::spawn(move || drop(stdin.write_all(&input)));
        let watchdog = Watchdog::over(child.id());
        let output = child.wait_with_output().unwrap();
        drop(watchdog);
        writer.join().unwrap();
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        Ended {
            code: output.status.code(),
            stdout: text(output.stdout),
            stderr: text(output.stderr),
        }
    }

    /// Stores one JSON event of type `event_type`.
    pub(crate) fn publish(&self, event_type: &str, data: &str) -> Ended {
        self.run(&["publish", event_type, "--aggregate-id", AGGREGATE, "--data", data]).succeeded()
    }

    pub(crate) fn json(&self, arguments: &[&str]) -> Value {
        let mut all = vec!["--output", "json"];
        all.extend(arguments);
        serde_json::from_str(&self.run(&all).succeeded().stdout).unwrap()
    }

    /// What a command says once it is so, within half a minute.
    pub(crate) fn json_when(&self, arguments: &[&str], is_so: impl Fn(&Value) -> bool) -> Value {
        let deadline = Instant::now() + Duration::from_secs(30);
        loop {
            let said = self.json(arguments);
            if is_so(&said) {
                return said;
            }
            assert!(Instant::now() < deadline, "{said}");
            std::thread::sleep(Duration::from_millis(200));
        }
    }

    /// How many events wait.
    pub(crate) fn pending(&self) -> u64 {
        self.json(&["status"])["backlog"]["pending"].as_u64().unwrap()
    }

    pub(crate) fn start(&self, arguments: &[&str]) -> Running {
        let mut child = self
            .command(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let log = BufReader::new(child.stderr.take().unwrap());
        let (lines, log_lines) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            for line in log.lines().map_while(Result::ok) {
                if lines.send(line).is_err() {
                    break;
                }
            }
        });
        Running { child, log_lines }
    }
}

/// Kills a program that hangs, so that the test fails instead of hanging, too.
pub(crate) struct Watchdog(std::sync::mpsc::Sender<()>);

impl Watchdog {
    pub(crate) fn over(id: u32) -> Self {
        let (alive, ended) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            use std::sync::mpsc::RecvTimeoutError::Timeout;
            if ended.recv_timeout(Duration::from_secs(30)) == Err(Timeout) {
                eprintln!("hangs; killed after 30 s");
                let _ = Command::new("kill").args(["-s", "KILL", &id.to_string()]).status();
            }
        });
        Self(alive)
    }
}

/// A program that runs until it is stopped. Killed when dropped.
pub(crate) struct Running {
    pub(crate) child: Child,
    log_lines: std::sync::mpsc::Receiver<String>,
}

impl Running {
    /// Waits for a line on standard error that contains `text`.
    pub(crate) fn wait_for_log(&self, text: &str) -> String {
        let deadline = Instant::now() + Duration::from_secs(20);
        let mut seen = Vec::new();
        while let Ok(line) =
            self.log_lines.recv_timeout(deadline.saturating_duration_since(Instant::now()))
        {
            if line.contains(text) {
                return line;
            }
            seen.push(line);
        }
        panic!("{text:?} was not logged; logged was: {seen:#?}");
    }

    pub(crate) fn signal(&self, name: &str) {
        let id = self.child.id().to_string();
        assert!(Command::new("kill").args(["-s", name, &id]).status().unwrap().success());
    }

    /// What it wrote to standard output, after it ended; and its exit code.
    pub(crate) fn end(mut self) -> (Option<i32>, String) {
        let mut stdout = String::new();
        self.child.stdout.take().unwrap().read_to_string(&mut stdout).unwrap();
        (self.child.wait().unwrap().code(), stdout)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Ended {
    #[track_caller]
    pub(crate) fn succeeded(self) -> Self {
        assert_eq!(self.code, Some(0), "{self:#?}");
        self
    }

    /// Ended with `code` and one clear message that contains all of `parts`.
    #[track_caller]
    pub(crate) fn failed(self, code: i32, parts: &[&str]) -> Self {
        assert_eq!(self.code, Some(code), "{self:#?}");
        for part in parts {
            assert!(self.stderr.contains(part), "{part:?} is not in: {self:#?}");
        }
        assert!(!self.stderr.contains("panicked"), "{self:#?}");
        assert_eq!(self.stderr.matches("error:").count(), 1, "one message: {self:#?}");
        self
    }

    /// Standard output as one JSON value for each line.
    pub(crate) fn events(&self) -> Vec<Value> {
        lines_of(&self.stdout)
    }
}

/// One JSON value for each line.
pub(crate) fn lines_of(text: &str) -> Vec<Value> {
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}
