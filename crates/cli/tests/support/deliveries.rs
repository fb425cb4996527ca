//! What arrived, as a consumer sees it.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::time::{Duration, SystemTime};

use async_nats::jetstream::{self, consumer};
use futures_util::StreamExt as _;
use uuid::Uuid;

use super::Stream;

/// One message of a stream. Small, since a test may hold a million of them.
pub(crate) struct Delivery {
    pub(crate) id: Uuid,
    pub(crate) key: u64,
    /// The number its writer gave it within its key; 0 where there is none.
    pub(crate) number: i64,
    /// Of everything that a repeated delivery must not change.
    pub(crate) fingerprint: u64,
    /// When the broker stored it.
    pub(crate) stored_at: SystemTime,
}

/// All messages of a stream, in its order.
pub(crate) async fn read_back(stream: &Stream) -> Vec<Delivery> {
    let messages = raw_messages(stream).await;
    messages.iter().map(Delivery::read).collect()
}

/// The messages themselves.
pub(crate) async fn raw_messages(stream: &Stream) -> Vec<jetstream::Message> {
    let stream = stream.jetstream().await.get_stream(&stream.name).await.unwrap();
    let expected = usize::try_from(stream.cached_info().state.messages).unwrap();
    let mut found = Vec::with_capacity(expected);
    if expected == 0 {
        return found;
    }
    let config = consumer::pull::OrderedConfig::default();
    let mut messages = stream.create_consumer(config).await.unwrap().messages().await.unwrap();
    while found.len() < expected {
        found.push(messages.next().await.unwrap().unwrap());
    }
    found
}

impl Delivery {
    fn read(message: &jetstream::Message) -> Self {
        let headers = message.headers.as_ref().expect("headers");
        let header = |name: &str| headers.get(name).expect(name).as_str();
        let parsed: Option<serde_json::Value> = serde_json::from_slice(&message.payload).ok();
        let number = parsed.and_then(|body| body["number"].as_i64()).unwrap_or(0);
        let key = fingerprint(&[header("ph-key").as_bytes()]);
        let same =
            ["ph-id", "ph-key", "ph-type", "Nats-Msg-Id"].map(|name| header(name).as_bytes());
        let [id, key_bytes, event_type, message_id] = same;
        let nanos = message.info().unwrap().published.unix_timestamp_nanos();
        Self {
            id: header("ph-id").parse().unwrap(),
            key,
            number,
            fingerprint: fingerprint(&[id, key_bytes, event_type, message_id, &message.payload]),
            stored_at: SystemTime::UNIX_EPOCH + Duration::from_nanos(u64::try_from(nanos).unwrap()),
        }
    }
}

fn fingerprint(parts: &[&[u8]]) -> u64 {
    let mut hasher = DefaultHasher::new();
    parts.hash(&mut hasher);
    hasher.finish()
}
