//! What happens to files under a running relay: moved, replaced, removed.

use std::path::{Path, PathBuf};

use crate::support::{event, outbox, pending, run_sql};
use posthaste_core::{ErrorKind, OutboxAdmin, OutboxMigrations, OutboxRepository, Severity};
use posthaste_sqlite::SqliteOutbox;

fn beside(path: &Path, ending: &str) -> PathBuf {
    PathBuf::from(format!("{}{ending}", path.display()))
}

fn move_away(path: &Path) {
    for ending in ["", "-wal", "-shm"] {
        let from = beside(path, ending);
        let to = PathBuf::from(format!("{}.old{ending}", path.display()));
        if from.exists() {
            std::fs::rename(from, to).unwrap();
        }
    }
}

#[tokio::test]
async fn another_file_in_the_place_of_the_database_is_opened_and_read_from_the_start() {
    let (directory, outbox) = outbox().await;
    outbox.store(&[event(), event()]).await.unwrap();
    let before = outbox.watermark().await.unwrap();
    assert_eq!(pending(&outbox).await.len(), 2);
    // A restore by file copy.
    let copy = directory.path().join("copy.db");
    let other = SqliteOutbox::open(&copy).await.unwrap();
    other.migrate().await.unwrap();
    other.store(&[event()]).await.unwrap();
    other.close().await;
    move_away(outbox.path());
    std::fs::rename(&copy, outbox.path()).unwrap();

    assert_eq!(pending(&outbox).await.len(), 1);
    let after = outbox.watermark().await.unwrap();
    assert_ne!((before.revision, before.high), (after.revision, after.high));
    outbox.store(&[event()]).await.unwrap();
    let seen_by_others = SqliteOutbox::open(outbox.path()).await.unwrap();
    assert_eq!(pending(&seen_by_others).await.len(), 2);
    // The connections of before have closed the file of before, and nothing of the new one's.
    outbox.close().await;
    assert_eq!(pending(&seen_by_others).await.len(), 2);
}

#[tokio::test]
async fn a_database_that_is_gone_is_missed_and_not_made_anew() {
    let (_directory, outbox) = outbox().await;
    outbox.store(&[event()]).await.unwrap();
    move_away(outbox.path());
    for error in [
        outbox.watermark().await.map(drop).unwrap_err(),
        outbox.store(&[event()]).await.unwrap_err(),
        outbox.begin().await.map(drop).unwrap_err(),
        outbox.backlog(0).await.map(drop).unwrap_err(),
    ] {
        assert_eq!(error.kind(), ErrorKind::Unreachable);
        let text = error.report();
        assert!(text.contains("the database file is gone; put it back"), "{text}");
        assert!(text.contains("outbox.db"), "{text}");
    }
    assert!(!outbox.path().exists());
    for ending in ["", "-wal", "-shm"] {
        let old = PathBuf::from(format!("{}.old{ending}", outbox.path().display()));
        std::fs::rename(old, beside(outbox.path(), ending)).unwrap();
    }
    assert_eq!(pending(&outbox).await.len(), 1);
}

#[tokio::test]
async fn a_log_that_was_removed_is_told_with_what_to_do() {
    for ending in ["-wal", "-shm"] {
        let (_directory, outbox) = outbox().await;
        outbox.store(&[event()]).await.unwrap();
        std::fs::remove_file(beside(outbox.path(), ending)).unwrap();
        let error = outbox.watermark().await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unreachable);
        assert!(error.report().contains("pragma integrity_check"), "{}", error.report());
        outbox.settle(&[]).await.unwrap();
        assert!(outbox.store(&[event()]).await.is_err());
        // What was committed last is not lost: whoever closes last takes it into the database.
        outbox.close().await;
        let again = SqliteOutbox::open(outbox.path()).await.unwrap();
        assert_eq!(pending(&again).await.len(), 1, "{ending}");
    }
}

#[tokio::test]
async fn sqlite_clearing_its_own_log_is_no_loss() {
    let (_directory, outbox) = outbox().await;
    for _ in 0..3 {
        outbox.store(&[event()]).await.unwrap();
        run_sql(&outbox, "pragma wal_checkpoint(truncate); vacuum;").await.unwrap();
        outbox.watermark().await.unwrap();
    }
    assert_eq!(pending(&outbox).await.len(), 3);
}

#[tokio::test]
async fn the_right_to_deliver_outlives_the_removal_of_its_lock_file() {
    let (_directory, outbox) = outbox().await;
    let lock = beside(outbox.path(), ".relay-lock");
    let other = SqliteOutbox::open(outbox.path()).await.unwrap();
    let _claim = outbox.claim().await.unwrap();
    let before = outbox.watermark().await.unwrap();
    std::fs::remove_file(&lock).unwrap();
    let after = outbox.watermark().await.unwrap();
    assert_ne!(before.incarnation, after.incarnation, "somebody may have had it in between");
    assert!(lock.exists());
    assert_eq!(other.claim().await.unwrap_err().kind(), ErrorKind::Conflict);

    std::fs::remove_file(&lock).unwrap();
    let others = other.claim().await.unwrap();
    for error in [
        outbox.watermark().await.map(drop).unwrap_err(),
        outbox.fetch_pending(&crate::support::forward()).await.map(drop).unwrap_err(),
    ] {
        assert_eq!(error.kind(), ErrorKind::Conflict);
        assert!(error.report().contains("another relay"), "{}", error.report());
    }
    other.watermark().await.unwrap();
    drop(others);
    outbox.watermark().await.unwrap();
    assert_eq!(other.claim().await.unwrap_err().kind(), ErrorKind::Conflict);
}

#[tokio::test]
async fn nobody_else_may_read_what_is_created() {
    use std::os::unix::fs::PermissionsExt;
    let (_directory, outbox) = outbox().await;
    let _claim = outbox.claim().await.unwrap();
    for ending in ["", "-wal", "-shm", ".relay-lock"] {
        let mode = beside(outbox.path(), ending).metadata().unwrap().permissions().mode();
        assert_eq!(mode & 0o007, 0, "{ending}: {mode:o}");
    }
}

#[tokio::test]
async fn a_second_name_of_the_file_is_found() {
    let (directory, outbox) = outbox().await;
    let found = || async {
        let findings = outbox.diagnose().await;
        findings.iter().find(|finding| &*finding.about == "file").unwrap().clone()
    };
    assert_eq!(found().await.severity, Severity::Fine);
    std::fs::hard_link(outbox.path(), directory.path().join("other.db")).unwrap();
    let warned = found().await;
    assert_eq!(warned.severity, Severity::Warning);
    assert!(warned.message.contains("a hard link"), "{warned:?}");
}
