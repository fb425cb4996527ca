//! Which destination an event goes to.

use std::sync::Arc;

use posthaste_core::memory::MemoryBus;
use posthaste_core::{ErrorKind, EventFilter, OutboxAdmin, OutboxEvent, Payload};
use posthaste_processor::{
    DeadHeadPolicy, Destination, OutboxProcessor, OutboxProcessorBuilder, Pattern,
    ProcessorSettings, Route, UnknownDestination,
};
use posthaste_testkit::faults::Fault;
use uuid::Uuid;

use crate::support::{HOUR, MINUTE, World, ids, settings};

fn typed(event_type: &str, destination: Option<&str>) -> OutboxEvent {
    let builder =
        OutboxEvent::builder(Uuid::now_v7(), event_type).payload(Payload::json_text("{}").unwrap());
    match destination {
        Some(name) => builder.destination(name),
        None => builder,
    }
    .build()
    .unwrap()
}

fn route(pattern: &str, destination: &str) -> Route {
    Route { event_type: Pattern::new(pattern), destination: destination.into(), dead_head: None }
}

struct Two {
    first: MemoryBus,
    second: MemoryBus,
}

impl Two {
    fn builder(&self, world: &World, policy: DeadHeadPolicy) -> OutboxProcessorBuilder {
        let first = Destination::new("first", Arc::new(self.first.clone())).dead_head(policy);
        OutboxProcessor::builder(world.repository.clone())
            .destination(first)
            .destination(Destination::new("second", Arc::new(self.second.clone())))
    }

    fn new() -> Self {
        Self { first: MemoryBus::new(), second: MemoryBus::new() }
    }
}

#[tokio::test(start_paused = true)]
async fn the_first_matching_route_wins_and_the_destination_column_overrules_it() {
    let events = [
        typed("order.placed", None),
        typed("order.failed", None),
        typed("payment.made", None),
        typed("order.placed", Some("second")),
        typed("payment.failed", Some("first")),
    ];
    let world = World::with(&events).await;
    let two = Two::new();
    let processor = two
        .builder(&world, DeadHeadPolicy::Block)
        .route(route("order.placed", "first"))
        .route(route("order.*", "second"))
        .route(route("*.failed", "second"))
        .build()
        .unwrap();
    assert_eq!(processor.process_events().await.unwrap(), 5);
    let mut first = ids(&two.first.published());
    first.sort_unstable();
    let mut expected = ids([&events[0], &events[2], &events[4]]);
    expected.sort_unstable();
    assert_eq!(first, expected);
    assert_eq!(two.second.published().len(), 2);
}

#[tokio::test(start_paused = true)]
async fn an_unknown_destination_holds_its_events_until_a_relay_knows_it_and_others_flow() {
    let early = typed("order.placed", Some("third"));
    let world = World::with(&[early.clone(), typed("order.placed", None)]).await;
    let two = Two::new();
    let build = || two.builder(&world, DeadHeadPolicy::Block);
    assert_eq!(build().build().unwrap().process_events().await.unwrap(), 1);
    assert!(world.stored(early.id()).is_pending());
    assert_eq!(build().build().unwrap().drain(HOUR).await.unwrap(), 0, "a drain does not wait");

    let third = Destination::new("third", Arc::new(two.second.clone()));
    assert_eq!(build().destination(third).build().unwrap().process_events().await.unwrap(), 1);
    assert_eq!(ids(&two.second.published()), [early.id()]);
}

#[tokio::test(start_paused = true)]
async fn an_unknown_destination_is_named_for_as_long_as_an_event_waits_for_it() {
    let events = ["third", "third", "fourth"].map(|name| typed("order.placed", Some(name)));
    let world = World::with(&events).await;
    let processor = Two::new().builder(&world, DeadHeadPolicy::Block).build().unwrap();
    processor.start().await.unwrap();
    let named = || processor.statistics().unknown_destinations;
    let discard = async |event: &OutboxEvent| {
        let one = EventFilter::with_ids([event.id()]);
        assert_eq!(world.outbox.discard_events(&one).await.unwrap(), 1);
        tokio::time::sleep(MINUTE / 2).await;
    };
    tokio::time::sleep(MINUTE).await;
    assert_eq!(named(), ["fourth", "third"]);
    discard(&events[0]).await;
    assert_eq!(named(), ["fourth", "third"], "another waits for it");
    discard(&events[1]).await;
    assert_eq!(named(), ["fourth"]);
    discard(&events[2]).await;
    assert_eq!(named(), <[&str; 0]>::default());

    world.store(&[typed("order.placed", Some("third"))]).await;
    tokio::time::sleep(MINUTE).await;
    assert_eq!(named(), ["third"], "it is told anew");
}

#[tokio::test(start_paused = true)]
async fn an_unknown_destination_is_a_dead_letter_that_names_it_where_the_settings_say_so() {
    let lost = typed("order.placed", Some("nowhere"));
    let world = World::with(&[lost.clone(), typed("order.placed", None)]).await;
    let two = Two::new();
    let settings =
        ProcessorSettings { unknown_destination: UnknownDestination::Dead, ..settings() };
    let processor = two.builder(&world, DeadHeadPolicy::Block).settings(settings).build().unwrap();
    assert_eq!(processor.process_events().await.unwrap(), 1);

    let dead = world.stored(lost.id());
    assert!(dead.is_dead());
    assert_eq!(dead.dead_reason(), Some("destination_missing"));
    assert_eq!(dead.retry_count(), 0);
    assert!(dead.error_message().unwrap().contains("nowhere"));
}

/// The same poison on two ways to one destination that blocks: a route that skips lets its key go
/// on, also when the relay starts anew and reads the dead letters.
#[tokio::test(start_paused = true)]
async fn a_route_may_skip_a_dead_head_where_its_destination_blocks() {
    let of_key = |key: Uuid, event_type: &str| {
        let payload = Payload::json_text("1").unwrap();
        OutboxEvent::builder(key, event_type).payload(payload).build().unwrap()
    };
    let (skips, blocks) = (Uuid::now_v7(), Uuid::now_v7());
    let dead = [of_key(skips, "audit.seen"), of_key(blocks, "order.placed")];
    let behind = [of_key(skips, "order.placed"), of_key(blocks, "audit.seen")];
    let world = World::with(&[&dead[..], &behind[..]].concat()).await;
    let poison = ids(&dead);
    world
        .script
        .plan(move |event, _| poison.contains(&event.id()).then_some(Fault::RejectPermanently));
    let builder = || {
        let destination = Destination::new("default", Arc::new(world.bus.clone()));
        let skip = Some(DeadHeadPolicy::Skip);
        OutboxProcessor::builder(world.repository.clone())
            .destination(destination)
            .route(Route { dead_head: skip, ..route("audit.*", "default") })
            .build()
            .unwrap()
    };
    assert_eq!(builder().process_events().await.unwrap(), 1);
    assert_eq!(ids(&world.delivered.published()), [behind[0].id()]);
    let later = [of_key(skips, "order.placed"), of_key(blocks, "order.placed")];
    world.store(&later).await;
    assert_eq!(builder().process_events().await.unwrap(), 1);
    assert_eq!(ids(&world.delivered.published()), [behind[0].id(), later[0].id()]);
}

#[tokio::test(start_paused = true)]
async fn a_key_keeps_its_order_across_destinations() {
    let key = Uuid::now_v7();
    let events: Vec<OutboxEvent> = (0..40)
        .map(|number| {
            let name = if number % 3 == 0 { "second" } else { "first" };
            OutboxEvent::builder(key, "order.changed")
                .destination(name)
                .payload(Payload::json_text(number.to_string()).unwrap())
                .build()
                .unwrap()
        })
        .collect();
    let world = World::with(&events).await;
    let two = Two::new();
    // Both write into one bus: what is seen is the order over both.
    let two = Two { second: two.first.clone(), ..two };
    let processor = two.builder(&world, DeadHeadPolicy::Block).build().unwrap();
    assert_eq!(processor.process_events().await.unwrap(), 40);
    assert_eq!(ids(&two.first.published()), ids(&events));
}

#[test]
fn a_processor_without_a_usable_configuration_is_refused_by_name() {
    let world = World::new();
    let two = Two::new();
    let complete = || two.builder(&world, DeadHeadPolicy::Block);
    for (builder, named) in [
        (OutboxProcessor::builder(world.repository.clone()), "no destination"),
        (complete().destination(Destination::new("first", Arc::new(MemoryBus::new()))), "first"),
        (complete().route(route("*", "third")), "third"),
        (complete().batch_size(0), "batch_size"),
        (complete().max_concurrent_events(0), "max_concurrent_events"),
        (complete().poll_interval(std::time::Duration::ZERO), "poll_interval"),
    ] {
        let error = builder.build().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Config);
        assert!(error.report().contains(named), "{}", error.report());
    }
}
