//! How several events of a key may be on their way at once, as far as the stream allows it.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use async_nats::jetstream::stream;
use serde::Deserialize;
use serde::de::IgnoredAny;
use tokio::time::{Instant, timeout_at};

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
        match timeout_at(by, find(connection, stream)).await {
            Ok(Some(pipelining)) => self.set(number, pipelining),
            // Publishing will say what is wrong.
            _ => *self.lock() = None,
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

/// `None` where the server does not answer.
async fn find(connection: &Connection, stream: &str) -> Option<Pipelining> {
    let stream = connection.jetstream.get_stream(stream).await.ok()?;
    let config = &stream.cached_info().config;
    if config.allow_batch_publish {
        return Some(Pipelining::Batches);
    }
    if config.num_replicas > 1 {
        return Some(Pipelining::OnePerKey);
    }
    // A relay may lack the right to ask. Then it cannot know.
    let is_unlimited = match connection.jetstream.request::<_, _, Account>("INFO", &()).await {
        Ok(Account { limits, tiers }) => {
            let limit = match config.storage {
                stream::StorageType::File => limits.max_storage,
                stream::StorageType::Memory => limits.max_memory,
            };
            tiers.is_empty() && limit < 0
        }
        Err(_) => false,
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

/// In bytes; below zero for none.
#[derive(Deserialize)]
struct Limits {
    max_memory: i64,
    max_storage: i64,
}
