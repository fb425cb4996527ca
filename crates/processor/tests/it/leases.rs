//! A relay that shares its outbox with others.

use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use posthaste_core::memory::MemoryBus;
use posthaste_core::{BusCapabilities, EventBus, OutboxEvent, PublishResult};
use posthaste_processor::{OutboxProcessor, ProcessorSettings};

use crate::hooked::Hooked;
use crate::support::{SECOND, World, event, settings, until};

type Log = Arc<Mutex<Vec<String>>>;

/// Notes when it is called.
struct Logged {
    inner: MemoryBus,
    log: Log,
}

#[async_trait]
impl EventBus for Logged {
    fn capabilities(&self) -> BusCapabilities {
        self.inner.capabilities()
    }

    async fn publish(&self, events: &[OutboxEvent]) -> Vec<PublishResult> {
        self.log.lock().unwrap().push("Publish".into());
        self.inner.publish(events).await
    }
}

/// Stopped after it has decided to send, and before it does: when it goes on, another relay may be
/// sending. So it looks at the clock once more, and asks for the lease first.
#[tokio::test(start_paused = true)]
async fn a_process_that_stood_still_asks_for_its_lease_before_it_sends() {
    let log = Log::default();
    let world = World::with(&[event("a", 0), event("b", 0)]).await;
    let calls = Arc::clone(&log);
    let repository = Hooked::new(world.outbox.clone())
        .leased(1_000)
        .stands_still(20 * SECOND)
        .around(move |operation| calls.lock().unwrap().push(format!("{operation:?}")));
    let bus = Logged { inner: world.delivered.clone(), log: Arc::clone(&log) };
    let settings = ProcessorSettings { max_concurrent_events: 1, ..settings() };
    let processor =
        OutboxProcessor::builder(repository).bus(bus).settings(settings).build().unwrap();
    processor.start().await.unwrap();
    until("both are delivered", || world.delivered.published().len() == 2).await;
    processor.stop().await;
    let log = log.lock().unwrap();
    let sent: Vec<usize> = (0..log.len()).filter(|at| log[*at] == "Publish").collect();
    let between = &log[sent[0]..sent[1]];
    assert!(between.iter().any(|call| call == "Lease"), "{log:?}");
}

/// Does not answer, and notes when nobody waits for it any more.
struct Silent(Log);

struct GivenUp<'l>(&'l Log);

impl Drop for GivenUp<'_> {
    fn drop(&mut self) {
        self.0.lock().unwrap().push("given up".into());
    }
}

#[async_trait]
impl EventBus for Silent {
    fn capabilities(&self) -> BusCapabilities {
        BusCapabilities::new("silent")
    }

    async fn publish(&self, _: &[OutboxEvent]) -> Vec<PublishResult> {
        let _given_up = GivenUp(&self.0);
        std::future::pending().await
    }
}

/// A call that lasts could go on sending beside another relay that has the keys by then.
#[tokio::test(start_paused = true)]
async fn a_call_under_way_is_given_up_when_the_lease_ends_and_not_before() {
    for (leases, given_up) in [(1, true), (1_000, false)] {
        let log = Log::default();
        let world = World::with(&[event("a", 0)]).await;
        let repository = Hooked::new(world.outbox.clone()).leased(leases);
        let bus = Silent(Arc::clone(&log));
        let builder = OutboxProcessor::builder(repository).bus(bus).settings(settings());
        let processor = builder.build().unwrap();
        processor.start().await.unwrap();
        tokio::time::sleep(settings().lease_ttl).await;
        assert_eq!(!log.lock().unwrap().is_empty(), given_up, "{leases} leases");
        tokio::time::sleep(20 * settings().lease_ttl).await;
        assert_eq!(log.lock().unwrap().len(), usize::from(given_up), "{leases} leases");
    }
}

/// Answers after a long while.
struct Slow(MemoryBus);

#[async_trait]
impl EventBus for Slow {
    fn capabilities(&self) -> BusCapabilities {
        self.0.capabilities()
    }

    async fn publish(&self, events: &[OutboxEvent]) -> Vec<PublishResult> {
        tokio::time::sleep(3 * settings().lease_ttl).await;
        self.0.publish(events).await
    }
}

/// What it has sent is not another relay's before it is recorded.
#[tokio::test(start_paused = true)]
async fn a_relay_that_stops_keeps_its_lease_until_all_is_recorded() {
    let world = World::with(&[event("a", 0)]).await;
    let repository = Hooked::new(world.outbox.clone()).leased(1_000);
    let bus = Slow(world.delivered.clone());
    let builder = OutboxProcessor::builder(repository).bus(bus).settings(settings());
    let processor = builder.build().unwrap();
    processor.start().await.unwrap();
    tokio::time::sleep(SECOND).await;
    let report = processor.stop().await;
    assert_eq!((report.unacknowledged, report.unsettled, report.returned), (0, 0, 0));
    assert_eq!((world.delivered.published().len(), world.pending()), (1, 0));
}
