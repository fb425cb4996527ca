//! How several events of a key may be on their way at once, as far as the stream allows it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_nats::jetstream::context::{GetStreamError, GetStreamErrorKind};
use async_nats::jetstream::stream;
use serde::Deserialize;
use serde::de::IgnoredAny;
use tokio::time::Instant;

use super::connection::Connection;

/// How often a stream is asked again whether it allows more: somebody may have changed that.
const ASK_FOR_MORE: Duration = Duration::from_secs(60);
/// How often a stream of which chains are stored is asked again: they are bad for it once it is
/// replicated.
const ASK_FOR_LESS: Duration = Duration::from_secs(10);
/// How often a stream that was not there is asked for again.
const ASK_FOR_MISSING: Duration = Duration::from_millis(200);

/// What keeps the events of a key in their order where one of them fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Pipelining {
    /// Fast-ingest batches (`fast_ingest.rs`).
    Batches,
    /// Each event names the one it must be stored behind (`chains.rs`).
    Chains,
    /// Only one is on its way.
    OnePerKey,
}

/// What is known of the configured stream.
#[derive(Debug, Default)]
pub(super) struct Knowledge(Mutex<Option<Known>>);

#[derive(Debug, Clone)]
pub(super) struct Known {
    pub(super) pipelining: Pipelining,
    /// What the stream stores; none where it is not there. `None` where nobody said.
    pub(super) filters: Option<Arc<[String]>>,
    /// The number of the connection; the next one may lead to another server.
    connection: u64,
    at: Instant,
}

impl Knowledge {
    /// What was found when last asked.
    pub(super) fn get(&self) -> Pipelining {
        self.lock().as_ref().map_or(Pipelining::OnePerKey, |known| known.pipelining)
    }

    /// Asks the server where it has to, or where the answer must not be older than `age_max`. `None`
    /// where there is no answer: publishing will say what is wrong.
    pub(super) async fn ask(
        &self,
        connection: &Connection,
        stream: &str,
        by: Instant,
        age_max: Duration,
    ) -> Option<Known> {
        let number = *connection.losses().borrow();
        let known = self.lock().clone().filter(|known| known.connection == number);
        if let Some(known) = known.filter(|known| known.is_current(age_max)) {
            return Some(known);
        }
        // Whatever comes of it, there must be time left to publish.
        let wait = by.saturating_duration_since(Instant::now()) / 4;
        let found = find(connection, stream, wait).await.map(|(pipelining, filters)| Known {
            pipelining,
            filters,
            connection: number,
            at: Instant::now(),
        });
        *self.lock() = found.clone();
        found
    }

    /// It did not do as was asked of it: one event of a key at a time for a while.
    pub(super) fn refused(&self, connection: &Connection) {
        let mut known = self.lock();
        let filters = known.take().and_then(|known| known.filters);
        *known = Some(Known {
            pipelining: Pipelining::OnePerKey,
            filters,
            connection: *connection.losses().borrow(),
            at: Instant::now(),
        });
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Option<Known>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Known {
    fn is_current(&self, age_max: Duration) -> bool {
        let age = self.at.elapsed();
        let is_missing = self.filters.as_ref().is_some_and(|filters| filters.is_empty());
        age < age_max
            && match self.pipelining {
                // Somebody will make it.
                _ if is_missing => age < ASK_FOR_MISSING,
                // The server says so where this is over.
                Pipelining::Batches => true,
                Pipelining::Chains => age < ASK_FOR_LESS,
                Pipelining::OnePerKey => age < ASK_FOR_MORE,
            }
    }
}

/// What is found: how to pipeline, and what the stream stores.
type Found = (Pipelining, Option<Arc<[String]>>);

/// `None` where there is no server. Nobody answers a relay that lacks the right to ask: it cannot know,
/// and should not ask again soon.
async fn find(connection: &Connection, stream: &str, wait: Duration) -> Option<Found> {
    let question = connection.jetstream.get_stream(stream);
    let Some(found) = connection.answer(&info_subject(stream), wait, question).await else {
        return Some((Pipelining::OnePerKey, None));
    };
    let stream = match found {
        Ok(stream) => stream,
        Err(error) if is_not_found(&error) => {
            return Some((Pipelining::OnePerKey, Some(Arc::new([]))));
        }
        Err(_) => return None,
    };
    let info = stream.cached_info();
    let filters = info.config.subjects.clone().into();
    Some((of_stream(connection, info, wait).await, Some(filters)))
}

/// Where the server is asked about a stream.
pub(super) fn info_subject(stream: &str) -> String {
    format!("$JS.API.STREAM.INFO.{stream}")
}

/// Whether the server's list has no such stream.
pub(super) fn is_not_found(error: &GetStreamError) -> bool {
    matches!(error.kind(), GetStreamErrorKind::JetStream(answer) if answer.code() == 404)
}

async fn of_stream(connection: &Connection, info: &stream::Info, wait: Duration) -> Pipelining {
    let stream::Info { config, cluster, .. } = info;
    if config.allow_batch_publish {
        return Pipelining::Batches;
    }
    // A stream that is moved has other replicas for a while.
    let is_moved = cluster.as_ref().is_some_and(|cluster| !cluster.replicas.is_empty());
    if config.num_replicas > 1 || is_moved {
        return Pipelining::OnePerKey;
    }
    let account = connection.jetstream.request::<_, _, Account>("INFO", &());
    let is_unlimited = match connection.answer("$JS.API.INFO", wait, account).await {
        Some(Ok(account)) => account.is_unlimited(config.storage),
        Some(Err(_)) | None => false,
    };
    if is_unlimited { Pipelining::Chains } else { Pipelining::OnePerKey }
}

/// What is needed of the server's answer. The client's own type asks for what old servers do not say.
#[derive(Deserialize)]
struct Account {
    limits: Limits,
    #[serde(default)]
    tiers: HashMap<String, IgnoredAny>,
}

/// In bytes.
#[derive(Deserialize)]
struct Limits {
    /// Of all streams; below zero for none.
    max_memory: i64,
    max_storage: i64,
    /// Of one stream, and yet compared with what all take; zero or below for none.
    #[serde(default)]
    memory_max_stream_bytes: i64,
    #[serde(default)]
    storage_max_stream_bytes: i64,
}

impl Account {
    /// Whether no event is ever refused for what the account holds.
    fn is_unlimited(&self, storage: stream::StorageType) -> bool {
        let limits = &self.limits;
        let (all, one) = match storage {
            stream::StorageType::File => (limits.max_storage, limits.storage_max_stream_bytes),
            stream::StorageType::Memory => (limits.max_memory, limits.memory_max_stream_bytes),
        };
        self.tiers.is_empty() && all < 0 && one <= 0
    }
}
