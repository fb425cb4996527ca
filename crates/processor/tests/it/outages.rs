//! A destination that is down is nobody's fault: it is paused, probed, and resumes by itself.

use std::collections::HashSet;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use posthaste_core::memory::MemoryBus;
use posthaste_core::{
    BusCapabilities, Error, ErrorKind, EventBus, OutboxEvent, OutboxRepository, PublishResult,
    Result,
};
use posthaste_processor::{Destination, OutboxProcessor, Route};
use posthaste_testkit::faults::{Fault, FaultyBus};
use tokio::time::Instant;

use crate::support::{
    HOUR, MINUTE, SECOND, World, builder, interleaved, numbers, settings, singles, until,
};

#[tokio::test(start_paused = true)]
async fn an_outage_counts_no_attempt_however_long_and_delivery_resumes_by_itself() {
    let world = World::with(&interleaved(20, 10)).await;
    world.script.set(Some(Fault::Unavailable));
    let processor = world.started().await;
    tokio::time::sleep(HOUR).await;

    world.assert_no_attempt_counted(&processor);
    let statistics = processor.statistics();
    assert!(statistics.interrupted > 0);
    assert!(statistics.destinations[0].paused_for.as_ref().unwrap().contains("on purpose"));

    world.script.clear();
    let ended = Instant::now();
    world.assert_resumes(&processor).await;
    assert!(ended.elapsed() < MINUTE, "pauses are short enough to resume soon");
}

#[tokio::test(start_paused = true)]
async fn during_an_outage_only_single_probes_are_sent_and_ever_more_rarely() {
    let world = World::with(&interleaved(50, 4)).await;
    world.script.set(Some(Fault::Unavailable));
    let _processor = world.builder().max_concurrent_events(40).build().unwrap();
    _processor.start().await.unwrap();
    tokio::time::sleep(HOUR).await;

    let calls = world.script.calls();
    let probes = calls.iter().skip_while(|call| call.len() > 1).collect::<Vec<_>>();
    assert!(probes.iter().all(|call| call.len() == 1), "a probe is one event");
    // Pauses of 2.5 to 5 seconds in the long run: 720 to 1440 an hour, and the short first ones.
    assert!((720..1_450).contains(&probes.len()), "{} probes", probes.len());
}

#[tokio::test(start_paused = true)]
async fn while_a_probe_is_unanswered_nothing_else_is_sent() {
    let world = World::with(&singles(30)).await;
    world.script.set(Some(Fault::Unavailable));
    let _processor = world.started().await;
    tokio::time::sleep(10 * SECOND).await;
    world.script.set(Some(Fault::HoldResponse));
    world.script.until_held(1).await;
    let calls = world.script.calls().len();
    tokio::time::sleep(MINUTE).await;
    assert_eq!(world.script.calls().len(), calls);
    assert_eq!(world.delivered.published().len(), 1, "the probe");
    world.script.clear();
    world.until_nothing_pending().await;
}

/// A bus that asks to be left alone, and notes when it was called.
#[derive(Clone)]
struct Throttling {
    retry_after: Duration,
    refusals: usize,
    calls: Arc<Mutex<Vec<Instant>>>,
}

#[async_trait]
impl EventBus for Throttling {
    fn capabilities(&self) -> BusCapabilities {
        BusCapabilities::new("throttling")
    }

    async fn publish(&self, events: &[OutboxEvent]) -> Vec<PublishResult> {
        let mut calls = self.calls.lock().unwrap();
        calls.push(Instant::now());
        let answer = || -> Result<()> {
            if calls.len() > self.refusals {
                return Ok(());
            }
            let error = Error::new(ErrorKind::Throttled, "publish", "slow down");
            Err(error.with_retry_after(self.retry_after))
        };
        events.iter().map(|_| answer()).collect()
    }
}

#[tokio::test(start_paused = true)]
async fn a_retry_after_is_respected() {
    let world = World::with(&singles(1)).await;
    let bus = Throttling { retry_after: 20 * SECOND, refusals: 3, calls: Arc::default() };
    let processor =
        OutboxProcessor::builder(world.outbox.clone()).bus(bus.clone()).build().unwrap();
    processor.drain(HOUR).await.unwrap();
    let calls = bus.calls.lock().unwrap();
    assert_eq!(calls.len(), 4);
    assert!(calls.windows(2).all(|pair| pair[1] - pair[0] >= 20 * SECOND), "{calls:?}");
    assert_eq!((world.pending(), world.outbox.events()[0].retry_count()), (0, 0));
}

/// Runs a processor whose events of types `down.*` go to a destination with a fault, and all others
/// to the one of the world.
async fn one_destination_fails(
    world: &World,
    fault: Fault,
) -> (OutboxProcessor, FaultyBus<MemoryBus>) {
    let down = FaultyBus::new(MemoryBus::new());
    down.script().set(Some(fault));
    let processor = OutboxProcessor::builder(world.outbox.clone())
        .settings(settings())
        .destination(Destination::new("up", Arc::new(world.delivered.clone())))
        .destination(Destination::new("down", Arc::new(down.clone())))
        .route(Route {
            event_type: posthaste_processor::Pattern::new("down.*"),
            destination: "down".into(),
            dead_head: None,
        })
        .build()
        .unwrap();
    processor.start().await.unwrap();
    (processor, down)
}

/// Events of keys of their own.
fn of_types<'t>(types: impl Iterator<Item = &'t str>) -> Vec<OutboxEvent> {
    types.map(|kind| OutboxEvent::new(uuid::Uuid::now_v7(), kind, &1).unwrap()).collect()
}

#[tokio::test(start_paused = true)]
async fn an_outage_of_one_destination_leaves_the_others_alone() {
    for fault in [Fault::Unavailable, Fault::FailBeforeWrite] {
        one_of_two_is_down(fault).await;
    }
}

async fn one_of_two_is_down(fault: Fault) {
    let world =
        World::with(&of_types(["down.event", "up.event"].into_iter().cycle().take(200))).await;
    let (processor, down) = one_destination_fails(&world, fault).await;
    until("the other destination has all of its events", || {
        world.delivered.published().len() == 100
    })
    .await;
    assert_eq!(world.pending(), 100);
    until("the outage is seen", || processor.statistics().destinations[1].paused_for.is_some())
        .await;
    let destinations = processor.statistics().destinations;
    assert_eq!((&*destinations[0].name, &destinations[0].paused_for), ("up", &None));
    assert!(destinations[1].paused_for.is_some());

    down.script().clear();
    world.until_nothing_pending().await;
    assert_eq!(down.inner().published().len(), 100);
    assert!(world.outbox.events().iter().all(|event| event.retry_count() == 0));
}

#[tokio::test(start_paused = true)]
async fn a_destination_that_is_down_does_not_fill_the_memory_of_one_that_works() {
    for fault in [Fault::Unavailable, Fault::FailBeforeWrite] {
        many_wait_for_one_of_two(fault).await;
    }
}

async fn many_wait_for_one_of_two(fault: Fault) {
    let kinds = (0..2_000).map(|number| if number < 1_900 { "down.event" } else { "up.event" });
    let world = World::with(&of_types(kinds)).await;
    let (_processor, down) = one_destination_fails(&world, fault).await;
    until("events behind many of a dead destination flow", || {
        world.delivered.published().len() == 100
    })
    .await;
    assert_eq!(world.pending(), 1_900);
    if fault == Fault::FailBeforeWrite {
        // Most are left in the store, and have their turn to probe all the same: any may be poison.
        tokio::time::sleep(HOUR).await;
        let probed: HashSet<uuid::Uuid> = down.script().calls().into_iter().flatten().collect();
        assert_eq!(probed.len(), 1_900);
    }

    down.script().clear();
    world.until_nothing_pending().await;
    assert_eq!(down.inner().published().len(), 1_900);
    assert!(world.outbox.events().iter().all(|event| event.retry_count() == 0));
}

/// The key that probes may be one that everything is written for.
#[tokio::test(start_paused = true)]
async fn a_single_key_of_a_destination_that_is_down_does_not_fill_the_memory_either() {
    let hot = |number| builder("hot", number).destination("down").build().unwrap();
    let world = World::with(&(0..2_000).map(hot).collect::<Vec<_>>()).await;
    world.store(&of_types(["up.event"; 100].into_iter())).await;
    let (_processor, down) = one_destination_fails(&world, Fault::Unavailable).await;
    until("events behind a key of a dead destination flow", || {
        world.delivered.published().len() == 100
    })
    .await;
    down.script().clear();
    world.until_nothing_pending().await;
    assert_eq!(numbers(&down.inner().published(), "hot"), (0..2_000).collect::<Vec<_>>());
}

#[tokio::test(start_paused = true)]
async fn a_destination_that_hangs_leaves_room_in_flight_for_another() {
    let world = World::with(&of_types(["down.event"; 40].into_iter())).await;
    let (processor, hangs) = one_destination_fails(&world, Fault::HoldResponse).await;
    hangs.script().until_held(1).await;
    let held = processor.statistics().in_flight;
    world.outbox.store(&of_types(["up.event"; 20].into_iter())).await.unwrap();
    until("events beside those that hang flow", || world.delivered.published().len() == 20).await;
    assert!((1..10).contains(&held), "{held} of 10 in flight to the one that hangs");
}
