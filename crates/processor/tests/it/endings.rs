//! How a relay ends, asked or not, and who is told.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::time::Duration;

use async_trait::async_trait;
use posthaste_core::memory::{MemoryBus, MemoryRepository};
use posthaste_core::{BusCapabilities, ErrorKind, EventBus, OutboxEvent, PublishResult, Result};
use posthaste_processor::{OutboxProcessor, RelayState, StopReport};
use posthaste_testkit::faults::{Fault, Operation};

use crate::hooked::Hooked;
use crate::support::{MINUTE, SECOND, World, event, singles, until};

/// A relay that dies of a panic of the repository's, in a call that nothing guards.
async fn dying(outbox: &MemoryRepository) -> OutboxProcessor {
    let repository = Hooked::new(outbox.clone()).capabilities_panic();
    let relay = OutboxProcessor::builder(repository).bus(MemoryBus::new()).build().unwrap();
    relay.start().await.unwrap();
    relay
}

#[tokio::test(start_paused = true)]
async fn a_relay_that_died_says_so_wherever_it_is_asked() {
    let relay = dying(&MemoryRepository::new()).await;
    let report = relay.ended().await;
    let why = report.failure.clone().unwrap();
    assert!(why.contains("panicked: on purpose"), "{why}");
    assert!(!relay.is_running());
    let statistics = relay.statistics();
    assert_eq!(statistics.state, RelayState::Failed);
    assert_eq!(statistics.failure.as_ref(), Some(&why));
    let unhealthy = statistics.unhealthy_because(MINUTE).unwrap();
    assert_eq!(unhealthy, format!("the relay died: {why}"));
    assert_eq!(relay.stop().await, report);
    assert_eq!(relay.shutdown().await, report);
}

#[tokio::test(start_paused = true)]
async fn a_relay_that_died_can_be_started_again_and_forgets_why() {
    let relay = dying(&MemoryRepository::new()).await;
    relay.ended().await;
    relay.start().await.unwrap();
    assert_eq!(relay.statistics().failure, None);
    assert!(relay.ended().await.failure.is_some(), "it dies of the same again");
}

#[test]
fn a_relay_whose_runtime_is_shut_down_is_dead() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let relay = runtime.block_on(async {
        let processor =
            OutboxProcessor::builder(MemoryRepository::new()).bus(MemoryBus::new()).build();
        let processor = processor.unwrap();
        processor.start().await.unwrap();
        processor
    });
    drop(runtime);
    assert!(!relay.is_running());
    assert_eq!(relay.statistics().state, RelayState::Failed);
    assert!(relay.statistics().failure.unwrap().contains("runtime"));
}

#[tokio::test(start_paused = true)]
async fn the_end_can_be_waited_for_and_comes_with_the_stop() {
    let world = World::new();
    let relay = world.started().await;
    let ended = tokio::spawn({
        let relay = relay.clone();
        async move { relay.ended().await }
    });
    tokio::time::sleep(MINUTE).await;
    assert!(!ended.is_finished());
    assert_eq!(relay.stop().await, StopReport::default());
    assert_eq!(ended.await.unwrap(), StopReport::default());
}

#[tokio::test(start_paused = true)]
async fn two_who_stop_at_once_wait_for_the_same_end() {
    let world = World::with(&singles(3)).await;
    world.script.set(Some(Fault::HoldResponse));
    let relay = world.builder().max_concurrent_events(1).build().unwrap();
    relay.start().await.unwrap();
    world.script.until_held(1).await;
    let stops = [(); 2].map(|()| {
        let relay = relay.clone();
        tokio::spawn(async move { relay.stop().await })
    });
    tokio::time::sleep(SECOND).await;
    assert!(stops.iter().all(|stop| !stop.is_finished()));
    world.script.release();
    for stop in stops {
        assert_eq!(stop.await.unwrap().returned, 2);
    }
    assert_eq!(relay.stop().await.returned, 2, "who comes later is told of the same end");
}

/// A bus that panics wherever it is told to, and counts how often it is closed.
#[derive(Clone, Default)]
struct Panicking {
    inner: MemoryBus,
    in_capabilities: Arc<AtomicBool>,
    in_publish: Arc<AtomicBool>,
    in_close: Arc<AtomicBool>,
    closed: Arc<AtomicUsize>,
}

#[async_trait]
impl EventBus for Panicking {
    fn capabilities(&self) -> BusCapabilities {
        assert!(!self.in_capabilities.load(SeqCst), "on purpose");
        self.inner.capabilities()
    }

    // Not `async`, so that it panics before there is a future.
    fn publish<'a: 'f, 'b: 'f, 'f>(
        &'a self,
        events: &'b [OutboxEvent],
    ) -> std::pin::Pin<Box<dyn Future<Output = Vec<PublishResult>> + Send + 'f>> {
        assert!(!self.in_publish.load(SeqCst), "on purpose");
        self.inner.publish(events)
    }

    async fn close(&self) -> Result<()> {
        self.closed.fetch_add(1, SeqCst);
        assert!(!self.in_close.load(SeqCst), "on purpose");
        Ok(())
    }
}

#[tokio::test(start_paused = true)]
async fn no_panic_of_a_bus_ends_the_relay_or_keeps_an_event() {
    for in_publish in [false, true] {
        let world = World::new();
        let bus = Panicking::default();
        let panics = if in_publish { &bus.in_publish } else { &bus.in_capabilities };
        let relay =
            OutboxProcessor::builder(world.outbox.clone()).bus(bus.clone()).build().unwrap();
        relay.start().await.unwrap();
        panics.store(true, SeqCst);
        world.store(&singles(20)).await;
        tokio::time::sleep(10 * SECOND).await;
        assert!(relay.is_running());
        panics.store(false, SeqCst);
        world.until_nothing_pending().await;
        assert_eq!(bus.inner.published().len(), 20);
        assert_eq!(relay.stop().await, StopReport::default());
    }
}

#[tokio::test(start_paused = true)]
async fn a_bus_that_cannot_say_what_it_can_is_refused_when_a_processor_is_built() {
    let bus = Panicking::default();
    bus.in_capabilities.store(true, SeqCst);
    let error =
        OutboxProcessor::builder(MemoryRepository::new()).bus(bus).build().unwrap_err().report();
    assert!(error.contains("the bus panicked: on purpose"), "{error}");
}

#[tokio::test(start_paused = true)]
async fn a_bus_is_closed_once_by_shutdown_and_by_nothing_else() {
    let world = World::with(&singles(2)).await;
    let bus = Panicking::default();
    bus.in_close.store(true, SeqCst);
    let relay = OutboxProcessor::builder(world.outbox.clone()).bus(bus.clone()).build().unwrap();
    relay.process_events().await.unwrap();
    relay.start().await.unwrap();
    relay.stop().await;
    relay.start().await.unwrap();
    world.store(&[event("late", 0)]).await;
    world.until_nothing_pending().await;
    assert_eq!(bus.closed.load(SeqCst), 0);

    let (first, second) = tokio::join!(relay.shutdown(), relay.shutdown());
    assert_eq!((first, second), (StopReport::default(), StopReport::default()));
    assert_eq!(bus.closed.load(SeqCst), 1);
    relay.shutdown().await;
    assert_eq!(bus.closed.load(SeqCst), 1);
    let refused = relay.start().await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Conflict);
    assert!(refused.to_string().contains("shut down"), "{refused}");
    assert!(relay.process_events().await.is_err());
}

#[tokio::test(start_paused = true)]
async fn a_relay_starts_before_its_database_and_says_what_it_waits_for() {
    let world = World::with(&singles(3)).await;
    world.storage.set(Operation::Check, Some(Fault::Unavailable));
    let relay = world.processor();
    relay.start().await.unwrap();
    assert!(relay.is_running());
    tokio::time::sleep(MINUTE).await;
    assert_eq!(relay.statistics().state, RelayState::DatabaseUnavailable);
    let why = relay.statistics().unhealthy_because(MINUTE).unwrap();
    assert!(why.contains("database is unavailable") && why.contains("on purpose"), "{why}");
    assert_eq!(world.pending(), 3);

    world.storage.set(Operation::Check, None);
    world.until_nothing_pending().await;
    until("it is healthy", || relay.statistics().unhealthy_because(MINUTE).is_none()).await;
    relay.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_relay_that_waits_for_its_database_stops_at_once() {
    let world = World::new();
    world.storage.set(Operation::Check, Some(Fault::Unavailable));
    let relay = world.started().await;
    tokio::time::sleep(MINUTE).await;
    let stopped = tokio::time::timeout(Duration::from_millis(1), relay.stop()).await;
    assert_eq!(stopped.unwrap(), StopReport::default());
    assert_eq!(relay.statistics().state, RelayState::Stopped);
}

#[tokio::test(start_paused = true)]
async fn a_database_that_waiting_does_not_mend_refuses_the_start() {
    let world = World::with(&singles(1)).await;
    world.storage.set(Operation::Check, Some(Fault::RejectPermanently));
    let relay = world.processor();
    assert!(relay.start().await.is_err());
    assert!(!relay.is_running());
    world.storage.set(Operation::Check, None);
    relay.start().await.unwrap();
    world.until_nothing_pending().await;
}
