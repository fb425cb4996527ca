//! A relay of the simulation: the machine, its clock, and its operations on their way.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use posthaste_core::{Error, ErrorKind, PublishResult, RetryDecision, Subject};
use rand::RngExt;
use uuid::Uuid;

use super::world::{DESTINATIONS, PATIENCE, World};
use crate::machine::Machine;
use crate::protocol::{Command, Input, Report};
use crate::send::in_flight::{CallId, Place};
use crate::verdict::suspicion::{EVIDENCE_AGE_MAX, OUTAGE_KEYS, SETTLES_WITHIN};

/// An operation on its way: asked for, then in effect, then answered.
pub(super) enum OnItsWay {
    Asked(Command),
    InEffect(Input),
}

/// Who a relay is, and what the checks need to know of it.
pub(super) struct Identity {
    pub(super) id: Uuid,
    /// Whether others deliver the same outbox.
    pub(super) shared: bool,
    /// Its clock runs at this rate of the database's, and does not begin with it.
    rate: f64,
    offset: Duration,
    /// Acknowledged to this relay, with the generation under which it was sent.
    pub(super) acknowledged: HashSet<(Uuid, i64)>,
    /// The keys of each destination that failed since the last success this relay has heard of, and
    /// when, by its clock, it heard of each.
    streaks: [HashMap<Uuid, Duration>; DESTINATIONS.len()],
    /// The keys of each destination that failed and have not succeeded since.
    failing: [HashMap<Uuid, Failing>; DESTINATIONS.len()],
    /// When it heard of the last success of each destination.
    success_heard: [Option<Duration>; DESTINATIONS.len()],
    /// Where what is in flight came from, and when it was sent.
    pub(super) calls: HashMap<CallId, (Vec<Place>, Duration)>,
}

/// What a relay has heard of a key that fails. Times are by its clock.
#[derive(Debug)]
struct Failing {
    first: Duration,
    /// Others were taken since: a further failure says nothing against the destination.
    refuted: bool,
    /// The first failure after that.
    refuted_at: Option<Duration>,
    /// The last failure, and when what failed was sent.
    last: (ErrorKind, Duration),
    /// What it was found to be at fault with.
    counted: Option<ErrorKind>,
}

impl Identity {
    pub(super) fn now(&self, world: &World) -> Duration {
        self.offset + world.now.mul_f64(self.rate)
    }
}

pub(super) struct Relay {
    pub(super) identity: Identity,
    pub(super) machine: Machine,
    pub(super) way: Vec<OnItsWay>,
    /// Stopped by a signal until then: it decides nothing, and what it asked for goes its way.
    pub(super) frozen_until: Duration,
    stopping: bool,
}

impl Relay {
    pub(super) fn start(world: &mut World, shared: bool) -> Self {
        let machine = world.machine(shared);
        let identity = Identity {
            id: Uuid::from_u128(world.random.random()),
            shared,
            rate: world.random.random_range(0.97..1.03),
            offset: Duration::from_secs(world.random.random_range(0..1_000)),
            acknowledged: HashSet::new(),
            streaks: Default::default(),
            failing: Default::default(),
            success_heard: Default::default(),
            calls: HashMap::new(),
        };
        let way = Vec::new();
        Self { identity, machine, way, frozen_until: Duration::ZERO, stopping: false }
    }

    pub(super) fn now(&self, world: &World) -> Duration {
        self.identity.now(world)
    }

    pub(super) fn wake(&mut self, world: &World) {
        let now = self.now(world);
        self.machine.handle(Input::Wake, now);
    }

    /// Begins to stop.
    pub(super) fn stop(&mut self, world: &World) {
        let now = self.now(world);
        self.stopping = true;
        self.machine.handle(Input::Stop, now);
    }

    /// Whether it was told to stop and has nothing to wait for any more.
    pub(super) fn has_stopped(&self) -> bool {
        self.stopping && self.machine.is_settled()
    }

    /// The process dies: memory is gone and no answer comes. What is in effect stays so, and what
    /// was sent to the database may still take effect later.
    pub(super) fn crash(self, world: &mut World) {
        for operation in self.way {
            match operation {
                // An embedded database dies with the process; what has leases is on a network.
                OnItsWay::Asked(command @ (Command::Settle(_) | Command::Lease { .. }))
                    if self.identity.shared && world.random.random_bool(0.3) =>
                {
                    world.ghosts.push((self.identity.id, command));
                }
                // Handed to the system before, and so sent in spite of it.
                OnItsWay::Asked(command @ Command::Publish { .. })
                    if world.random.random_bool(0.3) =>
                {
                    world.perform(&self.identity, command);
                }
                _ => {}
            }
        }
    }

    /// Asks the machine for commands and lets one operation take a step, in any order.
    pub(super) fn advance(&mut self, world: &mut World) {
        let frozen = world.now < self.frozen_until;
        if !frozen {
            self.decide(world);
        }
        if self.way.is_empty() {
            return;
        }
        let index = world.random.random_range(0..self.way.len());
        let touches_process = matches!(
            self.way[index],
            OnItsWay::InEffect(_) | OnItsWay::Asked(Command::Publish { .. } | Command::Report(_))
        );
        if frozen && touches_process {
            return;
        }
        let settles = matches!(self.way[index], OnItsWay::Asked(Command::Settle(_)));
        if settles && world.slow_settle && world.random.random_bool(0.97) {
            return;
        }
        match self.way.swap_remove(index) {
            OnItsWay::Asked(command) => {
                world.trace(|| format!("{} asked {command:?}", self.identity.id));
                match world.perform(&self.identity, command) {
                    Some(Input::Published { call, outcomes, .. }) => {
                        self.answers(call, outcomes, world)
                    }
                    Some(input) => self.way.push(OnItsWay::InEffect(input)),
                    None => {}
                }
            }
            OnItsWay::InEffect(input) => self.take_in(input, world),
        }
    }

    /// What is known of some keys may come before what is known of the others.
    fn answers(&mut self, call: CallId, outcomes: Vec<(usize, PublishResult)>, world: &mut World) {
        let (places, _) = &self.identity.calls[&call];
        let early: HashSet<_> = places.iter().map(|place| place.key).collect();
        let early: HashSet<_> =
            early.into_iter().filter(|_| world.random.random_bool(0.5)).collect();
        let (early, late): (Vec<_>, Vec<_>) =
            outcomes.into_iter().partition(|(number, _)| early.contains(&places[*number].key));
        for outcomes in [early, late] {
            if !outcomes.is_empty() {
                self.way.push(OnItsWay::InEffect(Input::Published {
                    call,
                    outcomes,
                    repeated: Vec::new(),
                }));
            }
        }
    }

    pub(super) fn decide(&mut self, world: &World) {
        let now = self.now(world);
        let commands = self.machine.commands(now, |_| world.capabilities());
        self.machine.check();
        for command in &commands {
            self.check_blame(command, world, now);
            if let Command::Publish { call, .. } = command {
                let places = self.machine.in_flight.places(*call);
                self.identity.calls.insert(*call, (places, now));
            }
        }
        self.way.extend(commands.into_iter().map(OnItsWay::Asked));
    }

    /// No attempt counts while so many keys in a row have failed, nor before others tell whose fault it is.
    fn check_blame(&mut self, command: &Command, world: &World, now: Duration) {
        let Command::Report(
            report @ (Report::RetryScheduled { event, .. } | Report::DeadLettered { event, .. }),
        ) = command
        else {
            return;
        };
        let event = &world.rows[&world.places[&event.id]].event;
        let destination = DESTINATIONS.iter().position(|name| Some(*name) == event.destination());
        let destination = destination.expect("a destination");
        let is_dead = matches!(report, Report::DeadLettered { .. });
        let of_retries = |reason: &str| reason == RetryDecision::EXHAUSTED_REASON;
        if !is_dead || matches!(report, Report::DeadLettered { reason, .. } if of_retries(reason)) {
            let recent = self.identity.streaks[destination]
                .values()
                .filter(|at| **at + EVIDENCE_AGE_MAX >= now);
            assert!(recent.count() < OUTAGE_KEYS, "an outage counted as an attempt");
            self.check_evidence(destination, event.aggregate_id(), now);
        }
        if is_dead {
            self.identity.failing[destination].remove(&event.aggregate_id());
        }
    }

    /// An attempt counts because others were taken since it was sent, and of what the destination says of
    /// itself only where it says so still a while after it was refuted; or because patience has ended; or
    /// it is the same again.
    fn check_evidence(&mut self, destination: usize, key: Uuid, now: Duration) {
        let Identity { failing, success_heard, .. } = &mut self.identity;
        let Some(failing) = failing[destination].get_mut(&key) else { return };
        let (kind, sent_at) = failing.last;
        if failing.counted != Some(kind) {
            let is_patient = failing.first + PATIENCE > now;
            let others_taken = success_heard[destination].is_some_and(|heard| heard >= sent_at);
            assert!(
                others_taken || !is_patient,
                "counted although nothing tells whose fault it is"
            );
            let said_still = failing.refuted_at.is_some_and(|at| at + SETTLES_WITHIN <= now);
            let is_claim = Error::new(kind, "", "").subject() == Subject::Destination;
            assert!(!is_claim || said_still, "a claim that was refuted just now counted");
        }
        failing.counted = Some(kind);
    }

    fn take_in(&mut self, input: Input, world: &World) {
        world.trace(|| format!("{} hears {input:?}", self.identity.id));
        let now = self.now(world);
        let call = match &input {
            Input::Published { call, outcomes, .. } => {
                self.hears(*call, outcomes, world, now);
                Some(*call)
            }
            Input::CallEnded { call, .. } => Some(*call),
            _ => None,
        };
        self.machine.handle(input, now);
        self.machine.check();
        if let Some(call) = call
            && self.machine.in_flight.unanswered(call).is_empty()
        {
            self.machine.handle(Input::CallEnded { call, given_up: false }, now);
            self.machine.check();
            self.identity.calls.remove(&call);
        }
    }

    /// What it hears of attempts, in the order in which it does.
    fn hears(
        &mut self,
        call: CallId,
        outcomes: &[(usize, PublishResult)],
        world: &World,
        now: Duration,
    ) {
        let Identity { acknowledged, streaks, failing, success_heard, calls, .. } =
            &mut self.identity;
        let (streak, failing) = (&mut streaks[call.0], &mut failing[call.0]);
        let (places, sent_at) = &calls[&call];
        let mut failed_keys: HashSet<Uuid> = HashSet::new();
        for (number, result) in outcomes {
            let place = places[*number];
            let event = &world.rows[&place.seq].event;
            let key = event.aggregate_id();
            // Of what is another relay's now it only learns that the destination works.
            let is_ours = self.machine.leases.holds(place.key.shard(), place.generation);
            match result {
                Ok(()) => {
                    streak.clear();
                    failing.values_mut().for_each(|failing| failing.refuted = true);
                    success_heard[call.0] = Some(now);
                    failing.remove(&key);
                    if is_ours {
                        acknowledged.insert((event.id(), place.generation));
                    }
                }
                // What is behind a failed event of its key was not attempted.
                Err(_) if !failed_keys.insert(key) || !is_ours => {}
                Err(error)
                    if error.subject() != Subject::Connection && !error.kind().is_permanent() =>
                {
                    let last = (error.kind(), *sent_at);
                    let first = || Failing {
                        first: now,
                        refuted: false,
                        refuted_at: None,
                        last,
                        counted: None,
                    };
                    let failing = failing.entry(key).or_insert_with(first);
                    failing.last = last;
                    if failing.refuted {
                        failing.refuted_at.get_or_insert(now);
                    } else {
                        streak.insert(key, now);
                    }
                }
                Err(_) => {}
            }
        }
    }

    /// How long, by the database's clock, until it has something to do.
    pub(super) fn next_deadline(&mut self, world: &World) -> Option<Duration> {
        let now = self.now(world);
        let deadline = self.machine.next_deadline(now)?;
        Some((deadline - now).div_f64(self.identity.rate))
    }
}
