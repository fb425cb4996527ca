//! How several events of a key may be on their way at once, as far as the stream allows it.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use async_nats::jetstream::stream;
use serde::Deserialize;
use serde::de::IgnoredAny;
use tokio::time::{Instant, timeout};

use super::connection::Connection;

/// How often a stream is asked again whether it allows more: somebody may have changed that.
const ASK_FOR_MORE: Duration = Duration::from_secs(60);
/// How often a stream of which chains are stored is asked again: they are bad for it once it is
/// replicated.
const ASK_FOR_LESS: Duration = Duration::from_secs(10);

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

#[derive(Debug, Clone, Copy)]
struct Known {
    pipelining: Pipelining,
    /// The number of the connection; the next one may lead to another server.
    connection: u64,
    at: Instant,
}

impl Knowledge {
    /// What was found when last asked.
    pub(super) fn get(&self) -> Pipelining {
        self.known().map_or(Pipelining::OnePerKey, |known| known.pipelining)
    }

    /// Asks the server where it has to.
    pub(super) async fn ask(
        &self,
        connection: &Connection,
        stream: &str,
        by: Instant,
    ) -> Pipelining {
        let number = *connection.losses().borrow();
        if let Some(Known { pipelining, connection, at }) = self.known()
            && connection == number
        {
            let is_current = match pipelining {
                // The server says so where this is over.
                Pipelining::Batches => true,
                Pipelining::Chains => at.elapsed() < ASK_FOR_LESS,
                Pipelining::OnePerKey => at.elapsed() < ASK_FOR_MORE,
            };
            if is_current {
                return pipelining;
            }
        }
        // Whatever comes of it, there must be time left to publish.
        let wait = by.saturating_duration_since(Instant::now()) / 4;
        match find(connection, stream, wait).await {
            Some(pipelining) => self.set(number, pipelining),
            // Publishing will say what is wrong.
            None => *self.lock() = None,
        }
        self.get()
    }

    /// It did not do as was asked of it: one event of a key at a time for a while.
    pub(super) fn refused(&self, connection: &Connection) {
        self.set(*connection.losses().borrow(), Pipelining::OnePerKey);
    }

    fn set(&self, connection: u64, pipelining: Pipelining) {
        *self.lock() = Some(Known { pipelining, connection, at: Instant::now() });
    }

    fn known(&self) -> Option<Known> {
        *self.lock()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Option<Known>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// `None` where there is no such stream, or no server. Nobody answers a relay that lacks the right to
/// ask: it cannot know, and should not ask again soon.
async fn find(connection: &Connection, stream: &str, wait: Duration) -> Option<Pipelining> {
    let Ok(found) = timeout(wait, connection.jetstream.get_stream(stream)).await else {
        return Some(Pipelining::OnePerKey);
    };
    let stream = found.ok()?;
    let stream::Info { config, cluster, .. } = stream.cached_info();
    if config.allow_batch_publish {
        return Some(Pipelining::Batches);
    }
    // A stream that is moved has other replicas for a while.
    let is_moved = cluster.as_ref().is_some_and(|cluster| !cluster.replicas.is_empty());
    if config.num_replicas > 1 || is_moved {
        return Some(Pipelining::OnePerKey);
    }
    let account = connection.jetstream.request::<_, _, Account>("INFO", &());
    let is_unlimited = match timeout(wait, account).await {
        Ok(Ok(account)) => account.is_unlimited(config.storage),
        Ok(Err(_)) | Err(_) => false,
    };
    Some(if is_unlimited { Pipelining::Chains } else { Pipelining::OnePerKey })
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
