//! The metrics operators rely on: their names, their labels, and that labels stay bounded.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::SeqCst;
use std::time::Duration;

use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusRecorder};
use posthaste_core::memory::{MemoryBus, MemoryRepository};
use posthaste_core::{OutboxEvent, Payload};
use posthaste_processor::OutboxProcessor;
use posthaste_testkit::faults::{Fault, Operation};
use uuid::Uuid;

use crate::hooked::Hooked;
use crate::support::{SECOND, World, singles, until};

/// Every metric, with its labels.
const METRICS: [(&str, &[&str]); 25] = [
    ("outbox_batch_size_events", &[]),
    ("outbox_build_info", &["version"]),
    ("outbox_backlog_read_age_seconds", &[]),
    ("outbox_dead_events", &[]),
    ("outbox_dead_lettered_total", &["reason"]),
    ("outbox_destination_failing_keys", &["destination"]),
    ("outbox_destination_failing_seconds", &["destination"]),
    ("outbox_destination_paused", &["destination"]),
    ("outbox_delivery_latency_seconds", &[]),
    ("outbox_events_published_total", &["destination"]),
    ("outbox_inflight_events", &[]),
    ("outbox_shards", &[]),
    ("outbox_relays", &[]),
    ("outbox_not_recorded_events", &[]),
    ("outbox_undecided_events", &[]),
    ("outbox_lost_as_repeat_total", &["destination"]),
    ("outbox_oldest_open_writer_age_seconds", &[]),
    ("outbox_oldest_pending_age_seconds", &[]),
    ("outbox_pending_events", &["phase"]),
    ("outbox_pruned_events_total", &[]),
    ("outbox_publish_duration_seconds", &["destination"]),
    ("outbox_publish_failures_total", &["destination", "error_class"]),
    ("outbox_relay_state", &["state"]),
    ("outbox_retries_total", &[]),
    ("outbox_storage_op_duration_seconds", &["op"]),
];

fn recorder() -> PrometheusRecorder {
    PrometheusBuilder::new().build_recorder()
}

/// A sample's name, labels and value.
type Sample = (String, BTreeMap<String, String>, f64);

fn samples(recorder: &PrometheusRecorder) -> Vec<Sample> {
    let text = recorder.handle().render();
    let lines = text.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
    lines
        .map(|line| {
            let (series, value) = line.rsplit_once(' ').unwrap();
            let (name, labels) = series.split_once('{').unwrap_or((series, ""));
            let labels = labels.trim_end_matches('}').split(',').filter(|label| !label.is_empty());
            let labels = labels.map(|label| {
                let (name, value) = label.split_once('=').unwrap();
                (name.to_owned(), value.trim_matches('"').to_owned())
            });
            (name.to_owned(), labels.collect(), value.parse().unwrap())
        })
        .collect()
}

fn value(samples: &[Sample], name: &str, labels: &[(&str, &str)]) -> f64 {
    let labels: BTreeMap<String, String> =
        labels.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect();
    let found = samples.iter().find(|sample| sample.0 == name && sample.1 == labels);
    found.unwrap_or_else(|| panic!("no sample of {name} {labels:?}")).2
}

fn telling(number: u128) -> OutboxEvent {
    OutboxEvent::builder(Uuid::from_u128(0xfeed_0000 + number), "secret.type")
        .id(Uuid::from_u128(0xbeef_0000 + number))
        .order_key(format!("secret-key-{number}"))
        .topic("secret-topic")
        .header("secret-header", "secret-value")
        .payload(Payload::json_text("\"secret-payload\"").unwrap())
        .build()
        .unwrap()
}

/// A run in which everything happens that a metric tells of.
async fn eventful(world: &World) {
    world.script.plan(|event, attempt| match (event.id().as_u128() - 0xbeef_0000, attempt) {
        (1, 1) => Some(Fault::FailBeforeWrite),
        (2, _) => Some(Fault::RejectPermanently),
        (9, 1) => Some(Fault::Unavailable),
        (4, _) => Some(Fault::FailAfterWrite),
        _ => None,
    });
    let processor = world.started().await;
    // The outage comes by itself: it would excuse failures beside it.
    for numbers in [0..9, 9..10] {
        world.store(&numbers.map(telling).collect::<Vec<_>>()).await;
        until("all is settled", || world.pending() == 0).await;
    }
    tokio::time::sleep(10 * SECOND).await;
    while processor.cleanup_processed_events(Duration::ZERO).await.unwrap() == 0 {}
    processor.stop().await;
}

#[tokio::test(start_paused = true)]
async fn every_documented_metric_appears_with_its_labels_and_no_other_does() {
    let recorder = recorder();
    let _guard = metrics::set_default_local_recorder(&recorder);
    eventful(&World::new()).await;

    let mut seen: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for (name, labels, _) in samples(&recorder) {
        let family = name.trim_end_matches("_sum").trim_end_matches("_count").to_owned();
        let names = labels.into_keys().filter(|label| label != "quantile");
        seen.entry(family).or_default().extend(names);
    }
    let documented: BTreeMap<String, BTreeSet<String>> = METRICS
        .iter()
        .map(|(name, labels)| {
            ((*name).to_owned(), labels.iter().map(|label| (*label).to_owned()).collect())
        })
        .collect();
    assert_eq!(seen, documented);
}

#[tokio::test(start_paused = true)]
async fn no_label_holds_an_id_key_type_or_anything_else_of_an_event() {
    let recorder = recorder();
    let _guard = metrics::set_default_local_recorder(&recorder);
    eventful(&World::new()).await;
    let text = recorder.handle().render();
    for secret in ["secret", "beef", "feed", "on purpose"] {
        assert!(!text.contains(secret), "{secret} in {text}");
    }
}

#[tokio::test(start_paused = true)]
async fn metrics_count_what_happened() {
    let recorder = recorder();
    let _guard = metrics::set_default_local_recorder(&recorder);
    eventful(&World::new()).await;
    let samples = samples(&recorder);
    let value = |name, labels: &[(&str, &str)]| value(&samples, name, labels) as u64;
    let to = ("destination", "default");
    assert_eq!(value("outbox_events_published_total", &[to]), 8);
    assert_eq!(value("outbox_retries_total", &[]), 1 + 2);
    assert_eq!(value("outbox_publish_failures_total", &[to, ("error_class", "failed")]), 1 + 3);
    assert_eq!(value("outbox_publish_failures_total", &[to, ("error_class", "rejected")]), 1);
    assert_eq!(value("outbox_publish_failures_total", &[to, ("error_class", "unreachable")]), 1);
    assert_eq!(value("outbox_dead_lettered_total", &[("reason", "rejected")]), 1);
    assert_eq!(value("outbox_dead_lettered_total", &[("reason", "retries_exhausted")]), 1);
    assert_eq!(value("outbox_delivery_latency_seconds_count", &[]), 8);
    assert_eq!(value("outbox_pruned_events_total", &[]), 8);
    assert_eq!(value("outbox_dead_events", &[]), 2);
    assert_eq!(value("outbox_pending_events", &[("phase", "ready")]), 0);
    assert_eq!(value("outbox_inflight_events", &[]), 0);
    assert_eq!(value("outbox_relay_state", &[("state", "stopped")]), 1);
    assert_eq!(value("outbox_relay_state", &[("state", "running")]), 0);
}

#[tokio::test(start_paused = true)]
async fn a_transaction_that_stays_open_shows_for_as_long_as_it_is_known() {
    let recorder = recorder();
    let _guard = metrics::set_default_local_recorder(&recorder);
    let outbox = Hooked::new(MemoryRepository::new()).open_writer("3/7");
    let relay = OutboxProcessor::builder(outbox).bus(MemoryBus::new()).build().unwrap();
    relay.start().await.unwrap();
    tokio::time::sleep(60 * SECOND).await;
    relay.stop().await;
    let age = value(&samples(&recorder), "outbox_oldest_open_writer_age_seconds", &[]);
    assert!((50.0..=60.0).contains(&age), "{age} s");
}

#[tokio::test(start_paused = true)]
async fn figures_that_cannot_be_read_are_no_number_rather_than_old_ones() {
    let recorder = recorder();
    let _guard = metrics::set_default_local_recorder(&recorder);
    let fails = Arc::new(AtomicBool::new(false));
    let failing = Arc::clone(&fails);
    let outbox = Hooked::new(MemoryRepository::new()).around(move |operation| {
        // A panic of a repository is an error to the relay.
        assert!(operation != Operation::Backlog || !failing.load(SeqCst), "on purpose");
    });
    let relay = OutboxProcessor::builder(outbox).bus(MemoryBus::new()).build().unwrap();
    relay.start().await.unwrap();
    let figures = || {
        let samples = samples(&recorder);
        let phases = ["ready", "retrying", "scheduled"]
            .map(|phase| value(&samples, "outbox_pending_events", &[("phase", phase)]));
        let others = ["outbox_dead_events", "outbox_oldest_pending_age_seconds"]
            .map(|name| value(&samples, name, &[]));
        let age = value(&samples, "outbox_backlog_read_age_seconds", &[]);
        ([phases.as_slice(), others.as_slice()].concat(), age)
    };
    tokio::time::sleep(60 * SECOND).await;
    assert_eq!(figures().0, [0.0; 5]);
    fails.store(true, SeqCst);
    tokio::time::sleep(90 * SECOND).await;
    assert_eq!(figures().0, [0.0; 5], "they are not old yet");
    tokio::time::sleep(90 * SECOND).await;
    let (old, age) = figures();
    assert!(old.iter().all(|figure| figure.is_nan()), "{old:?}");
    assert!(age > 120.0, "{age}");
    fails.store(false, SeqCst);
    tokio::time::sleep(60 * SECOND).await;
    assert_eq!(figures().0, [0.0; 5]);
    relay.stop().await;
}

#[tokio::test(start_paused = true)]
async fn counters_show_zero_before_their_first_event() {
    let recorder = recorder();
    let _guard = metrics::set_default_local_recorder(&recorder);
    let _processor = World::new().processor();
    let samples = samples(&recorder);
    for (name, labels) in [
        ("outbox_events_published_total", &[("destination", "default")][..]),
        ("outbox_retries_total", &[]),
        ("outbox_dead_lettered_total", &[("reason", "retries_exhausted")]),
        ("outbox_pruned_events_total", &[]),
    ] {
        assert_eq!(value(&samples, name, labels) as u64, 0);
    }
}

#[tokio::test(start_paused = true)]
async fn outboxes_of_one_process_are_told_apart_by_their_names() {
    let recorder = recorder();
    let _guard = metrics::set_default_local_recorder(&recorder);
    let (stuck, flows) = (World::with(&singles(5)).await, World::new());
    stuck.script.set(Some(Fault::Unavailable));
    let relays = [stuck.builder().name("a"), flows.builder().name("b")]
        .map(|builder| builder.build().unwrap());
    for relay in &relays {
        relay.start().await.unwrap();
    }
    tokio::time::sleep(10 * SECOND).await;
    for relay in &relays {
        assert!(relay.stop().await.failure.is_none());
    }
    let samples = samples(&recorder);
    for (outbox, ready) in [("a", 5.0), ("b", 0.0)] {
        let labels = [("outbox", outbox), ("phase", "ready")];
        assert_eq!(value(&samples, "outbox_pending_events", &labels), ready);
    }
    let nameless: Vec<_> =
        samples.iter().filter(|(_, labels, _)| !labels.contains_key("outbox")).collect();
    assert!(nameless.is_empty(), "{nameless:?}");
}
