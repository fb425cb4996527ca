//! What a row may be: what no writer can mean is refused, what a language writes for "not given" is taken
//! for that, and rows of before the rules go on being delivered.

use std::time::Duration;

use posthaste_core::{OutboxRepository, PendingEvent, SettlementOutcome};
use posthaste_postgres::PostgresOutbox;
use sqlx::AssertSqlSafe;

use crate::common::{TestDatabase, insert, pending, pending_types, settlement};

const NIL: &str = "'00000000-0000-0000-0000-000000000000'";

/// Stores a row with values of its own in some columns.
fn row(columns: &str, values: &str) -> String {
    format!(
        "insert into outbox_events (aggregate_id, event_type, event_data, {columns}) \
         values (gen_random_uuid(), 'odd', '{{}}', {values})"
    )
}

async fn refusal(database: &TestDatabase, sql: &str) -> String {
    let mut connection = database.connection().await;
    let done = sqlx::raw_sql(AssertSqlSafe(sql.to_owned())).execute(&mut connection).await;
    done.unwrap_err().to_string()
}

async fn settle(outbox: &PostgresOutbox, found: &PendingEvent, outcome: SettlementOutcome) -> u64 {
    outbox.settle(&[settlement(found, outcome)]).await.unwrap()
}

#[tokio::test]
async fn what_no_writer_can_mean_is_refused() {
    let Some(database) = TestDatabase::create().await else { return };
    let outbox = database.outbox().await;
    for (columns, values, why) in [
        ("id", NIL, "outbox_events_id_is_given"),
        ("seq", "0", "outbox_events_seq_is_positive"),
        ("seq", "-5", "outbox_events_seq_is_positive"),
        ("processed_at", "'0001-01-01 00:00:00+00'", "outbox_events_processed_at_is_real"),
        ("processed_at", "'infinity'", "outbox_events_processed_at_is_real"),
        ("headers", "'[1]'", "headers must be one JSON object, not array"),
        ("headers", "'\"text\"'", "headers must be one JSON object, not string"),
        ("headers", "jsonb_build_object('a', repeat('x', 17000))", "more than 16 KiB"),
        ("partition_key", "repeat('k', 513)", "513 bytes, and 512 is the limit"),
    ] {
        let refused = refusal(&database, &row(columns, values)).await;
        assert!(refused.contains(why), "{columns} {values}: {refused}");
    }
    assert_eq!(pending(&outbox).await, []);
}

/// Zero values of Go, empty maps of PHP, an object that the driver serialised once more, a time that is
/// none.
#[tokio::test]
async fn what_a_language_writes_for_not_given_is_not_given() {
    let Some(database) = TestDatabase::create().await else { return };
    let outbox = database.outbox().await;
    database
        .run(&row(
            "aggregate_type, partition_key, destination, topic, content_type, error_message, \
             dead_reason, dead_at, created_at, max_retries, headers",
            "'', '', '', '', '', '', '', '0001-01-01', '0001-01-01', 0, '[]'",
        ))
        .await;
    let event = pending(&outbox).await.pop().unwrap().event;
    assert_eq!(event.order_key().as_named(), None);
    assert_eq!((event.destination(), event.topic(), event.aggregate_type()), (None, None, None));
    assert_eq!((event.max_retries(), event.dead_at()), (3, None));
    assert!(event.headers().is_empty());
    let stored: bool = database
        .value(
            "select created_at > now() - interval '1 minute' and num_nulls(partition_key, content_type, \
                 error_message, dead_reason, headers) = 5 from outbox_events",
        )
        .await;
    assert!(stored);

    database.run("truncate outbox_events").await;
    database.run(&row("created_at, headers", "'infinity', '\"{\\\"a\\\": \\\"b\\\"}\"'")).await;
    let event = pending(&outbox).await.pop().unwrap().event;
    assert_eq!(event.headers().get("a"), Some("b"));
    let now: bool = database.value("select created_at <= now() from outbox_events").await;
    assert!(now, "an event is not from the end of time");
}

#[tokio::test]
async fn one_attempt_at_most_stays_so_when_it_is_written_by_rust() {
    let Some(database) = TestDatabase::create().await else { return };
    let outbox = database.outbox().await;
    let event = posthaste_core::OutboxEvent::builder(uuid::Uuid::now_v7(), "once")
        .payload(posthaste_core::Payload::json_text("1").unwrap())
        .max_retries(0)
        .build()
        .unwrap();
    outbox.store(&[event]).await.unwrap();
    assert_eq!(pending(&outbox).await[0].event.max_retries(), 1);
}

/// The first version took any row. What waits of it is delivered all the same, and can be recorded.
#[tokio::test]
async fn rows_of_before_the_rules_are_delivered_and_recorded() {
    let Some(database) = TestDatabase::create().await else { return };
    database.version_2().await;
    for (columns, values) in [("seq", "-5"), ("seq", "0"), ("id", NIL)] {
        database.run(&row(columns, values)).await;
    }
    let outbox = database.outbox().await;
    let found = pending(&outbox).await;
    assert_eq!(found.len(), 3, "places at or below zero are read");
    assert!(found.iter().all(|found| !found.event.id().is_nil()));
    for found in &found {
        let dead =
            SettlementOutcome::Dead { retry_count: 1, reason: "rejected", error: "no".into() };
        assert_eq!(settle(&outbox, found, dead).await, 1);
    }
    database.run("update outbox_events set dead_at = null").await;
    for found in &pending(&outbox).await {
        assert_eq!(settle(&outbox, found, SettlementOutcome::Delivered).await, 1);
    }
}

/// As a program that copies all tables elsewhere makes it.
#[tokio::test]
async fn a_publication_for_all_tables_stops_nothing() {
    let Some(database) = TestDatabase::create().await else { return };
    database.version_2().await;
    let outbox = database.outbox().await;
    database.run("create publication everything for all tables").await;
    for kept in ["delivered", "retried"] {
        database.run(&insert(kept)).await;
    }
    let found = pending(&outbox).await;
    assert_eq!(settle(&outbox, &found[0], SettlementOutcome::Delivered).await, 1);
    let retry =
        SettlementOutcome::Retry { retry_count: 1, delay: Duration::ZERO, error: "no".into() };
    assert_eq!(settle(&outbox, &found[1], retry).await, 1);
    // Days that exist, one that is created later, and the one beneath.
    database.run("update outbox_events_processed set error_message = 'looked at'").await;
    let day = "(now() at time zone 'UTC')::date + 7";
    let last =
        format!("select 'outbox_events_processed_' || to_char({day}, '\"y\"YYYY\"m\"MM\"d\"DD')");
    let last: String = database.value(&last).await;
    database.run(&format!("drop table {last}")).await;
    outbox.maintain().await.unwrap();
    database
        .run(&format!(
            "{}; update outbox_events set processed_at = {day} where event_type = 'later'; \
             {}; update outbox_events set processed_at = now() + interval '1 year' \
                 where event_type = 'last'; \
             delete from outbox_events where processed_at > now()",
            insert("later"),
            insert("last"),
        ))
        .await;
    outbox.cleanup_processed(Duration::ZERO).await.unwrap();
    assert_eq!(pending_types(&outbox).await, ["retried"]);
}

/// `on conflict (id)` needs a unique index over both halves, which cannot be. Without a target it works.
#[tokio::test]
async fn a_writer_can_leave_out_an_event_that_waits_already() {
    let Some(database) = TestDatabase::create().await else { return };
    let outbox = database.outbox().await;
    let again =
        format!("{} on conflict do nothing", row("id", "'11111111-1111-4111-8111-111111111111'"));
    for _ in 0..2 {
        database.run(&again).await;
    }
    assert_eq!(pending(&outbox).await.len(), 1);
}
