//! The NATS bus on a running server: what each refusal means, and what arrives.
// Helpers are test code too; clippy only knows the test functions.
#![allow(clippy::unwrap_used)]

mod support;

use std::time::Duration;

use async_nats::jetstream::{self, stream};
use futures_util::{StreamExt as _, TryStreamExt as _};
use posthaste_bus_kit::{EnvelopeFormat, Secret};
use posthaste_core::{ErrorKind, ErrorStatus, EventBus, OutboxEvent, Outcomes, Payload, Subject};
use posthaste_nats::{NatsAuth, NatsBus, NatsConfig};
use posthaste_testkit::servers::{NatsServer, shared_nats, skip_test};
use support::{bytes_event, error, event, stream_config};
use uuid::Uuid;

/// A stream of the test's own on the shared server.
struct Stream {
    url: String,
    name: String,
    context: jetstream::Context,
}

impl Stream {
    async fn create(limits: stream::Config) -> Option<Self> {
        let url = shared_nats().await?;
        let client = async_nats::connect(&url).await.unwrap();
        let context = jetstream::new(client);
        let name = format!("ph_{}", Uuid::now_v7().simple());
        let subjects = vec![format!("{name}.>")];
        let config = stream::Config { name: name.clone(), subjects, ..limits };
        context.create_stream(config).await.unwrap();
        Some(Self { url, name, context })
    }

    fn config(&self) -> NatsConfig {
        NatsConfig {
            stream: Some(self.name.clone()),
            allow_topic: vec![">".into()],
            ..NatsConfig::new(&self.url, format!("{}.{{event_type}}", self.name))
        }
    }

    async fn bus(&self) -> NatsBus {
        NatsBus::connect(self.config()).await.unwrap()
    }

    async fn messages(&self) -> u64 {
        let mut stream = self.context.get_stream(&self.name).await.unwrap();
        stream.info().await.unwrap().state.messages
    }

    async fn message(&self, sequence: u64) -> async_nats::jetstream::message::StreamMessage {
        let stream = self.context.get_stream(&self.name).await.unwrap();
        stream.get_raw_message(sequence).await.unwrap()
    }

    async fn delete(self) {
        self.context.delete_stream(&self.name).await.unwrap();
    }
}

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

#[tokio::test]
async fn refused_credentials_are_an_outage_and_never_shown() {
    let config = "authorization { user: joe, password: hunter2 }";
    let Some(server) = NatsServer::start(config).await else { return };
    let wrong = NatsConfig {
        auth: NatsAuth::UserPassword { user: "joe".into(), password: Secret::from("swordfish") },
        ..NatsConfig::new(server.url(), "e")
    };
    let bus = NatsBus::connect(wrong).await.unwrap();
    let results = bus.publish(&[event(1)]).await;
    let error = error(&results[0]);
    assert_eq!((error.kind(), error.status()), (ErrorKind::Unauthorized, ErrorStatus::Unavailable));
    assert!(!error.report().contains("swordfish") && !format!("{bus:?}").contains("swordfish"));
    assert_eq!(bus.check().await.unwrap_err().kind(), ErrorKind::Unauthorized);

    // The right ones, in the address.
    let url = server.url().replace("nats://", "nats://joe:hunter2@");
    let client = async_nats::ConnectOptions::with_user_and_password("joe".into(), "hunter2".into());
    let context = jetstream::new(client.connect(server.url()).await.unwrap());
    context.create_stream(stream_config("e", &["e"])).await.unwrap();
    let bus = NatsBus::connect(NatsConfig::new(url, "e")).await.unwrap();
    assert!(bus.publish(&[event(1)]).await[0].is_ok());
    assert!(!format!("{bus:?}").contains("hunter2"));
}

#[tokio::test]
async fn a_right_that_is_missing_is_named() {
    let config = "authorization { users: [
        { user: admin, password: a }
        { user: relay, password: r, permissions: { publish: \"allowed.>\", subscribe: \">\" } } ] }";
    let Some(server) = NatsServer::start(config).await else { return };
    let client = async_nats::ConnectOptions::with_user_and_password("admin".into(), "a".into());
    let context = jetstream::new(client.connect(server.url()).await.unwrap());
    let stream = stream_config("e", &["allowed.>", "denied.>"]);
    context.create_stream(stream).await.unwrap();
    let url = server.url().replace("nats://", "nats://relay:r@");
    let ack_timeout = Duration::from_millis(500);
    for (subject, allowed) in [("allowed.a", true), ("denied.a", false)] {
        let config = NatsConfig { ack_timeout, ..NatsConfig::new(&url, subject) };
        let bus = NatsBus::connect(config).await.unwrap();
        let results = bus.publish(&[event(1)]).await;
        if allowed {
            assert!(results[0].is_ok());
        } else {
            let error = error(&results[0]);
            assert_eq!(error.kind(), ErrorKind::Unauthorized, "{error}");
            assert_eq!(error.subject(), Subject::Destination, "all events go there");
            assert!(error.to_string().contains("denied.a"), "{error}");
        }
    }
    // Of many subjects one is refused: nobody waits for the answer that does not come.
    let ack_timeout = Duration::from_secs(60);
    let config = NatsConfig { ack_timeout, ..NatsConfig::new(&url, "{event_type}") };
    let bus = NatsBus::connect(config).await.unwrap();
    let typed = |name: &str| OutboxEvent::new(Uuid::now_v7(), name, &1).unwrap();
    let events = [typed("allowed.a"), typed("denied.a"), typed("allowed.b"), typed("denied.b")];
    let publishing = tokio::time::timeout(ack_timeout / 2, bus.publish(&events)).await;
    let results = publishing.expect("it waited for an answer");
    assert!(results[0].is_ok() && results[2].is_ok(), "{results:?}");
    for at in [1, 3] {
        let refused = error(&results[at]);
        assert_eq!((refused.kind(), refused.subject()), (ErrorKind::Unauthorized, Subject::Route));
    }
}

#[tokio::test]
async fn tls_is_spoken_and_an_unknown_certificate_is_an_outage() {
    let folder = tempfile::tempdir().unwrap();
    let (cert, key) = (folder.path().join("cert.pem"), folder.path().join("key.pem"));
    let made = std::process::Command::new("openssl")
        .args(["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=test"])
        .args(["-addext", "subjectAltName=IP:127.0.0.1", "-addext", "basicConstraints=CA:FALSE"])
        .arg("-out")
        .arg(&cert)
        .arg("-keyout")
        .arg(&key)
        .output();
    if !made.is_ok_and(|output| output.status.success()) {
        return skip_test("no openssl to make a certificate with");
    }
    let tls = format!("tls {{ cert_file: {:?}, key_file: {:?} }}", cert, key);
    let Some(server) = NatsServer::start(&tls).await else { return };
    let mut trusting = NatsConfig::new(server.url(), "e");
    trusting.tls.ca_files = vec![cert.clone()];
    let options = async_nats::ConnectOptions::new().add_root_certificates(cert);
    let context = jetstream::new(options.connect(server.url()).await.unwrap());
    context.create_stream(stream_config("e", &["e"])).await.unwrap();
    let bus = NatsBus::connect(trusting).await.unwrap();
    let results = bus.publish(&[event(1)]).await;
    assert!(results[0].is_ok(), "{results:?}");
    let distrusting = NatsBus::connect(NatsConfig::new(server.url(), "e")).await.unwrap();
    let results = distrusting.publish(&[event(2)]).await;
    assert_eq!(error(&results[0]).kind(), ErrorKind::Unreachable);
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

#[tokio::test]
async fn settings_and_files_that_are_wrong_are_refused_at_once() {
    let base = || NatsConfig::new("nats://127.0.0.1:1", "e");
    let mut ca = base();
    ca.tls.ca_files = vec!["/does/not/exist.pem".into()];
    let credentials =
        NatsConfig { auth: NatsAuth::CredentialsFile("/does/not/exist.creds".into()), ..base() };
    for config in [ca, credentials, NatsConfig { subject: String::new(), ..base() }] {
        assert_eq!(NatsBus::connect(config).await.unwrap_err().kind(), ErrorKind::Config);
    }
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
