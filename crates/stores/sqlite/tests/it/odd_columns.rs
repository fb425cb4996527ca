//! What languages and tools write for "not given", and what nobody can mean.

use crate::support::{delivered, event, outbox, pending, run_sql};
use posthaste_core::{ErrorKind, OrderKey, OutboxRepository, PendingQuery, PendingSelection};
use uuid::Uuid;

fn insert(columns: &str, values: &str) -> String {
    format!(
        "insert into outbox_events (aggregate_id, event_type, event_data, {columns}) \
         values ('018f0000-0000-7000-8000-000000000000', 't', '1', {values})"
    )
}

#[tokio::test]
async fn what_would_be_lost_or_never_delivered_is_refused_where_it_is_written() {
    let (_directory, outbox) = outbox().await;
    let long = format!("'{}'", "k".repeat(513));
    for (columns, values, why) in [
        ("id", "'00000000-0000-0000-0000-000000000000'", "the id is nil"),
        ("id", "'00000000000000000000000000000000'", "the id is nil"),
        ("id", "zeroblob(16)", "the id is nil"),
        ("seq", "0", "seq is drawn"),
        ("seq", "-9", "seq is drawn"),
        ("processed_at", "'0001-01-01 00:00:00+00:00'", "a time that was never set"),
        ("processed_at", "'0001-01-01T00:00:00Z'", "a time that was never set"),
        ("processed_at", "'1970-01-01T00:00:00.000Z'", "a time that was never set"),
        ("processed_at", "'1999-12-31 23:59:59'", "a time that was never set"),
        ("processed_at", "'None'", "a time that was never set"),
        ("processed_at", "'null'", "a time that was never set"),
        ("processed_at", "'undefined'", "a time that was never set"),
        ("processed_at", "'Invalid date'", "a time that was never set"),
        ("processed_at", "'NaT'", "a time that was never set"),
        ("processed_at", "'false'", "a time that was never set"),
        ("processed_at", "0", "a time that was never set"),
        ("processed_at", "'2026-99-99'", "a time that was never set"),
        ("processed_at", "x''", "a time that was never set"),
        ("dead_at", "'None'", "dead_at is no time"),
        ("dead_at", "x''", "dead_at is no time"),
        ("seq", "9223372036854775807", "no number above 2^62"),
        ("partition_key", long.as_str(), "more than 512 bytes"),
        ("headers", "'[1]'", "one JSON object"),
        ("headers", "'7'", "one JSON object"),
        ("headers", "'no json'", "one JSON object"),
        ("headers", "'\"text\"'", "one JSON object"),
        ("headers", "'\"[1]\"'", "one JSON object"),
    ] {
        let error = run_sql(&outbox, &insert(columns, values)).await.unwrap_err().to_string();
        assert!(error.contains(why), "{columns} {values}: {error}");
    }
    // Alone: what the same transaction wrote before stays the application's to decide on.
    let mut unit = outbox.begin().await.unwrap();
    sqlx::query("create table orders (id text)").execute(unit.connection()).await.unwrap();
    let refused = insert("headers", "'7'");
    let refused = sqlx::query(sqlx::AssertSqlSafe(refused)).execute(unit.connection()).await;
    assert!(refused.is_err());
    unit.add_event(event());
    unit.commit().await.unwrap();
    assert_eq!(pending(&outbox).await.len(), 1);
}

#[tokio::test]
async fn a_row_with_times_of_an_event_that_was_delivered_or_is_dead_is_taken() {
    let (_directory, outbox) = outbox().await;
    for time in ["'2026-03-01T10:20:30.000Z'", "'2026-03-01 10:20:30+0200'", "datetime('now')"] {
        run_sql(&outbox, &insert("processed_at", time)).await.unwrap();
        run_sql(&outbox, &insert("dead_at", time)).await.unwrap();
    }
    assert!(pending(&outbox).await.is_empty());
    assert_eq!(outbox.failed_events(10).await.unwrap().len(), 3);
}

#[tokio::test]
async fn zero_values_are_not_given() {
    let (_directory, outbox) = outbox().await;
    for (columns, values) in [
        ("partition_key, destination, topic, aggregate_type", "'', '', '', ''"),
        ("max_retries, retry_count", "0, -1"),
        ("headers", "'null'"),
        ("headers", "'[]'"),
        ("headers", "''"),
        ("headers", "'\"\"'"),
        ("headers", "'\"{}\"'"),
        ("created_at, available_at, dead_at", "'0001-01-01T00:00:00Z', '', '0001-01-01T00:00:00Z'"),
        ("processed_at, dead_at, dead_reason, error_message", "'', '', '', ''"),
        ("processed_at, dead_at", "null, '1970-01-01 00:00:00'"),
        ("error_message", "hex(zeroblob(3000))"),
    ] {
        run_sql(&outbox, &insert(columns, values)).await.unwrap();
        let found = pending(&outbox).await;
        let event = &found.last().unwrap().event;
        let aggregate = OrderKey::Aggregate(event.aggregate_id());
        assert_eq!(event.order_key(), &aggregate, "{columns}");
        assert_eq!((event.destination(), event.topic()), (None, None), "{columns}");
        assert_eq!((event.max_retries(), event.retry_count()), (3, 0), "{columns}");
        assert!(event.headers().is_empty(), "{columns}");
        let age = jiff::Timestamp::now().duration_since(event.created_at());
        assert!(age.abs() < jiff::SignedDuration::from_mins(1), "{columns}: {age:#}");
        assert!(found.last().unwrap().wait.is_zero());
        assert!(event.error_message().is_none_or(|text| text.len() == 2_000), "{columns}");
    }
    assert_eq!(pending(&outbox).await.len(), 11);
    let twice = insert("headers", "'\"{\\\"tenant\\\":\\\"acme\\\"}\"'");
    run_sql(&outbox, &twice).await.unwrap();
    let found = pending(&outbox).await;
    assert_eq!(found.last().unwrap().event.headers().get("tenant"), Some("acme"));
}

#[tokio::test]
async fn all_of_a_row_counts_in_the_size_of_a_page() {
    let (_directory, outbox) = outbox().await;
    for column in ["topic", "destination", "aggregate_type", "content_type", "payload"] {
        for _ in 0..4 {
            run_sql(&outbox, &insert(column, "hex(zeroblob(50000))")).await.unwrap();
        }
    }
    let query = PendingQuery { bytes_max: 150_000, ..crate::support::forward() };
    let page = outbox.fetch_pending(&query).await.unwrap();
    assert!(page.more);
    assert_eq!(page.events.len() + page.buried.len(), 2);
}

#[tokio::test]
async fn a_body_over_the_limit_is_not_read_and_a_dead_letter_of_that_reason() {
    let (_directory, outbox) = outbox().await;
    for (column, value) in [
        ("topic", "'first'"),
        ("payload", "zeroblob(128 * 1024 * 1024 + 1)"),
        ("payload", "x'01'"),
        ("payload", "zeroblob(128 * 1024 * 1024)"),
    ] {
        run_sql(&outbox, &insert(column, value)).await.unwrap();
    }
    let json = "update outbox_events set event_data = '\"' || hex(zeroblob(64 * 1024 * 1024)) || '\"' \
         where seq = 1";
    run_sql(&outbox, json).await.unwrap();
    let (mut read, mut buried, mut after) = (Vec::new(), Vec::new(), 0);
    loop {
        let selection = PendingSelection::Forward { gaps: Vec::new(), after };
        let query = PendingQuery { selection, bytes_max: 1, ..crate::support::forward() };
        let page = outbox.fetch_pending(&query).await.unwrap();
        read.extend(page.events.iter().map(|found| found.seq));
        buried.extend(page.buried.iter().map(|head| head.seq));
        after = read.iter().chain(&buried).copied().max().unwrap_or(0);
        if !page.more {
            break;
        }
    }
    assert_eq!((read, buried), (vec![3, 4], vec![1, 2]));
    for event in outbox.failed_events(10).await.unwrap() {
        assert_eq!(event.dead_reason(), Some("too_large"));
        assert!(event.error_message().unwrap().contains("at most 134217728"));
    }
}

#[tokio::test]
async fn a_row_that_cannot_be_buried_stands_alone() {
    let (_directory, outbox) = outbox().await;
    outbox.store(&[event(), event(), event()]).await.unwrap();
    let spoil = "update outbox_events set headers = '7' where seq in (1, 2); \
         create trigger hands_off before update on outbox_events when old.seq = 1 \
         begin select raise(abort, 'hands off'); end";
    run_sql(&outbox, spoil).await.unwrap();
    let page = outbox.fetch_pending(&crate::support::forward()).await.unwrap();
    assert_eq!(page.events.iter().map(|found| found.seq).collect::<Vec<_>>(), [3]);
    assert_eq!(page.buried.iter().map(|head| head.seq).collect::<Vec<_>>(), [1, 2]);
    let dead = outbox.dead_heads(0, 10).await.unwrap();
    assert_eq!(dead.iter().map(|head| head.seq).collect::<Vec<_>>(), [2]);
}

#[tokio::test]
async fn a_settlement_that_the_owners_trigger_refuses_is_the_events_own() {
    let (_directory, outbox) = outbox().await;
    outbox.store(&[event(), event()]).await.unwrap();
    let trigger = "create trigger hands_off before update on outbox_events when old.seq = 1 \
         begin select raise(abort, 'hands off'); end";
    run_sql(&outbox, trigger).await.unwrap();
    let settlements = delivered(&pending(&outbox).await);
    let error = outbox.settle(&settlements).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Rejected);
    assert!(error.report().contains("hands off"), "{}", error.report());
    // Nothing of the batch is half recorded, and the others are by themselves.
    assert_eq!(outbox.settle(&settlements[1..]).await.unwrap(), 1);
    assert!(pending(&outbox).await.iter().all(|found| found.seq == 1));
    assert_ne!(settlements[0].id, Uuid::nil());
}

#[tokio::test]
async fn a_settlement_that_the_owners_trigger_ignores_is_named_and_the_others_are_recorded() {
    let (_directory, outbox) = outbox().await;
    outbox.store(&[event(), event()]).await.unwrap();
    let trigger = "create trigger hands_off before update on outbox_events when old.seq = 1 \
         begin select raise(ignore); end";
    run_sql(&outbox, trigger).await.unwrap();
    let settlements = delivered(&pending(&outbox).await);
    assert_eq!(outbox.settle(&settlements).await.unwrap(), 1);
    let unsettled = outbox.unsettled(&settlements).await.unwrap();
    assert_eq!(unsettled.iter().map(|left| left.seq).collect::<Vec<_>>(), [1]);
    assert!(unsettled[0].why.contains("a trigger"), "{unsettled:?}");
    // What is settled by now, or another event at the place, is not in the way of anything.
    let other = posthaste_core::Settlement { id: Uuid::now_v7(), ..settlements[0].clone() };
    assert_eq!(outbox.unsettled(&[other, settlements[1].clone()]).await.unwrap(), []);
}
