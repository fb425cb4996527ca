//! A store that takes one relay at a time gives the right to deliver itself.

use posthaste::memory::MemoryBus;
use posthaste::sqlite::SqliteOutbox;
use posthaste::{ErrorKind, OutboxMigrations, OutboxProcessor};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_processor_of_one_sqlite_file_does_not_start() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("outbox.db");
    let outbox = SqliteOutbox::open(&path).await.unwrap();
    outbox.migrate().await.unwrap();
    // Another handle, as another process has.
    let again = SqliteOutbox::open(&path).await.unwrap();
    let processor = |outbox: &SqliteOutbox| {
        OutboxProcessor::builder(outbox.clone()).bus(MemoryBus::new()).build().unwrap()
    };
    let first = processor(&outbox);
    first.start().await.unwrap();
    for second in [processor(&outbox), processor(&again)] {
        for refused in [
            second.start().await,
            second.process_events().await.map(drop),
            second.drain(std::time::Duration::ZERO).await.map(drop),
        ] {
            let error = refused.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Conflict);
            assert!(error.report().contains("another relay delivers"), "{}", error.report());
        }
        assert!(!second.is_running());
    }
    let error = first.start().await.unwrap_err();
    assert!(error.report().contains("running already"), "{}", error.report());
    // The right goes with the end, again and again.
    first.stop().await;
    let second = processor(&again);
    second.process_events().await.unwrap();
    second.start().await.unwrap();
    second.stop().await;
    first.start().await.unwrap();
    first.stop().await;
}
