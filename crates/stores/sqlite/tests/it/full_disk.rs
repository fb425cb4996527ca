//! A disk without room, and one that has some again.

use crate::support::{delivered, event, pending};
use posthaste_core::{ErrorKind, OutboxMigrations, OutboxRepository};
use posthaste_sqlite::SqliteOutbox;
use posthaste_testkit::servers::SmallDisk;

#[tokio::test]
async fn an_outbox_works_again_as_soon_as_its_disk_has_room() {
    let Some(disk) = SmallDisk::mount() else { return };
    let outbox = SqliteOutbox::open(disk.path().join("outbox.db")).await.unwrap();
    outbox.migrate().await.unwrap();
    let events: Vec<_> = (0..600).map(|_| event()).collect();
    outbox.store(&events).await.unwrap();
    let mut left = delivered(&pending(&outbox).await);
    let mut refused = 0;
    // The disk is full at another place of the log each time.
    for round in 0..6 {
        disk.fill(0);
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
        disk.make_room();
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
