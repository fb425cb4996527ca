//! Rounds: chains, or one event of each key, and their answers; again and again until nothing is left that
//! can be sent.

use async_nats::Subscriber;
use futures_util::FutureExt as _;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout_at};
use uuid::Uuid;

use super::acknowledgement::{Ack, Outcome};
use super::bus::{IN_PROCESS_WAIT, NatsBus};
use super::chains::{self, Link, Tally};
use super::pace::Pace;
use super::reporter::Reporter;
use super::slots::{Outbound, Slot, State, give_up};

impl NatsBus {
    /// Sends the events of each key, several behind each other or one, and waits for the answers,
    /// until none is left that can be sent. That is once, but for chains that were broken, and for a
    /// call that was made for a stream that allowed more.
    pub(super) async fn send_rounds(
        &self,
        slots: &mut [Slot<'_>],
        chained: bool,
        reporter: Reporter<'_>,
        losses: &mut watch::Receiver<u64>,
        deadline: Instant,
    ) -> bool {
        let mut longest = if chained { slots.len() } else { 1 };
        let mut tally = Tally::default();
        loop {
            let round = chains::of_keys(slots, longest);
            if round.is_empty() {
                break;
            }
            if Instant::now() >= deadline {
                give_up(slots);
                return false;
            }
            let lost = self.send_round(slots, &round, reporter, losses, deadline).await;
            let (again, overtaken) = chains::go_again(slots, &round);
            let in_process = again.iter().any(|at| slots[*at].is_in_process());
            self.make_again(slots, &again);
            if lost {
                give_up(slots);
                return true;
            }
            tally.add(&round, overtaken);
            if in_process {
                sleep(IN_PROCESS_WAIT).await;
            }
            if chained {
                longest = chains::longest_after(longest, overtaken > 0);
            }
        }
        if self.disturbance.note(tally) {
            self.knowledge.refused(&self.connection);
        }
        false
    }

    /// Sends messages and takes their answers in. Returns whether the connection was lost.
    ///
    /// All answers come to one subscription. Of the client's own way, a channel, two timers, two permits
    /// and a random subject for each message, nothing is needed here.
    async fn send_round(
        &self,
        slots: &mut [Slot<'_>],
        round: &[Link],
        reporter: Reporter<'_>,
        losses: &mut watch::Receiver<u64>,
        deadline: Instant,
    ) -> bool {
        let (start, mut refusals) = (Instant::now(), self.connection.refusals());
        let client = &self.connection.client;
        let inbox = client.new_inbox();
        let Ok(Ok(mut answers)) =
            timeout_at(deadline, client.subscribe(format!("{inbox}.*"))).await
        else {
            return true;
        };
        self.hand_over(slots, round, &inbox, deadline).await;
        let mut waiting = slots.iter().filter(|slot| slot.is_waiting()).count();
        let lost = tokio::select! {
            biased;
            _ = timeout_at(deadline, async {
                loop {
                    tokio::select! {
                        biased;
                        () = self.take_in(&mut answers, slots, &mut waiting, reporter) => return,
                        // Nobody answers what is refused.
                        _ = refusals.changed() => {
                            waiting -= self.take_refusals(slots, start);
                        }
                    }
                }
            }) => false,
            _ = losses.changed() => true,
        };
        // Answers that did arrive count. The rest will not come on this connection, or too late.
        let _ = self.take_in(&mut answers, slots, &mut waiting, reporter).now_or_never();
        lost
    }

    /// Takes answers in until all are there, or none will come.
    async fn take_in(
        &self,
        answers: &mut Subscriber,
        slots: &mut [Slot<'_>],
        waiting: &mut usize,
        reporter: Reporter<'_>,
    ) {
        let mut pace = Pace::new();
        while *waiting > 0 {
            let report = || reporter.acknowledged(slots, |slot, ack| self.is_certain(slot, ack));
            let Some(answer) = pace.wait(answers, report).await else { return };
            // The subject is ours, and ends with the number of the slot.
            let at = answer.subject.as_str().rsplit('.').next().and_then(|at| at.parse().ok());
            if let Some(slot) = at.and_then(|at: usize| slots.get_mut(at))
                && slot.is_waiting()
                && let Some(outcome) = Outcome::of_answer(&answer, self.config.stream.as_deref())
            {
                slot.state = State::Done(outcome);
                *waiting -= 1;
                pace.begin();
            }
        }
    }

    /// Whether an acknowledgement needs no more looking into.
    fn is_certain(&self, slot: &Slot<'_>, ack: &Ack) -> bool {
        let stores = |stream: &str| self.streams.stores(stream, &slot.subject) == Some(true);
        ack.stream.as_deref().is_none_or(stores)
    }

    /// Ends the wait for what was refused since `start` for lack of rights. Returns how many.
    fn take_refusals(&self, slots: &mut [Slot<'_>], start: Instant) -> usize {
        let mut refused = 0;
        for slot in slots.iter_mut().filter(|slot| slot.is_waiting()) {
            if self.connection.refusal(&slot.subject, start).is_some() {
                slot.state = State::Done(Outcome::NoAnswer);
                refused += 1;
            }
        }
        refused
    }

    /// Hands messages to the client, and nothing of another call between them.
    async fn hand_over(
        &self,
        slots: &mut [Slot<'_>],
        round: &[Link],
        inbox: &str,
        deadline: Instant,
    ) {
        let Ok(_turn) = timeout_at(deadline, self.turn.lock()).await else { return };
        let mut before = None;
        for link in round {
            // What did not leave the client breaks its chain.
            let is_broken = before.is_some_and(|at: usize| slots[at].has_failed());
            if link.behind.is_none() || !is_broken {
                let reply = format!("{inbox}.{}", link.at);
                self.send_one(&mut slots[link.at], link.behind, reply, deadline).await;
                before = Some(link.at);
            }
        }
    }

    async fn send_one(
        &self,
        slot: &mut Slot<'_>,
        behind: Option<Uuid>,
        reply: String,
        deadline: Instant,
    ) {
        let Some(Outbound { subject, mut headers, body }) = slot.take_message() else { return };
        if let Some(id) = behind {
            headers.insert(async_nats::header::NATS_EXPECTED_LAST_MESSAGE_ID, id.to_string());
        }
        let client = &self.connection.client;
        let publish = client.publish_with_reply_and_headers(subject, reply, headers, body);
        slot.state = match timeout_at(deadline, publish).await {
            Ok(Ok(())) => State::Waiting,
            Ok(Err(error)) => State::Done(Outcome::from(error)),
            Err(_) => State::Done(Outcome::NoAnswer),
        };
    }
}
