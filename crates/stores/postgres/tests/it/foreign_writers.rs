//! Programs that know only the contract's columns, and what they may get wrong.

use std::time::Duration;

use posthaste_core::{
    EventFilter, EventState, OutboxAdmin, OutboxEvent, OutboxRepository, Payload, PendingQuery,
    PendingSelection,
};
use posthaste_postgres::{PostgresOptions, PostgresOutbox};
use sqlx::PgPool;
use uuid::Uuid;

use crate::common::{
    TestDatabase, delivered, event, insert, pending, pending_types, run, settlements_of_each_kind,
    until_someone_waits_for_a_lock,
};

#[tokio::test]
async fn three_columns_are_enough() {
    let Some(database) = TestDatabase::create().await else { return };
    let outbox = database.outbox().await;
    database.run(&insert("plain")).await;
    let found = pending(&outbox).await;
    let event = &found[0].event;
    assert_eq!((event.retry_count(), event.max_retries()), (0, 3));
    assert_eq!(event.payload(), &Payload::Json("{}".into()));
    assert_eq!(event.order_key().to_string(), event.aggregate_id().to_string());
    outbox.settle(&[delivered(&found[0])]).await.unwrap();
    let waiting: i64 =
        database.value("select count(*) from outbox_events where processed_at is null").await;
    assert_eq!(waiting, 0);
}

/// The event is made of what the update returns, and so draws its number when the row is held.
#[tokio::test]
async fn one_statement_for_row_and_event_keeps_the_order_of_the_row() {
    let Some(database) = TestDatabase::create().await else { return };
    let outbox = database.outbox().await;
    database
        .run(
            "create table accounts (id uuid, balance integer); \
             insert into accounts values (gen_random_uuid(), 0)",
        )
        .await;
    let change = "with changed as ( \
            update accounts set balance = balance + 1 returning id, balance) \
        insert into outbox_events (aggregate_id, event_type, event_data) \
        select id, 'balance ' || balance, '{}' from changed";
    let mut first = database.connection().await;
    run(&mut first, &format!("begin; {change}")).await;
    let mut second = database.connection().await;
    let waits = tokio::spawn(async move { run(&mut second, change).await });
    until_someone_waits_for_a_lock(&database).await;
    database.run(&insert("of another")).await;
    run(&mut first, "commit").await;
    waits.await.unwrap();
    assert_eq!(pending_types(&outbox).await, ["balance 1", "of another", "balance 2"]);
}

#[tokio::test]
async fn insert_is_the_only_right_a_producer_needs() {
    let Some(database) = TestDatabase::create().await else { return };
    let outbox = database.outbox().await;
    let role = format!("producer_{}", Uuid::now_v7().simple());
    database.run(&format!("create role {role}; grant insert on outbox_events to {role}")).await;
    let mut producer = database.connection().await;
    run(&mut producer, &format!("set role {role}; {}", insert("by a producer"))).await;
    run(&mut producer, "reset role").await;
    database.run(&format!("drop owned by {role}; drop role {role}")).await;
    assert_eq!(pending_types(&outbox).await, ["by a producer"]);
}

#[tokio::test]
async fn nulls_and_odd_values_read_as_defaults() {
    let Some(database) = TestDatabase::create().await else { return };
    let outbox = database.outbox().await;
    database
        .run(
            "insert into outbox_events (aggregate_id, event_type, event_data, created_at, \
                 retry_count, max_retries, available_at, payload) \
             values (gen_random_uuid(), 'odd', 'null', null, null, null, 'infinity', null), \
                    (gen_random_uuid(), 'odd', 'null', '-infinity', -5, -1, '-infinity', '\\xff')",
        )
        .await;
    let found = pending(&outbox).await;
    let [first, second] = &found[..] else { panic!("{found:?}") };
    assert_eq!((first.event.retry_count(), first.event.max_retries()), (0, 3));
    assert!(first.wait > Duration::from_secs(365 * 86_400));
    assert_eq!(second.event.retry_count(), 0);
    assert_eq!(second.wait, Duration::ZERO);
    assert_eq!(second.event.payload().content_type(), "application/octet-stream");
    assert_eq!(outbox.backlog(0).await.unwrap().pending(), 2);
}

#[tokio::test]
async fn a_row_that_is_no_event_becomes_a_dead_letter_and_holds_up_its_key_alone() {
    let Some(database) = TestDatabase::create().await else { return };
    let outbox = database.outbox().await;
    let key = Uuid::now_v7();
    database
        .run(&format!(
            "insert into outbox_events (aggregate_id, event_type, event_data, headers) values \
                 ('{key}', 'broken', '1', '{{\"a\": [1, 2]}}'), ('{key}', 'behind it', '1', null), \
                 (gen_random_uuid(), 'other', '1', '{{\"n\": 7}}')"
        ))
        .await;
    assert_eq!(pending_types(&outbox).await, ["behind it", "other"]);
    let dead = outbox.failed_events(10).await.unwrap();
    assert_eq!(dead.len(), 1);
    assert_eq!(dead[0].dead_reason(), Some("corrupt"));
    assert!(dead[0].error_message().unwrap().contains("header=a"), "{dead:?}");

    // A page of nothing but broken rows is not the end of the outbox.
    database
        .run(
            "insert into outbox_events (aggregate_id, event_type, event_data, headers) \
             select gen_random_uuid(), 'broken', '1', '{\"a\": []}' from generate_series(1, 5); \
             insert into outbox_events (aggregate_id, event_type, event_data) \
             values (gen_random_uuid(), 'after', '1')",
        )
        .await;
    let query = PendingQuery {
        leases: None,
        selection: PendingSelection::Forward { gaps: Vec::new(), after: 3 },
        events_max: 3,
        bytes_max: 1000,
    };
    let page = outbox.fetch_pending(&query).await.unwrap();
    let buried: Vec<_> = page.buried.iter().map(|head| head.seq).collect();
    assert_eq!((page.events.len(), &buried[..], page.more), (0, &[4, 5, 6][..], true));
}

#[tokio::test]
async fn json_is_delivered_as_the_database_shows_it() {
    let Some(database) = TestDatabase::create().await else { return };
    let outbox = database.outbox().await;
    let big = "1234567890123456789012345678901234567890.5";
    let text = format!("{{\"b\": {big}, \"a\": \"\\u00e9\"}}");
    let payload = Payload::json_text(text.clone()).unwrap();
    let built = OutboxEvent::builder(Uuid::nil(), "t").payload(payload).build().unwrap();
    outbox.store(&[built]).await.unwrap();
    let shown: String = database.value("select event_data::text from outbox_events").await;
    let found = pending(&outbox).await;
    assert_eq!(found[0].event.payload().body(), shown.as_bytes());
    assert!(shown.contains(big), "no digit is lost: {shown}");
}

#[tokio::test]
async fn what_postgres_cannot_hold_is_refused_as_the_events_own_fault() {
    let Some(database) = TestDatabase::create().await else { return };
    let outbox = database.outbox().await;
    let nul = Payload::json_text(r#""\u0000""#).unwrap();
    let bad = OutboxEvent::builder(Uuid::nil(), "t").payload(nul).build().unwrap();
    let error = outbox.store(&[event(Uuid::nil()), bad]).await.unwrap_err();
    assert_eq!(error.kind(), posthaste_core::ErrorKind::Malformed, "{}", error.report());
    assert_eq!(pending(&outbox).await.len(), 0, "all or none");
}

#[tokio::test]
async fn an_operators_own_sql_is_noticed() {
    let Some(database) = TestDatabase::create().await else { return };
    let outbox = database.outbox().await;
    let events: Vec<_> = (0..4).map(|_| event(Uuid::now_v7())).collect();
    outbox.store(&events).await.unwrap();
    let revision = async || outbox.watermark().await.unwrap().revision;
    let start = revision().await;
    database.run("update outbox_events set processed_at = now() where seq = 1").await;
    database.run("update outbox_events set dead_at = now() where seq in (2, 3)").await;
    database
        .run("update outbox_events set retry_count = 1, available_at = now() where seq = 4")
        .await;
    assert_eq!(revision().await, start, "delivering, burying and retrying signal nothing");

    for (steps, sql) in [
        "update outbox_events set dead_at = null where seq in (2, 3)",
        "update outbox_events set dead_at = now() where seq in (2, 3); \
         delete from outbox_events where seq = 2",
        "update outbox_events set processed_at = now() where seq = 3",
        "update outbox_events set processed_at = null where seq = 1",
    ]
    .into_iter()
    .enumerate()
    {
        database.run(sql).await;
        assert_eq!(revision().await, start + 1 + steps as i64, "{sql}");
    }
    assert_eq!(
        outbox.count_events(&EventFilter::in_state(EventState::Delivered), 10).await.unwrap(),
        1
    );
}

#[tokio::test]
async fn a_relay_needs_no_more_rights_than_documented() {
    let Some(database) = TestDatabase::create().await else { return };
    let owner = database.outbox().await;
    let role = format!("relay_{}", Uuid::now_v7().simple());
    database
        .run(&format!(
            "create role {role}; \
             grant select, update, delete on outbox_events, outbox_events_pending to {role}; \
             grant select, update on outbox_signal, outbox_shards to {role}; \
             grant select, insert, update, delete on outbox_relays to {role}; \
             grant select on outbox_migrations, outbox_events_seq, outbox_events_processed to {role}"
        ))
        .await;
    let options = database.connect_options().options([("role", role.as_str())]);
    let pool = PgPool::connect_with(options).await.unwrap();
    let deaf = PostgresOptions { listen: false, ..PostgresOptions::default() };
    let relay = PostgresOutbox::from_pool_with(pool, &deaf);
    owner.store(&[(); 3].map(|()| event(Uuid::now_v7()))).await.unwrap();

    relay.check().await.unwrap();
    relay.maintain().await.unwrap();
    relay.watermark().await.unwrap();
    let watches = tokio::time::timeout(Duration::from_secs(5), relay.wait_for_events());
    watches.await.expect("it may watch");
    assert_eq!(relay.backlog(0).await.unwrap().pending(), 3);
    let request = posthaste_core::LeaseRequest {
        relay: Uuid::now_v7(),
        name: "relay".into(),
        ttl: std::time::Duration::from_secs(60),
        release: Vec::new(),
        leaving: false,
    };
    assert!(relay.lease(&request).await.unwrap().shard_set().is_all());
    relay.leave(request.relay).await.unwrap();
    let found = pending(&relay).await;
    let settlements = settlements_of_each_kind(&found);
    assert_eq!(relay.settle(&settlements[2..]).await.unwrap(), 1);
    assert_eq!(relay.settle(&settlements).await.unwrap(), 2);
    assert_eq!(relay.dead_heads(0, 10).await.unwrap().len(), 1);
    assert_eq!(relay.list_events(&EventFilter::all(), 10).await.unwrap().len(), 2);
    assert_eq!(relay.retry_events(&EventFilter::all()).await.unwrap(), 1);
    assert_eq!(relay.discard_events(&EventFilter::all()).await.unwrap(), 1);
    drop(relay);
    database.run(&format!("drop owned by {role}; drop role {role}")).await;
}
