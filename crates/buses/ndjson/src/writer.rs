//! The thread that writes: blocking I/O never runs on the async threads.

use std::fmt;
use std::io;
use std::time::Duration;

use posthaste_core::{Error, ErrorKind, Result, Subject};
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;

use super::sink::Sink;

/// Hands lines to a thread of its own, in order. The thread ends when this is dropped.
///
/// A thread, not a blocking task: a write stuck in a pipe must not keep the runtime from ending.
#[derive(Debug)]
pub(super) struct Writer {
    jobs: mpsc::Sender<Job>,
    write_timeout: Duration,
}

struct Job {
    lines: Vec<u8>,
    done: oneshot::Sender<io::Result<()>>,
}

/// Why lines are not known to be written. Makes one error per event.
#[derive(Debug)]
pub(super) enum Failure {
    Io(io::ErrorKind, String),
    Timeout(Duration),
    ThreadEnded,
}

impl Writer {
    pub(super) fn spawn(mut sink: Sink, write_timeout: Duration) -> Result<Self> {
        // One job waits while one is written: more would only make timed-out work pile up.
        let (jobs, mut queue) = mpsc::channel::<Job>(1);
        let work = move || {
            while let Some(job) = queue.blocking_recv() {
                // The caller gave up before its turn came: written again later, not twice.
                if !job.done.is_closed() {
                    let _ = job.done.send(sink.write(&job.lines));
                }
            }
        };
        std::thread::Builder::new().name("ndjson-writer".to_owned()).spawn(work).map_err(
            |error| {
                Error::new(ErrorKind::Internal, "open ndjson", "no thread to write on")
                    .with_source(error)
            },
        )?;
        Ok(Self { jobs, write_timeout })
    }

    /// Writes whole lines and makes them safe, or opens the target where there are none.
    pub(super) async fn write(&self, lines: Vec<u8>) -> Result<(), Failure> {
        let (done, written) = oneshot::channel();
        let write = async {
            self.jobs.send(Job { lines, done }).await.map_err(|_| Failure::ThreadEnded)?;
            match written.await {
                Ok(Ok(())) => Ok(()),
                Ok(Err(error)) => Err(Failure::Io(error.kind(), error.to_string())),
                Err(_) => Err(Failure::ThreadEnded),
            }
        };
        timeout(self.write_timeout, write)
            .await
            .unwrap_or(Err(Failure::Timeout(self.write_timeout)))
    }
}

impl Failure {
    /// The error of one event. Always `Unavailable`: the target failed, whatever the event.
    pub(super) fn error(&self) -> Error {
        let new = |kind, message: String| {
            Error::new(kind, "write lines", message).about(Subject::Connection)
        };
        match self {
            Self::Io(kind, text) => new(Self::kind(*kind), format!("the target failed: {text}"))
                .with_source(io::Error::new(*kind, text.clone())),
            Self::Timeout(limit) => {
                let message =
                    format!("not written within {} s; does its reader read?", limit.as_secs_f64());
                new(ErrorKind::Timeout, message)
            }
            Self::ThreadEnded => {
                new(ErrorKind::Internal, "the writing thread has ended".to_owned())
            }
        }
    }

    const fn kind(kind: io::ErrorKind) -> ErrorKind {
        match kind {
            io::ErrorKind::StorageFull
            | io::ErrorKind::QuotaExceeded
            | io::ErrorKind::FileTooLarge => ErrorKind::Throttled,
            io::ErrorKind::NotFound
            | io::ErrorKind::NotADirectory
            | io::ErrorKind::IsADirectory => ErrorKind::DestinationMissing,
            io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
                ErrorKind::Unauthorized
            }
            _ => ErrorKind::Unreachable,
        }
    }
}

impl fmt::Debug for Sink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Sink")
    }
}
