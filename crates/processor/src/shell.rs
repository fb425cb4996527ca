//! The tokio shell around the machine: runs its commands, brings it the answers.

use std::sync::Arc;
use std::time::Duration;

use posthaste_core::{
    Error, ErrorKind, LeaseRequest, OutboxRepository, Result, Settlement, Unsettled,
};
use posthaste_engine::{Command, Input, Machine, Report, RouteTable};
use tokio::sync::{Notify, mpsc, watch};
use tokio::task::JoinSet;
use uuid::Uuid;

use crate::clock::Clock;
use crate::destinations::Destinations;
use crate::fine_timer::FineTimer;
use crate::run::passes;
use crate::shared::{Identity, Shared};
use crate::telemetry::Telemetry;
use crate::{ProcessorSettings, RelayState, StopReport};

/// When a run ends by itself.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Until {
    /// Only when it is stopped.
    Stopped,
    /// Everything due was offered once.
    PassDone,
    /// Nothing is left to deliver within `patience`.
    Drained { patience: Duration },
}

/// What a run needs.
pub(crate) struct Shell {
    pub(crate) repository: Arc<dyn OutboxRepository>,
    pub(crate) destinations: Arc<Destinations>,
    pub(crate) routes: Arc<RouteTable>,
    pub(crate) settings: ProcessorSettings,
    pub(crate) shared: Arc<Shared>,
    pub(crate) telemetry: Telemetry,
    /// `true`, or a dropped sender, stops.
    pub(crate) stop: watch::Receiver<bool>,
}

/// The longest wait for the database to hear that this relay is gone.
const LEAVE_TIMEOUT: Duration = Duration::from_secs(2);

/// What a run did.
pub(crate) struct Outcome {
    pub(crate) delivered: u64,
    pub(crate) report: StopReport,
    /// A pass ends at the first failure of the database.
    pub(crate) error: Option<Error>,
}

impl Shell {
    /// Runs until `until`, or until it is stopped.
    pub(crate) async fn run(mut self, until: Until) -> Outcome {
        let seed = rand::random();
        let shares = self.repository.capabilities().leases;
        let mut machine =
            Machine::new(Arc::clone(&self.routes), self.settings.clone(), shares, seed);
        if !matches!(until, Until::Stopped) {
            machine = machine.without_patience();
        }
        if matches!(until, Until::PassDone) {
            machine.offer_once();
        }
        let mut answers: JoinSet<Input> = JoinSet::new();
        let (outcomes, mut outcomes_known) = mpsc::unbounded_channel();
        let clock = Clock::start();
        let send_until = watch::Sender::new(Duration::ZERO);
        let name = name_of_process();
        let relay = Relay { id: Uuid::new_v4(), name, clock, send_until, outcomes };
        self.shared.identified(Identity { id: relay.id, name: relay.name.clone() });
        let woken = Arc::new(Notify::new());
        let mut chores = JoinSet::new();
        chores.spawn(forward_wakes(
            Arc::clone(&self.repository),
            self.telemetry.clone(),
            Arc::clone(&woken),
        ));
        for destination in 0..self.destinations.all().len() {
            let destinations = Arc::clone(&self.destinations);
            let outcomes = relay.outcomes.clone();
            chores.spawn(forward_recoveries(
                destinations,
                self.telemetry.clone(),
                destination,
                outcomes,
            ));
        }
        let mut fine_timer = FineTimer::new();
        let mut stop_by: Option<Duration> = None;
        let mut error = None;

        loop {
            // One moment for all questions: what falls due after it is a deadline, and nothing can
            // fall due between two of them unseen.
            let now = clock.now();
            let commands = machine.commands(now, |to| self.destinations.capabilities(to));
            relay.send_until.send_if_modified(|until| {
                std::mem::replace(until, machine.send_until()) != machine.send_until()
            });
            for command in commands {
                self.execute(command, &relay, &mut answers, &mut error, until);
            }
            self.shared.observe(&machine, now);
            let ended = match (stop_by, until) {
                (Some(deadline), _) => machine.is_settled() || now >= deadline,
                (None, _) if error.is_some() => true,
                (None, Until::Stopped) => false,
                (None, Until::PassDone) => machine.pass_is_done(),
                (None, Until::Drained { patience }) => machine.is_drained(now, patience),
            };
            if ended {
                break;
            }
            let deadline = machine.next_deadline(now).into_iter().chain(stop_by).min();
            self.shared.rests_for(deadline.map(|deadline| deadline.saturating_sub(now)));
            tokio::select! {
                biased;
                Some(known) = outcomes_known.recv() => {
                    machine.handle(known, clock.now());
                    while let Ok(known) = outcomes_known.try_recv() {
                        machine.handle(known, clock.now());
                    }
                }
                Some(answer) = answers.join_next(), if !answers.is_empty() => {
                    let mut ended = Some(answer);
                    while let Some(answer) = ended {
                        // The end of a call comes after all that it told: of each, for one may end
                        // while another is taken in.
                        while let Ok(known) = outcomes_known.try_recv() {
                            machine.handle(known, clock.now());
                        }
                        take_in(&mut machine, answer, clock);
                        ended = answers.try_join_next();
                    }
                }
                () = stopped(&mut self.stop), if stop_by.is_none() => {
                    self.shared.relay_state(RelayState::Draining);
                    machine.handle(Input::Stop, clock.now());
                    stop_by = Some(clock.now().saturating_add(self.settings.shutdown_timeout));
                }
                () = woken.notified(), if stop_by.is_none() => {
                    machine.handle(Input::Wake, clock.now());
                }
                () = clock.sleep_until(deadline) => {}
                () = fine_timer.ring_at(machine.next_look(now), now) => {}
            }
        }
        self.shared.observe(&machine, clock.now());
        self.shared.rests_for(None);
        // Calls without an answer end here, before others take over what they sent.
        drop(answers);
        self.leave(relay.id).await;
        Outcome {
            delivered: machine.counts().delivered,
            report: StopReport {
                unacknowledged: machine.in_flight(),
                unsettled: machine.unsettled(),
                returned: machine.buffered(),
                failure: None,
            },
            error,
        }
    }

    /// Gives the shards back at once, and takes back what was told of this relay. Without it, they are
    /// free when the lease ends.
    async fn leave(&self, relay: Uuid) {
        let call = self.telemetry.storage("leave", self.repository.leave(relay));
        match tokio::time::timeout(LEAVE_TIMEOUT, call).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(
                error = error.report(),
                "cannot give the lease back; other relays wait until it ends"
            ),
            Err(_) => tracing::warn!(
                "the database does not answer; other relays wait until this one's lease ends"
            ),
        }
    }

    fn execute(
        &self,
        command: Command,
        relay: &Relay,
        answers: &mut JoinSet<Input>,
        error: &mut Option<Error>,
        until: Until,
    ) {
        let repository = Arc::clone(&self.repository);
        let telemetry = self.telemetry.clone();
        match command {
            Command::Lease { release, leaving } => {
                let request = LeaseRequest {
                    relay: relay.id,
                    name: relay.name.clone(),
                    ttl: self.settings.lease_ttl,
                    release,
                    leaving,
                };
                answers.spawn(async move {
                    // An answer that takes longer than the lease is worth nothing.
                    let call = telemetry.storage("lease", repository.lease(&request));
                    let answer = tokio::time::timeout(request.ttl, call).await;
                    Input::Leased(answer.unwrap_or_else(|_| {
                        Err(Error::new(ErrorKind::Timeout, "renew lease", "no answer in time"))
                    }))
                });
            }
            Command::ReadWatermark => {
                answers.spawn(async move {
                    Input::Watermark(telemetry.storage("watermark", repository.watermark()).await)
                });
            }
            Command::ReadDeadHeads { after, limit } => {
                answers.spawn(async move {
                    let call = repository.dead_heads(after, limit);
                    Input::DeadHeads(telemetry.storage("dead_heads", call).await)
                });
            }
            Command::Fetch { query, ticket } => {
                answers.spawn(async move {
                    let page = telemetry.storage("fetch", repository.fetch_pending(&query)).await;
                    Input::Fetched { ticket, page }
                });
            }
            Command::Look { selection, limit } => {
                answers.spawn(async move {
                    let call = repository.heads(&selection, limit);
                    Input::Looked(telemetry.storage("heads", call).await)
                });
            }
            Command::Settle(settlements) => {
                answers.spawn(async move {
                    let result = settle(&*repository, &telemetry, &settlements).await;
                    Input::Settled { settlements, result }
                });
            }
            Command::Publish { call, events, not_after } => {
                let destinations = Arc::clone(&self.destinations);
                let outcomes = relay.outcomes.clone();
                let (clock, renewals) = (relay.clock, relay.send_until.subscribe());
                answers.spawn(async move {
                    // The process may have been stopped since the machine decided.
                    if clock.now() >= not_after {
                        return Input::CallEnded { call, given_up: true };
                    }
                    let report = |known, repeated| {
                        // The run may be over: then nobody asks any more.
                        let known = Input::Published { call, outcomes: known, repeated };
                        let _ = outcomes.send(known);
                    };
                    let to = &destinations.all()[call.0];
                    let given_up = tokio::select! {
                        biased;
                        () = telemetry.publish(to, &events, report) => false,
                        // A call may go on sending for long; not past the lease.
                        () = lease_ends(clock, not_after, renewals) => true,
                    };
                    Input::CallEnded { call, given_up }
                });
            }
            Command::Report(report) => {
                if let Report::DatabaseFailed { error: met } = &report
                    && matches!(until, Until::PassDone)
                {
                    *error = Some(met.clone());
                }
                self.tell(&report);
            }
        }
    }

    /// Logs, counts and shows a report. Whatever stops an event leaves a line in the log.
    fn tell(&self, report: &Report) {
        let name = |index: usize| &*self.destinations.all()[index].name;
        match report {
            Report::RetryScheduled { destination, event, delay, error } => {
                self.telemetry.retry_scheduled();
                tracing::warn!(
                    id = %event.id, event_type = &*event.event_type, key = event.key,
                    destination = name(*destination), ?delay, error, "event failed; it is tried again"
                );
            }
            Report::TriedAgain { destination, event, pause, error } => {
                tracing::warn!(
                    id = %event.id, event_type = &*event.event_type, key = event.key,
                    destination = name(*destination), ?pause, error,
                    "event failed, and nothing tells yet whose fault that is; it is tried again and \
                     no attempt is counted"
                );
            }
            Report::LostAsRepeat { destination, event } => {
                self.telemetry.lost_as_repeat(name(*destination));
                tracing::error!(
                    id = %event.id, event_type = &*event.event_type, key = event.key,
                    destination = name(*destination),
                    "the broker dropped an event that was never sent before, since it holds another \
                     of the same id: it is recorded as delivered and it is not; give each event an id \
                     of its own"
                );
            }
            Report::UnknownDestination { name } => {
                self.shared.unknown_destination(name);
                tracing::error!(
                    destination = &**name,
                    "events name a destination that is not configured; they and their keys wait until \
                     a relay knows it, or they are sent elsewhere"
                );
            }
            Report::UnknownDestinationGone { name } => {
                self.shared.unknown_destination_gone(name);
                tracing::info!(
                    destination = &**name,
                    "no event waits any more that names this destination, which is not configured"
                );
            }
            Report::DeadLettered { event, reason, error, blocks_key } => {
                self.telemetry.dead_lettered(reason, 1);
                tracing::error!(
                    id = %event.id, event_type = &*event.event_type, key = event.key,
                    reason, error, blocks_key, "event is a dead letter"
                );
            }
            Report::Buried { rows } => {
                self.shared.unreadable(*rows as u64);
                self.telemetry.dead_lettered(ErrorKind::Corrupt.as_str(), *rows as u64);
            }
            Report::NotRecorded { seq, id, pause, error } => tracing::warn!(
                seq, %id, ?pause, error = &**error,
                "the outcome of an event cannot be recorded; it is tried again, and nothing waits for it"
            ),
            Report::Paused { destination, error } => {
                self.shared.paused(*destination, Some(error.clone()));
                tracing::warn!(
                    destination = name(*destination),
                    error,
                    "destination is unavailable; it is paused and no attempt is counted"
                );
            }
            Report::Resumed { destination } => {
                self.shared.paused(*destination, None);
                tracing::info!(destination = name(*destination), "destination answers again");
            }
            Report::ShardsChanged { shards, relays } => {
                tracing::info!(shards, relays, "this relay's share of the keys changed");
            }
            Report::LeaseLapsed => {
                tracing::warn!("the lease was not renewed in time; nothing is sent until it is");
            }
            Report::LeaseRenewed => tracing::info!("the lease is renewed"),
            Report::DatabaseFailed { error } => {
                self.shared.database(Some(error.clone()));
                let text = error.report();
                if passes(error) {
                    tracing::warn!(error = text, "database is unavailable; trying again");
                } else {
                    let (kind, hint) = (error.kind().as_str(), error.kind().hint());
                    tracing::warn!(
                        error = text,
                        kind,
                        hint,
                        "the database refuses what a relay needs; trying again"
                    );
                }
            }
            Report::DatabaseAnswered => {
                self.shared.database(None);
                tracing::info!("database answers again");
            }
        }
    }
}

/// Who runs.
struct Relay {
    id: Uuid,
    name: Box<str>,
    clock: Clock,
    /// Nothing may be sent from then on; it moves on with every renewal of the lease.
    send_until: watch::Sender<Duration>,
    /// Where calls tell what they know before they end.
    outcomes: mpsc::UnboundedSender<Input>,
}

/// Completes when the lease is over under which something is sent: at `until`, unless it is renewed
/// before. What comes later is another lease, even if the shards are the same.
async fn lease_ends(clock: Clock, mut until: Duration, mut renewals: watch::Receiver<Duration>) {
    while clock.now() < until {
        tokio::select! {
            biased;
            changed = renewals.changed() => {
                // The run is over; whoever drops this call sees to it.
                if changed.is_err() {
                    std::future::pending::<()>().await;
                }
                if clock.now() < until {
                    until = *renewals.borrow_and_update();
                }
            }
            () = clock.sleep_until(Some(until)) => {}
        }
    }
}

/// Records outcomes, and looks for the reason where fewer events changed than should have.
async fn settle(
    repository: &dyn OutboxRepository,
    telemetry: &Telemetry,
    settlements: &[Settlement],
) -> Result<Vec<Unsettled>> {
    let changed = telemetry.storage("settle", repository.settle(settlements)).await?;
    let given = settlements.len();
    if usize::try_from(changed).is_ok_and(|changed| changed >= given) {
        return Ok(Vec::new());
    }
    let left = telemetry.storage("unsettled", repository.unsettled(settlements)).await?;
    if left.is_empty() {
        tracing::info!(
            given,
            changed,
            first = settlements.first().map(|settlement| settlement.seq),
            "outcomes changed fewer events than they are of: the others were recorded before, were \
             changed or removed by somebody else, or are another relay's now"
        );
    }
    Ok(left)
}

/// Host and process id.
fn name_of_process() -> Box<str> {
    let system = rustix::system::uname();
    format!("{}:{}", system.nodename().to_string_lossy(), std::process::id()).into()
}

fn take_in(machine: &mut Machine, answer: Result<Input, tokio::task::JoinError>, clock: Clock) {
    match answer {
        Ok(input) => machine.handle(input, clock.now()),
        // Panics of buses and repositories are caught within the calls, so it is one of ours. The
        // machine would wait for this answer for ever: the run ends with it, and says so.
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            // Nothing aborts them but the end of the run.
            Err(error) => tracing::error!(%error, "a task of the relay ended without an answer"),
        },
    }
}

async fn stopped(stop: &mut watch::Receiver<bool>) {
    // An error means that every handle of the processor is gone: stop as well.
    let _ = stop.wait_for(|stopped| *stopped).await;
}

/// Tells the machine each time that a destination's client is connected again.
async fn forward_recoveries(
    destinations: Arc<Destinations>,
    telemetry: Telemetry,
    destination: usize,
    told: mpsc::UnboundedSender<Input>,
) {
    let to = &destinations.all()[destination];
    loop {
        if let Err(error) = telemetry.recovered(to).await {
            tracing::error!(
                destination = &*to.name,
                error = error.report(),
                "no more is heard of it"
            );
            return;
        }
        if told.send(Input::Recovered { destination }).is_err() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Turns the repository's hints into at most one wake-up each millisecond.
async fn forward_wakes(
    repository: Arc<dyn OutboxRepository>,
    telemetry: Telemetry,
    woken: Arc<Notify>,
) {
    loop {
        if let Err(error) = telemetry.wait_for_events(&*repository).await {
            // It would panic again, and polling finds everything.
            tracing::error!(error = error.report(), "no wake-ups any more; polling finds events");
            return;
        }
        woken.notify_one();
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

#[cfg(test)]
mod tests;
