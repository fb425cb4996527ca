//! The one place where calls of repositories and buses meet spans and metrics.
//!
//! Labels are bounded: destinations and error kinds, never an event's id, key or type.

use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::FutureExt;
use jiff::Timestamp;
use metrics::{
    Unit, counter, describe_counter, describe_gauge, describe_histogram, gauge, histogram,
};
use posthaste_core::{
    Backlog, Error, ErrorKind, OutboxEvent, PublishResult, Result, RetryDecision,
};
use tracing::Instrument;

use crate::routes::Destination;
use crate::{ProcessorStatistics, RelayState};

/// Runs a call of the repository in a span, times it, and turns a panic into an error.
pub(crate) async fn storage<T>(
    operation: &'static str,
    call: impl Future<Output = Result<T>>,
) -> Result<T> {
    let started = Instant::now();
    let span = tracing::debug_span!("storage", operation);
    let result =
        AssertUnwindSafe(call.instrument(span)).catch_unwind().await.unwrap_or_else(|_| {
            Err(Error::new(ErrorKind::Internal, operation, "the repository panicked"))
        });
    histogram!("outbox_storage_op_duration_seconds", "op" => operation).record(started.elapsed());
    result
}

/// Publishes in a span, times and counts, and turns a panic into errors.
pub(crate) async fn publish(
    destination: &Destination,
    events: &[OutboxEvent],
) -> Vec<PublishResult> {
    let name = &destination.name;
    let started = Instant::now();
    let span = tracing::debug_span!("publish", destination = &**name, events = events.len());
    let call = AssertUnwindSafe(destination.bus.publish(events).instrument(span));
    let results = call.catch_unwind().await.unwrap_or_else(|_| {
        let panicked = || Err(Error::new(ErrorKind::Internal, "publish", "the bus panicked"));
        events.iter().map(|_| panicked()).collect()
    });
    histogram!("outbox_publish_duration_seconds", "destination" => Arc::clone(name))
        .record(started.elapsed());
    histogram!("outbox_batch_size_events").record(events.len() as f64);
    observe_results(name, events, &results);
    results
}

fn observe_results(name: &Arc<str>, events: &[OutboxEvent], results: &[PublishResult]) {
    let latency = histogram!("outbox_delivery_latency_seconds");
    let now = Timestamp::now();
    let mut published = 0;
    for (event, result) in events.iter().zip(results) {
        match result {
            Ok(()) => {
                published += 1;
                // Two clocks: a relay that is behind the database must not show less than zero.
                latency.record(now.duration_since(event.created_at()).as_secs_f64().max(0.0));
            }
            Err(error) => counter!(
                "outbox_publish_failures_total",
                "destination" => Arc::clone(name),
                "error_class" => error.kind().as_str(),
            )
            .increment(1),
        }
    }
    counter!("outbox_events_published_total", "destination" => Arc::clone(name))
        .increment(published);
}

pub(crate) fn retry_scheduled() {
    counter!("outbox_retries_total").increment(1);
}

pub(crate) fn dead_lettered(reason: &'static str, events: u64) {
    counter!("outbox_dead_lettered_total", "reason" => reason).increment(events);
}

pub(crate) fn pruned(events: u64) {
    counter!("outbox_pruned_events_total").increment(events);
}

pub(crate) fn backlog(backlog: &Backlog) {
    gauge!("outbox_pending_events", "phase" => "ready").set(backlog.ready as f64);
    gauge!("outbox_pending_events", "phase" => "retrying").set(backlog.retrying as f64);
    gauge!("outbox_pending_events", "phase" => "scheduled").set(backlog.scheduled as f64);
    gauge!("outbox_dead_events").set(backlog.dead as f64);
    gauge!("outbox_oldest_pending_age_seconds").set(backlog.oldest_pending_age.as_secs_f64());
}

/// How long the oldest transaction is known that may hold events back.
pub(crate) fn oldest_open_writer(age: Duration) {
    gauge!("outbox_oldest_open_writer_age_seconds").set(age.as_secs_f64());
}

pub(crate) fn statistics(statistics: &ProcessorStatistics) {
    gauge!("outbox_inflight_events").set(statistics.in_flight as f64);
    gauge!("outbox_shards").set(statistics.shards as f64);
    gauge!("outbox_relays").set(statistics.relays as f64);
    for state in RelayState::ALL {
        let value = if state == statistics.state { 1.0 } else { 0.0 };
        gauge!("outbox_relay_state", "state" => state.as_str()).set(value);
    }
}

/// Says what each metric means, and shows counters as 0 before their first event.
pub(crate) fn describe(destinations: &[Destination]) {
    describe_gauge!(
        "outbox_pending_events",
        Unit::Count,
        "Events neither delivered nor dead, by phase; an estimate beyond 10,000"
    );
    describe_gauge!(
        "outbox_oldest_pending_age_seconds",
        Unit::Seconds,
        "Age of the oldest event that is due"
    );
    describe_gauge!(
        "outbox_oldest_open_writer_age_seconds",
        Unit::Seconds,
        "How long the oldest open transaction is known that may have stored events"
    );
    describe_gauge!("outbox_dead_events", Unit::Count, "Dead letters; an estimate beyond 10,000");
    describe_gauge!(
        "outbox_inflight_events",
        Unit::Count,
        "Events published and not yet acknowledged"
    );
    describe_gauge!("outbox_shards", Unit::Count, "Shards, of 64, that this relay delivers");
    describe_gauge!("outbox_relays", Unit::Count, "Relays that share the outbox");
    describe_gauge!(
        "outbox_relay_state",
        Unit::Count,
        "1 for the state the relay is in, 0 for the others"
    );
    describe_gauge!("outbox_build_info", Unit::Count, "Always 1; the labels tell the version");
    describe_counter!(
        "outbox_events_published_total",
        Unit::Count,
        "Events acknowledged by a destination"
    );
    describe_counter!(
        "outbox_publish_failures_total",
        Unit::Count,
        "Attempts that failed, by kind of error"
    );
    describe_counter!("outbox_retries_total", Unit::Count, "Failed attempts that lead to a retry");
    describe_counter!(
        "outbox_dead_lettered_total",
        Unit::Count,
        "Events that became dead letters, by reason"
    );
    describe_counter!(
        "outbox_pruned_events_total",
        Unit::Count,
        "Delivered events removed by cleanup"
    );
    describe_histogram!(
        "outbox_delivery_latency_seconds",
        Unit::Seconds,
        "From storing an event to its acknowledgement"
    );
    describe_histogram!("outbox_publish_duration_seconds", Unit::Seconds, "One publishing call");
    describe_histogram!(
        "outbox_storage_op_duration_seconds",
        Unit::Seconds,
        "One operation of the database"
    );
    describe_histogram!("outbox_batch_size_events", Unit::Count, "Events in one publishing call");
    gauge!("outbox_build_info", "version" => env!("CARGO_PKG_VERSION")).set(1.0);
    for destination in destinations {
        counter!("outbox_events_published_total", "destination" => Arc::clone(&destination.name))
            .absolute(0);
    }
    counter!("outbox_retries_total").absolute(0);
    counter!("outbox_pruned_events_total").absolute(0);
    counter!("outbox_dead_lettered_total", "reason" => RetryDecision::EXHAUSTED_REASON).absolute(0);
}
