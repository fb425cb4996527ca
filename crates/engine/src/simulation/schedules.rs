//! Schedules that random ones hit too rarely.

use std::collections::VecDeque;
use std::time::Duration;

use posthaste_core::{
    BusCapabilities, Error, ErrorKind, KeyPipelining, PendingSelection, RetryPolicy, Settlement,
    SettlementOutcome, Unsettled,
};
use uuid::Uuid;

use super::relay::Relay;
use super::world::World;
use crate::machine::Machine;
use crate::protocol::{Command, Input};

/// A retry so far off that its event is not kept in memory, and a database so slow that the retry is
/// recorded only while the event is being fetched again: what that fetch read may be old, and must
/// not be the end of it.
#[test]
fn a_row_read_before_its_own_settlement_is_fetched_again() {
    let mut world = World::new(0);
    (world.faults, world.pipelining) = (false, KeyPipelining::OnePerKey);
    world.begin();
    world.draw();
    for row in world.rows.values_mut() {
        (row.committed, row.corrupt, row.available_at) = (true, false, Duration::ZERO);
    }
    world.transactions.clear();
    let mut relay = Relay::start(&mut world, false);
    let Relay { identity, machine, .. } = &mut relay;
    machine.patience = Duration::ZERO;
    machine.settings.retry_policy = RetryPolicy {
        base_delay: Duration::from_secs(60),
        jitter: false,
        ..RetryPolicy::default()
    };
    let mut settle = None;
    for round in 0..200 {
        let mut commands = VecDeque::from(machine.commands(world.now, |_| world.capabilities()));
        while let Some(command) = commands.pop_front() {
            match command {
                Command::Publish { call, events, .. } if settle.is_none() && round < 100 => {
                    let failed = Error::new(ErrorKind::Failed, "publish", "no");
                    world.blamed.insert(events[0].id(), 1);
                    let outcomes = vec![(0, Err(failed))];
                    machine.handle(
                        Input::Published { call, outcomes, repeated: Vec::new() },
                        world.now,
                    );
                    machine.handle(Input::CallEnded { call, given_up: false }, world.now);
                }
                Command::Settle(settlements) if settle.is_none() && round < 100 => {
                    settle = Some(settlements);
                }
                Command::Fetch { query, ticket }
                    if matches!(query.selection, PendingSelection::At(_)) =>
                {
                    let answer = world.fetch(&query, ticket);
                    if let Some(settlements) = settle.take() {
                        world.settle(identity.id, &settlements);
                        machine.handle(
                            Input::Settled { settlements, result: Ok(Vec::new()) },
                            world.now,
                        );
                    }
                    machine.handle(answer, world.now);
                }
                command => {
                    if let Command::Publish { call, .. } = &command {
                        let places = machine.in_flight.places(*call);
                        identity.calls.insert(*call, (places, world.now));
                    }
                    let input = world.perform(identity, command);
                    let call = match &input {
                        Some(Input::Published { call, .. }) => Some(*call),
                        _ => None,
                    };
                    input.into_iter().for_each(|input| machine.handle(input, world.now));
                    if let Some(call) = call {
                        machine.handle(Input::CallEnded { call, given_up: false }, world.now);
                    }
                }
            }
            commands.extend(machine.commands(world.now, |_| world.capabilities()));
        }
        world.now += Duration::from_secs(1);
    }
    assert_eq!(
        (world.rows.len(), settle.is_none()),
        (1, true),
        "the schedule was not the one meant"
    );
    world.check();
}

/// A failover to a standby that was behind: the last commits are gone, and their numbers are handed
/// out again. What is stored now must be delivered, at places that the relay has long passed.
#[test]
fn numbers_that_are_handed_out_again_are_read_again() {
    let mut world = World::new(0);
    world.faults = false;
    let mut relay = Relay::start(&mut world, false);
    let store = |world: &mut World| {
        world.begin();
        world.draw();
        world.transactions.clear();
        world.locked.clear();
        for row in world.rows.values_mut() {
            (row.committed, row.corrupt, row.available_at) = (true, false, Duration::ZERO);
        }
    };
    let mut run = |world: &mut World| {
        for _ in 0..400 {
            relay.advance(world);
            world.now += Duration::from_millis(20);
        }
    };
    for _ in 0..3 {
        store(&mut world);
    }
    run(&mut world);
    world.check();
    world.rows.split_off(&2);
    world.first_deliveries.clear();
    world.high = 1;
    world.revision += 1;
    for _ in 0..3 {
        store(&mut world);
    }
    run(&mut world);
    world.check();
    assert_eq!(world.rows.len(), 4);
}

/// Another session holds a lock on the row, for one.
#[test]
fn an_outcome_that_changed_no_row_waits_alone_and_goes_again_by_itself() {
    let mut machine = World::new(0).machine(false);
    let outcome_of = |seq| Settlement {
        seq,
        id: Uuid::from_u128(u128::from(seq.unsigned_abs())),
        lease: None,
        outcome: SettlementOutcome::Delivered,
    };
    let why: Box<str> = "pid 7 holds a lock on it".into();
    machine.handle(
        Input::Settled {
            settlements: vec![outcome_of(1), outcome_of(2)],
            result: Ok(vec![Unsettled { seq: 1, why: why.clone() }]),
        },
        Duration::ZERO,
    );
    let waits: Vec<_> =
        machine.rows_not_recorded(10).into_iter().map(|row| (row.seq, row.why)).collect();
    assert_eq!(waits, [(1, why)]);
    let settles = |now, machine: &mut Machine| {
        let commands = machine.commands(now, |_| BusCapabilities::new("simulated")).into_iter();
        commands
            .filter_map(|command| match command {
                Command::Settle(batch) => Some(batch),
                _ => None,
            })
            .collect::<Vec<_>>()
    };
    assert!(settles(Duration::ZERO, &mut machine).is_empty(), "after a pause");
    assert_eq!(settles(Duration::from_secs(30), &mut machine), [[outcome_of(1)]]);
}
