//! A run of the processor: from its start to its end, however that comes.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use posthaste_core::{Claim, Error, ErrorKind, OutboxRepository, Reminder, Result};
use tokio::sync::watch;
use tokio::time::Instant;
use tracing::Instrument;

use crate::shared::Shared;
use crate::shell::{Shell, Until};
use crate::telemetry::{Telemetry, panic_text};
use crate::{RelayState, StopReport, chores};

/// Between the first two looks at a database that is away at the start; later ones are further
/// apart, up to the second.
const RECONNECT_DELAY: Duration = Duration::from_millis(200);
const RECONNECT_DELAY_MAX: Duration = Duration::from_secs(5);

/// A run that is under way, or over.
pub(crate) struct Run {
    stop: watch::Sender<bool>,
    end: watch::Receiver<Option<StopReport>>,
    /// Somebody awaits it, and it goes on only while they do.
    foreground: bool,
}

impl Run {
    pub(crate) fn is_over(&self) -> bool {
        self.end.borrow().is_some()
    }

    pub(crate) const fn is_foreground(&self) -> bool {
        self.foreground
    }

    /// Asks it to stop. Dropping it asks as well.
    pub(crate) fn signal_stop(&self) {
        self.stop.send_replace(true);
    }

    /// To [wait for](ended) its end.
    pub(crate) fn end(&self) -> watch::Receiver<Option<StopReport>> {
        self.end.clone()
    }
}

/// Completes at the end of a run, with its report.
pub(crate) async fn ended(mut end: watch::Receiver<Option<StopReport>>) -> StopReport {
    match end.wait_for(Option::is_some).await {
        Ok(report) => report.clone().unwrap_or_default(),
        // Cannot be: whoever runs tells of the end before it is gone.
        Err(_) => StopReport::default(),
    }
}

/// Tells everybody that a run is over: also of an end that nobody sees coming, a panic or a runtime
/// that is shut down.
pub(crate) struct EndOfRun {
    sender: watch::Sender<Option<StopReport>>,
    shared: Arc<Shared>,
    telemetry: Telemetry,
    /// What it is when nothing was told before this is dropped.
    otherwise: Option<&'static str>,
}

impl EndOfRun {
    /// The run did all that it can do itself.
    pub(crate) fn tell(self, report: StopReport) {
        self.shared.ended(None);
        self.finish(report);
    }

    /// The run died.
    fn tell_of_death(self, why: &str) {
        self.shared.ended(Some(why));
        self.finish(self.shared.left_behind());
    }

    fn finish(&self, report: StopReport) {
        self.telemetry.statistics(&self.shared.statistics());
        self.sender.send_replace(Some(report));
    }
}

impl Drop for EndOfRun {
    fn drop(&mut self) {
        if self.sender.borrow().is_none() {
            self.shared.ended(self.otherwise);
            self.finish(self.shared.left_behind());
        }
    }
}

/// A run and what belongs to whoever carries it out.
pub(crate) fn new(
    shared: &Arc<Shared>,
    telemetry: &Telemetry,
    foreground: bool,
) -> (Run, watch::Receiver<bool>, EndOfRun) {
    let (stop, stopped) = watch::channel(false);
    let (sender, end) = watch::channel(None);
    let run = Run { stop, end, foreground };
    // Whoever drops a pass half way knows that.
    let otherwise = (!foreground).then_some("its runtime was shut down");
    let end =
        EndOfRun { sender, shared: Arc::clone(shared), telemetry: telemetry.clone(), otherwise };
    (run, stopped, end)
}

/// Looks at a repository and takes the right to deliver from it.
pub(crate) async fn check_and_claim(
    repository: &dyn OutboxRepository,
    telemetry: &Telemetry,
) -> Result<Claim> {
    telemetry.storage("check", repository.check()).await?;
    telemetry.storage("claim", repository.claim()).await
}

/// Delivers in the background until it is stopped. `claimed` is the right to, or why the database did
/// not answer at the start: then it is waited for first.
pub(crate) fn spawn(shell: Shell, claimed: Result<Claim>, end: EndOfRun) {
    let span = shell.telemetry.span();
    let chores = chores::run(
        Arc::clone(&shell.repository),
        Arc::clone(&shell.shared),
        shell.telemetry.clone(),
        shell.settings.retention,
    );
    let work = async move {
        tokio::select! {
            report = deliver(shell, claimed) => report,
            // Never ends by itself; dropped together with the run.
            () = chores => unreachable!("chores end only with the run"),
        }
    };
    let task = async move {
        match AssertUnwindSafe(work).catch_unwind().await {
            Ok(report) => end.tell(report),
            Err(panic) => {
                let why = panic_text(&*panic);
                tracing::error!(
                    why,
                    "the relay died by a panic; nothing is delivered until it is started again"
                );
                end.tell_of_death(&format!("it panicked: {why}"));
            }
        }
    };
    tokio::spawn(task.instrument(span));
}

async fn deliver(shell: Shell, claimed: Result<Claim>) -> StopReport {
    let _claim = match claimed {
        Ok(claim) => claim,
        Err(error) => {
            let mut stop = shell.stop.clone();
            tokio::select! {
                claim = wait_for_database(
                    &*shell.repository, &shell.shared, &shell.telemetry, error
                ) => claim,
                // An error means that every handle of the processor is gone.
                _ = stop.wait_for(|stopped| *stopped) => {
                    shell.shared.relay_state(RelayState::Draining);
                    return StopReport::default();
                }
            }
        }
    };
    shell.run(Until::Stopped).await.report
}

/// Waits until the repository can be used, and takes the right to deliver from it. What waiting alone does not mend, a schema that is too
/// old for one, is told of as well and waited for: someone may mend it.
async fn wait_for_database(
    repository: &dyn OutboxRepository,
    shared: &Shared,
    telemetry: &Telemetry,
    mut error: Error,
) -> Claim {
    let mut delay = RECONNECT_DELAY;
    let reminder = Reminder::default();
    let claim = loop {
        let text = error.report();
        shared.database(Some(error.clone()));
        if reminder.is_due(&text, Instant::now().into_std()) {
            let (kind, hint) = (error.kind().as_str(), error.kind().hint());
            tracing::warn!(
                error = text,
                kind,
                hint,
                "the database cannot be used yet; trying again"
            );
        }
        tokio::time::sleep(delay).await;
        delay = RECONNECT_DELAY_MAX.min(delay * 2);
        match check_and_claim(repository, telemetry).await {
            Ok(claim) => break claim,
            Err(next) => error = next,
        }
    };
    shared.database(None);
    tracing::info!("the database answers");
    claim
}

/// Whether a relay that runs meets what passes by itself: an outage, or a session that is in the way. At the
/// start the latter is another relay.
pub(crate) fn passes(error: &Error) -> bool {
    is_outage(error) || error.kind() == ErrorKind::Conflict
}

/// Whether waiting may mend what a repository's check met.
pub(crate) fn is_outage(error: &Error) -> bool {
    matches!(error.kind(), ErrorKind::Unreachable | ErrorKind::Timeout | ErrorKind::Throttled)
}
