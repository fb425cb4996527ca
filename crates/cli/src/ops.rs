//! The ops listener: health and metrics over HTTP.

use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{Html, IntoResponse};
use axum::routing::get;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use posthaste_processor::OutboxProcessor;
use tokio::net::{TcpListener, lookup_host};
use tokio::sync::Semaphore;

use crate::config::secrets;
use crate::exit::Hint;
use crate::plain;

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

/// The most connections at a time: probes and scrapers have one each.
const CONNECTIONS_MAX: usize = 64;
/// The longest a request's head may take, and a connection may say nothing between two requests.
const HEAD_WITHIN: Duration = Duration::from_secs(5);
/// The longest a connection lasts, so that one whose other side reads nothing gives its place back.
const CONNECTION_WITHIN: Duration = Duration::from_secs(300);
/// A busy machine lets a process wait for seconds.
const STANDSTILL_MIN: Duration = Duration::from_secs(60);
const HEAD_BYTES_MAX: usize = 16 * 1024;
/// After a failure to accept, which mostly means that there are no descriptors left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

const INDEX: &str = "<!doctype html><title>posthaste</title><h1>posthaste</h1><ul>\
    <li><a href=\"/livez\">/livez</a>: the relay lives\
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
    // Shown before the first one, so that its increase is seen.
    metrics::counter!("outbox_log_lines_dropped_total").absolute(0);
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

    /// Why the process should be started anew, or `None`: waiting for others is no reason.
    fn dead_because(&self) -> Option<String> {
        let overdue = self.processor.get()?.statistics().overdue;
        (overdue >= self.stall_after.max(STANDSTILL_MIN)).then(|| {
            format!("the relay stands still: nothing was decided for {} s", overdue.as_secs())
        })
    }

    fn router(self) -> Router {
        Router::new()
            .route("/", get(async || Html(INDEX)))
            .route("/livez", get(livez))
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

async fn livez(State(ops): State<Ops>) -> impl IntoResponse {
    answer(ops.dead_because())
}

async fn readyz(State(ops): State<Ops>) -> impl IntoResponse {
    answer(ops.unready_because())
}

fn answer(why_not: Option<String>) -> impl IntoResponse {
    match why_not {
        None => (StatusCode::OK, "ok\n".to_owned()),
        Some(why) => {
            let why = plain::line(&secrets::redact(&why));
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
    if let Err(error) = lookup_host(address).await {
        return Err(Hint {
            message: format!("ops.listen: the host of {address} does not resolve: {error}"),
            hint: "set ops.listen (POSTHASTE_OPS__LISTEN) to an address of this machine, as \
                   127.0.0.1:9464 or 0.0.0.0:9464"
                .into(),
        }
        .into());
    }
    let listener = TcpListener::bind(address).await.map_err(|error| Hint {
        message: format!("cannot listen on {address} (ops.listen): {error}"),
        hint: "another relay may have it; set ops.listen (POSTHASTE_OPS__LISTEN) to a free \
               address, or to off"
            .into(),
    })?;
    let bound = listener.local_addr()?;
    tokio::spawn(serve(listener, ops.router()));
    Ok(bound)
}

/// Answers for as long as the process lives, at most [`CONNECTIONS_MAX`] at a time.
///
/// Not `axum::serve`: it has neither a limit of connections nor one of time for a request's head,
/// and whoever opens connections and says nothing would take the descriptors that events need.
async fn serve(listener: TcpListener, router: Router) {
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let mut server = http1::Builder::new();
    server.timer(TokioTimer::new()).header_read_timeout(HEAD_WITHIN).max_buf_size(HEAD_BYTES_MAX);
    loop {
        // What finds no place waits in the system's queue, and takes no descriptor there.
        let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::debug!(%error, "the ops listener cannot take a connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let service = TowerToHyperService::new(router.clone());
        let connection = server.serve_connection(TokioIo::new(stream), service);
        tokio::spawn(async move {
            // How it ends is the client's affair.
            let _ = tokio::time::timeout(CONNECTION_WITHIN, connection).await;
            drop(place);
        });
    }
}
