//! Credentials, rights, certificates and settings.

use std::time::Duration;

use async_nats::jetstream;
use posthaste_bus_kit::Secret;
use posthaste_core::{ErrorKind, ErrorStatus, EventBus, OutboxEvent, Subject};
use posthaste_nats::{NatsAuth, NatsBus, NatsConfig};
use posthaste_testkit::servers::{NatsServer, skip_test};
use uuid::Uuid;

use crate::support::{error, event, stream_config};

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
