//! What arrives, and what is told of it.

use std::time::Duration;

use async_nats::jetstream::stream;
use posthaste_bus_kit::EnvelopeFormat;
use posthaste_core::{EventBus, OutboxEvent, Outcomes, Payload, Subject};
use posthaste_nats::{NatsBus, NatsConfig};
use uuid::Uuid;

use crate::stream::Stream;
use crate::support::{error, event};

#[tokio::test]
async fn an_event_arrives_under_its_id_with_its_bytes() {
    let Some(stream) = Stream::create(stream::Config::default()).await else { return };
    let bus = stream.bus().await;
    bus.check().await.unwrap();
    let payload = Payload::bytes(&b"\xff\xfe\x00\r\n"[..], "application/avro").unwrap();
    let builder = OutboxEvent::builder(Uuid::now_v7(), "order.placed").payload(payload);
    let event = builder.order_key("customer 7").header("tenant", "ü").build().unwrap();
    // The second copy is dropped by its id.
    for _ in 0..2 {
        assert!(bus.publish(std::slice::from_ref(&event)).await[0].is_ok());
    }
    assert_eq!(stream.messages().await, 1);
    let message = stream.message(1).await;
    assert_eq!(message.subject.as_str(), format!("{}.order.placed", stream.name));
    assert_eq!(message.payload, &b"\xff\xfe\x00\r\n"[..]);
    let header = |name: &str| message.headers.get(name).unwrap().to_string();
    assert_eq!(header("Nats-Msg-Id"), event.id().to_string());
    assert_eq!(header("ph-id"), event.id().to_string());
    assert_eq!(header("ph-key"), "customer 7");
    assert_eq!(header("content-type"), "application/avro");
    assert_eq!(header("tenant"), "%C3%BC");
    stream.delete().await;
}

#[tokio::test]
async fn structured_cloudevents_are_one_json_object() {
    let Some(stream) = Stream::create(stream::Config::default()).await else { return };
    let envelope = EnvelopeFormat::CloudEventsStructured;
    let bus = NatsBus::connect(NatsConfig { envelope, ..stream.config() }).await.unwrap();
    let event = event(7);
    assert!(bus.publish(std::slice::from_ref(&event)).await[0].is_ok());
    let message = stream.message(1).await;
    let value: serde_json::Value = serde_json::from_slice(&message.payload).unwrap();
    assert_eq!(value["id"], event.id().to_string());
    assert_eq!(value["data"], 7);
    stream.delete().await;
}

#[tokio::test]
async fn a_repeat_that_the_stream_dropped_is_told() {
    let Some(stream) = Stream::create(stream::Config::default()).await else { return };
    let unnamed = NatsConfig { stream: None, ..stream.config() };
    for config in [stream.config(), unnamed] {
        let bus = NatsBus::connect(config).await.unwrap();
        let repeated = event(1);
        assert!(bus.publish(std::slice::from_ref(&repeated)).await[0].is_ok());
        let told = std::sync::Mutex::new(Vec::new());
        let results = std::sync::Mutex::new(Vec::new());
        let (take, note) = (
            |known: Vec<_>| results.lock().unwrap().extend(known),
            |position| told.lock().unwrap().push(position),
        );
        let outcomes = Outcomes::new(&take).with_repeated(&note);
        bus.publish_each(&[event(0), repeated, event(2)], outcomes).await;
        assert_eq!(*told.lock().unwrap(), [1]);
        assert!(results.lock().unwrap().iter().all(|(_, result)| result.is_ok()));
    }
    stream.delete().await;
}

/// What is known is told, whoever is still unanswered.
#[tokio::test]
async fn an_event_that_nobody_answers_holds_back_no_report() {
    let Some(stream) = Stream::create(stream::Config::default()).await else { return };
    let silent = format!("silent_{}", Uuid::now_v7().simple());
    let listener = async_nats::connect(&stream.url).await.unwrap();
    let _messages = listener.subscribe(silent.clone()).await.unwrap();
    listener.flush().await.unwrap();
    let ack_timeout = Duration::from_secs(3);
    let config = NatsConfig { stream: None, ack_timeout, ..stream.config() };
    let bus = NatsBus::connect(config).await.unwrap();
    // The stream that answers is known from then on.
    assert!(bus.publish(&[event(0)]).await[0].is_ok());
    let builder = OutboxEvent::builder(Uuid::now_v7(), "t").payload(Payload::json(&1).unwrap());
    let mut events: Vec<_> = (0..50).map(event).collect();
    events.insert(20, builder.topic(silent).build().unwrap());
    let (sender, told) = std::sync::mpsc::channel();
    let take = |results: Vec<_>| sender.send((std::time::Instant::now(), results)).unwrap();
    bus.publish_each(&events, Outcomes::new(&take)).await;
    drop(sender);
    let told: Vec<_> = told.iter().collect();
    let (last, rest) = told.split_last().unwrap();
    assert_eq!(last.1.iter().map(|(position, _)| *position).collect::<Vec<_>>(), [20]);
    assert_eq!(error(&last.1[0].1).subject(), Subject::Route);
    let early: Vec<_> = rest.iter().flat_map(|(_, results)| results).collect();
    assert_eq!(early.len(), 50);
    assert!(early.iter().all(|(_, result)| result.is_ok()));
    assert!(last.0 - rest[0].0 > ack_timeout / 2, "they waited for it");
    stream.delete().await;
}

#[tokio::test]
async fn large_calls_at_once_do_not_wait_for_each_others_permits() {
    let Some(stream) = Stream::create(stream::Config::default()).await else { return };
    let config = NatsConfig { max_ack_inflight: 1_000, ..stream.config() };
    let bus = NatsBus::connect(config).await.unwrap();
    let batches: Vec<Vec<_>> = (0..8).map(|_| (0..1_200).map(event).collect()).collect();
    let calls = batches.iter().map(|batch| bus.publish(batch));
    for results in futures_util::future::join_all(calls).await {
        assert!(results.iter().all(Result::is_ok));
    }
    assert_eq!(stream.messages().await, 9_600);
    stream.delete().await;
}
