//! Publishing to JetStream by hand: the client calls of the NATS bus, and nothing around them. The
//! rivals of `crates/bench/rivals` publish with this file, too.

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
use futures_util::StreamExt as _;
use jiff::Timestamp;
use uuid::Uuid;

/// Events of a page, of a batch, and of a statement that completes.
pub(crate) const PAGE_EVENTS: usize = 1_000;

type Answer = Pin<Box<dyn Future<Output = Result<PublishAck, PublishError>> + Send>>;
type BatchAnswer = Pin<Box<dyn Future<Output = Result<()>> + Send>>;

/// A stream of one run.
pub(crate) struct Stream {
    pub(crate) url: String,
    pub(crate) name: String,
    pub(crate) takes_batches: bool,
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
    /// A new one, on the server at `url`.
    pub(crate) async fn create(url: String, takes_batches: bool) -> Result<Self> {
        let name = format!("BENCH_{}", Uuid::now_v7().simple());
        let stream = Self::open(url, name, takes_batches).await?;
        let config = stream::Config {
            name: stream.name.clone(),
            subjects: vec![format!("{}.>", stream.name)],
            allow_batch_publish: takes_batches,
            ..Default::default()
        };
        stream.jetstream.create_stream(config).await.context("create a stream")?;
        Ok(stream)
    }

    /// One that is there, by a connection of its own.
    pub(crate) async fn open(url: String, name: String, takes_batches: bool) -> Result<Self> {
        let client = async_nats::connect(&url).await.context("connect to NATS")?;
        // Its own limit only has to be out of the way.
        let jetstream = ContextBuilder::new().max_ack_inflight(1 << 20).build(client);
        Ok(Self { url, name, takes_batches, jetstream })
    }

    /// The same, by a connection of its own.
    pub(crate) async fn again(&self) -> Result<Self> {
        Self::open(self.url.clone(), self.name.clone(), self.takes_batches).await
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
        let (subject, headers, body) = self.parts(message);
        let message = PublishMessage::build().payload(body).headers(headers);
        Ok(self.jetstream.send_publish(subject, message).await?)
    }

    /// Sends a fast-ingest batch; the answer that is to come says that all are stored.
    async fn send_batch(
        &self,
        messages: Vec<Message>,
    ) -> Result<impl Future<Output = Result<()>> + Send + use<>> {
        let client = self.jetstream.client();
        let inbox = client.new_inbox();
        let mut answers = client.subscribe(format!("{inbox}.>")).await?;
        let last = messages.len();
        for (position, message) in (1..).zip(messages) {
            // 2 ends the batch, 0 begins it.
            let operation = if position == last { 2 } else { u8::from(position != 1) };
            let reply = format!("{inbox}.1000.fail.{position}.{operation}.$FI");
            let (subject, headers, body) = self.parts(message);
            client.publish_with_reply_and_headers(subject, reply, headers, body).await?;
        }
        Ok(async move {
            #[derive(serde::Deserialize)]
            struct Last {
                count: usize,
            }
            while let Some(answer) = answers.next().await {
                if let Ok(Last { count }) = serde_json::from_slice(&answer.payload) {
                    anyhow::ensure!(count == last, "{count} of a batch of {last} are stored");
                    return Ok(());
                }
            }
            anyhow::bail!("the connection broke")
        })
    }

    fn parts(&self, message: Message) -> (String, HeaderMap, Bytes) {
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
        let subject = format!("{}.{}", self.name, message.event_type);
        (subject, headers, message.body)
    }
}

/// Publishes with at most `window` events unacknowledged, or two batches where the stream takes them;
/// hands on what each event came with, in order, once it is acknowledged.
pub(crate) struct Window<'s, T> {
    stream: &'s Stream,
    window: usize,
    waiting: VecDeque<(T, Answer)>,
    batch: Vec<(T, Message)>,
    batches: VecDeque<(Vec<T>, BatchAnswer)>,
}

impl<'s, T> Window<'s, T> {
    pub(crate) fn new(stream: &'s Stream, window: usize) -> Self {
        Self {
            stream,
            window,
            waiting: VecDeque::with_capacity(window),
            batch: Vec::new(),
            batches: VecDeque::new(),
        }
    }

    /// Sends one, and waits for the oldest where the window is full.
    pub(crate) async fn send(&mut self, token: T, message: Message) -> Result<Vec<T>> {
        if self.stream.takes_batches {
            self.batch.push((token, message));
            let is_full = self.batch.len() == PAGE_EVENTS;
            return if is_full { self.send_batch().await } else { Ok(Vec::new()) };
        }
        let acknowledged =
            if self.waiting.len() >= self.window { self.oldest().await? } else { Vec::new() };
        let answer = self.stream.send(message).await?;
        self.waiting.push_back((token, Box::pin(answer.into_future())));
        Ok(acknowledged)
    }

    async fn send_batch(&mut self) -> Result<Vec<T>> {
        let (tokens, messages) = std::mem::take(&mut self.batch).into_iter().unzip();
        let answer = self.stream.send_batch(messages).await?;
        self.batches.push_back((tokens, Box::pin(answer)));
        if self.batches.len() > 1 { self.oldest().await } else { Ok(Vec::new()) }
    }

    /// Waits for the oldest; nothing where nothing waits.
    async fn oldest(&mut self) -> Result<Vec<T>> {
        if let Some((tokens, answer)) = self.batches.pop_front() {
            answer.await?;
            return Ok(tokens);
        }
        let Some((token, answer)) = self.waiting.pop_front() else { return Ok(Vec::new()) };
        answer.await.context("JetStream refused an event")?;
        Ok(vec![token])
    }

    /// Waits for all.
    pub(crate) async fn rest(mut self) -> Result<Vec<T>> {
        let mut done = Vec::new();
        if !self.batch.is_empty() {
            done.extend(self.send_batch().await?);
        }
        while !(self.waiting.is_empty() && self.batches.is_empty()) {
            done.extend(self.oldest().await?);
        }
        Ok(done)
    }
}
