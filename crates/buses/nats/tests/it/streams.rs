//! Which stream takes an event, and which answer counts.

use std::time::Duration;

use async_nats::jetstream::stream;
use futures_util::{StreamExt as _, TryStreamExt as _};
use posthaste_core::{ErrorKind, ErrorStatus, EventBus, OutboxEvent, Payload, Subject};
use posthaste_nats::{NatsBus, NatsConfig};
use posthaste_testkit::servers::{NatsServer, shared_nats};
use uuid::Uuid;

use crate::stream::Stream;
use crate::support::{error, event};

#[tokio::test]
async fn a_missing_stream_pauses_the_destination_and_says_what_to_do() {
    let Some(url) = shared_nats().await else { return };
    let name = format!("ph_{}", Uuid::now_v7().simple());
    for subject in [format!("{name}.all"), format!("{name}.{{event_type}}")] {
        let bus = NatsBus::connect(NatsConfig::new(&url, &subject)).await.unwrap();
        let results = bus.publish(&[event(1), event(2)]).await;
        for result in &results {
            let error = error(result);
            assert_eq!(error.kind(), ErrorKind::DestinationMissing);
            assert_eq!(error.status(), ErrorStatus::Unavailable);
            assert!(error.to_string().contains("create a stream that covers it"), "{error}");
            assert!(error.to_string().contains(&name), "{error}");
        }
    }
    let literal = NatsBus::connect(NatsConfig::new(&url, format!("{name}.all"))).await.unwrap();
    assert_eq!(literal.check().await.unwrap_err().kind(), ErrorKind::DestinationMissing);
    let config = NatsConfig { stream: Some(name.clone()), ..NatsConfig::new(&url, "a.b") };
    let named = NatsBus::connect(config).await.unwrap();
    let error = named.check().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::DestinationMissing);
    assert!(error.to_string().contains(&name), "{error}");
}

#[tokio::test]
async fn one_subject_nobody_covers_does_not_stop_the_others() {
    let Some(stream) = Stream::create(stream::Config::default()).await else { return };
    let nowhere = format!("nowhere_{}", Uuid::now_v7().simple());
    let stray = OutboxEvent::builder(Uuid::now_v7(), "t").payload(Payload::json(&1).unwrap());
    let stray = stray.topic(nowhere).build().unwrap();
    // The stream is known to be there, by its name or by another event's acknowledgement.
    let named = stream.bus().await;
    let unnamed = NatsBus::connect(NatsConfig { stream: None, ..stream.config() }).await.unwrap();
    for (bus, batch) in [
        (&named, vec![stray.clone()]),
        (&named, vec![stray.clone(), event(1)]),
        (&unnamed, vec![stray.clone(), event(2)]),
    ] {
        let results = bus.publish(&batch).await;
        let error = error(&results[0]);
        assert_eq!(error.kind(), ErrorKind::DestinationMissing);
        assert_eq!(error.status(), ErrorStatus::Transient);
        assert!(results[1..].iter().all(Result::is_ok));
    }
    stream.delete().await;
}

#[tokio::test]
async fn a_subject_of_another_stream_is_refused_when_a_stream_is_named() {
    let Some(stream) = Stream::create(stream::Config::default()).await else { return };
    let Some(other) = Stream::create(stream::Config::default()).await else { return };
    let config = NatsConfig { stream: Some(other.name.clone()), ..stream.config() };
    let bus = NatsBus::connect(config).await.unwrap();
    assert_eq!(bus.check().await.unwrap_err().kind(), ErrorKind::DestinationMissing);
    let results = bus.publish(&[event(1)]).await;
    assert_eq!(error(&results[0]).kind(), ErrorKind::DestinationMissing);
    assert_eq!(stream.messages().await, 0);
    stream.delete().await;
    other.delete().await;
}

/// A service that answers whoever sends it something is no stream, whatever it says.
#[tokio::test]
async fn another_ones_answer_is_no_acknowledgement() {
    let Some(stream) = Stream::create(stream::Config::default()).await else { return };
    let rpc = format!("rpc_{}", Uuid::now_v7().simple());
    let service = async_nats::connect(&stream.url).await.unwrap();
    let mut requests = service.subscribe(format!("{rpc}.>")).await.unwrap();
    service.flush().await.unwrap();
    let forged = format!("{{\"stream\":\"{}\",\"seq\":99}}", stream.name);
    let nobody = "{\"stream\":\"NOBODY\",\"seq\":99}".to_owned();
    let answers = ["done".to_owned(), nobody, forged];
    let answering = async {
        for number in 0.. {
            let request = requests.next().await.unwrap();
            let answer = answers[number % answers.len()].clone();
            service.publish(request.reply.unwrap(), answer.into()).await.unwrap();
        }
    };
    let ack_timeout = Duration::from_millis(300);
    let named = NatsConfig { ack_timeout, ..stream.config() };
    let unnamed = NatsConfig { stream: None, ..named.clone() };
    let own = || {
        let builder = OutboxEvent::builder(Uuid::now_v7(), "t").payload(Payload::json(&1).unwrap());
        builder.topic(format!("{rpc}.delete")).build().unwrap()
    };
    let publishing = async {
        for config in [unnamed, named] {
            let bus = NatsBus::connect(config).await.unwrap();
            for _ in 0..answers.len() {
                let results = bus.publish(&[own(), event(1)]).await;
                let refused = error(&results[0]);
                assert_eq!(refused.kind(), ErrorKind::DestinationMissing, "{refused}");
                assert_eq!(refused.subject(), Subject::Route, "{refused}");
                assert!(results[1].is_ok(), "{results:?}");
            }
        }
    };
    tokio::select! {
        () = answering => unreachable!("the service stays"),
        () = publishing => {}
    }
    stream.delete().await;
}

#[tokio::test]
async fn a_topic_of_an_events_own_stays_below_the_subject_of_the_destination() {
    let Some(stream) = Stream::create(stream::Config::default()).await else { return };
    let config = NatsConfig { stream: None, allow_topic: Vec::new(), ..stream.config() };
    let bus = NatsBus::connect(config).await.unwrap();
    let own = |topic: &str| {
        let builder = OutboxEvent::builder(Uuid::now_v7(), "t").payload(Payload::json(&1).unwrap());
        builder.topic(topic).build().unwrap()
    };
    let below = format!("{}.a.b", stream.name);
    let events = [own(&below), own("victim.written"), own("$KV.conf.key"), own("$JS.API.INFO")];
    let results = bus.publish(&events).await;
    assert!(results[0].is_ok(), "{results:?}");
    for result in &results[1..] {
        assert_eq!(error(result).kind(), ErrorKind::Malformed, "{result:?}");
    }
    stream.delete().await;
}

#[tokio::test]
async fn a_server_without_jetstream_is_a_missing_destination() {
    let Some(server) = NatsServer::start_without_jetstream("").await else { return };
    let config = NatsConfig::new(server.url(), "e");
    let bus = NatsBus::connect(config).await.unwrap();
    let checked = bus.check().await.unwrap_err();
    assert_eq!(checked.kind(), ErrorKind::DestinationMissing, "{checked}");
    let results = bus.publish(&[event(1)]).await;
    assert_eq!(error(&results[0]).kind(), ErrorKind::DestinationMissing);
}

/// Keeps the helper honest: the stream listing works on this server.
#[tokio::test]
async fn test_streams_are_cleaned_up() {
    let Some(stream) = Stream::create(stream::Config::default()).await else { return };
    let (name, context) = (stream.name.clone(), stream.context.clone());
    stream.delete().await;
    let names: Vec<String> = context.stream_names().try_collect().await.unwrap();
    assert!(!names.contains(&name));
}
