//! Other outboxes of crates.io, each as its documentation says it is used. The bench starts one as a
//! process and reads from its standard output when how many events were done.

mod gears;
mod outbox_core;
mod progress;
#[path = "../../src/stream.rs"]
#[allow(dead_code, reason = "the bench uses the rest")]
mod stream;

use anyhow::{Context as _, Result, bail};

use progress::Progress;
use stream::Stream;

#[tokio::main]
async fn main() -> Result<()> {
    tracing_subscriber::fmt().with_env_filter("error").with_writer(std::io::stderr).init();
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments[..] {
        ["prepare", "outbox-core", database] => outbox_core::prepare(database).await,
        ["prepare", "cf-gears", database, partitions] => {
            gears::prepare(database, partitions.parse()?).await
        }
        ["run", database, nats, stream, batches, events, ref rival @ ..] => {
            let stream = open(nats, stream, batches).await?;
            deliver(database, stream, Work::Waiting(events.parse()?), rival).await
        }
        ["serve", database, nats, stream, batches, ref rival @ ..] => {
            let stream = open(nats, stream, batches).await?;
            deliver(database, stream, Work::Coming, rival).await
        }
        _ => bail!("this is started by posthaste-bench; unknown: {arguments:?}"),
    }
}

/// What there is to do.
#[derive(Clone, Copy)]
enum Work {
    /// So many events wait; the bench is told when how many are done.
    Waiting(usize),
    /// The bench will store events, or have them stored.
    Coming,
}

async fn open(nats: &str, stream: &str, batches: &str) -> Result<Stream> {
    Stream::open(nats.to_owned(), stream.to_owned(), batches == "batches").await
}

/// Until it is killed.
async fn deliver(database: &str, stream: Stream, work: Work, rival: &[&str]) -> Result<()> {
    let progress = match work {
        Work::Waiting(_) => Progress::told(),
        Work::Coming => Progress::untold(),
    };
    match *rival {
        ["outbox-core", managers, batch] => {
            outbox_core::run(database, stream, progress, managers.parse()?, batch.parse()?).await
        }
        ["cf-gears", partitions, tuning] => {
            let tuning = gears::Tuning::from_name(tuning).context("an unknown tuning")?;
            gears::run(database, stream, progress, work, partitions.parse()?, tuning).await
        }
        _ => bail!("unknown: {rival:?}"),
    }
}
