//! Publishing to JetStream by hand: the client calls of the NATS bus, and nothing around them.

use std::collections::VecDeque;
use std::future::IntoFuture as _;
use std::pin::Pin;

use anyhow::{Context as _, Result};
use async_nats::header::HeaderMap;
use async_nats::jetstream::context::{ContextBuilder, PublishAckFuture, PublishError};
use async_nats::jetstream::message::PublishMessage;
use async_nats::jetstream::publish::PublishAck;
use async_nats::jetstream::{self, stream};
use bytes::Bytes;
use jiff::Timestamp;
use uuid::Uuid;

use crate::bed::Bed;
use crate::workload::EVENT_TYPE;

type Answer = Pin<Box<dyn Future<Output = Result<PublishAck, PublishError>> + Send>>;

/// A stream of one run.
pub(crate) struct Stream {
    pub(crate) url: String,
    pub(crate) name: String,
    pub(crate) jetstream: jetstream::Context,
}

/// What is sent of an event.
pub(crate) struct Message {
    pub(crate) id: Uuid,
    pub(crate) key: Uuid,
    pub(crate) event_type: String,
    pub(crate) created_at: Timestamp,
    pub(crate) body: Bytes,
}

impl Stream {
    pub(crate) async fn create(bed: &Bed) -> Result<Self> {
        let url = bed.nats.url();
        let client = async_nats::connect(&url).await.context("connect to NATS")?;
        // Its own limit only has to be out of the way.
        let jetstream = ContextBuilder::new().max_ack_inflight(1 << 20).build(client);
        let name = format!("BENCH_{}", Uuid::now_v7().simple());
        let config = stream::Config {
            name: name.clone(),
            subjects: vec![format!("{name}.>")],
            ..Default::default()
        };
        jetstream.create_stream(config).await.context("create a stream")?;
        Ok(Self { url, name, jetstream })
    }

    /// Where the relay is told to publish.
    pub(crate) fn subject(&self) -> String {
        format!("{}.{{event_type}}", self.name)
    }

    pub(crate) async fn messages(&self) -> Result<u64> {
        Ok(self.jetstream.get_stream(&self.name).await?.cached_info().state.messages)
    }

    pub(crate) async fn delete(self) -> Result<()> {
        self.jetstream.delete_stream(&self.name).await?;
        Ok(())
    }

    /// The acknowledgement that is to come, after the message was handed to the client.
    pub(crate) async fn send(&self, message: Message) -> Result<PublishAckFuture> {
        // The headers of the NATS bus in its default envelope.
        let id = message.id.to_string();
        let key = message.key.to_string();
        let mut headers = HeaderMap::new();
        headers.insert(async_nats::header::NATS_MESSAGE_ID, id.as_str());
        headers.insert(async_nats::header::NATS_EXPECTED_STREAM, self.name.as_str());
        headers.insert("ph-id", id.as_str());
        headers.insert("ph-type", message.event_type.as_str());
        headers.insert("ph-key", key.as_str());
        headers.insert("ph-aggregate-id", key.as_str());
        headers.insert("ph-created-at", message.created_at.to_string().as_str());
        headers.insert("content-type", "application/json");
        let subject = format!("{}.{EVENT_TYPE}", self.name);
        let message = PublishMessage::build().payload(message.body).headers(headers);
        Ok(self.jetstream.send_publish(subject, message).await?)
    }
}

/// Publishes with at most `window` events unacknowledged; hands on what each event came with, in
/// order, once it is acknowledged.
pub(crate) struct Window<'s, T> {
    stream: &'s Stream,
    window: usize,
    waiting: VecDeque<(T, Answer)>,
}

impl<'s, T> Window<'s, T> {
    pub(crate) fn new(stream: &'s Stream, window: usize) -> Self {
        Self { stream, window, waiting: VecDeque::with_capacity(window) }
    }

    /// Sends one, and waits for the oldest where the window is full.
    pub(crate) async fn send(&mut self, token: T, message: Message) -> Result<Option<T>> {
        let acknowledged =
            if self.waiting.len() >= self.window { self.oldest().await? } else { None };
        let answer = self.stream.send(message).await?;
        self.waiting.push_back((token, Box::pin(answer.into_future())));
        Ok(acknowledged)
    }

    /// Waits for the oldest; `None` where nothing waits.
    pub(crate) async fn oldest(&mut self) -> Result<Option<T>> {
        let Some((token, answer)) = self.waiting.pop_front() else { return Ok(None) };
        answer.await.context("JetStream refused an event")?;
        Ok(Some(token))
    }
}
