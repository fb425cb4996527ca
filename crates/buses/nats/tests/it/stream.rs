//! Streams of a test's own.

use async_nats::jetstream::{self, stream};
use posthaste_nats::{NatsBus, NatsConfig};
use posthaste_testkit::servers::shared_nats;
use uuid::Uuid;

/// A stream of the test's own on the shared server.
pub(crate) struct Stream {
    pub(crate) url: String,
    pub(crate) name: String,
    pub(crate) context: jetstream::Context,
}

impl Stream {
    pub(crate) async fn create(limits: stream::Config) -> Option<Self> {
        let url = shared_nats().await?;
        let client = async_nats::connect(&url).await.unwrap();
        let context = jetstream::new(client);
        let name = format!("ph_{}", Uuid::now_v7().simple());
        let subjects = vec![format!("{name}.>")];
        let config = stream::Config { name: name.clone(), subjects, ..limits };
        context.create_stream(config).await.unwrap();
        Some(Self { url, name, context })
    }

    pub(crate) fn config(&self) -> NatsConfig {
        NatsConfig {
            stream: Some(self.name.clone()),
            allow_topic: vec![">".into()],
            ..NatsConfig::new(&self.url, format!("{}.{{event_type}}", self.name))
        }
    }

    pub(crate) async fn bus(&self) -> NatsBus {
        NatsBus::connect(self.config()).await.unwrap()
    }

    pub(crate) async fn messages(&self) -> u64 {
        let mut stream = self.context.get_stream(&self.name).await.unwrap();
        stream.info().await.unwrap().state.messages
    }

    pub(crate) async fn message(
        &self,
        sequence: u64,
    ) -> async_nats::jetstream::message::StreamMessage {
        let stream = self.context.get_stream(&self.name).await.unwrap();
        stream.get_raw_message(sequence).await.unwrap()
    }

    pub(crate) async fn delete(self) {
        self.context.delete_stream(&self.name).await.unwrap();
    }
}
