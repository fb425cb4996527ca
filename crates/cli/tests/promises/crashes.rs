//! `kill -9` of the relay, and of the broker with it.

use std::sync::atomic::Ordering;
use std::time::Duration;

use posthaste_testkit::servers::{NatsServer, shared_nats};
use rand::RngExt as _;

use crate::support::{
    Database, Figures, Plan, Relay, RelayConfig, Stream, Verdict, create_accounts, eventually,
    read_back, sized, write,
};

/// JetStream forgets ids after a tenth of a second here, and a relay starts later than that after
/// the one before: so each event that a crash delivers twice is in the stream twice, and is
/// counted.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn crashes_of_the_relay_lose_nothing_invent_nothing_and_keep_order() {
    kill_the_relay("relay killed", RelayConfig::default()).await;
}

/// The same of a relay that deletes what it has delivered: then only the writers know what there was.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn crashes_of_a_relay_that_keeps_no_history_lose_nothing_either() {
    let config = RelayConfig { relay: "retention = \"0s\"", ..RelayConfig::default() };
    kill_the_relay("relay killed without history", config).await;
}

async fn kill_the_relay(name: &'static str, config: RelayConfig) {
    let (events, kills) = sized((6_000, 5), (50_000, 20));
    let Some(nats) = shared_nats().await else { return };
    let Some(database) = Database::create().await else { return };
    let mut figures = Figures::of(name);
    let stream = Stream::create_forgetful(&nats).await;
    let jetstream = stream.jetstream().await;
    let mut relay = Relay::new(&database, &stream, &config);
    let plan = Plan { writers: 8, ..Plan::of(events) };
    create_accounts(&database, plan.accounts).await;
    let writers = write(&database, &plan);
    // A relay that has work to do is killed in the middle of it.
    eventually("a backlog", async || database.pending().await >= events / 2).await;

    let mut moments: Vec<u64> =
        (0..kills).map(|_| rand::rng().random_range(0..events * 9 / 10)).collect();
    moments.sort_unstable();
    for moment in moments {
        relay.start();
        // Some are killed while they start.
        eventually("deliveries", async || stream.messages(&jetstream).await >= moment).await;
        let further = Duration::from_millis(rand::rng().random_range(0..50));
        tokio::time::sleep(further).await;
        relay.kill();
        tokio::time::sleep(Duration::from_millis(150)).await;
    }
    relay.start();
    let written = writers.await.unwrap();
    eventually("an empty outbox", async || database.pending().await == 0).await;
    assert_eq!(relay.terminate().await.0, Some(0));

    let mut committed = database.committed().await;
    if config.relay.is_empty() {
        assert_eq!(written.committed.len(), committed.len(), "the outbox holds what was committed");
        assert!(written.committed.iter().all(|(id, _)| committed.contains_key(id)));
    } else {
        assert_eq!(committed.len(), 0, "the outbox holds nothing any more");
        committed = written.committed.iter().map(|(id, _)| (*id, 0)).collect();
    }
    let deliveries = read_back(&stream).await;
    let verdict = Verdict::of(&committed, &deliveries);
    let duplicates_max = kills * config.repeats_per_crash_max();
    figures.add("kills", kills);
    verdict.add_to(&mut figures);
    figures
        .add("allowed duplicates", duplicates_max)
        .add("rolled back", written.rolled_back.len())
        .print();
    assert_eq!(written.failed, 0);
    assert!(!written.rolled_back.is_empty());
    assert!(written.rolled_back.iter().all(|id| !committed.contains_key(id)));
    verdict.assert_kept(duplicates_max);
    assert_eq!(database.blamed().await, 0, "a crash costs no event an attempt");
}

/// What a relay sent is in the hands of the system and arrives even if the relay dies. Not so when
/// the broker dies, too: what it had not acknowledged is gone, and only the outbox still has it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_no_broker_acknowledged_is_sent_again_after_both_crash() {
    let (crashes, pause) = sized((3, Duration::from_millis(10)), (10, Duration::from_millis(2)));
    let Some(mut nats) = NatsServer::start("").await else { return };
    let Some(database) = Database::create().await else { return };
    let mut figures = Figures::of("relay and NATS killed together");
    let stream = Stream::create_forgetful(&nats.url()).await;
    let config = RelayConfig::default();
    let mut relay = Relay::new(&database, &stream, &config);
    let plan = Plan { pause, ..Plan::of(u64::MAX) };
    create_accounts(&database, plan.accounts).await;
    let writers = write(&database, &plan);
    for _ in 0..crashes {
        relay.start();
        let jetstream = stream.jetstream().await;
        let before = stream.messages(&jetstream).await;
        eventually("deliveries", async || stream.messages(&jetstream).await > before + 50).await;
        nats.freeze();
        // Long enough for the relay to send all it may.
        tokio::time::sleep(Duration::from_millis(300)).await;
        relay.kill();
        nats.restart().await;
    }
    plan.stop.store(true, Ordering::Relaxed);
    let written = writers.await.unwrap();
    relay.start();
    eventually("an empty outbox", async || database.pending().await == 0).await;
    assert_eq!(relay.terminate().await.0, Some(0));

    let verdict = Verdict::of(&database.committed().await, &read_back(&stream).await);
    let duplicates_max = crashes * config.repeats_per_crash_max();
    figures.add("crashes", crashes);
    verdict.add_to(&mut figures);
    figures.add("allowed duplicates", duplicates_max).print();
    assert_eq!(verdict.committed, written.committed.len());
    verdict.assert_kept(duplicates_max);
    assert_eq!(database.blamed().await, 0);
}
