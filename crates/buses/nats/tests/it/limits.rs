//! What a server, a stream or NATS itself does not take.

use async_nats::jetstream::{self, stream};
use posthaste_core::{ErrorKind, ErrorStatus, EventBus, OutboxEvent, Payload, Subject};
use posthaste_nats::{NatsBus, NatsConfig};
use posthaste_testkit::servers::NatsServer;
use uuid::Uuid;

use crate::stream::Stream;
use crate::support::{bytes_event, error, event, stream_config};

#[tokio::test]
async fn what_is_full_for_one_subject_is_full_for_no_other() {
    let limits = stream::Config {
        max_messages_per_subject: 1,
        discard: stream::DiscardPolicy::New,
        discard_new_per_subject: true,
        ..Default::default()
    };
    let Some(stream) = Stream::create(limits).await else { return };
    let bus = stream.bus().await;
    let typed = |name: &str| OutboxEvent::new(Uuid::now_v7(), name, &1).unwrap();
    let results = bus.publish(&[typed("a"), typed("a"), typed("b")]).await;
    assert!(results[0].is_ok() && results[2].is_ok(), "{results:?}");
    let full = error(&results[1]);
    assert_eq!((full.kind(), full.subject()), (ErrorKind::Throttled, Subject::Route), "{full}");
    stream.delete().await;
}

#[tokio::test]
async fn an_event_over_a_limit_fails_alone_and_for_good() {
    let limits = stream::Config { max_message_size: 2_000, ..Default::default() };
    let Some(stream) = Stream::create(limits).await else { return };
    let bus = stream.bus().await;
    // Over the stream's limit, and over the server's (1 MiB unless configured).
    for length in [3_000, 2_000_000] {
        let results = bus.publish(&[event(1), bytes_event(length), event(2)]).await;
        assert!(results[0].is_ok() && results[2].is_ok());
        let error = error(&results[1]);
        assert_eq!(error.kind(), ErrorKind::TooLarge, "{error}");
        assert_eq!(error.status(), ErrorStatus::Permanent);
    }
    // The connection survived: the server closes it on a client that sends too much.
    assert_eq!(stream.messages().await, 4);
    stream.delete().await;
}

#[tokio::test]
async fn headers_count_towards_the_largest_payload() {
    let Some(server) = NatsServer::start("max_payload: 4096").await else { return };
    let context = jetstream::new(async_nats::connect(server.url()).await.unwrap());
    context.create_stream(stream_config("e", &["e.>"])).await.unwrap();
    let bus = NatsBus::connect(NatsConfig::new(server.url(), "e.{event_type}")).await.unwrap();
    let results = bus.publish(&[bytes_event(4_000), bytes_event(1_000)]).await;
    assert_eq!(error(&results[0]).kind(), ErrorKind::TooLarge);
    assert!(results[1].is_ok());
}

#[tokio::test]
async fn a_full_stream_throttles_and_no_event_loses_an_attempt() {
    let limits = stream::Config {
        max_messages: 3,
        discard: stream::DiscardPolicy::New,
        ..Default::default()
    };
    let Some(stream) = Stream::create(limits).await else { return };
    let bus = stream.bus().await;
    let events: Vec<_> = (0..5).map(event).collect();
    let results = bus.publish(&events).await;
    assert!(results[..3].iter().all(Result::is_ok));
    for result in &results[3..] {
        let error = error(result);
        assert_eq!(
            (error.kind(), error.status()),
            (ErrorKind::Throttled, ErrorStatus::Unavailable)
        );
    }
    stream.delete().await;
}

#[tokio::test]
async fn a_subject_or_header_nats_cannot_carry_is_malformed() {
    let Some(stream) = Stream::create(stream::Config::default()).await else { return };
    let bus = stream.bus().await;
    let build = || OutboxEvent::builder(Uuid::now_v7(), "t").payload(Payload::json(&1).unwrap());
    let mut broken = build().build().unwrap().record().clone();
    broken.event_type = "a\r\nb".into();
    // No builder makes it.
    let mut reserved = build().build().unwrap().record().clone();
    reserved.headers.insert("ph-id", "x").unwrap();
    let events = [
        build().topic("a b").build().unwrap(),
        build().topic("a.*").build().unwrap(),
        build().topic("a..b").build().unwrap(),
        build().topic("$JS.API.STREAM.DELETE.x").build().unwrap(),
        build().header("Nats-Rollup", "all").build().unwrap(),
        OutboxEvent::restore(reserved),
        OutboxEvent::restore(broken),
        build().build().unwrap(),
    ];
    let results = bus.publish(&events).await;
    let (good, bad) = results.split_last().unwrap();
    assert!(good.is_ok());
    for result in bad {
        assert_eq!(error(result).status(), ErrorStatus::Permanent);
    }
    assert_eq!(stream.messages().await, 1);
    stream.delete().await;
}
