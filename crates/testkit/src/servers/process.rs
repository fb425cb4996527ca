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

    /// Waits for its end.
    pub(super) fn wait(mut self) {
        let _ = self.child.wait();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
