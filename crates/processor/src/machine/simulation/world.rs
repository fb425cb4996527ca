//! What the relays of the simulation share: a database with its clock, a broker, an application that
//! writes, and an operator.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use posthaste_core::{
    BusCapabilities, DeadHead, Error, ErrorKind, EventBus, Head, HeadSelection, KeyPipelining,
    OpenWriter, OutboxEvent, Payload, PendingEvent, PendingPage, PendingQuery, PendingSelection,
    PublishResult, RetryPolicy, Seq, Settlement, SettlementOutcome, Shard, Watermark,
};
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};
use uuid::Uuid;

use super::leases::Leases;
use super::relay::Identity;
use crate::machine::suspicion::OUTAGE_KEYS;
use crate::machine::{CallId, Command, FetchTicket, Input, Machine};
use crate::routes::Routes;
use crate::{Destination, ProcessorSettings};

/// A delay beyond all that is waited for here.
const FAR_OFF: Duration = Duration::from_secs(5_000);
/// What a relay's clock may gain on the database's in the longest wait there is here.
const CLOCKS_APART: Duration = Duration::from_secs(3);
/// How long a lease lasts.
pub(super) const TTL: Duration = Duration::from_secs(5);
pub(super) const KEYS: usize = 6;
/// In every third run or so: enough that an ambiguous outage can show.
const KEYS_MANY: usize = 3 * OUTAGE_KEYS;
pub(super) const DESTINATIONS: [&str; 2] = ["a", "b"];

/// Stands for a bus in the routes; the simulator answers in its place.
struct Placeholder(KeyPipelining);

#[async_trait]
impl EventBus for Placeholder {
    fn capabilities(&self) -> BusCapabilities {
        BusCapabilities { key_pipelining: self.0, ..BusCapabilities::new("simulated") }
    }

    async fn publish(&self, _: &[OutboxEvent]) -> Vec<PublishResult> {
        Vec::new()
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum RowState {
    Pending,
    Delivered,
    /// Delivered, and gone from the database: only the checks still know of it.
    Removed,
    Dead,
    /// Gone, undelivered: somebody wanted it so.
    Discarded,
}

#[derive(Debug)]
pub(super) struct Row {
    pub(super) event: OutboxEvent,
    pub(super) shard: Shard,
    pub(super) state: RowState,
    pub(super) available_at: Duration,
    pub(super) committed: bool,
    /// Cannot be read as an event until an operator mends it.
    pub(super) corrupt: bool,
}

/// How a destination is down.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Down {
    /// It says so.
    Unavailable,
    /// Every event fails with an error that could be the event's own.
    Ambiguous,
    /// Every event is answered as a destination answers that is down, a proxy before it for one.
    Claimed,
}

/// A transaction of the application that holds the locks of its keys.
#[derive(Debug)]
pub(super) struct Transaction {
    /// Its own for good.
    number: u64,
    /// What the database calls it at present.
    token: String,
    /// It waits for the second phase of its commit, and outlives a restart of the database.
    prepared: bool,
    keys: Vec<usize>,
    drawn: Vec<Seq>,
}

/// The database, the broker, the application and time.
pub(super) struct World {
    pub(super) random: SmallRng,
    pub(super) now: Duration,
    pub(super) rows: BTreeMap<Seq, Row>,
    pub(super) high: Seq,
    pub(super) revision: i64,
    /// How often the database was started.
    pub(super) incarnation: i64,
    pub(super) leases: Leases,
    pub(super) transactions: Vec<Transaction>,
    pub(super) tokens: u64,
    begun: u64,
    pub(super) locked: HashSet<usize>,
    /// First deliveries in order; and all ids seen.
    pub(super) first_deliveries: Vec<Seq>,
    pub(super) written: HashSet<Uuid>,
    pub(super) repeats: Vec<Seq>,
    pub(super) slow_settle: bool,
    pub(super) places: HashMap<Uuid, Seq>,
    /// Failed attempts the broker blamed on the event itself.
    pub(super) blamed: HashMap<Uuid, u32>,
    pub(super) faults: bool,
    pub(super) keys: usize,
    /// Whether there is a history. There is none in every third run.
    pub(super) keeps_delivered: bool,
    /// Which destinations are down, and how.
    pub(super) outage: [Option<Down>; 2],
    pub(super) pipelining: KeyPipelining,
    /// What processes that died had asked of the database, and by whom: it may happen any time.
    pub(super) ghosts: Vec<(Uuid, Command)>,
    tracing: bool,
}

impl World {
    pub(super) fn new(seed: u64) -> Self {
        let mut random = SmallRng::seed_from_u64(seed);
        let pipelining = if random.random_bool(0.5) {
            KeyPipelining::OnePerKey
        } else {
            KeyPipelining::SuffixFails
        };
        let keys = if random.random_bool(0.7) { KEYS } else { KEYS_MANY };
        Self {
            random,
            now: Duration::ZERO,
            rows: BTreeMap::new(),
            high: 0,
            revision: 0,
            incarnation: 0,
            leases: Leases::default(),
            transactions: Vec::new(),
            tokens: 0,
            begun: 0,
            locked: HashSet::new(),
            first_deliveries: Vec::new(),
            repeats: Vec::new(),
            slow_settle: false,
            written: HashSet::new(),
            places: HashMap::new(),
            blamed: HashMap::new(),
            faults: true,
            keys,
            keeps_delivered: seed % 3 != 1,
            outage: [None; 2],
            pipelining,
            ghosts: Vec::new(),
            tracing: std::env::var_os("POSTHASTE_SIM_TRACE").is_some(),
        }
    }

    /// `shared` says whether other relays deliver the same outbox.
    pub(super) fn machine(&mut self, shared: bool) -> Machine {
        let destinations =
            DESTINATIONS.map(|name| Destination::new(name, Arc::new(Placeholder(self.pipelining))));
        let routes = Routes::new(destinations.into(), Vec::new()).expect("routes");
        let settings = ProcessorSettings {
            batch_size: self.random.random_range(1..8),
            max_concurrent_events: self.random.random_range(1..8),
            // An idle hour passes in fewer steps.
            poll_interval: Duration::from_secs(2),
            retry_policy: RetryPolicy {
                base_delay: Duration::from_millis(50),
                // Beyond what is held in memory, now and then.
                max_delay: Duration::from_secs(self.random.random_range(1..60)),
                backoff_multiplier: 20.0,
                jitter: true,
            },
            retention: (!self.keeps_delivered).then_some(Duration::ZERO),
            ..ProcessorSettings::default()
        };
        Machine::new(Arc::new(routes), settings, shared, self.random.random())
    }

    /// Shows a step, where the seed that is replayed is to be understood.
    pub(super) fn trace(&self, step: impl FnOnce() -> String) {
        if self.tracing {
            eprintln!("{:>8.3} {}", self.now.as_secs_f64(), step());
        }
    }

    pub(super) fn random_millis(&mut self, below: u64) -> Duration {
        Duration::from_millis(self.random.random_range(0..below))
    }

    pub(super) fn let_pass(&mut self, millis_below: u64) {
        let passed = self.random_millis(millis_below);
        self.now += passed;
    }

    // The application.

    pub(super) fn begin(&mut self) {
        let key = self.random.random_range(0..self.keys);
        if !self.locked.insert(key) {
            return;
        }
        self.begun += 1;
        self.tokens += 1;
        self.transactions.push(Transaction {
            number: self.begun,
            token: self.tokens.to_string(),
            prepared: false,
            keys: vec![key],
            drawn: Vec::new(),
        });
    }

    pub(super) fn draw(&mut self) {
        if self.transactions.is_empty() {
            return;
        }
        let index = self.random.random_range(0..self.transactions.len());
        if self.transactions[index].prepared {
            return;
        }
        let key = self.transactions[index].keys[0];
        self.high += 1;
        let seq = self.high;
        // Mostly by key, but a key may also send to several.
        let stray = self.random.random_bool(0.1);
        let destination = DESTINATIONS[(key + usize::from(stray)) % DESTINATIONS.len()];
        let event = OutboxEvent::builder(Uuid::from_u128(key as u128), "t")
            .destination(destination)
            .payload(Payload::json_text("{}").expect("JSON"))
            .build()
            .expect("an event");
        self.places.insert(event.id(), seq);
        let delay =
            if self.random.random_bool(0.1) { self.random.random_range(0..50_000) } else { 0 };
        let is_far_off = self.faults && self.random.random_bool(0.01);
        let delay = if is_far_off { FAR_OFF } else { Duration::from_millis(delay) };
        let available_at = self.now + delay;
        let corrupt = self.random.random_bool(0.02);
        let shard = shard_of(key);
        let row =
            Row { event, shard, state: RowState::Pending, available_at, committed: false, corrupt };
        self.rows.insert(seq, row);
        self.transactions[index].drawn.push(seq);
    }

    pub(super) fn end(&mut self) {
        if self.transactions.is_empty() {
            return;
        }
        let index = self.random.random_range(0..self.transactions.len());
        // One that is prepared waits for somebody else, and mostly longer.
        if self.transactions[index].prepared && self.faults && self.random.random_bool(0.7) {
            return;
        }
        let commit = self.random.random_bool(0.8);
        self.end_one(index, commit);
    }

    /// The first phase of a commit in two.
    pub(super) fn prepare(&mut self) {
        if !self.transactions.is_empty() {
            let index = self.random.random_range(0..self.transactions.len());
            self.transactions[index].prepared = true;
        }
    }

    /// The database is started anew: open transactions are gone, but for what was prepared, which has
    /// another name now. Names are given out from the first again.
    pub(super) fn restart(&mut self) {
        while let Some(index) = self.transactions.iter().position(|open| !open.prepared) {
            self.end_one(index, false);
        }
        for transaction in &mut self.transactions {
            transaction.token = format!("-1/{}", transaction.number);
        }
        self.tokens = 0;
        self.incarnation += 1;
    }

    fn end_one(&mut self, index: usize, commit: bool) {
        let transaction = self.transactions.swap_remove(index);
        for seq in transaction.drawn {
            if commit {
                self.rows.get_mut(&seq).expect("a row").committed = true;
            } else {
                self.rows.remove(&seq);
            }
        }
        for key in transaction.keys {
            self.locked.remove(&key);
        }
    }

    // The operator.

    pub(super) fn revive(&mut self) {
        for row in self.rows.values_mut().filter(|row| row.state == RowState::Dead) {
            row.state = RowState::Pending;
            row.event = row.event.clone().revived();
            row.available_at = Duration::ZERO;
            row.corrupt = false;
        }
        self.revision += 1;
    }

    /// Somebody changes a row that waits in SQL, past every trigger: nobody is told.
    pub(super) fn edit(&mut self) {
        let waits =
            |row: &Row| row.committed && matches!(row.state, RowState::Pending | RowState::Dead);
        let places: Vec<Seq> =
            self.rows.iter().filter(|(_, row)| waits(row)).map(|(seq, _)| *seq).collect();
        if places.is_empty() {
            return;
        }
        let place = places[self.random.random_range(0..places.len())];
        let how = self.random.random_range(0..3);
        let row = self.rows.get_mut(&place).expect("a row");
        match (how, row.state) {
            (0, _) => row.state = RowState::Discarded,
            (1, RowState::Dead) => {
                row.state = RowState::Pending;
                row.event = row.event.clone().revived();
            }
            _ => row.available_at = Duration::ZERO,
        }
    }

    /// What was put off for long is due after all, and nobody is told.
    pub(super) fn release(&mut self) {
        for row in self.rows.values_mut().filter(|row| row.state == RowState::Pending) {
            if row.available_at > self.now + FAR_OFF / 2 {
                row.available_at = Duration::ZERO;
            }
        }
    }

    /// A writer that chooses its places itself takes one below those that were read.
    pub(super) fn insert_low(&mut self) {
        let Some(seq) = (1..self.high).find(|seq| !self.rows.contains_key(seq)) else { return };
        let event =
            OutboxEvent::builder(Uuid::from_u128(u128::from(1_000_000 + seq.unsigned_abs())), "t")
                .destination(DESTINATIONS[0])
                .payload(Payload::json_text("{}").expect("JSON"))
                .build()
                .expect("an event");
        self.places.insert(event.id(), seq);
        let row = Row {
            event,
            shard: shard_of(0),
            state: RowState::Pending,
            available_at: Duration::ZERO,
            committed: true,
            corrupt: false,
        };
        self.rows.insert(seq, row);
    }

    // The database and the broker.

    pub(super) fn toggle_outage(&mut self) {
        let destination = self.random.random_range(0..DESTINATIONS.len());
        let down = match self.random.random_range(0..4) {
            0..2 => Down::Unavailable,
            2 => Down::Ambiguous,
            _ => Down::Claimed,
        };
        let outage = &mut self.outage[destination];
        *outage = if outage.is_none() { Some(down) } else { None };
    }

    /// Carries out what a relay asked for.
    pub(super) fn perform(&mut self, relay: &Identity, command: Command) -> Option<Input> {
        let fails = self.faults && self.random.random_bool(0.03);
        let broken = || Error::new(ErrorKind::Unreachable, "simulate", "no answer");
        Some(match command {
            Command::Report(_) => return None,
            // Its row is gone and another relay holds the lock: what lease.rs answers then.
            Command::Lease { .. }
                if self.faults
                    && !self.leases.has_row(relay.id)
                    && self.random.random_bool(0.5) =>
            {
                Input::Leased(Ok(posthaste_core::Lease {
                    shards: Vec::new(),
                    fair_share: Shard::COUNT,
                    relays: 1,
                }))
            }
            Command::Lease { release, leaving } => {
                // The answer may be lost after the write, as with a settlement.
                let lease = (!fails || self.random.random_bool(0.5))
                    .then(|| self.leases.lease(relay.id, TTL, (&release, leaving), self.now));
                Input::Leased(lease.filter(|_| !fails).ok_or_else(broken))
            }
            Command::ReadWatermark if fails => Input::Watermark(Err(broken())),
            Command::ReadWatermark => Input::Watermark(Ok(self.watermark())),
            Command::ReadDeadHeads { .. } if fails => Input::DeadHeads(Err(broken())),
            Command::ReadDeadHeads { after, limit } => {
                Input::DeadHeads(Ok(self.dead_heads(after, limit)))
            }
            Command::Fetch { ticket, .. } if fails => {
                Input::Fetched { ticket, page: Err(broken()) }
            }
            Command::Fetch { query, ticket } => self.fetch(&query, ticket),
            Command::Look { .. } if fails => Input::Looked(Err(broken())),
            Command::Look { selection, limit } => Input::Looked(Ok(self.heads(&selection, limit))),
            Command::Settle(settlements) => {
                // The answer may be lost after the write.
                if !fails || self.random.random_bool(0.5) {
                    self.settle(relay.id, &settlements);
                }
                let result = if fails { Err(broken()) } else { Ok(Vec::new()) };
                Input::Settled { settlements, result }
            }
            // As the shell does.
            Command::Publish { call, not_after, .. } if relay.now(self) >= not_after => {
                Input::CallEnded { call, given_up: true }
            }
            Command::Publish { call, events, .. } => self.publish(relay, call, &events),
        })
    }

    pub(super) fn let_a_ghost_act(&mut self) {
        if self.ghosts.is_empty() {
            return;
        }
        let index = self.random.random_range(0..self.ghosts.len());
        match self.ghosts.swap_remove(index) {
            (relay, Command::Settle(settlements)) => self.settle(relay, &settlements),
            (relay, Command::Lease { release, leaving }) => {
                self.leases.lease(relay, TTL, (&release, leaving), self.now);
            }
            _ => unreachable!("nothing else outlives its process"),
        }
    }

    pub(super) fn watermark(&self) -> Watermark {
        let writers = self
            .transactions
            .iter()
            .map(|transaction| OpenWriter { token: transaction.token.as_str().into() })
            .collect();
        Watermark {
            high: self.high,
            writers,
            revision: self.revision,
            incarnation: self.incarnation,
        }
    }

    fn heads(&self, selection: &HeadSelection, limit: usize) -> Vec<Head> {
        let is_selected = |seq: Seq| match selection {
            HeadSelection::At(places) => places.contains(&seq),
            HeadSelection::Between { after, up_to } => seq > *after && seq <= *up_to,
        };
        let heads = self.rows.iter().filter(|(seq, row)| {
            is_selected(**seq)
                && row.committed
                && matches!(row.state, RowState::Pending | RowState::Dead)
        });
        let head = |(seq, row): (&Seq, &Row)| Head {
            seq: *seq,
            id: row.event.id(),
            key: row.event.order_key().clone(),
            shard: row.shard,
            event_type: row.event.event_type().into(),
            destination: row.event.destination().map(Into::into),
            wait: row.available_at.saturating_sub(self.now),
            dead: row.state == RowState::Dead,
        };
        heads.take(limit).map(head).collect()
    }

    fn dead_heads(&self, after: Seq, limit: usize) -> Vec<DeadHead> {
        let dead = self.rows.range(after + 1..).filter(|(_, row)| row.state == RowState::Dead);
        dead.take(limit).map(|(seq, row)| head_of(*seq, row)).collect()
    }

    pub(super) fn fetch(&mut self, query: &PendingQuery, ticket: FetchTicket) -> Input {
        if let PendingSelection::Forward { gaps, after } = &query.selection {
            let ascending = gaps.windows(2).all(|pair| pair[0].1 < pair[1].0);
            let below = gaps.iter().all(|(low, high)| low <= high && high <= after);
            assert!(ascending && below, "gaps {gaps:?} are not disjoint and below {after}");
        }
        let mut page = PendingPage::default();
        for (seq, row) in &mut self.rows {
            let selected = match &query.selection {
                PendingSelection::Forward { gaps, after } => {
                    seq > after || gaps.iter().any(|(low, high)| (low..=high).contains(&seq))
                }
                PendingSelection::At(places) => places.contains(seq),
                PendingSelection::Key { key, after, up_to } => {
                    seq > after && seq <= up_to && row.event.order_key() == key
                }
            };
            let forward = matches!(query.selection, PendingSelection::Forward { .. });
            let lease = query
                .leases
                .as_ref()
                .map(|leases| leases.iter().find(|lease| lease.shard == row.shard));
            if (forward && lease == Some(None))
                || !selected
                || !row.committed
                || row.state != RowState::Pending
            {
                continue;
            }
            if page.events.len() + page.buried.len() == query.events_max {
                page.more = true;
                break;
            }
            if row.corrupt {
                let fenced = lease.is_some_and(|lease| {
                    !lease.is_some_and(|lease| self.leases.is_current(*lease))
                });
                if !fenced {
                    row.state = RowState::Dead;
                }
                page.buried.push(head_of(*seq, row));
                continue;
            }
            let wait = row.available_at.saturating_sub(self.now);
            let (shard, event) = (row.shard, row.event.clone());
            page.events.push(PendingEvent { seq: *seq, wait, shard, event });
        }
        Input::Fetched { ticket, page: Ok(page) }
    }

    pub(super) fn settle(&mut self, relay: Uuid, settlements: &[Settlement]) {
        let places: HashSet<Seq> = settlements.iter().map(|settlement| settlement.seq).collect();
        assert_eq!(places.len(), settlements.len(), "one statement changes an event twice");
        for settlement in settlements {
            let row = self.rows.get_mut(&settlement.seq).expect("settled events exist");
            let fenced = settlement.lease.is_some_and(|lease| !self.leases.is_current(lease));
            if row.state != RowState::Pending || fenced {
                continue;
            }
            assert!(
                self.leases.owner(row.shard).is_none_or(|owner| owner == relay),
                "{relay} changes an event that another relay sees to"
            );
            match &settlement.outcome {
                SettlementOutcome::Delivered => row.state = RowState::Delivered,
                SettlementOutcome::DeliveredAndRemoved => row.state = RowState::Removed,
                SettlementOutcome::Retry { retry_count, delay, .. } => {
                    row.available_at = self.now + *delay;
                    row.event = row.event.clone().with_retry_count(*retry_count);
                }
                SettlementOutcome::Dead { retry_count, .. } => {
                    row.state = RowState::Dead;
                    row.event = row.event.clone().with_retry_count(*retry_count);
                }
            }
            let blamed = self.blamed.get(&row.event.id()).copied().unwrap_or_default();
            assert!(row.event.retry_count() <= blamed, "an outage took an attempt");
        }
    }

    fn publish(&mut self, relay: &Identity, call: CallId, events: &[OutboxEvent]) -> Input {
        let mut failed_keys: HashSet<Uuid> = HashSet::new();
        let mut results = Vec::new();
        for (event, place) in events.iter().zip(&relay.calls[&call]) {
            let key = event.aggregate_id();
            assert!(
                !relay.acknowledged.contains(&(event.id(), place.generation)),
                "sent again after its acknowledgement"
            );
            assert!(
                !relay.shared
                    || self.leases.may_send(
                        relay.id,
                        place.key.shard(),
                        place.generation,
                        self.now
                    ),
                "{} sends what another relay may be sending",
                relay.id
            );
            assert!(
                self.pipelining == KeyPipelining::SuffixFails
                    || events.iter().filter(|other| other.aggregate_id() == key).count() == 1,
                "two events of a key in one call"
            );
            if failed_keys.contains(&key) {
                results.push(Err(Error::new(ErrorKind::Failed, "publish", "behind a failed one")));
                continue;
            }
            let row = &self.rows[&place.seq];
            assert!(
                row.available_at <= self.now + CLOCKS_APART,
                "{} was sent before its time",
                place.seq
            );
            let result = self.publish_one(call.0, event);
            if result.is_err() && self.pipelining == KeyPipelining::SuffixFails {
                failed_keys.insert(key);
            }
            results.push(result);
        }
        let outcomes = results.into_iter().enumerate().collect();
        Input::Published { call, outcomes, repeated: Vec::new() }
    }

    fn publish_one(&mut self, destination: usize, event: &OutboxEvent) -> PublishResult {
        let unavailable = |why| Err(Error::new(ErrorKind::Unreachable, "publish", why));
        let blame = |world: &mut Self| *world.blamed.entry(event.id()).or_default() += 1;
        match self.outage[destination] {
            Some(Down::Unavailable) => return unavailable("down"),
            Some(Down::Ambiguous) => {
                blame(self);
                return Err(Error::new(ErrorKind::Failed, "publish", "down, and does not say so"));
            }
            Some(Down::Claimed) => {
                blame(self);
                return Err(Error::new(ErrorKind::Throttled, "publish", "down, says its proxy"));
            }
            None => {}
        }
        let dice = if self.faults { self.random.random_range(0..100) } else { 100 };
        match dice {
            0..8 => {
                blame(self);
                let kind = if dice < 5 { ErrorKind::Failed } else { ErrorKind::Throttled };
                return Err(Error::new(kind, "publish", "transient"));
            }
            8..10 => {
                blame(self);
                return Err(Error::new(ErrorKind::Rejected, "publish", "permanent"));
            }
            10..13 => return unavailable("before the write"),
            _ => {}
        }
        if self.written.insert(event.id()) {
            self.first_deliveries.push(self.places[&event.id()]);
        } else {
            self.repeats.push(self.places[&event.id()]);
        }
        if (13..17).contains(&dice) { unavailable("answer lost") } else { Ok(()) }
    }

    /// The state of an event that was delivered.
    pub(super) const fn done(&self) -> RowState {
        if self.keeps_delivered { RowState::Delivered } else { RowState::Removed }
    }

    pub(super) fn check(&self) {
        for (seq, row) in self.rows.iter().filter(|(_, row)| row.state != RowState::Discarded) {
            assert_eq!(row.state, self.done(), "event {seq} was not delivered: lost");
            assert!(self.written.contains(&row.event.id()), "event {seq} settled without delivery");
        }
        let mut last: HashMap<Uuid, Seq> = HashMap::new();
        for seq in &self.first_deliveries {
            let row = self.rows.get(seq).unwrap_or_else(|| panic!("event {seq} is a phantom"));
            let key = row.event.aggregate_id();
            let before = last.insert(key, *seq).unwrap_or_default();
            assert!(before < *seq, "key {key}: {seq} was first delivered after {before}");
        }
    }
}

/// Two keys have a shard in common, and the next two one far away.
fn shard_of(key: usize) -> Shard {
    Shard::from_index(key / 2 * 37 % Shard::COUNT).expect("a shard")
}

fn head_of(seq: Seq, row: &Row) -> DeadHead {
    DeadHead {
        seq,
        key: row.event.order_key().clone(),
        shard: row.shard,
        event_type: row.event.event_type().into(),
        destination: row.event.destination().map(Into::into),
    }
}
