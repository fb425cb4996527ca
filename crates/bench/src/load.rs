//! An open loop: transactions at times that were set beforehand, and when their events arrived.
//!
//! A writer that comes late, because the one before took long, still counts from the time that was
//! meant: a system that stalls cannot hide it by slowing down who measures.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, Result};
use async_nats::jetstream::consumer::push::OrderedConfig;
use futures_util::StreamExt as _;
use rand::SeedableRng as _;
use rand::rngs::SmallRng;
use serde::Deserialize;
use tokio::task::JoinHandle;
use uuid::Uuid;

use crate::producer::Producer;
use crate::report::Figures;
use crate::stream::Stream;
use crate::workload::{Event, KeyChoice, Workload, payload};

/// Transactions at a time, at most.
pub(crate) const WRITERS: u32 = 24;
/// What a run may still take after its last transaction. A relay that needs longer has a backlog,
/// which is the result.
const PATIENCE: Duration = Duration::from_secs(30);

/// What is written.
#[derive(Debug, Clone)]
pub(crate) struct Load {
    pub(crate) events_per_second: f64,
    pub(crate) events_per_transaction: u64,
    pub(crate) lasts: Duration,
    /// The first part, whose latencies do not count.
    pub(crate) warm_up: Duration,
}

/// When something happened, in microseconds since 1970; 0 for not yet.
type Times = Arc<Vec<AtomicU64>>;

/// What came out, latencies in milliseconds and in order.
pub(crate) struct Outcome {
    pub(crate) committed_per_second: f64,
    /// Events that had not arrived when the last transaction was over.
    pub(crate) behind: u64,
    /// Events that never did.
    pub(crate) missing: u64,
    commit_to_ack: Vec<f64>,
    commit_to_consumer: Vec<f64>,
    intended_to_ack: Vec<f64>,
}

#[derive(Deserialize)]
struct Body {
    number: u64,
}

impl Load {
    fn events(&self) -> u64 {
        let transactions = (self.lasts.as_secs_f64() * self.transactions_per_second()).max(1.0);
        transactions as u64 * self.events_per_transaction
    }

    fn transactions_per_second(&self) -> f64 {
        self.events_per_second / self.events_per_transaction as f64
    }

    /// Writes, and waits until everything arrived, or nothing more does.
    pub(crate) async fn run(
        &self,
        producer: &Producer,
        stream: &Stream,
        workload: &Workload,
    ) -> Result<Outcome> {
        let events = usize::try_from(self.events())?;
        let times = || -> Times { Arc::new((0..events).map(|_| AtomicU64::new(0)).collect()) };
        let (intended, committed, stored, received) = (times(), times(), times(), times());
        let arrived = Arc::new(AtomicU64::new(0));
        let consumer = consume(stream, stored.clone(), received.clone(), arrived.clone()).await?;
        let next = Arc::new(AtomicU64::new(0));
        let begun = micros(SystemTime::now()) + 50_000;
        let writers: Vec<JoinHandle<Result<()>>> = (0..WRITERS)
            .map(|writer| {
                let shared = Writer {
                    load: self.clone(),
                    workload: workload.clone(),
                    producer: producer.clone(),
                    next: next.clone(),
                    intended: intended.clone(),
                    committed: committed.clone(),
                    begun,
                };
                tokio::spawn(shared.write(workload.seed + u64::from(writer)))
            })
            .collect();
        for writer in writers {
            writer.await??;
        }
        let took = (micros(SystemTime::now()) - begun) as f64 / 1e6;
        let behind = events as u64 - arrived.load(Ordering::Relaxed);
        let deadline = tokio::time::Instant::now() + PATIENCE;
        while arrived.load(Ordering::Relaxed) < events as u64
            && tokio::time::Instant::now() < deadline
        {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let gave_up = micros(SystemTime::now());
        consumer.abort();
        let counted_from = begun + u64::try_from(self.warm_up.as_micros())?;
        let latencies = |from: &Times, to: &Times| {
            let mut latencies: Vec<f64> = (0..events)
                .filter(|event| get(&intended, *event) >= counted_from)
                .map(|event| {
                    // What never arrived took at least until now.
                    let to = Some(get(to, event)).filter(|to| *to > 0).unwrap_or(gave_up);
                    to.saturating_sub(get(from, event)) as f64 / 1e3
                })
                .collect();
            latencies.sort_by(f64::total_cmp);
            latencies
        };
        Ok(Outcome {
            committed_per_second: events as f64 / took,
            behind,
            missing: events as u64 - arrived.load(Ordering::Relaxed),
            commit_to_ack: latencies(&committed, &stored),
            commit_to_consumer: latencies(&committed, &received),
            intended_to_ack: latencies(&intended, &stored),
        })
    }
}

fn get(times: &Times, event: usize) -> u64 {
    times[event].load(Ordering::Relaxed)
}

/// Since 1970.
pub(crate) fn micros(time: SystemTime) -> u64 {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_micros()).unwrap_or(u64::MAX)
}

struct Writer {
    load: Load,
    workload: Workload,
    producer: Producer,
    next: Arc<AtomicU64>,
    intended: Times,
    committed: Times,
    begun: u64,
}

impl Writer {
    async fn write(self, seed: u64) -> Result<()> {
        let mut random = SmallRng::seed_from_u64(seed);
        let keys = KeyChoice::new(self.workload.keys, self.workload.distribution);
        let per_transaction = self.load.events_per_transaction;
        let between = 1e6 / self.load.transactions_per_second();
        loop {
            let transaction = self.next.fetch_add(1, Ordering::Relaxed);
            let numbers = transaction * per_transaction..(transaction + 1) * per_transaction;
            if numbers.end > self.intended.len() as u64 {
                return Ok(());
            }
            let intended = self.begun + (transaction as f64 * between) as u64;
            let events = numbers.clone().map(|number| Event {
                id: Uuid::now_v7(),
                key: keys.draw(&mut random),
                data: payload(&mut random, number, self.workload.payload_bytes),
            });
            let events = events.collect();
            let wait = intended.saturating_sub(micros(SystemTime::now()));
            tokio::time::sleep(Duration::from_micros(wait)).await;
            let committed = self.producer.store(events).await?;
            for number in numbers {
                let number = usize::try_from(number)?;
                self.intended[number].store(intended, Ordering::Relaxed);
                self.committed[number].store(committed, Ordering::Relaxed);
            }
        }
    }
}

/// Notes when each event was stored, by the broker's clock, and when it arrived here. The
/// acknowledgement leaves the broker when it has stored the event.
async fn consume(
    stream: &Stream,
    stored: Times,
    received: Times,
    arrived: Arc<AtomicU64>,
) -> Result<JoinHandle<()>> {
    let deliver_subject = stream.jetstream.client().new_inbox();
    let handle = stream.jetstream.get_stream(&stream.name).await?;
    let deliver_policy = async_nats::jetstream::consumer::DeliverPolicy::New;
    let config = OrderedConfig { deliver_subject, deliver_policy, ..Default::default() };
    let consumer = handle.create_consumer(config).await.context("create a consumer")?;
    let mut messages = consumer.messages().await?;
    Ok(tokio::spawn(async move {
        while let Some(Ok(message)) = messages.next().await {
            let now = micros(SystemTime::now());
            let Ok(Body { number }) = serde_json::from_slice(&message.payload) else { continue };
            let Ok(info) = message.info() else { continue };
            let Some(at) = usize::try_from(number).ok().filter(|at| *at < stored.len()) else {
                continue;
            };
            let published = info.published.unix_timestamp_nanos() / 1_000;
            stored[at].store(u64::try_from(published).unwrap_or(0), Ordering::Relaxed);
            if received[at].swap(now, Ordering::Relaxed) == 0 {
                arrived.fetch_add(1, Ordering::Relaxed);
            }
        }
    }))
}

impl Outcome {
    pub(crate) fn figures(&self) -> Figures {
        let mut figures = Figures::default()
            .with("committed events/s", self.committed_per_second)
            .with("behind at the end", self.behind as f64);
        for (name, latencies) in [
            ("commit → ack", &self.commit_to_ack),
            ("commit → consumer", &self.commit_to_consumer),
            ("intended → ack", &self.intended_to_ack),
        ] {
            for (percentile, share) in [("p50", 0.5), ("p99", 0.99), ("p99.9", 0.999)] {
                figures =
                    figures.with(&format!("{name} {percentile} ms"), quantile(latencies, share));
            }
        }
        figures
    }
}

/// The value below which `share` of the sorted values lie.
pub(crate) fn quantile(sorted: &[f64], share: f64) -> f64 {
    let rank = (share * sorted.len() as f64).ceil() as usize;
    sorted.get(rank.saturating_sub(1)).copied().unwrap_or(f64::NAN)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_values_that_occurred() {
        let values: Vec<f64> = (1..=1_000).map(f64::from).collect();
        for (share, expected) in [(0.5, 500.0), (0.99, 990.0), (0.999, 999.0), (1.0, 1_000.0)] {
            assert!((quantile(&values, share) - expected).abs() < 1e-9);
        }
        assert!(quantile(&[], 0.5).is_nan());
    }
}
