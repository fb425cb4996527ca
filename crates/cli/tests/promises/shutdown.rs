//! SIGTERM in the middle of delivery.

use std::sync::atomic::Ordering;
use std::time::Duration;

use posthaste_testkit::servers::{NatsServer, shared_nats};

use crate::support::{
    Database, Figures, Plan, Relay, RelayConfig, Stream, Verdict, create_accounts, eventually,
    read_back, sized, write,
};

/// What was in flight is acknowledged and recorded before the relay ends: not one event is
/// delivered twice, though JetStream's memory is short here.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_relay_that_is_asked_to_stop_settles_what_is_in_flight() {
    let (events, stops) = sized((3_000, 4), (30_000, 20));
    let Some(nats) = shared_nats().await else { return };
    let Some(database) = Database::create().await else { return };
    let mut figures = Figures::of("relay stopped by SIGTERM");
    let stream = Stream::create_forgetful(&nats).await;
    let jetstream = stream.jetstream().await;
    let plan = Plan::of(events);
    create_accounts(&database, plan.accounts).await;
    let config = RelayConfig { relay: "shutdown_timeout = \"10s\"", ..RelayConfig::default() };
    let mut relay = Relay::new(&database, &stream, &config);
    let writers = write(&database, &plan);
    let mut slowest = Duration::ZERO;
    for stop in 1..=stops {
        relay.start();
        let enough = events * stop / (stops + 2);
        eventually("deliveries", async || stream.messages(&jetstream).await >= enough).await;
        let (code, took) = relay.terminate().await;
        assert_eq!(code, Some(0));
        slowest = slowest.max(took);
        tokio::time::sleep(Duration::from_millis(150)).await;
    }
    writers.await.unwrap();
    relay.start();
    eventually("an empty outbox", async || database.pending().await == 0).await;
    assert_eq!(relay.terminate().await.0, Some(0));

    let verdict = Verdict::of(&database.committed().await, &read_back(&stream).await);
    figures.add("stops", stops);
    verdict.add_to(&mut figures);
    figures.add("slowest stop in ms", slowest.as_millis()).print();
    verdict.assert_kept(0);
    assert_eq!(database.blamed().await, 0);
}

/// No answer will come. It ends all the same, and the next one delivers the rest.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_relay_that_is_asked_to_stop_during_an_outage_ends_in_time() {
    let Some(nats) = NatsServer::start("").await else { return };
    let Some(database) = Database::create().await else { return };
    let mut figures = Figures::of("SIGTERM while NATS is frozen");
    let stream = Stream::create(&nats.url()).await;
    let jetstream = stream.jetstream().await;
    let plan = Plan::of(u64::MAX);
    create_accounts(&database, plan.accounts).await;
    let config = RelayConfig {
        relay: "shutdown_timeout = \"2s\"",
        destination: "ack_timeout = \"1m\"",
        ..RelayConfig::default()
    };
    let mut relay = Relay::started(&database, &stream, &config);
    let writers = write(&database, &plan);
    eventually("deliveries", async || stream.messages(&jetstream).await > 500).await;
    nats.freeze();
    tokio::time::sleep(Duration::from_millis(500)).await;
    plan.stop.store(true, Ordering::Relaxed);
    writers.await.unwrap();
    let (code, took) = relay.terminate().await;
    assert_eq!(code, Some(0));
    // Not how fast it is, but that the limit is one: without it this takes a minute.
    assert!(took < Duration::from_secs(20), "shutdown_timeout is 2 s, it took {took:?}");
    assert!(database.pending().await > 0);
    nats.thaw();
    relay.start();
    eventually("an empty outbox", async || database.pending().await == 0).await;
    assert_eq!(relay.terminate().await.0, Some(0));
    let verdict = Verdict::of(&database.committed().await, &read_back(&stream).await);
    verdict.add_to(&mut figures);
    figures.add("stop in ms", took.as_millis()).print();
    verdict.assert_kept(0);
    assert_eq!(database.blamed().await, 0);
}
