//! PostgreSQL crashing and coming back.

use std::sync::atomic::Ordering;
use std::time::Duration;

use posthaste_testkit::servers::{PostgresServer, shared_nats};

use crate::support::{
    Database, Figures, Plan, Relay, RelayConfig, Stream, Verdict, create_accounts, eventually,
    read_back, sized, write,
};

/// The broker may have acknowledged what the crash kept from being recorded: that is delivered
/// again. JetStream's memory is short here, so that such events are counted.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_that_crashes_is_waited_for_and_loses_nothing() {
    let (crashes, enough) = sized((2, 200), (5, 5_000));
    let down_for = sized(Duration::from_secs(1), Duration::from_secs(10));
    let Some(nats) = shared_nats().await else { return };
    let Some(mut server) = PostgresServer::start(&[]).await else { return };
    let database = Database::create_at(&server).await;
    let mut figures = Figures::of("PostgreSQL crashed");
    let stream = Stream::create_forgetful(&nats).await;
    let jetstream = stream.jetstream().await;
    let plan = Plan::of(u64::MAX);
    create_accounts(&database, plan.accounts).await;
    // A relay that has work to do settles all the time, and so does at the moment of a crash.
    let waiting = enough * (crashes as u64 + 1) * 10;
    database.fill(waiting).await;
    let config = RelayConfig::default();
    let mut relay = Relay::started(&database, &stream, &config);
    let writers = write(&database, &plan);
    for _ in 0..crashes {
        let before = stream.messages(&jetstream).await;
        eventually("deliveries", async || stream.messages(&jetstream).await > before + enough)
            .await;
        server.kill();
        tokio::time::sleep(down_for).await;
        eventually("a relay that admits it", async || !relay.is_ready().await).await;
        let why = relay.get("/readyz").await.unwrap().body;
        assert!(why.contains("the database is unavailable"), "{why}");
        assert_eq!(relay.get("/livez").await.unwrap().status, 200);
        server.restart().await;
    }
    let before = stream.messages(&jetstream).await;
    eventually("deliveries", async || stream.messages(&jetstream).await > before + enough).await;
    plan.stop.store(true, Ordering::Relaxed);
    let written = writers.await.unwrap();
    eventually("an empty outbox", async || database.pending().await == 0).await;
    assert!(!relay.has_ended(), "the same relay all the time");
    assert_eq!(relay.terminate().await.0, Some(0));

    let committed = database.committed().await;
    let verdict = Verdict::of(&committed, &read_back(&stream).await);
    let duplicates_max = crashes * config.repeats_per_crash_max();
    figures.add("crashes", crashes);
    verdict.add_to(&mut figures);
    figures
        .add("allowed duplicates", duplicates_max)
        .add("transactions of unknown outcome", written.failed)
        .print();
    assert!(committed.len() >= written.committed.len() + usize::try_from(waiting).unwrap());
    // What the service knows to be committed; a commit whose answer was lost may be there, too.
    assert!(written.committed.iter().all(|(id, _)| committed.contains_key(id)));
    assert!(written.rolled_back.iter().all(|id| !committed.contains_key(id)));
    verdict.assert_kept(duplicates_max);
    assert_eq!(database.blamed().await, 0);
}
