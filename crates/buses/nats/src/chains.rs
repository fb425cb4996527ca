//! Chains: several events of a key on their way at once, each of which the stream stores only directly
//! behind the one before it.
//!
//! The events of a key are sent one right after the other, and each but the first names its
//! predecessor in `Nats-Expected-Last-Msg-Id`. A server stores such a message only if the last one of
//! the whole stream has that id; else it refuses it. So whatever becomes of an event, refused or lost
//! with a connection, none behind it in its chain is stored, and what is left of the chain goes again,
//! headed by the first that is not stored.
//!
//! Every server with JetStream knows that header. What it costs: the stream must get nothing from
//! others between two events of a chain. A little is no harm, since a chain that was broken goes again
//! within the call; under much of it ([`Disturbance`]) one event of a key at a time is faster.
//!
//! There are none where a server does not do as described (`pipelining.rs` asks):
//!
//! - A message over the limits of an *account* is not stored, and yet becomes the last one: what is
//!   behind it would be stored (nats-server 2.10.26 and 2.11.11; not 2.9.10, 2.12.8, 2.14.6, 2.15.1).
//!   Limits of a stream and of the server are no such case.
//! - A *replicated* stream that refuses a message for its header stops for good, with a "critical write
//!   error" in the servers' logs (2.15.1). One with a single replica does not.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU32, Ordering};

use posthaste_core::{ErrorKind, OrderKey};
use uuid::Uuid;

use super::acknowledgement::Outcome;
use super::slots::{Slot, State, sendable};

/// So many calls in a row in which others came between show that this stream is not ours alone. A
/// relay that crashed sends what it had under way again, and a repeated event, which is not stored,
/// breaks its chain too: that is over after fewer calls.
const DISTURBED_CALLS_MAX: u32 = 16;

/// An event that is sent in a round.
pub(super) struct Link {
    /// Which slot of the call.
    pub(super) at: usize,
    /// The event it must be stored directly behind.
    pub(super) behind: Option<Uuid>,
}

/// The events that can be sent now, those of a key one behind the other, at most `longest` of each.
pub(super) fn of_keys(slots: &[Slot<'_>], longest: usize) -> Vec<Link> {
    let ready = sendable(slots);
    let mut chains: Vec<Vec<usize>> = Vec::with_capacity(ready.len());
    let mut chain_of: HashMap<&OrderKey, usize> = HashMap::with_capacity(ready.len());
    for at in ready {
        let chain = *chain_of.entry(slots[at].key()).or_insert(chains.len());
        match chains.get_mut(chain) {
            Some(chain) if chain.len() == longest => {}
            Some(chain) => chain.push(at),
            None => chains.push(vec![at]),
        }
    }
    let links = |chain: Vec<usize>| {
        let mut behind = None;
        chain.into_iter().map(move |at| Link { at, behind: behind.replace(slots[at].event.id()) })
    };
    chains.into_iter().flat_map(links).collect()
}

/// How long chains may be after a round with chains up to `longest`: short ones, where one was broken,
/// since all behind that place goes again.
pub(super) fn longest_after(longest: usize, is_broken: bool) -> usize {
    if is_broken { (longest / 4).max(2) } else { longest.saturating_mul(2) }
}

/// The events that go again, since their chain was broken, and how many of them by others. Behind an
/// event that failed by itself nothing goes again.
pub(super) fn go_again(slots: &[Slot<'_>], round: &[Link]) -> (Vec<usize>, usize) {
    let (mut again, mut overtaken) = (Vec::new(), 0);
    let (mut has_failed, mut is_by_others) = (false, true);
    for link in round {
        if link.behind.is_none() {
            (has_failed, is_by_others) = (false, true);
        }
        let slot = &slots[link.at];
        match &slot.state {
            State::Done(Outcome::Overtaken) if link.behind.is_some() && !has_failed => {
                again.push(link.at);
                overtaken += usize::from(is_by_others);
            }
            // Its earlier copy is being stored, and with it what is behind this one.
            State::Done(Outcome::InProcess) if !has_failed => {
                again.push(link.at);
                is_by_others = false;
            }
            // The name of its predecessor may be what made it so.
            State::Done(outcome)
                if is_too_large(outcome) && link.behind.is_some() && !has_failed =>
            {
                again.push(link.at);
                is_by_others = false;
            }
            _ => has_failed |= slot.has_failed(),
        }
    }
    (again, overtaken)
}

fn is_too_large(outcome: &Outcome) -> bool {
    match outcome {
        Outcome::Failed(error) => error.kind() == ErrorKind::TooLarge,
        Outcome::OverMaxPayload => true,
        _ => false,
    }
}

/// How many events of a call were sent behind another, and how many of them were refused for what came
/// between.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct Tally {
    pub(super) chained: usize,
    pub(super) overtaken: usize,
}

impl Tally {
    /// Counts a round in which others broke the chains of so many.
    pub(super) fn add(&mut self, round: &[Link], overtaken: usize) {
        self.chained += round.iter().filter(|link| link.behind.is_some()).count();
        self.overtaken += overtaken;
    }
}

/// How often others store something between two events of a chain.
#[derive(Debug, Default)]
pub(super) struct Disturbance {
    calls_in_a_row: AtomicU32,
}

impl Disturbance {
    /// Takes a call into account. Returns whether chains are not worth while here.
    pub(super) fn note(&self, Tally { chained, overtaken }: Tally) -> bool {
        if chained == 0 {
            return false;
        }
        if overtaken * 4 <= chained {
            self.calls_in_a_row.store(0, Ordering::Relaxed);
            return false;
        }
        let calls = self.calls_in_a_row.fetch_add(1, Ordering::Relaxed) + 1;
        if calls >= DISTURBED_CALLS_MAX {
            self.calls_in_a_row.store(0, Ordering::Relaxed);
        }
        calls >= DISTURBED_CALLS_MAX
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_in_a_row_show_that_others_store_here_too() {
        let disturbance = Disturbance::default();
        let (bad, good) = (Tally { chained: 8, overtaken: 3 }, Tally { chained: 8, overtaken: 2 });
        let many = || (1..DISTURBED_CALLS_MAX).any(|_| disturbance.note(bad));
        assert!(!many());
        assert!(!disturbance.note(good) && !many());
        assert!(!disturbance.note(Tally::default()), "says nothing");
        assert!(disturbance.note(bad));
        assert!(!many(), "counts from the start again");
    }
}
