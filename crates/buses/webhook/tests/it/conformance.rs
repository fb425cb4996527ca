//! The webhook bus passes the suite of buses.

use std::sync::Mutex;

use anyhow::{Context as _, Result};
use async_trait::async_trait;
use posthaste_bus_kit::EnvelopeFormat;
use posthaste_core::OutboxEvent;
use posthaste_testkit::{BusHarness, Received, bus_suite, servers};
use posthaste_webhook::{WebhookBus, WebhookConfig};
use wiremock::matchers::any;
use wiremock::{Mock, MockServer, Request, ResponseTemplate};

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
            Received::from_plain(request.body.clone().into(), headers)
        };
        requests.into_iter().filter(taken).map(read).collect()
    }

    fn oversized_event(&self) -> Option<OutboxEvent> {
        Some(posthaste_testkit::events::bytes_event(BODY_BYTES_MAX + 1))
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
