//! A disk that can be full.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use tempfile::TempDir;

use super::postgres::folder;

/// Room in the beginning, in KiB. What is not used takes no memory.
const ROOMY_KIB: u64 = 1024 * 1024;

/// The longest wait for a moment in which nothing is written.
const PATIENCE: Duration = Duration::from_secs(10);

/// A disk in memory that can be made full, and greater again. Unmounted when dropped, so drop first
/// what uses it.
pub struct SmallDisk {
    folder: TempDir,
}

impl SmallDisk {
    /// Mounts it, with room. `None`, having said so, where this process may not mount: it is not
    /// root, or in a container.
    #[must_use]
    pub fn mount() -> Option<Self> {
        let disk = Self { folder: folder() };
        let options = format!("size={ROOMY_KIB}k,mode=0777");
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", &options, "posthaste-test"]).arg(disk.path());
        match mount.output() {
            Ok(output) if output.status.success() => Some(disk),
            // Not as for a server that is missing: no service can help.
            _ => {
                eprintln!("skipped: a disk of its own cannot be mounted here");
                None
            }
        }
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    /// Leaves room for so many KiB more.
    ///
    /// # Panics
    /// Where the system refuses.
    pub fn fill(&self, free_kib: u64) {
        let begun = Instant::now();
        // What is written meanwhile may be more than that, and no disk is smaller than what is on it.
        while let Err(why) = self.resize(self.used_kib() + free_kib) {
            assert!(begun.elapsed() < PATIENCE, "{why}");
        }
    }

    fn used_kib(&self) -> u64 {
        let mut ask = Command::new("df");
        let output = ask.args(["--output=used", "-k"]).arg(self.path()).output().expect("df runs");
        let output = String::from_utf8_lossy(&output.stdout).into_owned();
        let used = output.lines().nth(1).and_then(|line| line.trim().parse().ok());
        used.expect("df says how much is used")
    }

    /// Ends a [`fill`](Self::fill).
    ///
    /// # Panics
    /// Where the system refuses.
    pub fn make_room(&self) {
        self.resize(ROOMY_KIB).expect("more room");
    }

    fn resize(&self, kib: u64) -> Result<(), String> {
        let mut mount = Command::new("mount");
        mount.args(["-o", &format!("remount,size={kib}k")]).arg(self.path());
        let output = mount.output().expect("mount runs");
        let why = || String::from_utf8_lossy(&output.stderr).into_owned();
        output.status.success().then_some(()).ok_or_else(why)
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Lazily: what still uses it keeps it until its end.
        let _ = Command::new("umount").arg("--lazy").arg(self.path()).output();
    }
}
