//! Streams, on whatever NATS server.

use std::time::{Duration, Instant};

use async_nats::jetstream::{self, stream};
use uuid::Uuid;

/// A stream of one test's own, deleted at the end.
pub(crate) struct Stream {
    pub(crate) url: String,
    pub(crate) name: String,
}

impl Stream {
    /// A name; the stream is yet to be made.
    pub(crate) fn named(url: &str) -> Self {
        let name = format!("PROMISES_{}", Uuid::now_v7().simple());
        Self { url: url.to_owned(), name }
    }

    /// A stream that drops what it has seen already, as JetStream's streams do.
    pub(crate) async fn create(url: &str) -> Self {
        let stream = Self::named(url);
        stream.make(stream::Config::default()).await;
        stream
    }

    /// A stream that keeps repeated deliveries, so that they can be counted: a tenth of a second
    /// is the shortest memory a stream can have. Whoever restarts a relay must wait longer.
    pub(crate) async fn create_forgetful(url: &str) -> Self {
        let stream = Self::named(url);
        let duplicate_window = Duration::from_millis(100);
        // Only recent servers know batches; the others pass over it.
        let allow_batch_publish = true;
        let config = stream::Config { duplicate_window, allow_batch_publish, ..Default::default() };
        stream.make(config).await;
        stream
    }

    pub(crate) async fn make(&self, config: stream::Config) {
        let name = self.name.clone();
        let subjects = vec![format!("{name}.>")];
        let config = stream::Config { name, subjects, ..config };
        self.jetstream().await.create_stream(config).await.unwrap();
    }

    /// Where the relay sends events.
    pub(crate) fn subject(&self) -> String {
        format!("{}.{{event_type}}", self.name)
    }

    pub(crate) async fn jetstream(&self) -> jetstream::Context {
        jetstream::new(connect(&self.url).await.unwrap())
    }

    /// How many messages it holds. For a loop, take the context once.
    pub(crate) async fn messages(&self, jetstream: &jetstream::Context) -> u64 {
        let begun = Instant::now();
        loop {
            match jetstream.get_stream(&self.name).await {
                Ok(stream) => return stream.cached_info().state.messages,
                // Servers of a cluster may be electing a leader.
                Err(error) => assert!(begun.elapsed() < Duration::from_secs(30), "{error}"),
            }
        }
    }
}

/// To one server, or to one of several with commas between.
pub(crate) async fn connect(url: &str) -> Result<async_nats::Client, async_nats::ConnectError> {
    async_nats::connect(&url.split(',').collect::<Vec<_>>()[..]).await
}

impl Drop for Stream {
    fn drop(&mut self) {
        let (url, name) = (self.url.clone(), self.name.clone());
        // A thread of its own: `drop` cannot wait within the test's runtime.
        let deleted = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.unwrap().block_on(async {
                if let Ok(client) = connect(&url).await {
                    let _ = jetstream::new(client).delete_stream(name).await;
                }
            });
        });
        let _ = deleted.join();
    }
}
