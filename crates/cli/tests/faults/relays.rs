//! Relays killed, frozen, coming and going.

use std::time::{Duration, Instant};

use posthaste_testkit::servers::{NatsServer, PostgresServer, shared_nats};
use rand::RngExt as _;

use crate::rig::{RELAYS, Rig};
use crate::support::{Database, Stream, eventually, sized};
use crate::witness;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_relays_are_made_up_for_by_the_others_and_by_their_next_start() {
    let rounds = sized(3, 9);
    let Some(mut rig) = Rig::start("relays killed").await else { return };
    let mut kills = 0;
    for round in 1..=rounds {
        rig.burst().await;
        tokio::time::sleep(up_to(100)).await;
        // Now and then all of them at once.
        let victims = if round % 3 == 0 { 0..RELAYS } else { one_of(RELAYS) };
        for victim in victims.clone() {
            rig.relays[victim].kill();
            rig.interrupt(1);
            kills += 1;
        }
        if victims.len() < RELAYS {
            rig.recover().await;
        }
        for victim in victims.clone() {
            rig.relays[victim].start();
        }
        if victims.len() == RELAYS {
            rig.recover().await;
        }
        rig.progress().await;
    }
    rig.finish(&format!("{kills} times kill -9; every third time of all relays at once")).await;
}

/// Frozen for longer than its lease, a relay wakes with acknowledgements in hand for events that are
/// others' by now. In odd rounds the broker stands still meanwhile, so that the others own those
/// events and cannot deliver them yet: nothing but the lease keeps the first relay from recording.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_relay_that_wakes_after_its_lease_records_nothing_of_what_others_took_over() {
    let rounds = sized(4, 6);
    let Some(nats) = NatsServer::start("").await else { return };
    let Some(server) = PostgresServer::start(&[]).await else { return };
    let database = Database::create_at(&server).await;
    let stream = Stream::create_forgetful(&nats.url()).await;
    let configs = witness::configure(&database, &server).await;
    let mut rig = Rig::start_on("relay frozen", database, stream, &configs).await;
    for round in 0..rounds {
        let zombie = round % RELAYS;
        let is_broker_frozen = round % 2 == 1;
        eventually("shards of it", async || witness::shards_of(&rig.database, zombie).await > 0)
            .await;
        rig.burst().await;
        rig.relays[zombie].freeze().await;
        rig.interrupt(1);
        if is_broker_frozen {
            nats.freeze();
            rig.interrupt(RELAYS);
        } else {
            rig.recover().await;
            rig.progress().await;
        }
        let shards = async || witness::shards_of(&rig.database, zombie).await;
        eventually("others who take over", async || shards().await == 0).await;
        rig.relays[zombie].thaw();
        if is_broker_frozen {
            // It is awake, and past what it had in hand, when it shares the work again.
            eventually("its return", async || shards().await > 0).await;
            nats.thaw();
            rig.recover().await;
        }
        rig.progress().await;
    }
    let (settled, by_others) = witness::settlements(&rig.database).await;
    assert!(settled > 0);
    rig.add("recorded without owning the shard", by_others);
    rig.finish(&format!("{rounds} times SIGSTOP for longer than the lease; then SIGCONT")).await;
    assert_eq!(by_others, 0, "of {settled}");
}

/// What it has open in the database then must end without it: others wait for the same locks.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_relay_frozen_while_shards_change_hands_stops_no_other() {
    let rounds = sized(1, 2);
    let Some(nats) = shared_nats().await else { return };
    let Some(server) = PostgresServer::start(&[]).await else { return };
    let database = Database::create_at(&server).await;
    let stream = Stream::create_forgetful(&nats).await;
    let configs = witness::configure(&database, &server).await;
    let name = "relay frozen while shards change hands";
    let mut rig = Rig::start_on(name, database, stream, &configs).await;
    for round in 0..rounds {
        let (zombie, victim) = (round % RELAYS, (round + 1) % RELAYS);
        rig.relays[zombie].terminate().await;
        witness::slow_down(&rig.database, zombie, true).await;
        rig.relays[zombie].start();
        eventually("a relay that joins", async || witness::is_joining(&rig.database, zombie).await)
            .await;
        rig.relays[zombie].freeze().await;
        rig.relays[victim].kill();
        rig.interrupt(2);
        rig.recover().await;
        rig.relays[zombie].thaw();
        witness::slow_down(&rig.database, zombie, false).await;
        rig.relays[victim].start();
        rig.recover().await;
        rig.progress().await;
    }
    let (_, by_others) = witness::settlements(&rig.database).await;
    let done = "SIGSTOP of a relay that joins and kill -9 of another one; then SIGCONT";
    rig.finish(&format!("{rounds} times {done}")).await;
    assert_eq!(by_others, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn relays_that_join_and_leave_all_the_time_keep_every_promise() {
    let lasts = sized(Duration::from_secs(5), Duration::from_secs(40));
    let Some(mut rig) = Rig::start("lease storm").await else { return };
    let begun = Instant::now();
    let (mut joined, mut left) = (0, 0);
    while begun.elapsed() < lasts {
        tokio::time::sleep(up_to(400)).await;
        let mut random = rand::rng();
        let is_asked = random.random_bool(0.5);
        let relay = random.random_range(0..RELAYS);
        if !rig.relays[relay].is_started() {
            rig.relays[relay].start();
            joined += 1;
            continue;
        }
        left += 1;
        if left % 5 == 0 {
            rig.burst().await;
        }
        if is_asked {
            // While it starts, the signal ends it the hard way.
            rig.interrupt(1);
            rig.relays[relay].terminate().await;
        } else {
            rig.interrupt(1);
            rig.relays[relay].kill();
        }
    }
    for relay in rig.relays.iter_mut().filter(|relay| !relay.is_started()) {
        relay.start();
    }
    rig.recover().await;
    rig.finish(&format!("{joined} starts; {left} ends by SIGTERM or kill -9")).await;
}

fn one_of(relays: usize) -> std::ops::Range<usize> {
    let one = rand::rng().random_range(0..relays);
    one..one + 1
}

fn up_to(millis: u64) -> Duration {
    Duration::from_millis(rand::rng().random_range(0..millis))
}
