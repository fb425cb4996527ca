//! NATS stopped and frozen.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use posthaste_testkit::servers::NatsServer;

use crate::support::{
    Database, Figures, Plan, Relay, RelayConfig, Stream, Verdict, create_accounts, eventually,
    read_back, sized, write,
};

#[derive(Clone, Copy, PartialEq)]
enum Outage {
    Killed,
    Frozen,
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_that_was_killed_costs_no_attempt_and_delivery_resumes_by_itself() {
    outage("NATS killed", Outage::Killed).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_that_froze_costs_no_attempt_and_delivery_resumes_by_itself() {
    outage("NATS frozen", Outage::Frozen).await;
}

/// Breaks the broker under load. The stream drops repeated deliveries of its two last minutes, as
/// streams do; nothing here restarts the relay, so the same events would be in it again otherwise.
async fn outage(name: &str, outage: Outage) {
    let down_for = sized(Duration::from_secs(4), Duration::from_secs(30));
    let Some(mut nats) = NatsServer::start("").await else { return };
    let Some(database) = Database::create().await else { return };
    let mut figures = Figures::of(name);
    let stream = Stream::create(&nats.url()).await;
    let plan = Plan { pause: Duration::from_millis(20), ..Plan::of(u64::MAX) };
    create_accounts(&database, plan.accounts).await;
    let config = RelayConfig {
        ops: "stall_after = \"1s\"",
        destination: "ack_timeout = \"1s\"",
        ..RelayConfig::default()
    };
    let mut relay = Relay::started(&database, &stream, &config);
    let writers = write(&database, &plan);
    let jetstream = stream.jetstream().await;
    eventually("deliveries", async || stream.messages(&jetstream).await > 100).await;
    drop(jetstream);

    let begun = Instant::now();
    match outage {
        Outage::Killed => nats.kill(),
        Outage::Frozen => nats.freeze(),
    }
    tokio::time::sleep(down_for).await;
    eventually("a relay that admits it", async || !relay.is_ready().await).await;
    let why = relay.get("/readyz").await.unwrap().body;
    assert!(why.contains("destination default is paused"), "{why}");
    let waiting = database.pending().await;
    match outage {
        Outage::Killed => nats.restart().await,
        Outage::Frozen => nats.thaw(),
    }
    let (down, up) = (begun.elapsed(), Instant::now());
    eventually("a relay that recovers", async || relay.is_ready().await).await;
    let recovered = up.elapsed();
    plan.stop.store(true, Ordering::Relaxed);
    let written = writers.await.unwrap();
    eventually("an empty outbox", async || database.pending().await == 0).await;
    assert!(!relay.has_ended(), "the same relay all the time");
    assert_eq!(relay.terminate().await.0, Some(0));

    let verdict = Verdict::of(&database.committed().await, &read_back(&stream).await);
    let blamed = database.blamed().await;
    verdict.add_to(&mut figures);
    figures
        .add("down for s", format!("{:.1}", down.as_secs_f64()))
        .add("waiting at its end", waiting)
        .add("events blamed", blamed)
        .add("ready again after s", format!("{:.1}", recovered.as_secs_f64()))
        .print();
    assert_eq!(verdict.committed, written.committed.len());
    assert!(waiting > 0, "written during the outage");
    verdict.assert_kept(0);
    assert_eq!(blamed, 0, "no retry_count, no error_message, nothing dead");
}
