//! Very many events waiting.

use std::time::{Duration, Instant};

use posthaste_testkit::servers::NatsServer;

use crate::support::{
    Answer, Database, Figures, Relay, RelayConfig, Stream, Verdict, eventually, is_long, read_back,
    sized,
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_great_backlog_costs_neither_memory_nor_answers() {
    let events: u64 = sized(150_000, 1_000_000);
    let down_for = sized(Duration::from_secs(3), Duration::from_secs(30));
    let Some(mut nats) = NatsServer::start("").await else { return };
    let Some(database) = Database::create().await else { return };
    let mut figures = Figures::of("backlog");
    let stream = Stream::create(&nats.url()).await;
    database.fill(events).await;

    nats.kill();
    let config =
        RelayConfig { batch_size: 1_000, max_concurrent_events: 1_000, ..RelayConfig::default() };
    let mut relay = Relay::started(&database, &stream, &config);
    eventually("metrics", async || relay.get("/metrics").await.is_some_and(has_metrics)).await;
    let down = Instant::now();
    let mut answers = Answers::default();
    while down.elapsed() < down_for {
        answers.ask(&relay).await;
    }
    let waiting_peak_mb = relay.peak_memory_mb();

    nats.restart().await;
    let jetstream = stream.jetstream().await;
    eventually("deliveries", async || stream.messages(&jetstream).await > 0).await;
    let begun = Instant::now();
    // Asked of the stream: counting a million rows again and again would slow the database down.
    while stream.messages(&jetstream).await < events {
        answers.ask(&relay).await;
        assert!(begun.elapsed() < Duration::from_secs(900), "it does not get through");
    }
    let rate = events as f64 / begun.elapsed().as_secs_f64();
    eventually("an empty outbox", async || database.pending().await == 0).await;
    let peak_mb = relay.peak_memory_mb();
    assert_eq!(relay.terminate().await.0, Some(0));

    let verdict = Verdict::of(&database.committed().await, &read_back(&stream).await);
    verdict.add_to(&mut figures);
    figures
        .add("peak MB while NATS is down", format!("{waiting_peak_mb:.0}"))
        .add("peak MB", format!("{peak_mb:.0}"))
        .add("events/s", format!("{rate:.0}"))
        .add("requests", answers.count)
        .add("slowest /metrics in ms", answers.slowest_metrics.as_millis())
        .add("slowest /readyz in ms", answers.slowest_readyz.as_millis())
        .print();
    assert_eq!(verdict.committed as u64, events);
    verdict.assert_kept(0);
    assert_eq!(database.blamed().await, 0);
    // 150 MB is what the project states. A short run's backlog would fit in that as a whole.
    assert!(peak_mb < sized(80.0, 150.0), "{peak_mb:.0} MB");
    // A short run shares the machine with other tests: it only shows that nothing waits for the
    // backlog.
    let limit = if is_long() { Duration::from_millis(100) } else { Duration::from_secs(3) };
    let slowest = answers.slowest_metrics.max(answers.slowest_readyz);
    assert!(slowest < limit, "an answer took {slowest:?}");
}

fn has_metrics(answer: Answer) -> bool {
    answer.status == 200 && answer.body.contains("outbox_relay_state")
}

/// What the ops listener answered.
#[derive(Default)]
struct Answers {
    count: usize,
    slowest_metrics: Duration,
    slowest_readyz: Duration,
}

impl Answers {
    async fn ask(&mut self, relay: &Relay) {
        let metrics = relay.get("/metrics").await.expect("an answer");
        self.slowest_metrics = self.slowest_metrics.max(metrics.took);
        assert!(has_metrics(metrics));
        let readyz = relay.get("/readyz").await.expect("an answer");
        self.slowest_readyz = self.slowest_readyz.max(readyz.took);
        self.count += 2;
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
