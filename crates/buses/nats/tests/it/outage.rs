//! The NATS bus while its server is down, frozen, killed and back.

use std::time::Duration;

use crate::support::{error, event, stream_config};
use async_nats::jetstream;
use futures_util::FutureExt as _;
use posthaste_core::{ErrorKind, ErrorStatus, EventBus, OutboxEvent};
use posthaste_nats::{NatsBus, NatsConfig};
use posthaste_testkit::servers::{NatsServer, free_port};
use uuid::Uuid;

async fn create_stream(url: &str) -> jetstream::Context {
    let context = jetstream::new(async_nats::connect(url).await.unwrap());
    context.create_stream(stream_config("events", &["events.>"])).await.unwrap();
    context
}

fn config(url: &str) -> NatsConfig {
    NatsConfig {
        ack_timeout: Duration::from_millis(1_500),
        ..NatsConfig::new(url, "events.{event_type}")
    }
}

/// The ids in the stream, in its order.
async fn stored(url: &str) -> Vec<String> {
    let context = jetstream::new(async_nats::connect(url).await.unwrap());
    let mut stream = context.get_stream("events").await.unwrap();
    let last = stream.info().await.unwrap().state.last_sequence;
    let mut ids = Vec::new();
    for sequence in 1..=last {
        let message = stream.get_raw_message(sequence).await.unwrap();
        ids.push(message.headers.get("ph-id").unwrap().to_string());
    }
    ids
}

/// Publishes `events` in turn, each until it is acknowledged, as the processor does with one key.
/// Returns how many calls failed.
async fn deliver_in_order(bus: &NatsBus, events: &[OutboxEvent]) -> usize {
    let mut failures = 0;
    for event in events {
        while let Err(error) = &bus.publish(std::slice::from_ref(event)).await[0] {
            assert_eq!(error.status(), ErrorStatus::Unavailable, "{}", error.report());
            failures += 1;
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        // Slow enough that the faults of a test happen in the middle.
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    failures
}

fn distinct(ids: &[String]) -> Vec<String> {
    let mut seen = std::collections::HashSet::new();
    ids.iter().filter(|id| seen.insert(id.as_str())).cloned().collect()
}

#[tokio::test]
async fn a_server_that_is_down_is_no_error_of_connecting() {
    let url = format!("nats://127.0.0.1:{}", free_port());
    let bus = NatsBus::connect(config(&url)).await.unwrap();
    let results = bus.publish(&[event(1), event(2)]).await;
    assert_eq!(results.len(), 2);
    for result in &results {
        let error = error(result);
        assert_eq!(error.kind(), ErrorKind::Unreachable);
        assert_eq!(error.status(), ErrorStatus::Unavailable);
    }
    assert_eq!(bus.check().await.unwrap_err().kind(), ErrorKind::Unreachable);
    let closing = tokio::time::timeout(Duration::from_secs(10), bus.close()).await;
    closing.expect("closing waits for a server that is down").unwrap();
}

#[tokio::test]
async fn what_is_refused_for_want_of_a_connection_is_not_sent_later() {
    let Some(mut server) = NatsServer::start("").await else { return };
    let url = server.url();
    create_stream(&url).await;
    let bus = NatsBus::connect(config(&url)).await.unwrap();
    let [first, refused, last] = [event(1), event(2), event(3)];
    deliver_in_order(&bus, std::slice::from_ref(&first)).await;
    server.kill();
    while bus.check().await.is_ok() {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let results = bus.publish(std::slice::from_ref(&refused)).await;
    assert_eq!(error(&results[0]).kind(), ErrorKind::Unreachable);
    server.restart().await;
    deliver_in_order(&bus, std::slice::from_ref(&last)).await;
    let expected = [first, last].map(|event| event.id().to_string());
    assert_eq!(stored(&url).await, expected);
}

#[tokio::test]
async fn a_killed_server_is_an_outage_and_delivery_resumes_in_order() {
    let Some(mut server) = NatsServer::start("").await else { return };
    let url = server.url();
    create_stream(&url).await;
    let bus = NatsBus::connect(config(&url)).await.unwrap();
    let events: Vec<_> = (0..300).map(event).collect();
    let task = tokio::spawn({
        let events = events.clone();
        async move { deliver_in_order(&bus, &events).await }
    });
    for _ in 0..3 {
        tokio::time::sleep(Duration::from_millis(150)).await;
        server.kill();
        tokio::time::sleep(Duration::from_millis(100)).await;
        server.restart().await;
    }
    assert!(task.await.unwrap() > 0, "no outage was met");
    let expected: Vec<String> = events.iter().map(|event| event.id().to_string()).collect();
    assert_eq!(distinct(&stored(&url).await), expected, "lost or out of order");
}

#[tokio::test]
async fn a_call_in_flight_when_the_server_dies_ends_at_once_as_an_outage() {
    let Some(mut server) = NatsServer::start("").await else { return };
    let url = server.url();
    create_stream(&url).await;
    let long = Duration::from_secs(60);
    let bus = NatsBus::connect(NatsConfig { ack_timeout: long, ..config(&url) }).await.unwrap();
    let events: Vec<_> = (0..1_000).map(event).collect();
    // Frozen, it takes the bytes and answers nothing; killed then, the connection breaks.
    server.freeze();
    let call = bus.publish(&events);
    let kill = async {
        tokio::time::sleep(Duration::from_millis(200)).await;
        server.kill();
    };
    // Far below ack_timeout: the broken connection ends the call, not the clock.
    let (results, ()) = tokio::time::timeout(long / 2, async { tokio::join!(call, kill) })
        .await
        .expect("the call waited for acknowledgements that cannot come");
    assert_eq!(results.len(), events.len());
    for result in &results {
        assert_eq!(error(result).status(), ErrorStatus::Unavailable);
        assert_eq!(error(result).kind(), ErrorKind::Unreachable);
    }
    server.restart().await;
    deliver_in_order(&bus, &events[..3]).await;
}

#[tokio::test]
async fn a_frozen_server_is_a_timeout_and_late_copies_are_dropped() {
    let Some(server) = NatsServer::start("").await else { return };
    let url = server.url();
    create_stream(&url).await;
    let ack_timeout = Duration::from_millis(300);
    let bus = NatsBus::connect(NatsConfig { ack_timeout, ..config(&url) }).await.unwrap();
    let key = Uuid::now_v7();
    let events: Vec<_> =
        (0..3).map(|number| OutboxEvent::new(key, "numbered", &number).unwrap()).collect();
    server.freeze();
    for _ in 0..2 {
        let results = bus.publish(&events[..1]).await;
        assert_eq!(error(&results[0]).kind(), ErrorKind::Timeout);
        assert_eq!(error(&results[0]).status(), ErrorStatus::Unavailable);
    }
    server.thaw();
    deliver_in_order(&bus, &events).await;
    let expected: Vec<String> = events.iter().map(|event| event.id().to_string()).collect();
    assert_eq!(stored(&url).await, expected);
}

#[tokio::test]
async fn at_most_max_ack_inflight_events_wait_for_acknowledgements() {
    let Some(server) = NatsServer::start("").await else { return };
    let url = server.url();
    create_stream(&url).await;
    let ack_timeout = Duration::from_millis(300);
    let limited = NatsConfig { max_ack_inflight: 5, ack_timeout, ..config(&url) };
    let bus = NatsBus::connect(limited).await.unwrap();
    assert_eq!(bus.capabilities().batch_events_max, 5);
    let events: Vec<_> = (0..10).map(event).collect();
    server.freeze();
    let mut first = bus.publish(&events[..5]);
    // Nobody asks for its outcome meanwhile, so that it does not make room by giving up.
    assert!(first.as_mut().now_or_never().is_none());
    let (second, first) = (bus.publish(&events[5..]).await, first.await);
    server.thaw();
    let full = |result| error(result).to_string().contains("max_ack_inflight");
    assert!(!first.iter().any(full) && second.iter().all(full), "{first:?} {second:?}");
    assert!(second.iter().all(|result| error(result).status() == ErrorStatus::Unavailable));
}

#[tokio::test]
async fn a_limit_that_was_raised_is_asked_for_before_an_event_is_refused() {
    // A server whose JetStream is switched on by a flag loses it when it reads its file again.
    let folder = tempfile::tempdir().unwrap();
    let settings = |max_payload: u32| {
        format!("max_payload: {max_payload}\njetstream {{ store_dir: {:?} }}", folder.path())
    };
    let started = NatsServer::start_without_jetstream(&settings(4_096)).await;
    let Some(server) = started else { return };
    create_stream(&server.url()).await;
    let bus = NatsBus::connect(config(&server.url())).await.unwrap();
    let large = crate::support::bytes_event(8_000);
    let results = bus.publish(std::slice::from_ref(&large)).await;
    assert_eq!(error(&results[0]).kind(), ErrorKind::TooLarge);
    server.reload(&settings(16_384));
    // What was asked a moment ago is not asked again.
    let begun = std::time::Instant::now();
    loop {
        let results = bus.publish(std::slice::from_ref(&large)).await;
        match &results[0] {
            Ok(()) => break,
            Err(error) if error.kind() == ErrorKind::TooLarge => {}
            Err(error) => assert_eq!(error.status(), ErrorStatus::Unavailable, "{error}"),
        }
        assert!(begun.elapsed() < Duration::from_secs(30), "{results:?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test]
async fn the_end_of_an_outage_is_told_at_once() {
    let Some(mut server) = NatsServer::start("").await else { return };
    create_stream(&server.url()).await;
    let bus = NatsBus::connect(config(&server.url())).await.unwrap();
    bus.recovered().await;
    assert!(bus.recovered().now_or_never().is_none(), "once for each connection");
    server.kill();
    tokio::time::sleep(Duration::from_secs(3)).await;
    server.restart().await;
    let back = std::time::Instant::now();
    let told = tokio::time::timeout(Duration::from_secs(30), bus.recovered()).await;
    told.expect("it connected again and said nothing");
    assert!(bus.publish(&[event(1)]).await[0].is_ok());
    println!("published {:?} after the server was back", back.elapsed());
}

/// It takes connections and says nothing, as one does whose machine is out of memory.
#[tokio::test]
async fn a_node_that_is_frozen_is_left_for_another() {
    let Some(servers) = NatsServer::start_cluster(3).await else { return };
    let context = jetstream::new(async_nats::connect(servers[1].url()).await.unwrap());
    let begun = std::time::Instant::now();
    while let Err(error) = context.create_stream(stream_config("events", &["events.>"])).await {
        assert!(begun.elapsed() < Duration::from_secs(60), "{error}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let leader = context.get_stream("events").await.unwrap().cached_info().cluster.clone();
    let leader = leader.and_then(|cluster| cluster.leader).unwrap();
    // The relay is at a node that the stream does not need.
    let other = (0..3).find(|number| leader != format!("server{number}")).unwrap();
    let first = config(&servers[other].url());
    let bus = NatsBus::connect(first).await.unwrap();
    assert!(bus.publish(&[event(0)]).await[0].is_ok());
    servers[other].freeze();
    let frozen = std::time::Instant::now();
    let mut number = 1;
    while let Err(error) = &bus.publish(&[event(number)]).await[0] {
        assert_eq!(error.status(), ErrorStatus::Unavailable, "{}", error.report());
        assert!(frozen.elapsed() < Duration::from_secs(60), "{}", error.report());
        tokio::time::sleep(Duration::from_millis(10)).await;
        number += 1;
    }
    println!("published {:?} after the node froze", frozen.elapsed());
}

#[tokio::test]
async fn a_stream_created_later_is_found_without_a_restart() {
    let Some(server) = NatsServer::start("").await else { return };
    let bus = NatsBus::connect(config(&server.url())).await.unwrap();
    let results = bus.publish(&[event(1)]).await;
    assert_eq!(error(&results[0]).kind(), ErrorKind::DestinationMissing);
    create_stream(&server.url()).await;
    assert!(bus.publish(&[event(1)]).await[0].is_ok());
    bus.check().await.unwrap();
    bus.close().await.unwrap();
}
