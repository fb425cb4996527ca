//! Answers of a receiver, as relays of real ones met them: what counts, what waits, who is held up.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use posthaste_core::memory::MemoryBus;
use posthaste_core::{
    BusCapabilities, Error, ErrorKind, EventBus, OutboxEvent, PublishResult, Subject,
};
use posthaste_processor::{Destination, OutboxProcessor, ProcessorSettings};
use tokio::time::Instant;

use crate::support::{HOUR, MINUTE, SECOND, World, builder, interleaved, until};

/// How the receiver answers an event.
type Answer = dyn Fn(&OutboxEvent) -> (Duration, PublishResult) + Send + Sync;

/// A receiver that answers each event for itself, one in a call, so many at once.
#[derive(Clone)]
struct Receiver {
    answer: Arc<Answer>,
    at_once_max: usize,
    at_once: Arc<AtomicUsize>,
    most_at_once: Arc<AtomicUsize>,
    /// When each event was taken, by its key.
    taken: Arc<Mutex<HashMap<String, Instant>>>,
    calls: Arc<Mutex<Vec<(String, Instant)>>>,
}

impl Receiver {
    fn new(
        answer: impl Fn(&OutboxEvent) -> (Duration, PublishResult) + Send + Sync + 'static,
    ) -> Self {
        Self {
            answer: Arc::new(answer),
            at_once_max: 16,
            at_once: Arc::default(),
            most_at_once: Arc::default(),
            taken: Arc::default(),
            calls: Arc::default(),
        }
    }

    fn calls_of(&self, key: &str) -> Vec<Instant> {
        let calls = self.calls.lock().unwrap();
        calls.iter().filter(|(of, _)| of == key).map(|(_, at)| *at).collect()
    }

    fn taken(&self, key: &str) -> Option<Instant> {
        self.taken.lock().unwrap().get(key).copied()
    }
}

#[async_trait]
impl EventBus for Receiver {
    fn capabilities(&self) -> BusCapabilities {
        BusCapabilities {
            batch_events_max: 1,
            in_flight_events_max: Some(self.at_once_max),
            ..BusCapabilities::new("receiver")
        }
    }

    async fn publish(&self, events: &[OutboxEvent]) -> Vec<PublishResult> {
        let now_at_once = self.at_once.fetch_add(1, Ordering::SeqCst) + 1;
        self.most_at_once.fetch_max(now_at_once, Ordering::SeqCst);
        let key = events[0].order_key().to_string();
        self.calls.lock().unwrap().push((key.clone(), Instant::now()));
        let (takes, result) = (self.answer)(&events[0]);
        tokio::time::sleep(takes).await;
        self.at_once.fetch_sub(1, Ordering::SeqCst);
        if result.is_ok() {
            self.taken.lock().unwrap().insert(key, Instant::now());
        }
        vec![result]
    }
}

fn fails(kind: ErrorKind) -> PublishResult {
    Err(Error::new(kind, "post", "the answer of a test"))
}

const QUICK: Duration = Duration::from_millis(5);

/// As many keys as make an outage: a constant of the machine.
const OUTAGE_KEYS: usize = 8;

async fn relay(world: &World, receiver: &Receiver) -> OutboxProcessor {
    let settings = ProcessorSettings { max_concurrent_events: 200, ..ProcessorSettings::default() };
    let processor = OutboxProcessor::builder(world.repository.clone())
        .settings(settings)
        .destination(Destination::new("receiver", Arc::new(receiver.clone())))
        .build()
        .unwrap();
    processor.start().await.unwrap();
    processor
}

/// One event of each of so many keys, named `prefix-0` and so on.
fn of_keys(prefix: &str, keys: usize) -> Vec<OutboxEvent> {
    (0..keys).map(|number| builder(&format!("{prefix}-{number}"), 0).build().unwrap()).collect()
}

fn is_poison(event: &OutboxEvent) -> bool {
    event.order_key().to_string().starts_with("poison")
}

/// Answers that a destination that is down gives as well, and such as only an event gives.
const ANSWERS: [ErrorKind; 5] = [
    ErrorKind::Unauthorized,
    ErrorKind::Throttled,
    ErrorKind::Timeout,
    ErrorKind::DestinationMissing,
    ErrorKind::Failed,
];

#[tokio::test(start_paused = true)]
async fn poison_before_good_events_delays_them_by_moments_and_ends_as_dead_letters() {
    for kind in ANSWERS {
        let world = World::with(&of_keys("poison", 40)).await;
        let receiver = Receiver::new(move |event| {
            (QUICK, if is_poison(event) { fails(kind) } else { Ok(()) })
        });
        let _processor = relay(&world, &receiver).await;
        tokio::time::sleep(MINUTE).await;
        for round in 0..5 {
            let stored = Instant::now();
            let keys = format!("good-{round}");
            world.store(&of_keys(&keys, 20)).await;
            until("good events flow", || receiver.taken(&format!("{keys}-19")).is_some()).await;
            let last = (0..20).filter_map(|n| receiver.taken(&format!("{keys}-{n}"))).max();
            assert!(last.unwrap() - stored < SECOND, "{kind}: {:?}", last.unwrap() - stored);
            tokio::time::sleep(7 * SECOND).await;
        }
        let begun = Instant::now();
        until("poison is dead", || world.dead() == 40).await;
        assert!(begun.elapsed() < 5 * MINUTE, "{kind}: {:?}", begun.elapsed());
        for event in world.outbox.events() {
            let expected = if is_poison(&event) { 3 } else { 0 };
            assert_eq!(event.retry_count(), expected, "{kind}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn poison_among_good_events_ends_soon_whatever_it_is_answered() {
    for kind in ANSWERS {
        let events: Vec<OutboxEvent> = (0..20)
            .flat_map(|n| [of_keys(&format!("poison-{n}"), 1), of_keys(&format!("good-{n}"), 100)])
            .flatten()
            .collect();
        let world = World::with(&events).await;
        let receiver = Receiver::new(move |event| {
            (QUICK, if is_poison(event) { fails(kind) } else { Ok(()) })
        });
        let processor = relay(&world, &receiver).await;
        let begun = Instant::now();
        until("poison is dead", || world.dead() == 20).await;
        assert!(begun.elapsed() < 3 * MINUTE, "{kind}: {:?}", begun.elapsed());
        assert_eq!(world.pending(), 0, "{kind}");
        assert_eq!(processor.statistics().destinations[0].paused_for, None);
    }
}

/// A deployment: everything fails for two minutes, and what fails is few.
#[tokio::test(start_paused = true)]
async fn on_a_quiet_destination_nothing_counts_while_nothing_gets_through() {
    for kind in [ErrorKind::Failed, ErrorKind::Rejected, ErrorKind::Unauthorized] {
        let world = World::with(&of_keys("good", 4)).await;
        let back = Instant::now() + 2 * MINUTE - 10 * SECOND;
        let receiver = Receiver::new(move |_| {
            (QUICK, if Instant::now() < back { fails(kind) } else { Ok(()) })
        });
        let _processor = relay(&world, &receiver).await;
        world.until_nothing_pending().await;
        assert!(Instant::now() < back + 10 * SECOND, "{kind}: it resumes soon");
        assert_eq!(world.dead(), 0);
        assert!(world.outbox.events().iter().all(|event| event.retry_count() == 0), "{kind}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_lone_poison_event_of_a_quiet_destination_ends_as_a_dead_letter_in_minutes() {
    let world = World::with(&of_keys("poison", 1)).await;
    let receiver = Receiver::new(|_| (QUICK, fails(ErrorKind::Failed)));
    let _processor = relay(&world, &receiver).await;
    let begun = Instant::now();
    until("it is dead", || world.dead() == 1).await;
    assert!((2 * MINUTE..3 * MINUTE).contains(&begun.elapsed()), "{:?}", begun.elapsed());
}

/// Half of a deployment's instances answer 500 while the others take everything.
#[tokio::test(start_paused = true)]
async fn a_rolling_deployment_kills_no_event() {
    let events: Vec<OutboxEvent> =
        (0..20).flat_map(|n| of_keys(&format!("good-{n}"), 100)).collect();
    let world = World::with(&events[..400]).await;
    let done = Instant::now() + 90 * SECOND;
    let number = AtomicUsize::new(0);
    let receiver = Receiver::new(move |event| {
        // Each try meets one of the instances, as the balancer's dice have it.
        let dice = number.fetch_add(0x9E37_79B9, Ordering::Relaxed) >> 7;
        let unlucky = (dice ^ event.id().as_u128() as usize).is_multiple_of(2);
        (QUICK, if Instant::now() < done && unlucky { fails(ErrorKind::Failed) } else { Ok(()) })
    });
    let _processor = relay(&world, &receiver).await;
    for chunk in events[400..].chunks(20) {
        world.store(chunk).await;
        tokio::time::sleep(SECOND).await;
    }
    world.until_nothing_pending().await;
    assert_eq!(world.dead(), 0);
}

/// A wrong address refuses everything.
#[tokio::test(start_paused = true)]
async fn where_nothing_was_ever_taken_refusals_kill_nothing() {
    let world = World::with(&of_keys("good", 100)).await;
    let receiver = Receiver::new(|_| (QUICK, fails(ErrorKind::Rejected)));
    let processor = relay(&world, &receiver).await;
    tokio::time::sleep(HOUR).await;
    assert_eq!(world.dead(), 0);
    let paused_for = processor.statistics().destinations[0].paused_for.clone();
    assert!(paused_for.unwrap().contains("the answer of a test"));
}

#[tokio::test(start_paused = true)]
async fn what_fails_on_a_way_of_its_own_holds_up_nobody_else() {
    let world = World::with(&of_keys("poison", 50)).await;
    let receiver = Receiver::new(|event| {
        let own_way = || Error::new(ErrorKind::Throttled, "post", "503").about(Subject::Route);
        let poison = || Err(own_way().with_retry_after(5 * MINUTE));
        (QUICK, if is_poison(event) { poison() } else { Ok(()) })
    });
    let processor = relay(&world, &receiver).await;
    tokio::time::sleep(10 * SECOND).await;
    let stored = Instant::now();
    world.store(&of_keys("good", 100)).await;
    until("good events flow", || world.pending() == 50).await;
    assert!(stored.elapsed() < SECOND, "{:?}", stored.elapsed());
    assert_eq!(processor.statistics().destinations[0].paused_for, None);
}

#[tokio::test(start_paused = true)]
async fn a_try_comes_no_sooner_than_was_asked_for_whether_it_counts_or_not() {
    let mut events = of_keys("poison", 1);
    events.extend(of_keys("good", 100));
    let world = World::with(&events).await;
    let receiver = Receiver::new(|event| {
        let failed = || Error::new(ErrorKind::Failed, "post", "500").with_retry_after(20 * SECOND);
        (QUICK, if is_poison(event) { Err(failed()) } else { Ok(()) })
    });
    let _processor = relay(&world, &receiver).await;
    until("it is dead", || world.dead() == 1).await;
    let calls = receiver.calls_of("poison-0");
    assert!(calls.windows(2).all(|pair| pair[1] - pair[0] >= 20 * SECOND), "{calls:?}");
}

#[tokio::test(start_paused = true)]
async fn a_slow_answer_to_one_key_holds_up_no_other() {
    let events: Vec<OutboxEvent> = (0..101)
        .flat_map(|key| (0..20).map(move |n| builder(&format!("key-{key}"), n).build().unwrap()))
        .collect();
    let world = World::with(&events).await;
    let receiver = Receiver::new(|event| {
        let slow = event.order_key().to_string() == "key-0";
        (if slow { 8 * SECOND } else { QUICK }, Ok(()))
    });
    let _processor = relay(&world, &receiver).await;
    let begun = Instant::now();
    until("all others are delivered", || world.pending() <= 20).await;
    assert!(begun.elapsed() < 3 * SECOND, "{:?}", begun.elapsed());
}

#[tokio::test(start_paused = true)]
async fn no_more_are_on_their_way_than_the_bus_allows_and_after_a_stop_nothing_is_sent() {
    let world = World::with(&of_keys("good", 300)).await;
    let mut receiver = Receiver::new(|_| (500 * QUICK / 5, Ok(())));
    receiver.at_once_max = 1;
    let processor = relay(&world, &receiver).await;
    tokio::time::sleep(10 * SECOND).await;
    let begun = receiver.calls.lock().unwrap().len();
    processor.stop().await;
    assert_eq!(receiver.calls.lock().unwrap().len(), begun);
    assert_eq!(world.pending(), 300 - begun, "each was recorded");
    assert_eq!(receiver.most_at_once.load(Ordering::SeqCst), 1);
}

/// One worker of a tenth of a second, and a client that gives up after a second.
#[tokio::test(start_paused = true)]
async fn time_outs_do_not_feed_themselves() {
    let world = World::with(&of_keys("good", 200)).await;
    let free_at = Arc::new(Mutex::new(Instant::now()));
    let mut receiver = Receiver::new(move |_| {
        let mut free_at = free_at.lock().unwrap();
        *free_at = (*free_at).max(Instant::now()) + SECOND / 10;
        let takes = *free_at - Instant::now();
        if takes <= SECOND { (takes, Ok(())) } else { (SECOND, fails(ErrorKind::Timeout)) }
    });
    receiver.at_once_max = 64;
    let _processor = relay(&world, &receiver).await;
    world.until_nothing_pending().await;
    let calls = receiver.calls.lock().unwrap().len();
    assert!(calls < 400, "{calls} calls for 200 events");
    assert_eq!(world.dead(), 0);
}

/// Takes one event a call, and answers at once.
struct OneByOne(MemoryBus);

#[async_trait]
impl EventBus for OneByOne {
    fn capabilities(&self) -> BusCapabilities {
        BusCapabilities { batch_events_max: 1, ..self.0.capabilities() }
    }

    async fn publish(&self, events: &[OutboxEvent]) -> Vec<PublishResult> {
        self.0.publish(events).await
    }
}

/// Calls end on other threads while the ends of others are taken in.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_call_never_ends_before_what_it_told() {
    let events = interleaved(2_000, 10);
    let world = World::with(&events).await;
    let inner = MemoryBus::new();
    let bus = OneByOne(inner.clone());
    let processor = OutboxProcessor::builder(world.outbox.clone()).bus(bus).build().unwrap();
    processor.drain(MINUTE).await.unwrap();
    assert_eq!(world.pending(), 0);
    assert_eq!(inner.published().len(), events.len(), "sent again, though each was answered");
}

fn asks_for(seconds: u32) -> PublishResult {
    let error = Error::new(ErrorKind::Throttled, "post", "429");
    Err(error.with_retry_after(seconds * SECOND))
}

/// Eight keys of a rule that is for them alone, each answered that nothing may be sent for minutes.
#[tokio::test(start_paused = true)]
async fn poison_that_asks_for_time_delays_good_events_by_moments() {
    for poison in [OUTAGE_KEYS, 40] {
        let world = World::with(&of_keys("poison", poison)).await;
        let receiver = Receiver::new(move |event| {
            (QUICK, if is_poison(event) { asks_for(300) } else { Ok(()) })
        });
        let processor = relay(&world, &receiver).await;
        for round in 0..10 {
            tokio::time::sleep(7 * SECOND).await;
            let stored = Instant::now();
            let keys = format!("good-{round}");
            world.store(&of_keys(&keys, 20)).await;
            until("good events flow", || world.pending() == poison).await;
            let last = (0..20).filter_map(|n| receiver.taken(&format!("{keys}-{n}"))).max();
            let late = last.unwrap() - stored;
            assert!(late < SECOND + 20 * QUICK, "{poison}, round {round}: {late:?}");
        }
        let refuted = Instant::now();
        assert_eq!(processor.statistics().destinations[0].paused_for, None);
        tokio::time::sleep(HOUR).await;
        // From then on each waits for its own time.
        for number in 0..poison {
            let calls = receiver.calls_of(&format!("poison-{number}"));
            let later = calls.iter().filter(|at| **at > refuted);
            assert!(later.count() <= 12, "{calls:?}");
        }
        assert_eq!(world.dead(), poison);
    }
}

/// What waits for a paused destination is left in the store after a while, and has its turn all the same.
#[tokio::test(start_paused = true)]
async fn one_good_event_among_much_poison_that_asks_for_time_has_its_turn() {
    let poison = |name| of_keys(name, 50);
    let events = [poison("poison-a"), of_keys("good", 1), poison("poison-b")].concat();
    let world = World::with(&events).await;
    let receiver =
        Receiver::new(|event| (QUICK, if is_poison(event) { asks_for(300) } else { Ok(()) }));
    let _processor = relay(&world, &receiver).await;
    let stored = Instant::now();
    until("it is delivered", || world.pending() == 100).await;
    assert!(stored.elapsed() < 2 * MINUTE, "{:?}", stored.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_server_that_takes_nothing_for_a_while_is_left_alone_for_as_long_as_it_asks() {
    let world = World::with(&of_keys("good", 3_000)).await;
    let begun = Instant::now();
    let receiver = Receiver::new(move |_| {
        let open = begun.elapsed() > 10 * MINUTE;
        (QUICK, if open { Ok(()) } else { asks_for(60) })
    });
    let processor = relay(&world, &receiver).await;
    tokio::time::sleep(2 * SECOND).await;
    let first = receiver.calls.lock().unwrap().len();
    assert!(first <= 16 + 3, "{first} calls before it is left alone");
    tokio::time::sleep(10 * MINUTE - 2 * SECOND).await;
    let calls = receiver.calls.lock().unwrap().len() - first;
    // Single events of keys that have not failed: each may be the first that is taken.
    assert!(calls <= 620, "{calls} calls in ten minutes");
    world.assert_no_attempt_counted(&processor);
    world.until_nothing_pending().await;
    let late = begun.elapsed() - 10 * MINUTE;
    assert!(late < 15 * SECOND, "{late:?}");
}

/// Its keys have all failed, so nothing tells more than it said itself.
#[tokio::test(start_paused = true)]
async fn without_other_keys_a_server_that_asks_for_time_is_asked_when_it_is_over() {
    let world = World::with(&of_keys("good", OUTAGE_KEYS)).await;
    let receiver = Receiver::new(|_| (QUICK, asks_for(60)));
    let _processor = relay(&world, &receiver).await;
    tokio::time::sleep(10 * MINUTE).await;
    for key in 0..OUTAGE_KEYS {
        let calls = receiver.calls_of(&format!("good-{key}"));
        assert!(calls.windows(2).all(|pair| pair[1] - pair[0] >= 60 * SECOND), "{calls:?}");
    }
}
