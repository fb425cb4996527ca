//! The NATS bus with several events of a key on their way at once, in batches or in chains: none
//! overtakes another.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use crate::support::{error, event, stream_config};
use async_nats::jetstream::{self, stream};
use posthaste_core::{
    ErrorKind, ErrorStatus, EventBus, KeyPipelining, OutboxEvent, Payload, PublishResult,
};
use posthaste_nats::{NatsBus, NatsConfig};
use posthaste_testkit::servers::{Direction, NatsServer, Proxy};
use uuid::Uuid;

const NAME: &str = "events";

/// What keeps the order within a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// A stream that takes batches, as only a recent server has.
    Batches,
    /// A stream that does not.
    Chains,
}

const KINDS: [Kind; 2] = [Kind::Batches, Kind::Chains];

/// A stream on a server of the test's own.
struct Broker {
    server: NatsServer,
    context: jetstream::Context,
}

impl Broker {
    async fn start(kind: Kind, config: stream::Config) -> Option<Self> {
        let settings = "max_payload: 1MB";
        let server = match kind {
            Kind::Batches => NatsServer::start_recent(settings).await?,
            Kind::Chains => NatsServer::start(settings).await?,
        };
        let context = jetstream::new(async_nats::connect(&server.url()).await.unwrap());
        let config = stream::Config {
            allow_batch_publish: kind == Kind::Batches,
            name: NAME.to_owned(),
            subjects: vec!["events.>".to_owned()],
            ..config
        };
        context.create_stream(config).await.unwrap();
        Some(Self { server, context })
    }

    async fn bus(&self) -> NatsBus {
        let bus = bus_at(&self.server.url()).await;
        assert_eq!(pipelining(&bus), KeyPipelining::SuffixFails, "known before the first call");
        bus
    }

    /// The ids of what is stored, in order.
    async fn stored(&self) -> Vec<Uuid> {
        let stream = self.context.get_stream(NAME).await.unwrap();
        let mut ids = Vec::new();
        for sequence in 1..=stream.cached_info().state.last_sequence {
            let message = stream.get_raw_message(sequence).await.unwrap();
            ids.push(message.headers.get("ph-id").unwrap().as_str().parse().unwrap());
        }
        ids
    }
}

async fn bus_at(url: &str) -> NatsBus {
    let config = NatsConfig {
        stream: Some(NAME.to_owned()),
        ack_timeout: Duration::from_secs(2),
        allow_topic: vec![">".into()],
        ..NatsConfig::new(url, "events.{event_type}")
    };
    NatsBus::connect(config).await.unwrap()
}

/// A bus that knows what its stream allows: a busy machine may not have connected when `connect` gives
/// up waiting.
async fn pipelining_bus_at(url: &str) -> NatsBus {
    let begun = Instant::now();
    loop {
        let bus = bus_at(url).await;
        if pipelining(&bus) == KeyPipelining::SuffixFails {
            return bus;
        }
        assert!(begun.elapsed() < Duration::from_secs(30), "the stream allows one event of a key");
    }
}

/// Event `number` of `key`, of `length` bytes.
fn of_key(key: &str, number: usize, length: usize) -> OutboxEvent {
    let payload = Payload::bytes(vec![b'x'; length], "text/plain").unwrap();
    let builder = OutboxEvent::builder(Uuid::now_v7(), format!("n{number}")).payload(payload);
    builder.order_key(key).build().unwrap()
}

fn ids(events: &[&OutboxEvent]) -> Vec<Uuid> {
    events.iter().map(|event| event.id()).collect()
}

fn pipelining(bus: &NatsBus) -> KeyPipelining {
    bus.capabilities().key_pipelining
}

fn are_ok(results: &[PublishResult]) -> Vec<bool> {
    results.iter().map(Result::is_ok).collect()
}

#[tokio::test]
async fn keys_keep_their_order_and_a_repeated_event_is_no_failure() {
    for kind in KINDS {
        let Some(broker) = Broker::start(kind, stream::Config::default()).await else { continue };
        let bus = broker.bus().await;
        let events: Vec<_> = (0..250).map(|number| of_key("hot", number, 10)).collect();
        assert!(are_ok(&bus.publish(&events[..150]).await).iter().all(|ok| *ok));
        assert!(are_ok(&bus.publish(&events[100..]).await).iter().all(|ok| *ok));
        assert_eq!(broker.stored().await, ids(&events.iter().collect::<Vec<_>>()), "{kind:?}");
        assert_eq!(pipelining(&bus), KeyPipelining::SuffixFails, "{kind:?}");
    }
}

#[tokio::test]
async fn an_event_that_is_refused_holds_back_its_key_and_no_other() {
    for kind in KINDS {
        let config = stream::Config { max_message_size: 2_000, ..Default::default() };
        let Some(broker) = Broker::start(kind, config).await else { continue };
        let bus = broker.bus().await;
        // Over the limit of the stream, over that of the server, and the last of all.
        for (length, place) in [(5_000, 1), (1_500_000, 1), (5_000, 0), (5_000, 4), (1_500_000, 4)]
        {
            refused_alone(&broker, &bus, length, place).await;
        }
    }
}

/// Publishes five events of a key, of which one is too large, among four of another.
async fn refused_alone(broker: &Broker, bus: &NatsBus, length: usize, place: usize) {
    let before = broker.stored().await.len();
    let mut events = Vec::new();
    for number in 0..5 {
        events.push(of_key("a", number, if number == place { length } else { 10 }));
        if number < 4 {
            events.push(of_key("b", number, 10));
        }
    }
    let results = bus.publish(&events).await;
    let refused = error(&results[2 * place]);
    assert_eq!(refused.kind(), ErrorKind::TooLarge, "{refused}");
    let good = |at: usize| at % 2 == 1 || at < 2 * place;
    assert_eq!(are_ok(&results), (0..9).map(good).collect::<Vec<_>>(), "{results:?}");
    let stored = broker.stored().await.split_off(before);
    let of = |key: &str| -> Vec<Uuid> {
        let of_key = events.iter().filter(|event| event.order_key().to_string() == key);
        of_key.map(OutboxEvent::id).filter(|id| stored.contains(id)).collect()
    };
    let in_order = |wanted: &[Uuid]| {
        let found: Vec<_> = stored.iter().filter(|id| wanted.contains(id)).collect();
        found.into_iter().copied().eq(wanted.iter().copied())
    };
    assert_eq!((of("a").len(), of("b").len()), (place, 4));
    assert!(in_order(&of("a")) && in_order(&of("b")), "{stored:?}");
}

#[tokio::test]
async fn a_full_stream_pauses_the_destination_and_stores_a_beginning() {
    for kind in KINDS {
        let discard = stream::DiscardPolicy::New;
        // The fourth does not fit. What is behind it would.
        let config = stream::Config { max_bytes: 5_000, discard, ..Default::default() };
        let Some(broker) = Broker::start(kind, config).await else { continue };
        let bus = broker.bus().await;
        let length = |number| if number == 3 { 5_000 } else { 10 };
        let events: Vec<_> = (0..6).map(|number| of_key("hot", number, length(number))).collect();
        let results = bus.publish(&events).await;
        assert_eq!(are_ok(&results), [true, true, true, false, false, false], "{kind:?}");
        assert_eq!(error(&results[3]).kind(), ErrorKind::Throttled);
        assert_eq!(error(&results[3]).status(), ErrorStatus::Unavailable);
        assert_eq!(broker.stored().await, ids(&events[..3].iter().collect::<Vec<_>>()));
    }
}

#[tokio::test]
async fn a_subject_that_the_stream_does_not_cover_is_its_events_own() {
    for kind in KINDS {
        let Some(broker) = Broker::start(kind, stream::Config::default()).await else { continue };
        let bus = broker.bus().await;
        let elsewhere = || {
            let payload = Payload::bytes("x", "text/plain").unwrap();
            let builder = OutboxEvent::builder(Uuid::now_v7(), "t").payload(payload);
            builder.topic("elsewhere").build().unwrap()
        };
        for place in 0..3 {
            let mut events = vec![event(0), event(1)];
            events.insert(place, elsewhere());
            let results = bus.publish(&events).await;
            let expected: Vec<_> = (0..3).map(|at| at != place).collect();
            assert_eq!(are_ok(&results), expected, "{results:?}");
            let refused = error(&results[place]);
            assert_eq!(refused.kind(), ErrorKind::DestinationMissing);
            assert_eq!(refused.status(), ErrorStatus::Transient);
        }
    }
}

#[tokio::test]
async fn a_stream_that_takes_no_batches_any_more_gets_one_event_of_a_key_at_a_time() {
    let Some(broker) = Broker::start(Kind::Batches, stream::Config::default()).await else {
        return;
    };
    let bus = broker.bus().await;
    broker.context.update_stream(stream_config(NAME, &["events.>"])).await.unwrap();
    let events: Vec<_> = (0..10).map(|number| of_key("hot", number, 10)).collect();
    assert!(are_ok(&bus.publish(&events).await).iter().all(|ok| *ok));
    assert_eq!(broker.stored().await, ids(&events.iter().collect::<Vec<_>>()));
    assert_eq!(pipelining(&bus), KeyPipelining::OnePerKey);
}

#[tokio::test]
async fn the_name_of_what_it_is_behind_makes_no_event_too_large() {
    let config = stream::Config { max_message_size: 1_000, ..Default::default() };
    let Some(broker) = Broker::start(Kind::Chains, config).await else { return };
    let bus = broker.bus().await;
    let mut refused = 0;
    for length in (400..1_000).step_by(20) {
        let pair = [of_key("a", 0, length), of_key("a", 1, length)];
        let results = are_ok(&bus.publish(&pair).await);
        assert_eq!(results[0], results[1], "{length} bytes");
        refused += usize::from(!results[0]);
    }
    assert!((1..30).contains(&refused), "{refused}");
}

/// Some servers take there what they refused for the last that they stored (see `chains.rs`).
#[tokio::test]
async fn an_account_with_a_limit_gets_one_event_of_a_key_at_a_time() {
    for limit in ["max_file: 100KB", "disk_max_stream_bytes: 100KB"] {
        let config = format!(
            "accounts {{ A {{ jetstream {{ {limit} }}, users: [{{ user: a, password: a }}] }} }}"
        );
        let Some(server) = NatsServer::start(&config).await else { return };
        let url = server.url().replace("nats://", "nats://a:a@");
        let context = jetstream::new(log_in(&server, "a").await);
        context.create_stream(stream_config(NAME, &["events.>"])).await.unwrap();
        let bus = bus_at(&url).await;
        assert_eq!(pipelining(&bus), KeyPipelining::OnePerKey, "{limit}");
        let length = |number| if number == 3 { 200_000 } else { 10 };
        let events: Vec<_> = (0..6).map(|number| of_key("hot", number, length(number))).collect();
        // Not every server knows the second limit.
        let results = are_ok(&bus.publish(&events).await);
        assert!(results.is_sorted_by(|before, behind| before >= behind), "{limit}: {results:?}");
    }
}

/// A client with `name` for user and password.
async fn log_in(server: &NatsServer, name: &str) -> async_nats::Client {
    let options = async_nats::ConnectOptions::with_user_and_password(name.into(), name.into());
    options.connect(server.url()).await.unwrap()
}

/// The server answers nothing where a right is missing: waiting for it must leave time to publish.
#[tokio::test]
async fn a_relay_that_may_not_ask_about_its_account_publishes_all_the_same() {
    let config = "authorization { users: [
        { user: admin, password: admin }
        { user: relay, password: relay, permissions: {
            publish: [\"events.>\", \"$JS.API.STREAM.INFO.events\"], subscribe: \">\" } } ] }";
    let Some(server) = NatsServer::start(config).await else { return };
    let context = jetstream::new(log_in(&server, "admin").await);
    context.create_stream(stream_config(NAME, &["events.>"])).await.unwrap();
    let bus = bus_at(&server.url().replace("nats://", "nats://relay:relay@")).await;
    bus.check().await.unwrap();
    assert_eq!(pipelining(&bus), KeyPipelining::OnePerKey);
    for _ in 0..3 {
        assert_eq!(are_ok(&bus.publish(&[event(1), event(2)]).await), [true, true]);
    }
}

/// What is behind an event that is refused is refused, too: by nobody else's doing.
#[tokio::test]
async fn an_event_that_is_refused_again_and_again_does_not_end_chains() {
    let config = stream::Config { max_message_size: 2_000, ..Default::default() };
    let Some(broker) = Broker::start(Kind::Chains, config).await else { return };
    let bus = broker.bus().await;
    for _ in 0..20 {
        let length = |number| if number == 1 { 5_000 } else { 10 };
        let events: Vec<_> = (0..10).map(|number| of_key("hot", number, length(number))).collect();
        let good: Vec<_> = (0..10).map(|number| number == 0).collect();
        assert_eq!(are_ok(&bus.publish(&events).await), good);
        assert_eq!(pipelining(&bus), KeyPipelining::SuffixFails);
    }
}

/// What others store without end.
async fn flood(context: jetstream::Context) {
    let mut headers = async_nats::HeaderMap::new();
    headers.insert("ph-id", Uuid::nil().to_string());
    loop {
        let stored = context.publish_with_headers("events.other", headers.clone(), "x".into());
        stored.await.unwrap().await.unwrap();
    }
}

/// On a line so thin that others come between any two events.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn others_that_store_in_the_same_stream_break_chains_and_not_the_order() {
    let Some(broker) = Broker::start(Kind::Chains, stream::Config::default()).await else { return };
    let proxy = Proxy::start(broker.server.address()).await;
    let bus = pipelining_bus_at(&format!("nats://{}", proxy.address())).await;
    proxy.slow(Direction::ToServer);
    let others = tokio::spawn(flood(broker.context.clone()));
    let mut written = Vec::new();
    let mut calls = 0;
    while pipelining(&bus) == KeyPipelining::SuffixFails {
        calls += 1;
        assert!(calls < 100, "it does not see that it is not alone");
        let ours: Vec<_> = (0..8).map(|number| of_key("ours", number, 2_000)).collect();
        let results = bus.publish(&ours).await;
        assert!(are_ok(&results).iter().all(|ok| *ok), "{results:?}");
        written.extend(ours);
    }
    others.abort();
    let wanted: HashMap<Uuid, usize> = written.iter().map(OutboxEvent::id).zip(0..).collect();
    let stored = broker.stored().await;
    let places: Vec<usize> = stored.iter().filter_map(|id| wanted.get(id).copied()).collect();
    assert_eq!(places, (0..written.len()).collect::<Vec<_>>());
}

/// What the processor does: the rest of a key goes again.
async fn deliver(bus: &NatsBus, events: &[OutboxEvent]) {
    let mut done = 0;
    while done < events.len() {
        let until = events.len().min(done + 100);
        let results = bus.publish(&events[done..until]).await;
        let stored = results.iter().take_while(|result| result.is_ok()).count();
        assert!(results[stored..].iter().all(Result::is_err), "only a suffix fails");
        done += stored;
        if stored < results.len() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

/// What the client still holds when a connection breaks it sends on the next one, without what was
/// lost with the first.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn order_within_a_key_survives_lost_connections_and_a_killed_server() {
    for kind in KINDS {
        survives(kind).await;
    }
}

async fn survives(kind: Kind) {
    // So short that a repeated event shows.
    let duplicate_window = Duration::from_millis(100);
    let config = stream::Config { duplicate_window, ..Default::default() };
    let Some(mut broker) = Broker::start(kind, config).await else { return };
    let proxy = Proxy::start(&broker.server.address()).await;
    let bus = pipelining_bus_at(&format!("nats://{}", proxy.address())).await;
    let events: Vec<_> = (0..4_000).map(|number| of_key("hot", number, 20_000)).collect();
    let delivery = async {
        deliver(&bus, &events).await;
    };
    let faults = async {
        for round in 0_u64.. {
            tokio::time::sleep(Duration::from_millis(20 + round * 7 % 30)).await;
            match round % 4 {
                0 => proxy.lose(Direction::ToServer),
                1 => proxy.lose(Direction::ToClient),
                2 => proxy.cut(),
                _ => broker.server.restart().await,
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
            proxy.pass();
        }
    };
    tokio::select! {
        () = delivery => {}
        () = faults => unreachable!("faults have no end"),
    }
    assert_in_order(&broker.stored().await, &events);
}

/// Repeats aside.
fn assert_in_order(stored: &[Uuid], events: &[OutboxEvent]) {
    let numbers: HashMap<Uuid, usize> = events.iter().map(OutboxEvent::id).zip(0..).collect();
    let mut next = 0;
    for id in stored {
        let number = numbers[id];
        assert!(number <= next, "{number} before {next}");
        next = next.max(number + 1);
    }
    assert_eq!(next, events.len(), "every event is there");
}

/// A recent server's stream would stop for good at the first chain that is broken (see `chains.rs`).
#[tokio::test]
async fn a_replicated_stream_gets_one_event_of_a_key_at_a_time() {
    let Some(servers) = NatsServer::start_cluster(3).await else { return };
    let url = servers[0].url();
    let context = jetstream::new(async_nats::connect(&url).await.unwrap());
    let config = stream::Config { num_replicas: 3, ..stream_config(NAME, &["events.>"]) };
    let begun = Instant::now();
    while let Err(error) = context.create_stream(config.clone()).await {
        assert!(begun.elapsed() < Duration::from_secs(60), "{error}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let bus = bus_at(&url).await;
    assert_eq!(pipelining(&bus), KeyPipelining::OnePerKey);
    let events: Vec<_> = (0..10).map(|number| of_key("hot", number, 10)).collect();
    assert!(are_ok(&bus.publish(&events).await).iter().all(|ok| *ok));
}
