//! A server's process: started, waited for, sent signals, and never left behind.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// A server that is not ready, or not stopped, by then never will be.
const PATIENCE: Duration = Duration::from_secs(60);

const POLL_INTERVAL: Duration = Duration::from_millis(20);

/// A running process, whose output goes to a file. Killed when dropped.
pub(super) struct Process {
    child: Child,
    log: PathBuf,
}

impl Process {
    /// Starts `command` with its output in the file `log`, whose earlier content is gone.
    pub(super) fn spawn(command: &mut Command, log: &Path) -> io::Result<Self> {
        let output = File::create(log)?;
        let child =
            command.stdin(Stdio::null()).stdout(output.try_clone()?).stderr(output).spawn()?;
        Ok(Self { child, log: log.to_owned() })
    }

    /// Waits until the server is `ready`.
    ///
    /// # Panics
    /// Where the process ends, or is not ready for a minute; with what it logged.
    pub(super) async fn wait_until<F: Future<Output = bool>>(&mut self, ready: impl Fn() -> F) {
        let begun = Instant::now();
        loop {
            let is_ready = ready().await;
            // Asked last: an answer may have come from somebody else on the same port.
            let ended = self.child.try_wait().ok().flatten();
            if is_ready && ended.is_none() {
                return;
            }
            if ended.is_some() || begun.elapsed() > PATIENCE {
                let log = std::fs::read(&self.log).unwrap_or_default();
                let what = ended.map_or("is not ready".to_owned(), |how| format!("ended: {how}"));
                panic!("the private server {what}\n{}", String::from_utf8_lossy(&log));
            }
            tokio::time::sleep(POLL_INTERVAL).await;
        }
    }

    /// Sends the signal `name`.
    pub(super) fn signal(&self, name: &str) {
        let id = self.child.id().to_string();
        let sent = Command::new("kill").args(["-s", name, &id]).status();
        assert!(sent.is_ok_and(|status| status.success()), "SIG{name} was not sent to {id}");
    }

    /// Stops it, and returns when it has stopped. It still runs for a moment after the signal is
    /// sent, long enough to answer.
    pub(super) fn freeze(&self) {
        self.signal("STOP");
        let begun = Instant::now();
        while !self.is_frozen() {
            assert!(begun.elapsed() < PATIENCE, "SIGSTOP stops nothing");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Whether each of its threads has stopped. Where there is no `/proc`, nobody can say.
    fn is_frozen(&self) -> bool {
        let threads = std::fs::read_dir(format!("/proc/{}/task", self.child.id()));
        threads.into_iter().flatten().flatten().all(|thread| {
            // A thread that has ended meanwhile runs no more, either.
            let status = std::fs::read_to_string(thread.path().join("stat")).unwrap_or_default();
            status.rsplit_once(") ").is_none_or(|(_, state)| state.starts_with('T'))
        })
    }

    /// `kill -9` of it and of the processes it started; returns when all have ended.
    pub(super) fn kill_with_children(mut self) {
        // Frozen, it starts no more of them; and they go first, since some notice its end.
        self.freeze();
        let children = children_of(self.child.id());
        for child in &children {
            // It may have ended meanwhile.
            let _ = Command::new("kill").args(["-s", "KILL", child]).stderr(Stdio::null()).status();
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
        let begun = Instant::now();
        while children.iter().any(|child| is_running(child)) {
            assert!(begun.elapsed() < PATIENCE, "SIGKILL ends nothing");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Waits for its end.
    pub(super) fn wait(mut self) {
        let _ = self.child.wait();
    }
}

/// State and parent of a process, from the part of its status line behind its name.
fn state_and_parent(id: &str) -> Option<(char, u32)> {
    let status = std::fs::read_to_string(format!("/proc/{id}/stat")).ok()?;
    let (_, rest) = status.rsplit_once(") ")?;
    let mut fields = rest.split(' ');
    Some((fields.next()?.chars().next()?, fields.next()?.parse().ok()?))
}

fn children_of(parent: u32) -> Vec<String> {
    let processes = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    processes
        .filter_map(|process| process.file_name().into_string().ok())
        .filter(|id| state_and_parent(id).is_some_and(|(_, of)| of == parent))
        .collect()
}

/// Whether it still does anything: one that has ended may wait long for somebody to ask how.
fn is_running(id: &str) -> bool {
    state_and_parent(id).is_some_and(|(state, _)| !matches!(state, 'Z' | 'X'))
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
