//! The wall clock of relays jumps.

use std::path::{Path, PathBuf};
use std::time::Duration;

use posthaste_testkit::servers::{shared_nats, skip_test};

use crate::rig::{RELAYS, Rig, relay_config};
use crate::support::{Database, RelayConfig, Stream, sized};

/// From one jump to the next, in seconds from the true time: hours, days, years, back and forth.
const JUMPS: [&str; 6] = ["+10800", "-7200", "+86400", "-100000", "+315360000", "+0"];

/// Delays and leases are counted by clocks that do not jump: nothing at all may come of it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn relays_whose_wall_clocks_jump_do_not_care() {
    let stays = sized(Duration::from_millis(500), Duration::from_secs(3));
    let Some(library) = find_library() else {
        return skip_test("no libfaketime in /usr/lib");
    };
    let Some(nats) = shared_nats().await else { return };
    let Some(database) = Database::create().await else { return };
    let stream = Stream::create_forgetful(&nats).await;
    let folder = tempfile::tempdir().unwrap();
    let clocks: Vec<PathBuf> =
        (0..RELAYS).map(|relay| folder.path().join(relay.to_string())).collect();
    let configs: Vec<RelayConfig> = clocks
        .iter()
        .map(|clock| {
            set(clock, "+0");
            let environment = vec![
                ("LD_PRELOAD", library.display().to_string()),
                ("FAKETIME_TIMESTAMP_FILE", clock.display().to_string()),
                ("FAKETIME_DONT_FAKE_MONOTONIC", "1".to_owned()),
                ("FAKETIME_NO_CACHE", "1".to_owned()),
            ];
            RelayConfig { environment, ..relay_config() }
        })
        .collect();
    let mut rig = Rig::start_on("clock jumps", database, stream, &configs).await;
    for (round, jump) in JUMPS.iter().enumerate() {
        rig.burst().await;
        // One relay's clock jumps before the others'.
        set(&clocks[round % RELAYS], jump);
        tokio::time::sleep(stays / 2).await;
        rig.recover().await;
        clocks.iter().for_each(|clock| set(clock, jump));
        tokio::time::sleep(stays / 2).await;
        rig.recover().await;
        rig.progress().await;
    }
    let jumps = JUMPS.len();
    rig.finish(&format!("{jumps} jumps by hours; days and years; of one relay and of all")).await;
}

/// At once for whoever reads it: a file that is being written would show no time.
fn set(clock: &Path, jump: &str) {
    let new = clock.with_extension("new");
    std::fs::write(&new, jump).unwrap();
    std::fs::rename(new, clock).unwrap();
}

/// The one for programs with threads, wherever the system has it.
fn find_library() -> Option<PathBuf> {
    let folders = std::fs::read_dir("/usr/lib").ok()?.flatten().map(|folder| folder.path());
    let own = std::iter::once(PathBuf::from("/usr/lib"));
    folders
        .chain(own)
        .map(|folder| folder.join("faketime").join("libfaketimeMT.so.1"))
        .find(|library| library.exists())
}
