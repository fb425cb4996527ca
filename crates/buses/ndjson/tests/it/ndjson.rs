//! The NDJSON bus on real files and pipes.

use std::io::Read;
use std::path::Path;
use std::time::Duration;

use posthaste_core::{Error, ErrorKind, ErrorStatus, EventBus, OutboxEvent, Payload};
use posthaste_ndjson::{NdjsonBus, NdjsonConfig, NdjsonTarget};
use uuid::Uuid;

fn event(key: &str, number: u64) -> OutboxEvent {
    OutboxEvent::builder(Uuid::nil(), "counted")
        .order_key(key)
        .payload(Payload::json(&number).unwrap())
        .build()
        .unwrap()
}

fn broken(key: &str) -> OutboxEvent {
    let mut record = event(key, 0).record().clone();
    record.payload = Payload::Json("{not json".into());
    OutboxEvent::restore(record)
}

fn numbers(path: &Path) -> Vec<serde_json::Value> {
    let text = std::fs::read_to_string(path).unwrap();
    let parse = |line| serde_json::from_str::<serde_json::Value>(line).unwrap()["data"].clone();
    text.lines().map(parse).collect()
}

async fn only_error(bus: &NdjsonBus) -> Error {
    let mut results = bus.publish(&[event("k", 1)]).await;
    assert_eq!(results.len(), 1);
    results.remove(0).unwrap_err()
}

#[tokio::test]
async fn lines_are_appended_in_the_order_of_the_calls() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("events.ndjson");
    for batch in 0..3 {
        // A new bus each time: what was there stays.
        let bus = NdjsonBus::file(&path).unwrap();
        let events = [event("k", batch * 2), event("k", batch * 2 + 1)];
        assert!(bus.publish(&events).await.iter().all(Result::is_ok));
    }
    assert_eq!(numbers(&path), [0, 1, 2, 3, 4, 5]);
}

#[tokio::test]
async fn an_event_that_is_no_line_fails_with_the_rest_of_its_key_only() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("events.ndjson");
    let bus = NdjsonBus::file(&path).unwrap();
    let events = [event("a", 1), broken("a"), event("b", 2), event("a", 3), event("b", 4)];
    let results = bus.publish(&events).await;
    let status = |index: usize| results[index].as_ref().unwrap_err().status();
    assert_eq!(status(1), ErrorStatus::Permanent);
    assert_eq!(status(3), ErrorStatus::Transient);
    assert!(results[0].is_ok() && results[2].is_ok() && results[4].is_ok());
    assert_eq!(numbers(&path), [1, 2, 4]);
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn a_full_disk_is_an_outage_and_no_fault_of_the_event() {
    let bus = NdjsonBus::file("/dev/full").unwrap();
    let error = only_error(&bus).await;
    assert_eq!((error.kind(), error.status()), (ErrorKind::Throttled, ErrorStatus::Unavailable));
}

#[tokio::test]
async fn a_missing_folder_is_an_outage_that_ends_by_itself() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("later").join("events.ndjson");
    let bus = NdjsonBus::file(&path).unwrap();
    assert_eq!(bus.check().await.unwrap_err().kind(), ErrorKind::DestinationMissing);
    let error = only_error(&bus).await;
    assert_eq!(error.kind(), ErrorKind::DestinationMissing);
    assert_eq!(error.status(), ErrorStatus::Unavailable);
    std::fs::create_dir(folder.path().join("later")).unwrap();
    bus.check().await.unwrap();
    assert!(bus.publish(&[event("k", 1)]).await[0].is_ok());
    assert_eq!(numbers(&path), [1]);
}

#[tokio::test]
async fn a_closed_pipe_is_an_outage() {
    let (reader, output) = std::io::pipe().unwrap();
    let bus = NdjsonBus::to_writer(output).unwrap();
    drop(reader);
    let error = only_error(&bus).await;
    assert_eq!((error.kind(), error.status()), (ErrorKind::Unreachable, ErrorStatus::Unavailable));
}

/// A bus on a new named pipe that gives up soon; `None`, with the reason printed, where there are
/// no named pipes.
fn bus_on_a_pipe(path: &Path) -> Option<NdjsonBus> {
    let made = std::process::Command::new("mkfifo").arg(path).status();
    if !made.is_ok_and(|status| status.success()) {
        eprintln!("skipped: no mkfifo here");
        return None;
    }
    let config = NdjsonConfig {
        write_timeout: Duration::from_millis(200),
        ..NdjsonConfig::new(NdjsonTarget::File(path.to_owned()))
    };
    Some(NdjsonBus::open(&config).unwrap())
}

#[tokio::test]
async fn a_reader_that_stands_still_does_not_hold_the_call_for_ever() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("pipe");
    let Some(bus) = bus_on_a_pipe(&path) else { return };
    // Opened for reading and writing, a pipe never lacks a reader; nobody reads.
    let mut reader = std::fs::OpenOptions::new().read(true).write(true).open(&path).unwrap();
    let large = Payload::json(&"x".repeat(300_000)).unwrap();
    let large = OutboxEvent::builder(Uuid::nil(), "large").payload(large).build().unwrap();
    for _ in 0..3 {
        let call = bus.publish(std::slice::from_ref(&large));
        let results = tokio::time::timeout(Duration::from_secs(10), call).await;
        let error = results.expect("the call hangs").remove(0).unwrap_err();
        assert_eq!((error.kind(), error.status()), (ErrorKind::Timeout, ErrorStatus::Unavailable));
    }
    let drain = std::thread::spawn(move || {
        let mut bytes = vec![0; 64 * 1024];
        let mut read = 0;
        while !bytes[..read].ends_with(b"\"last\"}\n") {
            read = reader.read(&mut bytes).unwrap();
        }
    });
    let last = OutboxEvent::builder(Uuid::nil(), "t").payload(Payload::json(&"last").unwrap());
    let last = last.build().unwrap();
    while bus.publish(std::slice::from_ref(&last)).await[0].is_err() {}
    drain.join().unwrap();
}

#[tokio::test]
async fn a_pipe_without_a_reader_swallows_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let Some(bus) = bus_on_a_pipe(&folder.path().join("pipe")) else { return };
    assert!(!bus.capabilities().durable);
    assert_eq!(only_error(&bus).await.kind(), ErrorKind::Timeout);
}

#[test]
fn wrong_settings_are_refused_at_once() {
    let folder = tempfile::tempdir().unwrap();
    for path in [Path::new(""), folder.path()] {
        assert_eq!(NdjsonBus::file(path).unwrap_err().kind(), ErrorKind::Config);
    }
}
