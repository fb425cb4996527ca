//! The NATS bus passes the suite of buses.

use std::sync::Mutex;

use anyhow::{Context as _, Result};
use async_nats::jetstream::{self, consumer};
use async_trait::async_trait;
use futures_util::StreamExt as _;
use posthaste_core::OutboxEvent;
use posthaste_nats::{NatsBus, NatsConfig};
use posthaste_testkit::{BusHarness, Received, bus_suite, servers};
use uuid::Uuid;

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
        let mut stream = crate::support::stream_config(&name, &[&subjects]);
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
            Received::from_plain(message.payload.clone(), headers)
        };
        messages.into_iter().map(read).collect()
    }

    fn oversized_event(&self) -> Option<OutboxEvent> {
        Some(crate::support::bytes_event(2_000_000))
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
