//! History by the day: made ahead, dropped whole, in nobody's way.

use std::time::Duration;

use posthaste_core::{EventFilter, EventState, OutboxAdmin, OutboxRepository};
use posthaste_postgres::PostgresOutbox;
use uuid::Uuid;

use crate::common::{TestDatabase, delivered, event, insert, pending, run};

const DAY: Duration = Duration::from_secs(86_400);

const PARTITIONS: &str = "select count(*) from pg_inherits \
    where inhparent = 'outbox_events_processed'::regclass";

async fn deliver(outbox: &PostgresOutbox, count: usize) {
    let events: Vec<_> = (0..count).map(|_| event(Uuid::now_v7())).collect();
    outbox.store(&events).await.unwrap();
    let settlements: Vec<_> = pending(outbox).await.iter().map(delivered).collect();
    assert_eq!(outbox.settle(&settlements).await.unwrap(), count as u64);
}

/// A partition `days` old with one row in the middle of its day.
fn old_partition(days: u32) -> String {
    format!(
        "do $$ declare day date := (now() at time zone 'UTC')::date - {days}; begin \
         execute format('create table outbox_events_processed_%s partition of \
             outbox_events_processed for values from (%L) to (%L)', \
             to_char(day, '\"y\"YYYY\"m\"MM\"d\"DD'), day || ' 00:00+00', (day + 1) || ' 00:00+00'); \
         insert into outbox_events (aggregate_id, event_type, event_data, processed_at) \
         values (gen_random_uuid(), 'old', '1', (day || ' 12:00+00')::timestamptz); end $$"
    )
}

#[tokio::test]
async fn a_week_of_partitions_is_made_ahead_and_delivered_events_go_to_todays() {
    let Some(database) = TestDatabase::create().await else { return };
    let outbox = database.outbox().await;
    assert_eq!(database.value::<i64>(PARTITIONS).await, 9);
    deliver(&outbox, 3).await;
    let in_default: i64 =
        database.value("select count(*) from outbox_events_processed_default").await;
    assert_eq!(in_default, 0);

    // Days that are missing come back; a day the default partition has caught is left alone.
    let day = "to_char(now() at time zone 'UTC' + interval '3 days', '\"y\"YYYY\"m\"MM\"d\"DD')";
    let drop = |day: &str| {
        format!("do $$ begin execute 'drop table outbox_events_processed_' || {day}; end $$")
    };
    database.run(&drop(day)).await;
    assert_eq!(database.value::<i64>(PARTITIONS).await, 8);
    outbox.maintain().await.unwrap();
    assert_eq!(database.value::<i64>(PARTITIONS).await, 9);
    database.run(&drop(day)).await;
    database
        .run(
            "insert into outbox_events (aggregate_id, event_type, event_data, processed_at) \
             values (gen_random_uuid(), 't', '1', now() + interval '3 days')",
        )
        .await;
    outbox.maintain().await.unwrap();
    assert_eq!(database.value::<i64>(PARTITIONS).await, 8);
}

#[tokio::test]
async fn cleanup_drops_whole_days_and_never_touches_what_is_pending_or_dead() {
    let Some(database) = TestDatabase::create().await else { return };
    let outbox = database.outbox().await;
    for days in [3, 40, 41] {
        database.run(&old_partition(days)).await;
    }
    deliver(&outbox, 2).await;
    database.run(&insert("pending")).await;
    database
        .run("insert into outbox_events (aggregate_id, event_type, event_data, dead_at, created_at) \
              values (gen_random_uuid(), 'dead', '1', now() - interval '90 days', now() - interval '90 days'); \
              insert into outbox_events (aggregate_id, event_type, event_data, processed_at) \
              select gen_random_uuid(), 'default', '1', now() - interval '50 days' from generate_series(1, 30)")
        .await;
    let partitions: i64 = database.value(PARTITIONS).await;

    let (one, two) =
        tokio::join!(outbox.cleanup_processed(DAY * 30), outbox.cleanup_processed(DAY * 30));
    assert_eq!(one.unwrap() + two.unwrap(), 32, "two at once count nothing twice");
    assert_eq!(database.value::<i64>(PARTITIONS).await, partitions - 2);
    let left = "select string_agg(distinct event_type, ' ' order by event_type) from outbox_events";
    assert_eq!(database.value::<String>(left).await, "dead old pending test.happened");
    assert_eq!(outbox.cleanup_processed(Duration::ZERO).await.unwrap(), 3);
    assert_eq!(database.value::<String>(left).await, "dead pending");
    assert_eq!(outbox.cleanup_processed(Duration::MAX).await.unwrap(), 0);
}

#[tokio::test]
async fn delivered_events_are_listed_latest_first_across_days_and_the_default_partition() {
    let Some(database) = TestDatabase::create().await else { return };
    let outbox = database.outbox().await;
    for days in [3, 5] {
        database.run(&old_partition(days)).await;
    }
    deliver(&outbox, 1).await;
    // Of days without a partition: before, between and after those that have one.
    for days in [90, 4, -30] {
        let sql = insert(&format!("day {days}"))
            .replace("event_data)", "event_data, processed_at)")
            .replace("'{}')", &format!("'{{}}', now() - interval '{days} days')"));
        database.run(&sql).await;
    }
    let filter = EventFilter::in_state(EventState::Delivered);
    let listed = outbox.list_events(&filter, 10).await.unwrap();
    let types: Vec<_> = listed.iter().map(|event| event.event_type()).collect();
    assert_eq!(types, ["day -30", "test.happened", "old", "day 4", "old", "day 90"]);
    let listed = outbox.list_events(&filter, 3).await.unwrap();
    assert_eq!(listed.len(), 3);
}

#[tokio::test]
async fn an_open_producer_neither_blocks_the_upkeep_nor_is_blocked_by_it() {
    let Some(database) = TestDatabase::create().await else { return };
    let outbox = database.outbox().await;
    database.run(&old_partition(60)).await;
    let mut producer = database.connection().await;
    run(&mut producer, &format!("set lock_timeout = '100ms'; begin; {}", insert("open"))).await;
    let day = "to_char(now() at time zone 'UTC' + interval '3 days', '\"y\"YYYY\"m\"MM\"d\"DD')";
    database
        .run(&format!("do $$ begin execute 'drop table outbox_events_processed_' || {day}; end $$"))
        .await;
    outbox.maintain().await.unwrap();
    assert_eq!(outbox.cleanup_processed(DAY * 30).await.unwrap(), 1);
    assert_eq!(database.value::<i64>(PARTITIONS).await, 9);
    run(&mut producer, &format!("{}; commit", insert("open"))).await;
    assert_eq!(pending(&outbox).await.len(), 2);
}

#[tokio::test]
async fn a_drop_that_does_not_get_its_lock_steps_aside() {
    let Some(database) = TestDatabase::create().await else { return };
    let outbox = database.outbox().await;
    database.run(&old_partition(60)).await;
    let mut settler = database.connection().await;
    run(&mut settler, &insert("held")).await;
    run(
        &mut settler,
        "begin; update outbox_events set processed_at = now() where processed_at is null",
    )
    .await;
    let cleanup = tokio::spawn({
        let outbox = outbox.clone();
        async move { outbox.cleanup_processed(DAY * 30).await }
    });
    tokio::time::sleep(Duration::from_millis(2_500)).await;
    run(&mut settler, "commit").await;
    assert_eq!(cleanup.await.unwrap().unwrap(), 1, "it tries again");
}
