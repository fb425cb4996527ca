//! Relays against a simulated database, broker and clock: late commits, lost answers, failures of
//! every class, crashes, restarts of the database that prepared transactions outlive, relays that join,
//! leave and stand still, operators, and changes of rows that nobody is told of. A seed replays a run
//! exactly.
//!
//! What is checked: every event of a committed transaction is delivered, none of an aborted one is
//! (of what a relay has deleted, too, the checks know whether the broker has it);
//! within a key, first deliveries are in the order of the numbers, whichever relay they came from;
//! no relay sends what another may be sending, nor again what was acknowledged to it; in the end the
//! relays share the work evenly. No event loses an attempt to an outage. One in which everything
//! fails ambiguously may cost attempts as long as it cannot be told from events that fail by
//! themselves; from the moment when the answers that a relay has show so many keys in a row that
//! failed, it costs none. What counts has a reason that the relay heard: others were taken since it was
//! sent, and of what a destination says of itself only where it says so still a while after that was
//! refuted; or patience has ended; or the key was found to be at fault with the same before.

mod application;
mod broker;
mod database;
mod leases;
mod operator;
mod relay;
mod schedules;
mod world;

use std::num::NonZero;
use std::ops::Range;
use std::panic::AssertUnwindSafe;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use posthaste_core::{Seq, Shard};
use rand::RngExt;

use self::relay::Relay;
use self::world::{KEYS, RowState, TTL, World};

/// Runs one seed to its end.
fn simulate(seed: u64) {
    let mut world = World::new(seed);
    let relays_max = world.random.random_range(1..4_usize);
    let shared = relays_max > 1 || world.random.random_bool(0.5);
    let mut relays = vec![Relay::start(&mut world, shared)];
    // An outage shows only after some events of many keys.
    let steps = if world.keys == KEYS { 600 } else { 1_000 };
    for _ in 0..steps * relays_max {
        let index = world.random.random_range(0..relays.len());
        match world.random.random_range(0..1_000) {
            0..100 => world.begin(),
            100..250 => world.draw(),
            250..340 => world.end(),
            340..350 => world.revive(),
            350..360 => world.toggle_outage(),
            360..365 => {
                let started = Relay::start(&mut world, shared);
                std::mem::replace(&mut relays[index], started).crash(&mut world);
            }
            365..370 => relays[index].stop(&world),
            370..380 if relays.len() < relays_max => relays.push(Relay::start(&mut world, shared)),
            380..385 => {
                relays[index].frozen_until = world.now + world.random_millis(15_000);
            }
            385..450 => relays[index].wake(&world),
            450..500 => world.let_pass(200),
            500..510 => world.let_pass(3_000),
            510..515 => world.let_a_ghost_act(),
            515..523 => world.prepare(),
            523..526 => world.restart(),
            526..530 => world.edit(),
            530..532 => world.insert_low(),
            _ => relays[index].advance(&mut world),
        }
        bury_the_stopped(&mut relays, &mut world, shared);
    }
    heal_and_drain(&mut world, &mut relays, shared);
}

/// Relays that have stopped leave; there is always one.
fn bury_the_stopped(relays: &mut Vec<Relay>, world: &mut World, shared: bool) {
    while let Some(index) = relays.iter().position(Relay::has_stopped) {
        let stopped = relays.swap_remove(index);
        world.leases.leave(stopped.identity.id);
    }
    if relays.is_empty() {
        relays.push(Relay::start(world, shared));
    }
}

/// Everything heals, every transaction ends, an operator retries what is dead: then all is
/// delivered, and the checks are made.
fn heal_and_drain(world: &mut World, relays: &mut Vec<Relay>, shared: bool) {
    (world.faults, world.outage) = (false, [None; 2]);
    world.ghosts.clear();
    for relay in &mut *relays {
        relay.frozen_until = Duration::ZERO;
    }
    while !world.transactions.is_empty() {
        world.end();
    }
    world.revive();
    world.release();
    // The relay learns of an operator's retry from its next watermark, so one look is not enough.
    let mut at_rest = 0;
    for _ in 0..30_000 {
        for relay in &mut *relays {
            relay.advance(world);
        }
        bury_the_stopped(relays, world, shared);
        let patience = Duration::from_secs(1_000);
        let drained = relays.iter_mut().all(|relay| {
            let now = relay.now(world);
            relay.way.is_empty() && relay.machine.is_drained(now, patience)
        });
        if drained {
            at_rest += 1;
            if world.rows.values().any(|row| row.state == RowState::Dead) {
                world.revive(); // One that died while the operator retried the others.
                at_rest = 0;
            } else if at_rest > 10 {
                world.check();
                check_shares(world, relays);
                return;
            }
            world.now += Duration::from_secs(1);
        }
        for relay in &mut *relays {
            relay.decide(world);
        }
        if relays.iter().all(|relay| relay.way.is_empty()) {
            let next = relays.iter_mut().filter_map(|relay| relay.next_deadline(world)).min();
            world.now += next.unwrap_or_default().max(Duration::from_millis(1));
        }
    }
    let pending: Vec<Seq> = world
        .rows
        .iter()
        .filter(|(_, row)| row.state != world.done() && row.state != RowState::Discarded)
        .map(|(seq, _)| *seq)
        .collect();
    panic!("does not come to rest; not delivered: {pending:?}");
}

/// Every shard has one relay, and the relays' shares differ by one at most.
fn check_shares(world: &World, relays: &[Relay]) {
    let shared: Vec<&Relay> = relays.iter().filter(|relay| relay.identity.shared).collect();
    let owned = shared.iter().map(|relay| world.leases.owned(relay.identity.id).len());
    let owned: Vec<usize> = owned.collect();
    if let Some((least, most)) = owned.iter().min().zip(owned.iter().max()) {
        assert_eq!(owned.iter().sum::<usize>(), Shard::COUNT, "shards without a relay: {owned:?}");
        assert!(most - least <= 1, "an unfair share: {owned:?}");
    }
}

/// Runs seeds on all cores, each as it would run alone. The first of them that fails is told.
fn simulate_all(seeds: Range<u64>, simulate: impl Fn(u64) + Sync) {
    let (next, failed) = (AtomicU64::new(seeds.start), Mutex::new(None));
    let work = || {
        // A seed that was taken is run, so that all before one that failed are.
        while failed.lock().is_ok_and(|failed| failed.is_none()) {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= seeds.end {
                return;
            }
            if let Err(panic) = std::panic::catch_unwind(AssertUnwindSafe(|| simulate(seed))) {
                let mut failed = failed.lock().expect("nothing panics that holds it");
                if failed.as_ref().is_none_or(|(first, _)| seed < *first) {
                    *failed = Some((seed, panic));
                }
            }
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(1, NonZero::get) {
            scope.spawn(work);
        }
    });
    if let Some((seed, panic)) = failed.into_inner().expect("nothing panics that holds it") {
        eprintln!(
            "seed {seed} fails; replay it alone with POSTHASTE_SIM_SEED={seed} POSTHASTE_SIM_SEEDS=1"
        );
        std::panic::resume_unwind(panic);
    }
}

#[test]
fn of_the_seeds_that_fail_the_first_is_told() {
    let ran = AtomicU64::new(0);
    let outcome = std::panic::catch_unwind(AssertUnwindSafe(|| {
        simulate_all(10..1_000, |seed| {
            ran.fetch_add(1, Ordering::Relaxed);
            assert!(seed < 100, "{seed}");
        });
    }));
    let told = outcome.unwrap_err();
    assert_eq!(told.downcast_ref::<String>().map(String::as_str), Some("100"));
    assert!(ran.into_inner() >= 91, "all before it");
}

/// Whatever happens to relays, the database, the broker and the clocks: no loss, no phantom, order
/// per key, no attempt lost to an outage.
#[test]
fn the_promises_hold_under_faults_for_thousands_of_seeds() {
    let number = |name| std::env::var(name).ok().and_then(|number| number.parse::<u64>().ok());
    let first = number("POSTHASTE_SIM_SEED").unwrap_or(0);
    let seeds = number("POSTHASTE_SIM_SEEDS").unwrap_or(4_000);
    simulate_all(first..first + seeds, simulate);
}

/// Relays join one after the other, one leaves and one dies: each time all have their fair share
/// within two lease times.
#[test]
fn shares_are_fair_within_two_lease_times_of_every_change() {
    let mut world = World::new(0);
    world.faults = false;
    let mut relays: Vec<Relay> = Vec::new();
    let settle = |world: &mut World, relays: &mut Vec<Relay>| {
        let until = world.now + 2 * TTL;
        while world.now < until {
            for relay in &mut *relays {
                relay.advance(world);
            }
            bury_the_stopped(relays, world, true);
            world.now += Duration::from_millis(2);
        }
        check_shares(world, relays);
    };
    for _ in 0..5 {
        relays.push(Relay::start(&mut world, true));
        settle(&mut world, &mut relays);
    }
    relays[0].stop(&world);
    settle(&mut world, &mut relays);
    assert_eq!(relays.len(), 4);
    relays.remove(1).crash(&mut world);
    settle(&mut world, &mut relays);
    assert_eq!(relays.len(), 3);
}

/// Relays join and stop while events flow, and nothing fails: whoever takes over finds recorded what
/// was sent before.
#[test]
fn a_shard_that_changes_hands_in_peace_sends_nothing_twice() {
    simulate_all(0..150, |seed| {
        let mut world = World::new(seed);
        (world.faults, world.slow_settle, world.keys) = (false, true, 100);
        let mut relays = vec![Relay::start(&mut world, true)];
        for _ in 0..3_000 {
            let index = world.random.random_range(0..relays.len());
            match world.random.random_range(0..1_000) {
                0..100 => world.begin(),
                100..300 => world.draw(),
                300..400 => world.end(),
                400..405 if relays.len() < 4 => relays.push(Relay::start(&mut world, true)),
                405..409 => relays[index].stop(&world),
                _ => {}
            }
            for relay in &mut relays {
                for _ in 0..2 {
                    relay.advance(&mut world);
                }
            }
            world.let_pass(20);
            bury_the_stopped(&mut relays, &mut world, true);
            assert!(world.repeats.is_empty(), "seed {seed}: sent twice: {:?}", world.repeats);
        }
        heal_and_drain(&mut world, &mut relays, true);
        assert!(world.repeats.is_empty(), "seed {seed}: sent twice: {:?}", world.repeats);
    });
}
