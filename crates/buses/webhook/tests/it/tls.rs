//! The webhook bus over TLS and HTTP/2, against a server of the test's own.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use posthaste_core::{ErrorKind, EventBus, Subject};
use posthaste_testkit::events::{error, event};
use posthaste_testkit::servers::skip_test;
use posthaste_webhook::{WebhookBus, WebhookConfig, WebhookTls};
use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;

type Connection = h2::server::Connection<tokio_rustls::server::TlsStream<TcpStream>, bytes::Bytes>;
type Respond = h2::server::SendResponse<bytes::Bytes>;

/// A certificate of its own, its key, and the folder that holds both.
struct Certificate {
    _folder: tempfile::TempDir,
    cert: PathBuf,
    key: PathBuf,
}

impl Certificate {
    /// `None` where there is nothing to make one with.
    fn make() -> Option<Self> {
        let folder = tempfile::tempdir().unwrap();
        let (cert, key) = (folder.path().join("cert.pem"), folder.path().join("key.pem"));
        let made = std::process::Command::new("openssl")
            .args(["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"])
            .args(["-subj", &format!("/CN={}", uuid::Uuid::now_v7().simple())])
            .args(["-addext", "subjectAltName=IP:127.0.0.1"])
            .args(["-addext", "basicConstraints=CA:FALSE"])
            .arg("-out")
            .arg(&cert)
            .arg("-keyout")
            .arg(&key)
            .output();
        if made.is_ok_and(|output| output.status.success()) {
            return Some(Self { _folder: folder, cert, key });
        }
        skip_test("no openssl to make a certificate with");
        None
    }

    /// A server that speaks HTTP/2, or HTTP/1.1 to who does not; and asks for `client`'s certificate.
    fn acceptor(&self, client: Option<&Self>) -> TlsAcceptor {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let builder = ServerConfig::builder_with_provider(Arc::clone(&provider));
        let builder = builder.with_safe_default_protocol_versions().unwrap();
        let chain = |file| CertificateDer::pem_file_iter(file).unwrap().map(Result::unwrap);
        let builder = match client {
            None => builder.with_no_client_auth(),
            Some(client) => {
                let mut roots = rustls::RootCertStore::empty();
                roots.add_parsable_certificates(chain(&client.cert));
                let verifier =
                    WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
                builder.with_client_cert_verifier(verifier.build().unwrap())
            }
        };
        let key = PrivateKeyDer::from_pem_file(&self.key).unwrap();
        let mut config = builder.with_single_cert(chain(&self.cert).collect(), key).unwrap();
        config.alpn_protocols = vec![b"h2".to_vec()];
        TlsAcceptor::from(Arc::new(config))
    }

    fn config(&self, url: &str) -> WebhookConfig {
        WebhookConfig {
            allow_private_addresses: true,
            timeout: Duration::from_secs(1),
            tls: WebhookTls { ca_files: vec![self.cert.clone()], ..WebhookTls::default() },
            ..WebhookConfig::new(url)
        }
    }
}

/// Serves each connection by `serve`, which gets its number.
async fn serve<S, F>(acceptor: TlsAcceptor, serve: S) -> String
where
    S: Fn(usize, Connection) -> F + Send + Sync + 'static,
    F: Future<Output = ()> + Send + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("https://{}/", listener.local_addr().unwrap());
    tokio::spawn(async move {
        for number in 0.. {
            let (socket, _) = listener.accept().await.unwrap();
            let Ok(stream) = acceptor.accept(socket).await else { continue };
            let Ok(connection) = h2::server::handshake(stream).await else { continue };
            tokio::spawn(serve(number, connection));
        }
    });
    url
}

fn ok(mut respond: Respond) {
    respond.send_response(http::Response::new(()), true).unwrap();
}

#[tokio::test]
async fn an_authority_of_ones_own_is_trusted_and_another_is_not() {
    let (Some(server), Some(other)) = (Certificate::make(), Certificate::make()) else { return };
    let all_ok = |_, mut connection: Connection| async move {
        while let Some(Ok((_, respond))) = connection.accept().await {
            ok(respond);
        }
    };
    let url = serve(server.acceptor(None), all_ok).await;
    let trusting = WebhookBus::open(&server.config(&url)).unwrap();
    let results = trusting.publish(&[event(1)]).await;
    assert!(results[0].is_ok(), "{results:?}");
    let distrusting = WebhookBus::open(&other.config(&url)).unwrap();
    let results = distrusting.publish(&[event(1)]).await;
    let refused = error(&results[0]);
    assert_eq!((refused.kind(), refused.subject()), (ErrorKind::Unreachable, Subject::Connection));
    assert!(refused.report().contains("tls_ca_file"), "{}", refused.report());

    // The server wants to know who asks, too.
    let url = serve(server.acceptor(Some(&other)), all_ok).await;
    let anonymous = WebhookBus::open(&server.config(&url)).unwrap();
    assert!(anonymous.publish(&[event(1)]).await[0].is_err());
    let mut config = server.config(&url);
    config.tls.cert_file = Some(other.cert.clone());
    config.tls.key_file = Some(other.key.clone());
    let known = WebhookBus::open(&config).unwrap();
    let results = known.publish(&[event(1)]).await;
    assert!(results[0].is_ok(), "{results:?}");
    config.tls.key_file = Some(server.key.clone());
    let error = WebhookBus::open(&config).unwrap_err();
    assert!(error.to_string().contains("do not belong together"), "{error}");
}

/// What the first connection leads to hangs after the first request; all others work.
#[tokio::test]
async fn after_time_outs_in_a_row_another_connection_is_used() {
    let Some(server) = Certificate::make() else { return };
    let hangs = |number, mut connection: Connection| async move {
        let mut held = Vec::new();
        while let Some(Ok((_, respond))) = connection.accept().await {
            if number == 0 && !held.is_empty() {
                held.push(Some(respond));
            } else {
                held.push(None);
                ok(respond);
            }
        }
    };
    let url = serve(server.acceptor(None), hangs).await;
    let config = WebhookConfig { timeout: Duration::from_millis(300), ..server.config(&url) };
    let bus = WebhookBus::open(&config).unwrap();
    assert!(bus.publish(&[event(0)]).await[0].is_ok());
    let mut time_outs = 0;
    while let Err(error) = &bus.publish(&[event(1)]).await[0] {
        assert_eq!((error.kind(), error.subject()), (ErrorKind::Timeout, Subject::Destination));
        time_outs += 1;
        assert!(time_outs < 10, "it stays with a connection that hangs");
    }
    assert!(time_outs > 0);
}

/// RFC 9113 section 8.7: a request that `GOAWAY` or `REFUSED_STREAM` says is not processed.
#[tokio::test]
async fn what_was_not_processed_is_sent_again_without_a_word() {
    let Some(server) = Certificate::make() else { return };
    let taken = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&taken);
    let url = serve(server.acceptor(None), move |_, mut connection: Connection| {
        let taken = Arc::clone(&count);
        async move {
            let mut here = 0;
            while let Some(Ok((_, mut respond))) = connection.accept().await {
                here += 1;
                if here % 3 == 0 {
                    respond.send_reset(h2::Reason::REFUSED_STREAM);
                    continue;
                }
                taken.fetch_add(1, Ordering::Relaxed);
                ok(respond);
                if here == 5 {
                    // As nginx does after a thousand.
                    connection.graceful_shutdown();
                }
            }
        }
    })
    .await;
    let bus = WebhookBus::open(&server.config(&url)).unwrap();
    let events: Vec<_> = (0..60).map(event).collect();
    for call in events.chunks(4) {
        let results = bus.publish(call).await;
        assert!(results.iter().all(Result::is_ok), "{results:?}");
    }
    assert_eq!(taken.load(Ordering::Relaxed), events.len());
}
