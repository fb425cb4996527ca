//! The ops listener: health and metrics over HTTP.

use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{Html, IntoResponse};
use axum::routing::get;
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use posthaste_processor::OutboxProcessor;
use tokio::net::TcpListener;

use crate::exit::Hint;

/// How often recorded samples are moved into the histograms. Between two of these, samples take
/// memory.
const UPKEEP_INTERVAL: Duration = Duration::from_secs(1);
/// From a tenth of a millisecond to ten minutes, for durations and ages in seconds.
const SECONDS_BUCKETS: &[f64] = &[
    0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5,
    5.0, 10.0, 30.0, 60.0, 300.0, 600.0,
];
/// For numbers of events.
const EVENTS_BUCKETS: &[f64] =
    &[1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1_000.0, 2_000.0, 5_000.0, 10_000.0];

const INDEX: &str = "<!doctype html><title>posthaste</title><h1>posthaste</h1><ul>\
    <li><a href=\"/livez\">/livez</a>: the process answers\
    <li><a href=\"/readyz\">/readyz</a>: events are being delivered\
    <li><a href=\"/metrics\">/metrics</a>: for Prometheus</ul>\n";

/// Makes this process record metrics. The handle renders them.
///
/// # Errors
/// When a recorder is there already.
pub(crate) fn install_metrics() -> anyhow::Result<PrometheusHandle> {
    let recorder = PrometheusBuilder::new()
        .set_buckets_for_metric(Matcher::Suffix("_seconds".into()), SECONDS_BUCKETS)?
        .set_buckets_for_metric(Matcher::Suffix("_events".into()), EVENTS_BUCKETS)?
        .build_recorder();
    let handle = recorder.handle();
    metrics::set_global_recorder(recorder)
        .map_err(|_| anyhow::anyhow!("metrics are recorded elsewhere already"))?;
    Ok(handle)
}

/// What the handlers share. The processor comes later: until the database has answered there is
/// none.
#[derive(Clone)]
pub(crate) struct Ops {
    metrics: PrometheusHandle,
    processor: Arc<OnceLock<OutboxProcessor>>,
    stall_after: Duration,
}

impl Ops {
    /// Handlers for a relay that is still starting.
    pub(crate) fn new(metrics: PrometheusHandle, stall_after: Duration) -> Self {
        Self { metrics, processor: Arc::default(), stall_after }
    }

    /// From now on, readiness is the processor's.
    pub(crate) fn started(&self, processor: OutboxProcessor) {
        // Set once by `run`; a second call would change nothing.
        let _ = self.processor.set(processor);
    }

    /// Why the relay is not ready, or `None`.
    fn unready_because(&self) -> Option<String> {
        match self.processor.get() {
            None => Some("starting: the database has not answered yet".into()),
            Some(processor) => processor.statistics().unhealthy_because(self.stall_after),
        }
    }

    fn router(self) -> Router {
        Router::new()
            .route("/", get(async || Html(INDEX)))
            .route("/livez", get(async || "ok\n"))
            .route("/readyz", get(readyz))
            .route("/metrics", get(metrics_text))
            .with_state(self)
    }

    /// Keeps the histograms small, for as long as the process lives.
    pub(crate) fn spawn_upkeep(&self) {
        let metrics = self.metrics.clone();
        tokio::spawn(async move {
            loop {
                tokio::time::sleep(UPKEEP_INTERVAL).await;
                metrics.run_upkeep();
            }
        });
    }
}

async fn readyz(State(ops): State<Ops>) -> impl IntoResponse {
    match ops.unready_because() {
        None => (StatusCode::OK, "ok\n".to_owned()),
        Some(why) => {
            let why = crate::config::secrets::redact(&why);
            (StatusCode::SERVICE_UNAVAILABLE, format!("{why}\n"))
        }
    }
}

async fn metrics_text(State(ops): State<Ops>) -> impl IntoResponse {
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], ops.metrics.render())
}

/// Starts to listen; the address it got is returned (a port 0 means any).
///
/// # Errors
/// A [`Hint`] where the address cannot be had.
pub(crate) async fn listen(address: &str, ops: Ops) -> anyhow::Result<SocketAddr> {
    let listener = TcpListener::bind(address).await.map_err(|error| Hint {
        message: format!("cannot listen on {address} (ops.listen): {error}"),
        hint: "another relay may have it; set ops.listen (POSTHASTE_OPS__LISTEN) to a free \
               address, or to off"
            .into(),
    })?;
    let bound = listener.local_addr()?;
    tokio::spawn(async move {
        if let Err(error) = axum::serve(listener, ops.router()).await {
            tracing::error!(%error, "the ops listener stopped");
        }
    });
    Ok(bound)
}
