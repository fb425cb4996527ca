//! Which shards this relay delivers, and until when it may send.
//!
//! The lease is counted by the database's clock, what may be sent by the relay's own: from the
//! moment it *asked* for the lease, less a margin. So whatever the answer took, and whatever the
//! two clocks show, the relay stops sending before the database gives its shards away.
//!
//! A shard on its way to another relay is *leaving*: nothing of it is read or sent any more, what
//! was sent is waited for, and then it is given back. One that was *lost*, because the relay did not
//! renew in time, is forgotten on the spot; what is still on its way is of no concern any more.

use std::time::Duration;

use posthaste_core::{Lease, Shard, ShardLease, ShardSet};

use crate::database::Work;
use crate::machine::Machine;
use crate::protocol::Report;

/// Renewals in the time of a lease: some may fail before it ends.
const RENEWALS: u32 = 4;
/// Attempts to give shards back, or to get those that others give back, in the time of a lease:
/// nobody delivers them meanwhile.
const CHANGES: u32 = 50;
/// The part of the lease in which nothing is sent any more: for a call that was just begun, and
/// for clocks that run apart.
const MARGIN: u32 = 5;

#[derive(Debug)]
pub(crate) struct Leases {
    /// `None` on a store that this relay has to itself.
    ttl: Option<Duration>,
    /// The generation of each shard that is held.
    held: [Option<i64>; Shard::COUNT],
    leaving: ShardSet,
    fair_share: usize,
    relays: usize,
    send_until: Duration,
    renew_at: Duration,
    /// Shards are not given back before: the store may have had no time for it just now.
    release_at: Duration,
    /// The database failed then: it may be another one that answers next, and knows nothing of this
    /// lease.
    doubted_at: Option<Duration>,
    /// When the request under way was made.
    asked_at: Option<Duration>,
    /// Events in flight.
    in_flight: [u32; Shard::COUNT],
    lapsed: bool,
}

/// What an answer changed.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Changes {
    /// Not held any more.
    pub(crate) lost: ShardSet,
    /// Held from now on. A shard that was lost and taken again is in both.
    pub(crate) gained: ShardSet,
    /// To be given back.
    pub(crate) leaving: ShardSet,
}

impl Leases {
    pub(crate) fn new(ttl: Option<Duration>) -> Self {
        let alone = ttl.is_none();
        Self {
            ttl,
            held: [alone.then_some(0); Shard::COUNT],
            leaving: ShardSet::EMPTY,
            fair_share: Shard::COUNT,
            relays: 1,
            send_until: if alone { Duration::MAX } else { Duration::ZERO },
            renew_at: if alone { Duration::MAX } else { Duration::ZERO },
            release_at: Duration::ZERO,
            doubted_at: None,
            asked_at: None,
            in_flight: [0; Shard::COUNT],
            lapsed: false,
        }
    }

    fn held(&self) -> ShardSet {
        ShardSet::ALL.iter().filter(|shard| self.held[shard.index()].is_some()).collect()
    }

    /// Shards whose events are read and sent.
    pub(crate) fn active(&self) -> ShardSet {
        self.held().without(self.leaving)
    }

    /// The same, as a query names them.
    pub(crate) fn active_leases(&self) -> Option<Vec<ShardLease>> {
        self.ttl?;
        Some(self.active().iter().filter_map(|shard| self.lease_of(shard)).collect())
    }

    pub(crate) fn is_active(&self, shard: Shard) -> bool {
        self.held[shard.index()].is_some() && !self.leaving.contains(shard)
    }

    /// The generation under which events of this shard are sent now.
    pub(crate) fn generation(&self, shard: Shard) -> Option<i64> {
        self.held[shard.index()]
    }

    /// Whether the shard was nobody else's since it was held in this generation.
    pub(crate) fn holds(&self, shard: Shard, generation: i64) -> bool {
        self.held[shard.index()] == Some(generation)
    }

    /// Whether the lease under which an event was sent is this relay's still.
    pub(crate) fn is_current(&self, lease: Option<ShardLease>) -> bool {
        lease.is_none_or(|lease| self.holds(lease.shard, lease.generation))
    }

    /// Whether other relays may deliver the same outbox.
    pub(crate) const fn are_shared(&self) -> bool {
        self.ttl.is_some()
    }

    /// What a settlement has to name; `None` on a store without leases.
    pub(crate) fn lease_of(&self, shard: Shard) -> Option<ShardLease> {
        self.ttl?;
        self.held[shard.index()].map(|generation| ShardLease { shard, generation })
    }

    /// Nothing may be sent from then on.
    pub(crate) const fn send_until(&self) -> Duration {
        self.send_until
    }

    pub(crate) fn may_send(&self, now: Duration) -> bool {
        now < self.send_until && self.doubted_at.is_none()
    }

    pub(crate) fn sent(&mut self, shard: Shard) {
        self.in_flight[shard.index()] += 1;
    }

    #[cfg(test)]
    pub(crate) fn in_flight(&self) -> usize {
        self.in_flight.iter().map(|events| *events as usize).sum()
    }

    pub(crate) fn returned(&mut self, shard: Shard) {
        self.in_flight[shard.index()] -= 1;
    }

    /// What to ask the store for now, if anything: which shards to give back. `unrecorded` are those
    /// with outcomes that are not recorded yet.
    pub(crate) fn next_request(
        &mut self,
        now: Duration,
        unrecorded: impl FnOnce() -> ShardSet,
    ) -> Option<Vec<ShardLease>> {
        if self.ttl.is_none() || self.asked_at.is_some() {
            return None;
        }
        let mut release = Vec::new();
        if !self.leaving.is_empty() && now >= self.release_at {
            let done = self.leaving.without(unrecorded());
            let done = done.iter().filter(|shard| self.in_flight[shard.index()] == 0);
            release.extend(done.filter_map(|shard| self.lease_of(shard)));
        }
        if release.is_empty() && now < self.renew_at {
            return None;
        }
        self.asked_at = Some(now);
        Some(release)
    }

    /// The relay stops: it asks at once, and is told to give everything back.
    pub(crate) fn hurry(&mut self, now: Duration) {
        self.renew_at = self.renew_at.min(now);
    }

    /// When the lease is to be renewed.
    pub(crate) fn due(&self) -> Option<Duration> {
        let release_at = (!self.leaving.is_empty()).then_some(self.release_at);
        let due = release_at.map_or(self.renew_at, |at| at.min(self.renew_at));
        (self.ttl.is_some() && self.asked_at.is_none()).then_some(due)
    }

    /// Takes the store's answer.
    pub(crate) fn answered(&mut self, lease: &Lease) -> Changes {
        let (Some(ttl), Some(asked_at)) = (self.ttl, self.asked_at.take()) else {
            return Changes::default();
        };
        self.send_until = asked_at + (ttl - ttl / MARGIN);
        let waits_for_shards = lease.shards.len() < lease.fair_share;
        self.renew_at = asked_at + ttl / if waits_for_shards { CHANGES } else { RENEWALS };
        self.release_at = asked_at + ttl / CHANGES;
        self.doubted_at = self.doubted_at.filter(|doubted| asked_at < *doubted);
        if self.doubted_at.is_some() {
            self.renew_at = asked_at;
        }
        (self.fair_share, self.relays) = (lease.fair_share, lease.relays);
        let mut changes = Changes::default();
        let mut held = [None; Shard::COUNT];
        for ShardLease { shard, generation } in &lease.shards {
            held[shard.index()] = Some(*generation);
        }
        for shard in ShardSet::ALL.iter() {
            let (before, after) = (self.held[shard.index()], held[shard.index()]);
            if before != after {
                if before.is_some() {
                    changes.lost.insert(shard);
                }
                if after.is_some() {
                    changes.gained.insert(shard);
                }
            }
        }
        self.held = held;
        self.leaving = self.leaving.without(changes.lost);
        let surplus = self.held().len().saturating_sub(lease.fair_share);
        let more = surplus.saturating_sub(self.leaving.len());
        let mut active: Vec<Shard> = self.active().iter().collect();
        changes.leaving = active.split_off(active.len().saturating_sub(more)).into_iter().collect();
        for shard in changes.leaving.iter() {
            self.leaving.insert(shard);
        }
        changes
    }

    /// The request failed: it is asked again after the store's pause.
    pub(crate) fn failed(&mut self) {
        self.asked_at = None;
    }

    /// The database failed. A standby that was behind may take over and give the shards to others, so
    /// nothing is sent before it has confirmed the lease.
    pub(crate) fn doubt(&mut self, now: Duration) {
        if self.ttl.is_some() {
            self.doubted_at = Some(now);
            self.renew_at = self.renew_at.min(now);
        }
    }

    /// Whether this relay has what it is entitled to: nothing more comes to it.
    pub(crate) fn is_complete(&self) -> bool {
        self.ttl.is_none()
            || (self.send_until > Duration::ZERO && self.held().len() >= self.fair_share)
    }

    /// Whether the right to send ended since this was asked last, or began again.
    fn lapse_changed(&mut self, now: Duration) -> Option<bool> {
        let lapsed = self.send_until > Duration::ZERO && now >= self.send_until;
        (std::mem::replace(&mut self.lapsed, lapsed) != lapsed).then_some(lapsed)
    }
}

impl Machine {
    /// Whether events may be sent now; says so when that changes.
    pub(crate) fn may_send(&mut self, now: Duration) -> bool {
        if let Some(lapsed) = self.leases.lapse_changed(now) {
            self.reports.push(if lapsed { Report::LeaseLapsed } else { Report::LeaseRenewed });
        }
        self.leases.may_send(now)
    }

    pub(crate) fn leased(&mut self, lease: &Lease) {
        let changes = self.leases.answered(lease);
        if changes == Changes::default() {
            return;
        }
        let gone = ShardSet::from_iter(changes.lost.iter().chain(changes.leaving.iter()));
        self.keys.drop_shards(gone);
        for outage in &mut self.outages {
            // Its next owner finds out whose fault it was.
            for failure in outage.suspicion.take_of_shards(gone) {
                self.keys.known.forget(failure.held.seq, failure.held.event.id());
            }
        }
        self.reader.dead_letters.drop_shards(gone);
        // Whatever of these is still on its way: it is another relay's now.
        self.keys.known.forget_shards(changes.lost);
        self.settling.drop_shards(changes.lost);
        self.nothing_to_record();
        if self.leases.active().is_empty() {
            // Nothing is read now, so nothing could tell that reading works.
            for work in Work::READING {
                self.database_answered(work);
            }
        }
        if !changes.gained.is_empty() {
            // Their former owner may have sent what is there by the next watermark.
            self.unsent_above = None;
            self.reader.shards_gained();
        }
        let (shards, relays) = (self.leases.active().len(), self.leases.relays);
        self.reports.push(Report::ShardsChanged { shards, relays });
    }

    /// With the last outcome gone there is nothing left to try the database with: whether it records
    /// is unknown again, and must not hold up what could tell.
    pub(crate) fn nothing_to_record(&mut self) {
        if self.settling.to_be_tried() == 0 {
            self.database_answered(Work::Recording);
        }
    }

    /// Nothing may be sent from then on; it moves on with every renewal.
    pub const fn send_until(&self) -> Duration {
        self.leases.send_until()
    }

    /// Shards that this relay delivers, and the relays that share the outbox.
    pub fn shards_and_relays(&self) -> (usize, usize) {
        (self.leases.active().len(), self.leases.relays)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TTL: Duration = Duration::from_secs(5);

    fn lease(shards: impl IntoIterator<Item = (usize, i64)>, fair_share: usize) -> Lease {
        let shards = shards.into_iter().map(|(index, generation)| {
            let shard = Shard::from_index(index).expect("a shard");
            ShardLease { shard, generation }
        });
        Lease { shards: shards.collect(), fair_share, relays: 2 }
    }

    fn set(indexes: &[usize]) -> ShardSet {
        indexes.iter().map(|index| Shard::from_index(*index).expect("a shard")).collect()
    }

    fn ask(leases: &mut Leases, now: Duration) -> Option<Vec<ShardLease>> {
        leases.next_request(now, || ShardSet::EMPTY)
    }

    #[test]
    fn what_may_be_sent_counts_from_the_question_not_from_the_answer() {
        let mut leases = Leases::new(Some(TTL));
        assert!(!leases.may_send(Duration::ZERO));
        let asked = Duration::from_secs(10);
        assert_eq!(ask(&mut leases, asked), Some(Vec::new()));
        assert_eq!(ask(&mut leases, asked), None, "one at a time");
        // However late the answer comes.
        leases.answered(&lease([(1, 1)], 1));
        assert!(leases.may_send(asked + Duration::from_secs(3)));
        assert!(!leases.may_send(asked + Duration::from_secs(4)));
        assert!(leases.due().is_some_and(|due| due < asked + TTL / 2));
    }

    #[test]
    fn after_a_failure_of_the_database_the_lease_is_confirmed_before_anything_is_sent() {
        let mut leases = Leases::new(Some(TTL));
        ask(&mut leases, Duration::ZERO);
        leases.answered(&lease([(1, 1)], 1));
        let renewal = leases.due().expect("a renewal");
        ask(&mut leases, renewal);
        let failure = renewal + Duration::from_millis(1);
        leases.doubt(failure);
        assert!(!leases.may_send(failure));
        leases.answered(&lease([(1, 1)], 1));
        assert!(!leases.may_send(failure), "what was asked before is no answer");
        assert!(ask(&mut leases, failure).is_some(), "it asks at once");
        leases.answered(&lease([(1, 1)], 1));
        assert!(leases.may_send(failure));
    }

    #[test]
    fn a_shard_above_the_fair_share_leaves_when_nothing_of_it_is_under_way() {
        let mut leases = Leases::new(Some(TTL));
        ask(&mut leases, Duration::ZERO);
        let changes = leases.answered(&lease([(1, 1), (2, 1)], 1));
        assert_eq!((changes.gained, changes.leaving), (set(&[1, 2]), set(&[2])));
        assert_eq!(leases.active(), set(&[1]));
        let two = Shard::from_index(2).expect("a shard");
        leases.sent(two);
        assert_eq!(ask(&mut leases, TTL / CHANGES), None, "in flight");
        leases.returned(two);
        let later = TTL / CHANGES;
        assert_eq!(leases.next_request(later, || set(&[2])), None, "not recorded");
        let released = ask(&mut leases, later).expect("a request");
        assert_eq!(released, [ShardLease { shard: two, generation: 1 }]);
        let changes = leases.answered(&lease([(1, 1)], 1));
        assert_eq!((changes.lost, changes.leaving), (set(&[2]), ShardSet::EMPTY));
    }

    #[test]
    fn a_relay_with_less_than_its_share_asks_often() {
        let mut leases = Leases::new(Some(TTL));
        ask(&mut leases, Duration::ZERO);
        leases.answered(&lease([(1, 1)], 2));
        assert_eq!(leases.due(), Some(TTL / CHANGES));
        ask(&mut leases, TTL / CHANGES);
        leases.answered(&lease([(1, 1), (2, 1)], 2));
        assert_eq!(leases.due(), Some(TTL / CHANGES + TTL / RENEWALS));
    }

    #[test]
    fn a_shard_that_was_another_relays_meanwhile_is_lost_and_gained() {
        let mut leases = Leases::new(Some(TTL));
        ask(&mut leases, Duration::ZERO);
        leases.answered(&lease([(1, 1), (2, 1)], 2));
        ask(&mut leases, TTL);
        let changes = leases.answered(&lease([(1, 3), (2, 1)], 2));
        assert_eq!((changes.lost, changes.gained), (set(&[1]), set(&[1])));
        assert!(!leases.holds(Shard::from_index(1).expect("a shard"), 1));
    }

    #[test]
    fn a_store_without_leases_is_this_relays_alone() {
        let mut leases = Leases::new(None);
        assert!(leases.active().is_all() && leases.may_send(Duration::from_secs(1 << 40)));
        leases.hurry(TTL);
        assert_eq!((ask(&mut leases, TTL), leases.due()), (None, None));
        assert!(leases.is_complete());
    }
}
