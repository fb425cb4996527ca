//! A program in another language that knows only the contract's columns.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use posthaste_testkit::servers::{shared_nats, skip_test};
use uuid::Uuid;

use crate::support::{Database, Figures, Relay, RelayConfig, Stream, Verdict, read_back, sized};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_python_program_committed_is_drained_in_order_and_nothing_else() {
    let events: usize = sized(2_000, 10_000);
    let Some(python) = python() else { return };
    let Some(nats) = shared_nats().await else { return };
    let Some(database) = Database::create().await else { return };
    let mut figures = Figures::of("python writer");
    let stream = Stream::create(&nats).await;
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples/python_writer.py");
    let written = Command::new(python)
        .arg(script)
        .args(["--events", &events.to_string(), "--seed", "42", "--database-url", &database.url()])
        .output()
        .unwrap();
    assert!(written.status.success(), "{}", String::from_utf8_lossy(&written.stderr));
    let printed: serde_json::Value = serde_json::from_slice(&written.stdout).unwrap();

    let relay = Relay::new(&database, &stream, &RelayConfig::default());
    let drained = relay.cli.run(&["run", "--drain"]).succeeded();
    assert_eq!(drained.stdout, "", "data goes to the stream");

    let verdict = Verdict::of(&database.committed().await, &read_back(&stream).await);
    let rolled_back = usize::try_from(printed["rolled_back"].as_u64().unwrap()).unwrap();
    verdict.add_to(&mut figures);
    figures.add("rolled back", rolled_back).print();
    let committed: BTreeSet<Uuid> = serde_json::from_value(printed["committed"].clone()).unwrap();
    let stored: BTreeSet<Uuid> = database.committed().await.into_keys().collect();
    assert_eq!(stored, committed, "the outbox holds what the program committed");
    assert_eq!(committed.len() + rolled_back, events);
    assert!((events / 10..events / 3).contains(&rolled_back), "about a fifth: {rolled_back}");
    verdict.assert_kept(0);
    assert_eq!(database.pending().await, 0);
}

/// The interpreter that has SQLAlchemy.
fn python() -> Option<PathBuf> {
    let test = std::env::current_exe().unwrap();
    let interpreter = test
        .ancestors()
        .map(|folder| folder.join("python-venv/bin/python"))
        .find(|interpreter| interpreter.exists());
    if interpreter.is_none() {
        skip_test("no Python environment; `cargo xtask test` makes one");
    }
    interpreter
}
