//! The one place where calls of repositories and buses meet spans, metrics and their own panics.
//!
//! Labels are bounded: the outbox's name, destinations and error kinds, never an event's id, key or
//! type.

use std::any::Any;
use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use futures_util::FutureExt;
use jiff::Timestamp;
use metrics::{
    Counter, Gauge, Histogram, Label, SharedString, Unit, counter, describe_counter,
    describe_gauge, describe_histogram, gauge, histogram,
};
use posthaste_core::{
    Backlog, BusCapabilities, Error, ErrorKind, EventBus, OutboxEvent, OutboxRepository, Outcomes,
    PublishResult, Result, RetryDecision,
};
use tracing::{Instrument, Span};

use crate::destinations::Destination;
use crate::{ProcessorStatistics, RelayState};

/// Figures that are older say nothing of now.
const BACKLOG_STALE: Duration = Duration::from_secs(120);

/// A label's name and value.
type Tag = (&'static str, SharedString);

/// Spans and metrics of one outbox. Where it has a name, all of them carry it.
#[derive(Debug, Clone, Default)]
pub(crate) struct Telemetry {
    outbox: Option<Arc<str>>,
}

impl Telemetry {
    pub(crate) const fn new(outbox: Option<Arc<str>>) -> Self {
        Self { outbox }
    }

    /// What everything happens in that a run logs; nothing where the outbox has no name.
    pub(crate) fn span(&self) -> Span {
        match &self.outbox {
            Some(outbox) => tracing::info_span!("relay", outbox = &**outbox),
            None => Span::none(),
        }
    }

    fn labels<const N: usize>(&self, tags: [Tag; N]) -> Vec<Label> {
        let outbox = self.outbox.as_ref().map(|name| Label::new("outbox", Arc::clone(name)));
        outbox.into_iter().chain(tags.map(|(name, value)| Label::new(name, value))).collect()
    }

    fn counter<const N: usize>(&self, name: &'static str, tags: [Tag; N]) -> Counter {
        counter!(name, self.labels(tags))
    }

    fn gauge<const N: usize>(&self, name: &'static str, tags: [Tag; N]) -> Gauge {
        gauge!(name, self.labels(tags))
    }

    fn histogram<const N: usize>(&self, name: &'static str, tags: [Tag; N]) -> Histogram {
        histogram!(name, self.labels(tags))
    }

    /// Runs a call of the repository in a span, times it, and turns a panic into an error.
    pub(crate) async fn storage<T>(
        &self,
        operation: &'static str,
        call: impl Future<Output = Result<T>>,
    ) -> Result<T> {
        let started = Instant::now();
        let span = tracing::debug_span!("storage", outbox = self.outbox.as_deref(), operation);
        let result = AssertUnwindSafe(call.instrument(span)).catch_unwind().await;
        let result =
            result.unwrap_or_else(|panic| Err(panicked(operation, "the repository", &*panic)));
        self.histogram("outbox_storage_op_duration_seconds", [("op", operation.into())])
            .record(started.elapsed());
        result
    }

    /// Publishes in a span, times and counts, and turns a panic into errors. Outcomes go to `report` as
    /// they become known, with the positions of those that the broker dropped as repeats; after a panic
    /// those of all events, of which the ones known before stand.
    pub(crate) async fn publish(
        &self,
        destination: &Destination,
        events: &[OutboxEvent],
        report: impl Fn(Vec<(usize, PublishResult)>, Vec<usize>) + Sync,
    ) {
        let name = &destination.name;
        let started = Instant::now();
        let span = tracing::debug_span!(
            "publish",
            outbox = self.outbox.as_deref(),
            destination = &**name,
            events = events.len()
        );
        let repeated: Mutex<Vec<usize>> = Mutex::default();
        let of_repeated = || repeated.lock().unwrap_or_else(PoisonError::into_inner);
        let repeats = |position| of_repeated().push(position);
        let known = |results: Vec<(usize, PublishResult)>| {
            self.observe_results(name, events, &results);
            report(results, std::mem::take(&mut *of_repeated()));
        };
        let outcomes = Outcomes::new(&known).with_repeated(&repeats);
        // Within a future of ours, so that a bus may panic before it gives one as well.
        let call = async { destination.bus.publish_each(events, outcomes).await };
        if let Err(panic) = AssertUnwindSafe(call.instrument(span)).catch_unwind().await {
            let failed = |number| (number, Err(panicked("publish", "the bus", &*panic)));
            report((0..events.len()).map(failed).collect(), Vec::new());
        }
        self.histogram("outbox_publish_duration_seconds", [to(name)]).record(started.elapsed());
        self.histogram("outbox_batch_size_events", []).record(events.len() as f64);
    }

    /// Waits until a bus has connected again; `Err` when it panics.
    pub(crate) async fn recovered(&self, destination: &Destination) -> Result<()> {
        let call = async { destination.bus.recovered().await };
        let recovered = AssertUnwindSafe(call).catch_unwind().await;
        recovered.map_err(|panic| panicked("wait for a connection", "the bus", &*panic))
    }

    /// Closes a bus in a span, and turns a panic into an error.
    pub(crate) async fn close(&self, destination: &Destination) -> Result<()> {
        let span = tracing::debug_span!(
            "close",
            outbox = self.outbox.as_deref(),
            destination = &*destination.name
        );
        let call = async { destination.bus.close().await };
        let closed = AssertUnwindSafe(call.instrument(span)).catch_unwind().await;
        closed.unwrap_or_else(|panic| Err(panicked("close", "the bus", &*panic)))
    }

    /// Waits for the repository's hint that there are events; `Err` when it panics.
    pub(crate) async fn wait_for_events(&self, repository: &dyn OutboxRepository) -> Result<()> {
        let call = async { repository.wait_for_events().await };
        let woken = AssertUnwindSafe(call).catch_unwind().await;
        woken.map_err(|panic| panicked("wait for events", "the repository", &*panic))
    }

    fn observe_results(
        &self,
        name: &Arc<str>,
        events: &[OutboxEvent],
        results: &[(usize, PublishResult)],
    ) {
        let latency = self.histogram("outbox_delivery_latency_seconds", []);
        let now = Timestamp::now();
        let mut published = 0;
        for (number, result) in results {
            let Some(event) = events.get(*number) else { continue };
            match result {
                Ok(()) => {
                    published += 1;
                    // Two clocks: a relay that is behind the database must not show less than zero.
                    latency.record(now.duration_since(event.created_at()).as_secs_f64().max(0.0));
                }
                Err(error) => self
                    .counter(
                        "outbox_publish_failures_total",
                        [to(name), ("error_class", error.kind().as_str().into())],
                    )
                    .increment(1),
            }
        }
        self.counter("outbox_events_published_total", [to(name)]).increment(published);
    }

    pub(crate) fn retry_scheduled(&self) {
        self.counter("outbox_retries_total", []).increment(1);
    }

    pub(crate) fn lost_as_repeat(&self, destination: &str) {
        let to = ("destination", destination.to_owned().into());
        self.counter("outbox_lost_as_repeat_total", [to]).increment(1);
    }

    pub(crate) fn dead_lettered(&self, reason: &'static str, events: u64) {
        self.counter("outbox_dead_lettered_total", [("reason", reason.into())]).increment(events);
    }

    pub(crate) fn pruned(&self, events: u64) {
        self.counter("outbox_pruned_events_total", []).increment(events);
    }

    pub(crate) fn backlog(&self, backlog: &Backlog) {
        self.gauge("outbox_pending_events", [("phase", "ready".into())]).set(backlog.ready as f64);
        self.gauge("outbox_pending_events", [("phase", "retrying".into())])
            .set(backlog.retrying as f64);
        self.gauge("outbox_pending_events", [("phase", "scheduled".into())])
            .set(backlog.scheduled as f64);
        self.gauge("outbox_dead_events", []).set(backlog.dead as f64);
        self.gauge("outbox_oldest_pending_age_seconds", [])
            .set(backlog.oldest_pending_age.as_secs_f64());
    }

    /// How old the figures of what waits are; what cannot be read is no number rather than an old one.
    pub(crate) fn backlog_age(&self, age: Duration) {
        self.gauge("outbox_backlog_read_age_seconds", []).set(age.as_secs_f64());
        if age > BACKLOG_STALE {
            for phase in ["ready", "retrying", "scheduled"] {
                self.gauge("outbox_pending_events", [("phase", phase.into())]).set(f64::NAN);
            }
            self.gauge("outbox_dead_events", []).set(f64::NAN);
            self.gauge("outbox_oldest_pending_age_seconds", []).set(f64::NAN);
        }
    }

    /// How long the oldest transaction is known that may hold events back.
    pub(crate) fn oldest_open_writer(&self, age: Duration) {
        self.gauge("outbox_oldest_open_writer_age_seconds", []).set(age.as_secs_f64());
    }

    pub(crate) fn statistics(&self, statistics: &ProcessorStatistics) {
        self.gauge("outbox_inflight_events", []).set(statistics.in_flight as f64);
        self.gauge("outbox_shards", []).set(statistics.shards as f64);
        self.gauge("outbox_relays", []).set(statistics.relays as f64);
        self.gauge("outbox_undecided_events", []).set(statistics.undecided as f64);
        self.gauge("outbox_not_recorded_events", []).set(statistics.not_recorded.len() as f64);
        for to in &statistics.destinations {
            let tag = || [("destination", to.name.clone().into())];
            let paused = if to.paused_for.is_some() { 1.0 } else { 0.0 };
            self.gauge("outbox_destination_paused", tag()).set(paused);
            self.gauge("outbox_destination_failing_keys", tag()).set(to.failing_keys as f64);
            let failing_for = to.failing_for.unwrap_or_default().as_secs_f64();
            self.gauge("outbox_destination_failing_seconds", tag()).set(failing_for);
        }
        for state in RelayState::ALL {
            let value = if state == statistics.state { 1.0 } else { 0.0 };
            self.gauge("outbox_relay_state", [("state", state.as_str().into())]).set(value);
        }
    }

    /// Says what each metric means, and shows counters as 0 before their first event.
    pub(crate) fn describe(&self, destinations: &[Destination]) {
        describe_all();
        self.gauge("outbox_build_info", [("version", env!("CARGO_PKG_VERSION").into())]).set(1.0);
        for destination in destinations {
            for counted in ["outbox_events_published_total", "outbox_lost_as_repeat_total"] {
                self.counter(counted, [to(&destination.name)]).absolute(0);
            }
        }
        self.counter("outbox_retries_total", []).absolute(0);
        self.counter("outbox_pruned_events_total", []).absolute(0);
        let reason = RetryDecision::EXHAUSTED_REASON;
        self.counter("outbox_dead_lettered_total", [("reason", reason.into())]).absolute(0);
    }
}

fn to(destination: &Arc<str>) -> Tag {
    ("destination", Arc::clone(destination).into())
}

/// What a bus can do, as it says itself.
///
/// # Errors
/// `Internal` when it panics instead.
pub(crate) fn capabilities(bus: &dyn EventBus) -> Result<BusCapabilities> {
    catch_unwind(AssertUnwindSafe(|| bus.capabilities()))
        .map_err(|panic| panicked("ask for capabilities", "the bus", &*panic))
}

fn panicked(operation: &'static str, who: &str, panic: &(dyn Any + Send)) -> Error {
    Error::new(ErrorKind::Internal, operation, format!("{who} panicked: {}", panic_text(panic)))
}

/// What a panic says.
pub(crate) fn panic_text(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("no message")
}

/// Says what each metric means.
fn describe_all() {
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
        "outbox_backlog_read_age_seconds",
        Unit::Seconds,
        "How long ago the database told what waits"
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
    describe_gauge!(
        "outbox_undecided_events",
        Unit::Count,
        "Events that failed, and nothing tells yet whose fault that is: they count no attempt"
    );
    describe_gauge!(
        "outbox_not_recorded_events",
        Unit::Count,
        "Events whose outcome the database does not take, a locked row for one; up to 20"
    );
    describe_gauge!(
        "outbox_destination_paused",
        Unit::Count,
        "1 while nothing but probes is sent to a destination, 0 while it works"
    );
    describe_gauge!(
        "outbox_destination_failing_seconds",
        Unit::Seconds,
        "Since the first failure after the last success of a destination; 0 where it takes events"
    );
    describe_gauge!(
        "outbox_destination_failing_keys",
        Unit::Count,
        "Keys whose first event failed at a destination and was not taken since"
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
        "outbox_lost_as_repeat_total",
        Unit::Count,
        "Events that the broker dropped since it held another of their id"
    );
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
}
