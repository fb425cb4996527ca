//! What the relays of the simulation share: a database with its clock, a broker, an application that
//! writes, and an operator.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use posthaste_core::{BusCapabilities, KeyPipelining, OutboxEvent, RetryPolicy, Seq, Shard};
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};
use uuid::Uuid;

use super::leases::Leases;
use crate::machine::Machine;
use crate::protocol::Command;
use crate::routes::{DestinationRules, RouteTable};
use crate::settings::ProcessorSettings;
use crate::verdict::suspicion::OUTAGE_KEYS;

/// A delay beyond all that is waited for here.
pub(super) const FAR_OFF: Duration = Duration::from_secs(5_000);
/// What a relay's clock may gain on the database's in the longest wait there is here.
pub(super) const CLOCKS_APART: Duration = Duration::from_secs(3);
/// How long a lease lasts.
pub(super) const TTL: Duration = Duration::from_secs(5);
/// How long what nothing tells about counts nothing.
pub(super) const PATIENCE: Duration = Duration::from_secs(120);
pub(super) const KEYS: usize = 6;
/// In every third run or so: enough that an ambiguous outage can show.
const KEYS_MANY: usize = 3 * OUTAGE_KEYS;
pub(super) const DESTINATIONS: [&str; 2] = ["a", "b"];

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
    pub(super) number: u64,
    /// What the database calls it at present.
    pub(super) token: String,
    /// It waits for the second phase of its commit, and outlives a restart of the database.
    pub(super) prepared: bool,
    pub(super) keys: Vec<usize>,
    pub(super) drawn: Vec<Seq>,
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
    pub(super) begun: u64,
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

    /// What each of the brokers can do.
    pub(super) fn capabilities(&self) -> BusCapabilities {
        BusCapabilities { key_pipelining: self.pipelining, ..BusCapabilities::new("simulated") }
    }

    /// `shared` says whether other relays deliver the same outbox.
    pub(super) fn machine(&mut self, shared: bool) -> Machine {
        let routes =
            RouteTable::new(DESTINATIONS.map(DestinationRules::new), Vec::new()).expect("routes");
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
            outage_patience: PATIENCE,
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
