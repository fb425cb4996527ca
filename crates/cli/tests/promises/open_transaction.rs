//! A transaction that stays open.

use std::collections::HashMap;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant, SystemTime};

use posthaste_core::{OutboxEvent, OutboxTransaction as _};
use posthaste_postgres::{PostgresOptions, PostgresOutbox};
use posthaste_testkit::servers::shared_nats;
use serde_json::json;
use uuid::Uuid;

use crate::support::{
    Database, Figures, Plan, Relay, RelayConfig, Stream, Verdict, create_accounts, eventually,
    read_back, sized, write,
};

const HELD_EVENTS: usize = 50;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_transaction_held_open_delays_its_own_events_and_no_others() {
    let held_for = sized(Duration::from_secs(5), Duration::from_secs(60));
    let Some(nats) = shared_nats().await else { return };
    let Some(database) = Database::create().await else { return };
    let mut figures = Figures::of("open transaction");
    let stream = Stream::create(&nats).await;
    let jetstream = stream.jetstream().await;
    let plan = Plan { pause: Duration::from_millis(20), ..Plan::of(u64::MAX) };
    create_accounts(&database, plan.accounts).await;
    let mut relay = Relay::started(&database, &stream, &RelayConfig::default());
    eventually("a relay that is ready", async || relay.is_ready().await).await;

    // Its numbers are drawn before all others', so every other event is read past the gap.
    let outbox = PostgresOutbox::connect(&PostgresOptions::from_url(database.url())).await.unwrap();
    let mut open = outbox.begin_transaction().await.unwrap();
    let held: Vec<OutboxEvent> = (1..=HELD_EVENTS)
        .map(|number| {
            OutboxEvent::new(Uuid::from_u128(u128::MAX), "held", &json!({ "number": number }))
                .unwrap()
        })
        .collect();
    open.store(&held).await.unwrap();
    let begun = Instant::now();
    let writers = write(&database, &plan);
    tokio::time::sleep(held_for).await;
    plan.stop.store(true, Ordering::Relaxed);
    let written = writers.await.unwrap();
    let others = written.committed.len() as u64;
    eventually("the others' events", async || stream.messages(&jetstream).await >= others).await;
    assert_eq!(stream.messages(&jetstream).await, others, "none of the open transaction's");
    let held_seconds = begun.elapsed().as_secs_f64();
    open.commit().await.unwrap();
    eventually("an empty outbox", async || database.pending().await == 0).await;
    assert_eq!(relay.terminate().await.0, Some(0));

    let deliveries = read_back(&stream).await;
    let verdict = Verdict::of(&database.committed().await, &deliveries);
    let stored_at: HashMap<Uuid, SystemTime> =
        deliveries.iter().map(|delivery| (delivery.id, delivery.stored_at)).collect();
    // An event that is delivered before its writer knows of the commit took no time at all.
    let mut latencies: Vec<Duration> = written
        .committed
        .iter()
        .filter_map(|(id, committed)| Some((stored_at.get(id)?, committed)))
        .map(|(stored, committed)| stored.duration_since(*committed).unwrap_or_default())
        .collect();
    latencies.sort_unstable();
    let at = |share: usize| latencies[(latencies.len() - 1) * share / 100].as_millis();
    verdict.add_to(&mut figures);
    figures
        .add("held open for s", format!("{held_seconds:.1}"))
        .add("commit to delivery of the others in ms: median", at(50))
        .add("p99", at(99))
        .add("slowest", at(100))
        .print();
    verdict.assert_kept(0);
    assert_eq!(verdict.committed, written.committed.len() + HELD_EVENTS);
}
