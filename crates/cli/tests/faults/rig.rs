//! Relays, writers and the verdict: what every fault needs around it.

use std::collections::HashSet;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use async_nats::jetstream;
use posthaste_testkit::servers::{PostgresServer, shared_nats};
use tokio::task::JoinHandle;
use uuid::Uuid;

use crate::support::{
    Database, Figures, Plan, Relay, RelayConfig, Stream, Tap, Verdict, Written, create_accounts,
    eventually, read_back, sized, write,
};

/// Relays of one outbox at the same time.
pub(crate) const RELAYS: usize = 3;

/// Some keys are written by several transactions at a time, one of them by all; transactions store
/// several events for several keys, take some back, lose their connection while they commit, or
/// stay open for seconds.
pub(crate) fn plan() -> Plan {
    Plan {
        events_min: sized(2_000, 60_000),
        accounts: 200,
        writers: sized(4, 8),
        pause: sized(Duration::from_millis(20), Duration::ZERO),
        accounts_max: 4,
        events_per_account_max: 6,
        hot_share: 0.2,
        savepoint_share: 0.05,
        terminated_share: 0.02,
        late_writers: 2,
        ..Plan::of(u64::MAX)
    }
}

/// The settings of every relay here.
pub(crate) fn relay_config() -> RelayConfig {
    RelayConfig {
        destination: "ack_timeout = \"1s\"",
        ops: "stall_after = \"1s\"",
        // A short run has no time for many leases of the default length.
        relay: sized("lease_ttl = \"2s\"", ""),
        ..RelayConfig::default()
    }
}

/// A fault's surroundings, running.
pub(crate) struct Rig {
    pub(crate) database: Database,
    pub(crate) stream: Stream,
    pub(crate) relays: Vec<Relay>,
    pub(crate) config: RelayConfig,
    plan: Plan,
    jetstream: jetstream::Context,
    writers: JoinHandle<Written>,
    figures: Figures,
    recoveries: Vec<Duration>,
    /// `None` where the broker refuses events: what it refused is no delivery.
    pub(crate) tap: Option<Tap>,
    /// How often a relay was in a state in which what it held may be delivered again.
    interruptions: usize,
    bursts: usize,
    /// Whether events may be blamed.
    pub(crate) has_poison: bool,
    /// What a database had that is gone, with events that no other one may have.
    had: HashSet<Uuid>,
    /// Events that were delivered, perhaps, before the database forgot of it.
    forgotten: usize,
}

impl Rig {
    /// On the shared servers, for faults that leave servers alone. `None`, having said so, where
    /// they are missing.
    pub(crate) async fn start(name: &str) -> Option<Self> {
        let nats = shared_nats().await?;
        let database = Database::create().await?;
        let stream = Stream::create_forgetful(&nats).await;
        Some(Self::start_on(name, database, stream, &[relay_config()]).await)
    }

    /// With a PostgreSQL of its own, to break.
    pub(crate) async fn start_at(name: &str, server: &PostgresServer) -> Option<Self> {
        let nats = shared_nats().await?;
        let database = Database::create_at(server).await;
        let stream = Stream::create_forgetful(&nats).await;
        Some(Self::start_on(name, database, stream, &[relay_config()]).await)
    }

    /// With `configs` for the relays, in turn.
    pub(crate) async fn start_on(
        name: &str,
        database: Database,
        stream: Stream,
        configs: &[RelayConfig],
    ) -> Self {
        Self::start_with(name, database, stream, configs, plan()).await
    }

    /// Starts relays and writers and returns when events are delivered.
    pub(crate) async fn start_with(
        name: &str,
        database: Database,
        stream: Stream,
        configs: &[RelayConfig],
        plan: Plan,
    ) -> Self {
        let figures = Figures::of_fault(name);
        create_accounts(&database, plan.accounts).await;
        let configs: Vec<RelayConfig> = configs.iter().cycle().take(RELAYS).cloned().collect();
        let tap = Some(Tap::on(&stream).await);
        let relays: Vec<Relay> =
            configs.iter().map(|config| Relay::started(&database, &stream, config)).collect();
        for relay in &relays {
            eventually("a relay that is ready", async || relay.is_ready().await).await;
        }
        let mut rig = Self {
            writers: write(&database, &plan),
            jetstream: stream.jetstream().await,
            config: configs[0].clone(),
            database,
            stream,
            relays,
            plan,
            figures,
            recoveries: Vec::new(),
            tap,
            interruptions: 0,
            bursts: 0,
            has_poison: false,
            had: HashSet::new(),
            forgotten: 0,
        };
        rig.progress().await;
        rig
    }

    /// Returns when a good many events more have arrived.
    pub(crate) async fn progress(&mut self) {
        let enough = self.delivered().await + sized(200, 2_000);
        eventually("deliveries", async || self.delivered().await >= enough).await;
    }

    /// Stores many events of new keys at once and returns while relays are busy with them: what
    /// breaks now breaks in the middle of something.
    pub(crate) async fn burst(&mut self) {
        self.bursts += 1;
        let (burst, events, keys) = (self.bursts, sized(1_000, 8_000), sized(100, 500));
        self.database
            .run(&format!(
                "insert into outbox_events (aggregate_id, event_type, event_data)
                 select md5('burst ' || {burst} || ' ' || n % {keys})::uuid, 'burst',
                        jsonb_build_object('number', n / {keys} + 1, 'note', repeat('x', 100))
                   from generate_series(0, {events} - 1) as n"
            ))
            .await;
        let enough = self.delivered().await + 50;
        eventually("deliveries", async || self.delivered().await >= enough).await;
    }

    /// How many messages have arrived, repeated ones included.
    pub(crate) async fn delivered(&self) -> u64 {
        self.stream.messages(&self.jetstream).await
    }

    /// Notes that what `relays` of the relays held may be delivered again.
    pub(crate) fn interrupt(&mut self, relays: usize) {
        self.interruptions += relays;
    }

    /// Notes that the database is gone that had the events `had`, for one that is behind it, in which
    /// `pending` events wait. What the new one does not have is lost with its data, delivered or not;
    /// what waits in it may have been delivered.
    pub(crate) fn replace(&mut self, had: HashSet<Uuid>, pending: u64) {
        self.had.extend(had);
        self.forgotten += usize::try_from(pending).unwrap();
    }

    /// Waits until every event that waits now is delivered, and notes how long it took. To be
    /// called when the fault has ended, or when others should make up for it.
    pub(crate) async fn recover(&mut self) {
        let begun = Instant::now();
        let last = self
            .database
            .count("select coalesce(max(seq), 0) from outbox_events where processed_at is null")
            .await;
        let waiting = format!(
            "select count(*) from outbox_events \
              where processed_at is null and dead_at is null and seq <= {last}"
        );
        eventually("recovery", async || {
            tokio::time::sleep(Duration::from_millis(20)).await;
            self.database.count(&waiting).await == 0
        })
        .await;
        self.recoveries.push(begun.elapsed());
    }

    /// Adds a figure of this fault's own.
    pub(crate) fn add(&mut self, name: &str, value: impl std::fmt::Display) {
        self.figures.add(name, value);
    }

    /// Lets the writers and then the relays come to an end, prints the figures and asserts that
    /// everything was kept and no event blamed. `done` says what was broken, without commas.
    pub(crate) async fn finish(self, done: &str) {
        self.finish_with(done, &[]).await;
    }

    /// The same where events went to `others` beside the stream.
    pub(crate) async fn finish_with(mut self, done: &str, others: &[&Stream]) {
        self.plan.stop.store(true, Ordering::Relaxed);
        let written = self.writers.await.unwrap();
        eventually("an empty outbox", async || self.database.pending().await == 0).await;
        for relay in &mut self.relays {
            assert!(!relay.has_ended(), "no relay ends by itself");
            assert_eq!(relay.terminate().await.0, Some(0));
        }
        let committed = self.database.committed().await;
        let mut deliveries = read_back(&self.stream).await;
        for stream in others {
            // No key goes to two of them.
            deliveries.extend(read_back(stream).await);
        }
        let is_gone = |id: &Uuid| self.had.contains(id) && !committed.contains_key(id);
        deliveries.retain(|delivery| !is_gone(&delivery.id));
        let mut verdict = Verdict::of(&committed, &deliveries);
        if let Some(tap) = self.tap {
            verdict.duplicates = verdict.duplicates.max(tap.repeats().await);
        }
        let blamed = self.database.blamed().await;
        let duplicates_max =
            self.interruptions * self.config.repeats_per_crash_max() + self.forgotten;
        let slowest = self.recoveries.iter().max().copied().unwrap_or_default();
        verdict.add_to(&mut self.figures);
        self.figures
            .add("allowed duplicates", duplicates_max)
            .add("recovered in s", format!("{:.1}", slowest.as_secs_f64()))
            .add("transactions of unknown outcome", written.failed)
            .add("relays", RELAYS)
            .add("done", done)
            .print();
        // Of what was committed under the fault, some may be gone with the database that was lost.
        assert!(written.committed.len() as u64 >= self.plan.events_min);
        // A commit whose answer was lost may be there, too.
        assert!(written.committed.iter().all(|(id, _)| committed.contains_key(id) || is_gone(id)));
        assert!(!written.rolled_back.is_empty());
        assert!(written.rolled_back.iter().all(|id| !committed.contains_key(id)));
        verdict.assert_kept(duplicates_max);
        assert!(self.has_poison || blamed == 0, "no event's own fault: {blamed}");
    }
}
