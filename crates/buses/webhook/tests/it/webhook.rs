//! The webhook bus against a server of the test's own.

use std::time::Duration;

use posthaste_bus_kit::EnvelopeFormat;
use posthaste_core::{
    ErrorKind, ErrorStatus, EventBus, OutboxEvent, OutboxEventBuilder, Outcomes, Payload, Subject,
};
use posthaste_testkit::events::{error, event};
use posthaste_testkit::servers::free_port;
use posthaste_webhook::{WebhookBus, WebhookConfig};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use uuid::Uuid;
use wiremock::matchers::{any, body_json, method, path};
use wiremock::{Mock, MockServer, Request, ResponseTemplate};

fn config(url: impl Into<String>) -> WebhookConfig {
    WebhookConfig { allow_private_addresses: true, ..WebhookConfig::new(url) }
}

fn open(url: impl Into<String>) -> WebhookBus {
    WebhookBus::open(&config(url)).unwrap()
}

/// A server that gives every request the same answer.
async fn answering(answer: ResponseTemplate) -> (MockServer, WebhookBus) {
    let server = MockServer::start().await;
    Mock::given(any()).respond_with(answer).mount(&server).await;
    let bus = open(format!("{}/hook", server.uri()));
    (server, bus)
}

async fn posts(server: &MockServer) -> Vec<Request> {
    let requests = server.received_requests().await.unwrap();
    requests.into_iter().filter(|request| request.method.as_str() == "POST").collect()
}

fn header<'a>(request: &'a Request, name: &str) -> &'a str {
    std::str::from_utf8(request.headers.get(name).unwrap().as_bytes()).unwrap()
}

fn builder() -> OutboxEventBuilder {
    OutboxEvent::builder(Uuid::now_v7(), "order.placed").payload(Payload::json(&1).unwrap())
}

#[tokio::test]
async fn an_event_is_posted_as_a_cloudevent_with_its_bytes() {
    let (server, bus) = answering(ResponseTemplate::new(204)).await;
    bus.check().await.unwrap();
    let payload = Payload::bytes(&b"\xff\xfe\x00"[..], "application/avro").unwrap();
    let event = builder().payload(payload).order_key("k").header("Tenant", "Grüße").build();
    let event = event.unwrap();
    assert!(bus.publish(std::slice::from_ref(&event)).await[0].is_ok());
    let posts = posts(&server).await;
    let [request] = posts.as_slice() else { panic!("{} posts", posts.len()) };
    assert_eq!(request.url.path(), "/hook");
    assert_eq!(request.body, b"\xff\xfe\x00");
    assert_eq!(header(request, "ce-id"), event.id().to_string());
    assert_eq!(header(request, "ce-type"), "order.placed");
    assert_eq!(header(request, "ce-specversion"), "1.0");
    assert_eq!(header(request, "ce-subject"), "k");
    assert_eq!(header(request, "content-type"), "application/avro");
    assert_eq!(header(request, "tenant"), "Gr%C3%BC%C3%9Fe");
    assert!(request.headers.get("webhook-signature").is_none());
}

#[tokio::test]
async fn plain_and_structured_are_the_other_forms() {
    let (server, _) = answering(ResponseTemplate::new(200)).await;
    let event = event(7);
    for envelope in [EnvelopeFormat::Plain, EnvelopeFormat::CloudEventsStructured] {
        let bus = WebhookBus::open(&WebhookConfig { envelope, ..config(server.uri()) }).unwrap();
        assert!(bus.publish(std::slice::from_ref(&event)).await[0].is_ok());
    }
    let posts = posts(&server).await;
    assert_eq!(header(&posts[0], "ph-id"), event.id().to_string());
    assert_eq!(posts[0].body, b"7");
    assert_eq!(header(&posts[1], "content-type"), "application/cloudevents+json");
    let value: serde_json::Value = serde_json::from_slice(&posts[1].body).unwrap();
    assert_eq!((&value["id"], &value["data"]), (&event.id().to_string().into(), &7.into()));
}

#[tokio::test]
async fn requests_are_signed_anew_each_time_under_the_events_id() {
    let (server, _) = answering(ResponseTemplate::new(200)).await;
    let secrets = vec!["whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw".into()];
    let bus = WebhookBus::open(&WebhookConfig { secrets, ..config(server.uri()) }).unwrap();
    let event = event(1);
    assert!(bus.publish(std::slice::from_ref(&event)).await[0].is_ok());
    let posts = posts(&server).await;
    assert_eq!(header(&posts[0], "webhook-id"), event.id().to_string());
    assert!(header(&posts[0], "webhook-signature").starts_with("v1,"));
    let timestamp: i64 = header(&posts[0], "webhook-timestamp").parse().unwrap();
    assert!((jiff::Timestamp::now().as_second() - timestamp).abs() < 60);
    assert!(!format!("{bus:?}").contains("MfKQ9r8G"));
}

#[tokio::test]
async fn an_answer_decides_what_becomes_of_the_event() {
    for (code, kind, subject) in [
        (301, ErrorKind::DestinationMissing, Subject::Destination),
        (400, ErrorKind::Rejected, Subject::Event),
        (401, ErrorKind::Unauthorized, Subject::Destination),
        (404, ErrorKind::DestinationMissing, Subject::Destination),
        (413, ErrorKind::TooLarge, Subject::Event),
        (422, ErrorKind::Rejected, Subject::Event),
        (500, ErrorKind::Failed, Subject::Event),
        (503, ErrorKind::Throttled, Subject::Destination),
    ] {
        let answer = ResponseTemplate::new(code)
            .insert_header("location", "/elsewhere")
            .insert_header("retry-after", "17")
            .set_body_string(format!("because\n{}", "x".repeat(100_000)));
        let (server, bus) = answering(answer).await;
        let results = bus.publish(&[event(1)]).await;
        let error = error(&results[0]);
        assert_eq!((error.kind(), error.subject()), (kind, subject), "{code}");
        assert_eq!(error.retry_after(), Some(Duration::from_secs(17)), "{code}");
        assert!(error.to_string().contains("because"), "{error}");
        assert!(error.to_string().len() < 4_096);
        assert_eq!(posts(&server).await.len(), 1, "a redirect was followed or a request repeated");
    }
}

#[tokio::test]
async fn a_failing_event_holds_back_only_itself() {
    let server = MockServer::start().await;
    for (number, code) in [(1, 500), (3, 400)] {
        let answer = ResponseTemplate::new(code);
        Mock::given(body_json(number)).respond_with(answer).mount(&server).await;
    }
    Mock::given(method("POST")).respond_with(ResponseTemplate::new(200)).mount(&server).await;
    let events: Vec<_> = (0..64).map(event).collect();
    let results = open(server.uri()).publish(&events).await;
    assert_eq!(results.len(), 64);
    for (number, result) in results.iter().enumerate() {
        let status = result.as_ref().err().map(posthaste_core::Error::status);
        let expected = match number {
            1 => Some(ErrorStatus::Transient),
            3 => Some(ErrorStatus::Permanent),
            _ => None,
        };
        assert_eq!(status, expected, "{number}");
    }
}

#[tokio::test]
async fn an_outcome_is_told_when_it_is_known() {
    let server = MockServer::start().await;
    let slow = ResponseTemplate::new(200).set_delay(Duration::from_secs(60));
    Mock::given(body_json(1)).respond_with(slow).mount(&server).await;
    Mock::given(any()).respond_with(ResponseTemplate::new(200)).mount(&server).await;
    let short = WebhookConfig { timeout: Duration::from_secs(1), ..config(server.uri()) };
    let bus = WebhookBus::open(&short).unwrap();
    let (sender, told) = std::sync::mpsc::channel();
    let take = |results: Vec<_>| sender.send((std::time::Instant::now(), results)).unwrap();
    bus.publish_each(&[event(1), event(2), event(3)], Outcomes::new(&take)).await;
    drop(sender);
    let told: Vec<_> =
        told.iter().flat_map(|(at, of)| of.into_iter().map(move |o| (at, o))).collect();
    let positions: Vec<_> = told.iter().map(|(_, (position, _))| *position).collect();
    assert_eq!(positions[2], 0, "{positions:?}");
    assert!(told[2].0 - told[1].0 > Duration::from_millis(100), "the others waited for it");
    let slow = error(&told[2].1.1);
    assert_eq!((slow.kind(), slow.subject()), (ErrorKind::Timeout, Subject::Destination));
    assert!(told[..2].iter().all(|(_, (_, result))| result.is_ok()));
}

#[tokio::test]
async fn no_more_requests_are_under_way_than_are_set_over_all_calls() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/", listener.local_addr().unwrap());
    let under_way = std::sync::Arc::new(tokio::sync::Semaphore::new(2));
    let server = tokio::spawn(async move {
        while let Ok((mut socket, _)) = listener.accept().await {
            let under_way = std::sync::Arc::clone(&under_way);
            tokio::spawn(async move {
                let mut bytes = [0; 4096];
                while socket.read(&mut bytes).await.is_ok_and(|read| read > 0) {
                    let code = if let Ok(_permit) = under_way.try_acquire() {
                        tokio::time::sleep(Duration::from_millis(20)).await;
                        "204 No Content"
                    } else {
                        "500 Too Many"
                    };
                    let answer = format!("HTTP/1.1 {code}\r\ncontent-length: 0\r\n\r\n");
                    socket.write_all(answer.as_bytes()).await.unwrap();
                }
            });
        }
    });
    let two = WebhookConfig { max_concurrent_requests: 2, ..config(url) };
    let bus = WebhookBus::open(&two).unwrap();
    let capabilities = bus.capabilities();
    assert_eq!((capabilities.batch_events_max, capabilities.in_flight_events_max), (1, Some(2)));
    let events: Vec<_> = (0..12).map(event).collect();
    let calls = events.chunks(3).map(|events| bus.publish(events));
    for results in futures_util::future::join_all(calls).await {
        assert!(results.iter().all(Result::is_ok), "{results:?}");
    }
    server.abort();
}

/// Many receivers answer a 410 for one object that is gone.
#[tokio::test]
async fn a_410_ends_nothing() {
    let server = MockServer::start().await;
    Mock::given(body_json(1)).respond_with(ResponseTemplate::new(410)).mount(&server).await;
    Mock::given(any()).respond_with(ResponseTemplate::new(200)).mount(&server).await;
    let bus = open(server.uri());
    let results = bus.publish(&[event(1)]).await;
    let gone = error(&results[0]);
    assert_eq!(
        (gone.kind(), gone.subject()),
        (ErrorKind::DestinationMissing, Subject::Destination)
    );
    assert!(bus.publish(&[event(2)]).await[0].is_ok());
    bus.check().await.unwrap();
}

#[tokio::test]
async fn an_events_own_topic_is_a_path_below_the_url_and_speaks_for_no_other() {
    let server = MockServer::start().await;
    let here = path("/hook/orders/placed");
    Mock::given(here).respond_with(ResponseTemplate::new(200)).mount(&server).await;
    let closed = ResponseTemplate::new(403).insert_header("retry-after", "60");
    Mock::given(path("/hook/forbidden")).respond_with(closed).mount(&server).await;
    let bus = open(format!("{}/hook", server.uri()));
    let own = |topic: &str| builder().topic(topic).build().unwrap();
    let results = bus.publish(&[own("orders/placed"), own("nowhere"), own("forbidden")]).await;
    assert!(results[0].is_ok());
    for (result, kind) in
        results[1..].iter().zip([ErrorKind::DestinationMissing, ErrorKind::Unauthorized])
    {
        assert_eq!((error(result).kind(), error(result).subject()), (kind, Subject::Route));
    }
    assert_eq!(error(&results[2]).retry_after(), Some(Duration::from_secs(60)));
    let outside = ["..", "a/../../b", "a//b", "/a", "%2e%2E/x", ".", ".\t./.\t./admin", "..;/a"];
    for topic in outside {
        // A row may hold what the builder refuses.
        let mut row = builder().build().unwrap().record().clone();
        row.topic = Some(topic.into());
        let results = bus.publish(&[OutboxEvent::restore(row)]).await;
        assert_eq!(error(&results[0]).kind(), ErrorKind::Malformed, "{topic:?}");
    }
    // A connection that there is not says nothing of a path.
    let bus = open(format!("http://127.0.0.1:{}/", free_port()));
    let results = bus.publish(&[own("orders/placed")]).await;
    assert_eq!(error(&results[0]).subject(), Subject::Connection);
}

#[tokio::test]
async fn what_a_receiver_repeats_of_the_request_is_not_in_the_error() {
    let server = MockServer::start().await;
    let echo = |request: &Request| {
        let headers = request.headers.iter().map(|(name, value)| {
            format!("{name}: {}\n", String::from_utf8_lossy(value.as_bytes()))
        });
        let body = format!("Cannot POST {}\n{}", request.url, headers.collect::<String>());
        // The end of what is kept of an answer is in the middle of a secret.
        let body = format!("{body}{}topsecrettoken", "x".repeat(2_039 - body.len()));
        ResponseTemplate::new(500).set_body_string(body)
    };
    Mock::given(any()).respond_with(echo).mount(&server).await;
    let url = server.uri().replace("http://", "http://joe:hun%40ter2@");
    let url = format!("{url}/services/T0/SLACKPATH?tok=querysecret");
    let headers = vec![
        ("x-api-key".to_owned(), "shrt".into()),
        ("x-tenant-token".to_owned(), "Bearer topsecrettoken".into()),
    ];
    let bus = WebhookBus::open(&WebhookConfig { headers, ..config(url) }).unwrap();
    let results = bus.publish(&[event(1)]).await;
    let shown = error(&results[0]).report();
    assert!(shown.contains("Cannot POST"), "{shown}");
    let basic = "am9lOmh1bkB0ZXIy";
    for secret in ["hun@ter2", basic, "shrt", "topsecret", "SLACKPATH", "querysecret"] {
        assert!(!shown.contains(secret), "{secret}: {shown}");
    }
}

/// What a server does that knows the request's size before it has read it.
#[tokio::test]
async fn an_answer_that_comes_before_the_body_was_read_counts() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/", listener.local_addr().unwrap());
    let server = tokio::spawn(async move {
        let (mut socket, _) = listener.accept().await.unwrap();
        let mut bytes = [0; 1024];
        let _ = socket.read(&mut bytes).await;
        let answer = b"HTTP/1.1 413 Too Large\r\nconnection: close\r\ncontent-length: 0\r\n\r\n";
        socket.write_all(answer).await.unwrap();
    });
    let results = open(url).publish(&[posthaste_testkit::events::bytes_event(20_000_000)]).await;
    assert_eq!(error(&results[0]).kind(), ErrorKind::TooLarge, "{results:?}");
    server.await.unwrap();
}

#[tokio::test]
async fn the_status_decides_whatever_becomes_of_the_body() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/", listener.local_addr().unwrap());
    let server = tokio::spawn(async move {
        let mut sockets = Vec::new();
        while let Ok((mut socket, _)) = listener.accept().await {
            let mut bytes = [0; 4096];
            let _ = socket.read(&mut bytes).await;
            let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\nok";
            socket.write_all(answer).await.unwrap();
            sockets.push(socket);
        }
    });
    let bus = WebhookBus::open(&WebhookConfig { timeout: Duration::from_secs(60), ..config(url) });
    let publishing = tokio::time::timeout(Duration::from_secs(30), async {
        let bus = bus.unwrap();
        for number in 0..3 {
            assert!(bus.publish(&[event(number)]).await[0].is_ok());
        }
    });
    publishing.await.expect("it waited for the end of a body");
    server.abort();
}

#[tokio::test]
async fn a_check_tells_what_the_receiver_answered() {
    let answer = ResponseTemplate::new(400).set_body_string("plain HTTP sent to an HTTPS port");
    let (_server, bus) = answering(answer).await;
    assert_eq!(bus.last_answer(), None);
    bus.check().await.unwrap();
    let told = bus.last_answer().unwrap();
    assert!(told.contains("OPTIONS") && told.contains("400 Bad Request: plain HTTP"), "{told}");
}

#[tokio::test]
async fn a_header_that_is_the_transports_is_malformed() {
    let (server, bus) = answering(ResponseTemplate::new(200)).await;
    for name in [
        "Host",
        "Content-Length",
        "Transfer-Encoding",
        "connection",
        "webhook-id",
        "ce-id",
        "Authorization",
    ] {
        let results = bus.publish(&[builder().header(name, "1").build().unwrap()]).await;
        let error = error(&results[0]);
        assert_eq!((error.kind(), error.status()), (ErrorKind::Malformed, ErrorStatus::Permanent));
    }
    let mut broken = event(1).record().clone();
    broken.event_type = "a\r\nx-injected: 1".into();
    let results = bus.publish(&[OutboxEvent::restore(broken)]).await;
    assert_eq!(error(&results[0]).kind(), ErrorKind::Malformed);
    assert!(posts(&server).await.is_empty());
}

#[tokio::test]
async fn configured_headers_and_a_password_in_the_url_are_sent_and_never_shown() {
    let (server, _) = answering(ResponseTemplate::new(500)).await;
    let url = server.uri().replace("http://", "http://joe:hun%40ter2@");
    let headers = vec![("x-api-key".to_owned(), "swordfish".into())];
    let bus = WebhookBus::open(&WebhookConfig { headers, ..config(url) }).unwrap();
    let results = bus.publish(&[event(1)]).await;
    let posts = posts(&server).await;
    assert_eq!(header(&posts[0], "authorization"), "Basic am9lOmh1bkB0ZXIy");
    assert_eq!(header(&posts[0], "x-api-key"), "swordfish");
    drop(server);
    let shown = format!("{bus:?} {}", error(&results[0]).report());
    for secret in ["hunter", "hun%40ter2", "hun@ter2", "am9lOmh1bkB0ZXIy", "swordfish"] {
        assert!(!shown.contains(secret), "{shown}");
    }
}

#[tokio::test]
async fn an_endpoint_that_is_down_is_an_outage() {
    let bus = open(format!("http://joe:hunter2@127.0.0.1:{}/secret-path", free_port()));
    let results = bus.publish(&[event(1), event(2)]).await;
    for result in &results {
        let error = error(result);
        assert_eq!(error.kind(), ErrorKind::Unreachable);
        assert_eq!(error.subject(), Subject::Connection);
        let report = error.report();
        assert!(!report.contains("hunter2") && !report.contains("secret-path"), "{report}");
    }
    assert_eq!(bus.check().await.unwrap_err().kind(), ErrorKind::Unreachable);
}

#[tokio::test]
async fn a_connection_that_breaks_after_the_request_is_the_destinations() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/", listener.local_addr().unwrap());
    let server = tokio::spawn(async move {
        let mut accepted = 0;
        while let Ok((mut socket, _)) = listener.accept().await {
            accepted += 1;
            let mut bytes = [0; 1024];
            let _ = socket.read(&mut bytes).await;
            if accepted == 2 {
                let answer = b"HTTP/1.1 204 No Content\r\n\r\n";
                socket.write_all(answer).await.unwrap();
                return;
            }
        }
    });
    let bus = open(url);
    let results = bus.publish(&[event(1)]).await;
    let broken = error(&results[0]);
    assert_eq!((broken.kind(), broken.subject()), (ErrorKind::Unreachable, Subject::Destination));
    // It connects again by itself.
    assert!(bus.publish(&[event(1)]).await[0].is_ok());
    server.await.unwrap();
}

#[tokio::test]
async fn a_name_that_resolves_to_a_private_address_is_refused() {
    let server = MockServer::start().await;
    Mock::given(any()).respond_with(ResponseTemplate::new(200)).mount(&server).await;
    let url = format!("http://localhost:{}/", server.address().port());
    let bus = WebhookBus::open(&WebhookConfig::new(&url)).unwrap();
    let results = bus.publish(&[event(1)]).await;
    let refused = error(&results[0]);
    assert_eq!((refused.kind(), refused.subject()), (ErrorKind::Config, Subject::Connection));
    assert!(refused.report().contains("allow_private_addresses"), "{}", refused.report());
    assert!(bus.check().await.is_err());
    assert!(server.received_requests().await.unwrap().is_empty());
    assert!(open(url).publish(&[event(1)]).await[0].is_ok());
}
