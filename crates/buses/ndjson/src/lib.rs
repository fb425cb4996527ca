//! One JSON object per line, on standard output or in a file.
//!
//! ```json
//! {"id":"…","type":"order.placed","key":"…","aggregate_id":"…","created_at":"2026-01-02T03:04:05Z","content_type":"application/json","data":{"total":42}}
//! ```
//!
//! `aggregate_type` and `headers` (an object) are there where the event has them. `data` is the
//! event's JSON as it was stored; bytes of another content type are in `data_base64` instead.
//!
//! A call writes all its lines in one write and counts them as acknowledged after that write, the
//! flush and, where the target is a regular file, one `fdatasync`. A write that failed may have
//! left part of a line behind: the next write begins on a line of its own. **A reader skips a
//! line that is not JSON**; every event of such a write is written again, whole.

mod line;
mod settings;
mod sink;
mod writer;

use std::collections::HashSet;
use std::io::Write;
use std::path::PathBuf;
use std::time::Duration;

use async_trait::async_trait;
use posthaste_core::{
    BusCapabilities, Error, ErrorKind, EventBus, KeyPipelining, OrderKey, OutboxEvent,
    PublishResult, Result,
};

pub use settings::{FILE, FileSettings, STDOUT, StdoutSettings};
use sink::Sink;
use writer::Writer;

/// What a bus on a file can do.
const CAPABILITIES: BusCapabilities = BusCapabilities {
    batch_events_max: 1_000,
    key_pipelining: KeyPipelining::SuffixFails,
    ..BusCapabilities::new("ndjson")
};

/// Where lines go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NdjsonTarget {
    /// The process's standard output. It must be nobody else's: keep logs on standard error.
    Stdout,
    /// A file that lines are appended to. Created where missing (its folder is not), with mode 0640 less
    /// what the umask takes away. It is opened
    /// again when it was moved away or deleted, so a log rotation that renames it is safe. A named
    /// pipe or a device may stand there instead; it is not synced.
    File(PathBuf),
}

/// Settings of an [`NdjsonBus`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NdjsonConfig {
    /// Where lines go.
    pub target: NdjsonTarget,
    /// The longest a call waits for its write and sync. Default 30 s: a pipe whose reader stands
    /// still must not hold the relay for ever. After it the outcome is unknown and the events are
    /// written again.
    pub write_timeout: Duration,
}

impl NdjsonConfig {
    /// Settings for `target`, defaults for the rest.
    #[must_use]
    pub const fn new(target: NdjsonTarget) -> Self {
        Self { target, write_timeout: Duration::from_secs(30) }
    }

    /// Checks the settings without touching the target.
    ///
    /// # Errors
    /// [`ErrorKind::Config`].
    pub fn validate(&self) -> Result<()> {
        let refuse = |why| Err(Error::new(ErrorKind::Config, "configure ndjson", why));
        match &self.target {
            NdjsonTarget::File(path) if path.as_os_str().is_empty() => {
                return refuse("the path is empty");
            }
            NdjsonTarget::File(path) if path.is_dir() => return refuse("the path is a folder"),
            NdjsonTarget::File(_) | NdjsonTarget::Stdout => {}
        }
        if self.write_timeout.is_zero() {
            return refuse("write_timeout must be above zero");
        }
        Ok(())
    }
}

/// Writes events as lines of JSON.
///
/// Lines are written in the order of the calls. An event that cannot be written as a line
/// (malformed JSON in the row) fails alone, but later events of its key in the same call fail with
/// it; a failed write fails the whole call.
///
/// Everything that concerns the target is `Unavailable`: a closed pipe
/// ([`ErrorKind::Unreachable`]), a full disk ([`ErrorKind::Throttled`]), a missing folder
/// ([`ErrorKind::DestinationMissing`]), missing rights ([`ErrorKind::Unauthorized`]).
#[derive(Debug)]
pub struct NdjsonBus {
    writer: Writer,
    durable: bool,
}

impl NdjsonBus {
    /// A bus on standard output.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn stdout() -> Result<Self> {
        Self::open(&NdjsonConfig::new(NdjsonTarget::Stdout))
    }

    /// A bus that appends to the file at `path`.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn file(path: impl Into<PathBuf>) -> Result<Self> {
        Self::open(&NdjsonConfig::new(NdjsonTarget::File(path.into())))
    }

    /// A bus from settings. The file is opened by the first write, or by
    /// [`check`](EventBus::check).
    ///
    /// # Errors
    /// [`ErrorKind::Config`] for a wrong setting, [`ErrorKind::Internal`] where the system gives no
    /// thread to write on.
    pub fn open(config: &NdjsonConfig) -> Result<Self> {
        config.validate()?;
        let sink = match &config.target {
            NdjsonTarget::Stdout => Sink::stdout(),
            NdjsonTarget::File(path) => Sink::file(path.clone()),
        };
        let durable = sink.is_durable();
        Ok(Self { writer: Writer::spawn(sink, config.write_timeout)?, durable })
    }

    /// A bus on any writer, a pipe for one. Flushed, never synced: its events are as durable as
    /// the writer makes them.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn to_writer(output: impl Write + Send + 'static) -> Result<Self> {
        let config = NdjsonConfig::new(NdjsonTarget::Stdout);
        let writer = Writer::spawn(Sink::writer(Box::new(output)), config.write_timeout)?;
        Ok(Self { writer, durable: false })
    }
}

#[async_trait]
impl EventBus for NdjsonBus {
    fn capabilities(&self) -> BusCapabilities {
        BusCapabilities { durable: self.durable, ..CAPABILITIES }
    }

    async fn publish(&self, events: &[OutboxEvent]) -> Vec<PublishResult> {
        let (lines, mut results) = encode(events);
        if lines.is_empty() {
            return results;
        }
        if let Err(failure) = self.writer.write(lines).await {
            for result in results.iter_mut().filter(|result| result.is_ok()) {
                *result = Err(failure.error());
            }
        }
        results
    }

    async fn check(&self) -> Result<()> {
        // Nothing to write: opens the target and no more.
        self.writer.write(Vec::new()).await.map_err(|failure| failure.error())
    }
}

/// All lines, and what became of each event so far.
fn encode(events: &[OutboxEvent]) -> (Vec<u8>, Vec<PublishResult>) {
    let mut lines = Vec::with_capacity(events.len() * 512);
    // Only a suffix of a key may fail in one call: later events of a refused one must not pass it.
    let mut refused: HashSet<&OrderKey> = HashSet::new();
    let results = events
        .iter()
        .map(|event| {
            if refused.contains(event.order_key()) {
                return Err(Error::new(
                    ErrorKind::Failed,
                    "publish",
                    "not written: an earlier event of its key was refused",
                ));
            }
            let start = lines.len();
            line::push(&mut lines, event).inspect_err(|_| {
                lines.truncate(start);
                refused.insert(event.order_key());
            })
        })
        .collect();
    (lines, results)
}
