//! A disk without room, and one that has some again. On a file system of the test's own, of a few
//! megabytes.

#![allow(clippy::unwrap_used)]
#![cfg(target_os = "linux")]

mod support;

use std::path::Path;
use std::process::Command;

use posthaste_core::{
    ErrorKind, OutboxMigrations, OutboxRepository, Settlement, SettlementOutcome,
};
use posthaste_sqlite::SqliteOutbox;
use support::{event, pending};
use tempfile::TempDir;

/// A file system in memory.
struct SmallDisk(TempDir);

impl SmallDisk {
    /// `None`, and the reason printed, where this user may not mount one.
    fn mount(size: &str) -> Option<Self> {
        let folder = tempfile::tempdir().unwrap();
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", &format!("size={size}"), "tmpfs"]).arg(folder.path());
        match mount.output() {
            Ok(done) if done.status.success() => Some(Self(folder)),
            Ok(done) => {
                let why = String::from_utf8_lossy(&done.stderr);
                println!("skipped: no file system can be mounted here: {}", why.trim());
                None
            }
            Err(error) => {
                println!("skipped: there is no `mount`: {error}");
                None
            }
        }
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    fn fill(&self) {
        let filler = std::fs::File::create(self.path().join("filler")).unwrap();
        let chunk = [1; 4_096];
        while std::io::Write::write_all(&mut &filler, &chunk).is_ok() {}
    }

    fn free(&self) {
        std::fs::remove_file(self.path().join("filler")).unwrap();
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Lazily: a test that failed may still have files open.
        let _ = Command::new("umount").arg("-l").arg(self.path()).status();
    }
}

#[tokio::test]
async fn an_outbox_works_again_as_soon_as_its_disk_has_room() {
    let Some(disk) = SmallDisk::mount("3m") else { return };
    let outbox = SqliteOutbox::open(disk.path().join("outbox.db")).await.unwrap();
    outbox.migrate().await.unwrap();
    let events: Vec<_> = (0..600).map(|_| event()).collect();
    outbox.store(&events).await.unwrap();
    let mut left: Vec<Settlement> = pending(&outbox)
        .await
        .into_iter()
        .map(|found| Settlement {
            seq: found.seq,
            id: found.event.id(),
            lease: None,
            outcome: SettlementOutcome::Delivered,
        })
        .collect();
    let mut refused = 0;
    // The disk is full at another place of the log each time.
    for round in 0..6 {
        disk.fill();
        let mut failed = Vec::new();
        for _ in 0..20 {
            let part = left.split_off(left.len().saturating_sub(5));
            if let Err(error) = outbox.settle(&part).await {
                assert!(
                    matches!(error.kind(), ErrorKind::Throttled | ErrorKind::Unreachable),
                    "{}",
                    error.report()
                );
                assert!(!error.report().contains("transaction depth"), "{}", error.report());
                refused += 1;
                failed.extend(part);
            }
        }
        // A unit of work of the application's meets the same.
        if let Ok(mut unit) = outbox.begin().await {
            unit.add_event(event());
            let _ = unit.commit().await;
        }
        disk.free();
        let waiting = failed.len();
        if waiting > 0 {
            let settled = outbox.settle(&failed).await;
            assert_eq!(settled.unwrap(), waiting as u64, "round {round}");
        }
        outbox.store(&[event()]).await.unwrap();
    }
    assert!(refused > 0, "the disk never was full");
    outbox.settle(&left).await.unwrap();
    // What is left is what was stored since, and no place is there twice.
    let rest = pending(&outbox).await;
    assert!((6..=12).contains(&rest.len()), "{}", rest.len());
}
