//! Every bus passes the suite of buses.
#![cfg(all(feature = "ndjson", feature = "nats", feature = "webhook"))]
// Helpers are test code too; clippy only knows the test functions.
#![allow(clippy::unwrap_used)]

mod support;

use std::collections::BTreeMap;

use anyhow::{Context as _, Result};
use async_trait::async_trait;
use bytes::Bytes;
use posthaste_testkit::{BusHarness, Received, bus_suite, servers};

/// Reads a plain envelope back.
fn from_headers(body: Bytes, headers: impl Iterator<Item = (String, String)>) -> Result<Received> {
    let headers: BTreeMap<_, _> = headers.map(|(name, value)| (name, decoded(value))).collect();
    let get = |name: &str| headers.get(name).cloned().context(format!("no {name} header"));
    Ok(Received {
        id: get("ph-id")?.parse()?,
        key: get("ph-key")?,
        event_type: get("ph-type")?,
        content_type: get("content-type")?,
        body,
        headers,
    })
}

/// A header's value as it was written: what is not ASCII is percent-encoded, and ASCII is as it is.
fn decoded(value: String) -> String {
    assert!(value.is_ascii(), "{value}");
    let decoded = percent_encoding::percent_decode_str(&value).decode_utf8().ok();
    match decoded.filter(|decoded| !decoded.is_ascii()) {
        Some(decoded) => decoded.into_owned(),
        None => value,
    }
}

mod ndjson {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use base64::Engine as _;
    use base64::engine::general_purpose::STANDARD;
    use posthaste_buses::ndjson::NdjsonBus;
    use serde::Deserialize;
    use serde_json::value::RawValue;

    use super::*;

    struct Files {
        folder: tempfile::TempDir,
        opened: AtomicUsize,
    }

    #[derive(Deserialize)]
    struct Line {
        id: uuid::Uuid,
        #[serde(rename = "type")]
        event_type: String,
        key: String,
        content_type: String,
        #[serde(default)]
        headers: BTreeMap<String, String>,
        data: Option<Box<RawValue>>,
        data_base64: Option<String>,
    }

    impl Files {
        fn path(&self) -> std::path::PathBuf {
            let number = self.opened.load(Ordering::Relaxed);
            self.folder.path().join(format!("{number}.ndjson"))
        }
    }

    fn read(line: &str) -> Result<Received> {
        let line: Line = serde_json::from_str(line)?;
        let body = match (line.data, line.data_base64) {
            (Some(data), None) => Bytes::from(data.get().to_owned()),
            (None, Some(data)) => Bytes::from(STANDARD.decode(data)?),
            _ => anyhow::bail!("neither data nor data_base64, or both"),
        };
        Ok(Received {
            id: line.id,
            key: line.key,
            event_type: line.event_type,
            content_type: line.content_type,
            headers: line.headers,
            body,
        })
    }

    #[async_trait]
    impl BusHarness for Files {
        type Bus = NdjsonBus;

        async fn fresh(&self) -> Result<NdjsonBus> {
            self.opened.fetch_add(1, Ordering::Relaxed);
            Ok(NdjsonBus::file(self.path())?)
        }

        async fn received(&self, _bus: &NdjsonBus) -> Result<Vec<Received>> {
            let text = match std::fs::read_to_string(self.path()) {
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => String::new(),
                text => text?,
            };
            text.lines().map(read).collect()
        }

        async fn unreachable(&self) -> Result<Option<NdjsonBus>> {
            Ok(Some(NdjsonBus::file(self.folder.path().join("missing").join("file"))?))
        }
    }

    #[tokio::test]
    async fn ndjson_conforms() {
        let folder = tempfile::tempdir().unwrap();
        let harness = Files { folder, opened: AtomicUsize::new(0) };
        bus_suite(&harness).await.assert_passed();
    }
}

mod nats {
    use std::sync::Mutex;

    use async_nats::jetstream::{self, consumer};
    use futures_util::StreamExt as _;
    use posthaste_buses::nats::{NatsBus, NatsConfig};
    use posthaste_core::OutboxEvent;
    use uuid::Uuid;

    use super::*;

    struct Streams {
        url: String,
        takes_batches: bool,
        context: jetstream::Context,
        created: Mutex<Vec<String>>,
    }

    #[async_trait]
    impl BusHarness for Streams {
        type Bus = NatsBus;

        async fn fresh(&self) -> Result<NatsBus> {
            let name = format!("ph_{}", Uuid::now_v7().simple());
            let subjects = format!("{name}.>");
            let mut stream = support::stream_config(&name, &[&subjects]);
            stream.allow_batch_publish = self.takes_batches;
            self.context.create_stream(stream).await?;
            self.created.lock().unwrap().push(name.clone());
            let config = NatsConfig {
                stream: Some(name.clone()),
                ..NatsConfig::new(&self.url, format!("{name}.{{event_type}}"))
            };
            Ok(NatsBus::connect(config).await?)
        }

        async fn received(&self, _bus: &NatsBus) -> Result<Vec<Received>> {
            let name = self.created.lock().unwrap().last().cloned().context("no stream yet")?;
            let mut stream = self.context.get_stream(&name).await?;
            let count = usize::try_from(stream.info().await?.state.messages)?;
            let config = consumer::pull::OrderedConfig::default();
            let messages = stream.create_consumer(config).await?.messages().await?;
            let messages: Vec<_> = messages.take(count).collect().await;
            let read = |message: Result<jetstream::Message, _>| {
                let message = message.map_err(|_| anyhow::anyhow!("the consumer broke"))?;
                let headers = message.headers.clone().unwrap_or_default();
                let headers = headers.iter().map(|(name, values)| {
                    (name.to_string(), values.first().map(ToString::to_string).unwrap_or_default())
                });
                from_headers(message.payload.clone(), headers)
            };
            messages.into_iter().map(read).collect()
        }

        fn oversized_event(&self) -> Option<OutboxEvent> {
            Some(support::bytes_event(2_000_000))
        }

        async fn unreachable(&self) -> Result<Option<NatsBus>> {
            let url = format!("nats://127.0.0.1:{}", servers::free_port());
            Ok(Some(NatsBus::connect(NatsConfig::new(url, "events")).await?))
        }
    }

    #[tokio::test]
    async fn nats_conforms() {
        let Some(url) = servers::shared_nats().await else { return };
        conforms(url, false).await;
    }

    #[tokio::test]
    async fn nats_conforms_on_streams_that_take_batches() {
        let Some(server) = servers::NatsServer::start_recent("").await else { return };
        conforms(server.url(), true).await;
    }

    async fn conforms(url: String, takes_batches: bool) {
        let context = jetstream::new(async_nats::connect(&url).await.unwrap());
        let harness = Streams { url, takes_batches, context, created: Mutex::default() };
        let report = bus_suite(&harness).await;
        let created = harness.created.into_inner().unwrap();
        for name in created {
            harness.context.delete_stream(&name).await.unwrap();
        }
        report.assert_passed();
    }
}

mod webhook {
    use std::sync::Mutex;

    use posthaste_buses::EnvelopeFormat;
    use posthaste_buses::webhook::{WebhookBus, WebhookConfig};
    use posthaste_core::OutboxEvent;
    use wiremock::matchers::any;
    use wiremock::{Mock, MockServer, Request, ResponseTemplate};

    use super::*;

    /// What the test's endpoint takes.
    const BODY_BYTES_MAX: usize = 100_000;

    struct Endpoints(Mutex<Option<MockServer>>);

    fn config(url: String) -> WebhookConfig {
        WebhookConfig {
            envelope: EnvelopeFormat::Plain,
            allow_private_addresses: true,
            ..WebhookConfig::new(url)
        }
    }

    #[async_trait]
    impl BusHarness for Endpoints {
        type Bus = WebhookBus;

        async fn fresh(&self) -> Result<WebhookBus> {
            let server = MockServer::start().await;
            let answer = |request: &Request| {
                let too_large = request.body.len() > BODY_BYTES_MAX;
                ResponseTemplate::new(if too_large { 413 } else { 200 })
            };
            Mock::given(any()).respond_with(answer).mount(&server).await;
            let bus = WebhookBus::open(&config(server.uri()))?;
            *self.0.lock().unwrap() = Some(server);
            Ok(bus)
        }

        async fn received(&self, _bus: &WebhookBus) -> Result<Vec<Received>> {
            let server = self.0.lock().unwrap().take().context("no server yet")?;
            let requests = server.received_requests().await.context("nothing recorded")?;
            *self.0.lock().unwrap() = Some(server);
            let taken = |request: &Request| {
                request.method.as_str() == "POST" && request.body.len() <= BODY_BYTES_MAX
            };
            let read = |request: Request| {
                let headers = request.headers.iter().map(|(name, value)| {
                    (name.to_string(), String::from_utf8_lossy(value.as_bytes()).into_owned())
                });
                from_headers(request.body.clone().into(), headers)
            };
            requests.into_iter().filter(taken).map(read).collect()
        }

        fn oversized_event(&self) -> Option<OutboxEvent> {
            Some(support::bytes_event(BODY_BYTES_MAX + 1))
        }

        async fn unreachable(&self) -> Result<Option<WebhookBus>> {
            let url = format!("http://127.0.0.1:{}/", servers::free_port());
            Ok(Some(WebhookBus::open(&config(url))?))
        }
    }

    #[tokio::test]
    async fn webhook_conforms() {
        bus_suite(&Endpoints(Mutex::default())).await.assert_passed();
    }
}
