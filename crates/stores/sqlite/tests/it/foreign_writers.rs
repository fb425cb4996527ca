//! Programs that know only the contract's columns, and write them in their own ways.

use std::time::Duration;

use crate::support::{event, outbox, pending, run_sql, select};
use posthaste_core::{
    EventFilter, EventState, OrderKey, OutboxAdmin, OutboxRepository, PendingSelection, Settlement,
    SettlementOutcome,
};
use uuid::Uuid;

#[tokio::test]
async fn three_columns_are_enough() {
    let (_directory, outbox) = outbox().await;
    let aggregate = Uuid::now_v7();
    let insert = format!(
        "insert into outbox_events (aggregate_id, event_type, event_data) \
         values ('{aggregate}', 'order.placed', '{{\"total\": 42}}')"
    );
    for _ in 0..100 {
        run_sql(&outbox, &insert).await.unwrap();
    }
    let found = pending(&outbox).await;
    assert_eq!(found.len(), 100);
    for found in &found {
        let event = &found.event;
        assert_eq!(event.id().get_version_num(), 4, "{}", event.id());
        assert_eq!(event.id().get_variant(), uuid::Variant::RFC4122, "{}", event.id());
        assert_eq!(event.order_key(), &OrderKey::Aggregate(aggregate));
        assert_eq!(event.payload().body(), r#"{"total": 42}"#);
        assert_eq!((event.retry_count(), event.max_retries()), (0, 3));
        assert!(found.wait.is_zero());
        let age = jiff::Timestamp::now().duration_since(event.created_at());
        assert!(age.abs() < jiff::SignedDuration::from_mins(1), "{age:#}");
    }
}

#[tokio::test]
async fn every_spelling_of_a_uuid_is_one_key_and_can_be_settled() {
    let (_directory, outbox) = outbox().await;
    let aggregate = Uuid::now_v7();
    let ids: Vec<Uuid> = (0..8).map(|_| Uuid::now_v7()).collect();
    let spell: [fn(Uuid) -> String; 4] = [
        |id| format!("'{}'", id.hyphenated()),
        |id| format!("'{}'", id.to_string().to_uppercase()),
        |id| format!("'{}'", id.simple()),
        |id| format!("x'{}'", id.simple()),
    ];
    for (id, spell) in ids.iter().zip(spell.iter().cycle()) {
        let (id, aggregate) = (spell(*id), spell(aggregate));
        let insert = format!(
            "insert into outbox_events (id, aggregate_id, event_type, event_data) \
             values ({id}, {aggregate}, 't', '1')"
        );
        run_sql(&outbox, &insert).await.unwrap();
    }
    let key = OrderKey::Aggregate(aggregate);
    let found = select(&outbox, PendingSelection::Key { key, after: 0, up_to: 100 }).await;
    assert_eq!(found.iter().map(|found| found.event.id()).collect::<Vec<_>>(), ids);
    let listed = outbox.list_events(&EventFilter::with_ids(ids.clone()), 10).await.unwrap();
    assert_eq!(listed.len(), 8);
    // Of one spelling each.
    for (outcome, range) in
        [(SettlementOutcome::DeliveredAndRemoved, 0..4), (SettlementOutcome::Delivered, 4..8)]
    {
        let settlements: Vec<Settlement> = found[range]
            .iter()
            .map(|found| Settlement {
                lease: None,
                seq: found.seq,
                id: found.event.id(),
                outcome: outcome.clone(),
            })
            .collect();
        assert_eq!(outbox.settle(&settlements).await.unwrap(), 4, "{outcome:?}");
    }
    assert!(pending(&outbox).await.is_empty());
}

#[tokio::test]
async fn times_of_other_programs_are_understood() {
    let (_directory, outbox) = outbox().await;
    for (created, available) in [
        ("datetime('now')", "'2999-01-01 00:00:00'"),
        ("'2026-01-02T03:04:05.123456+00:00'", "'2999-01-01T00:00:00+02:00'"),
        ("strftime('%Y-%m-%d %H:%M:%f', 'now')", "'2999-01-01'"),
        ("null", "'2999-01-01T00:00:00Z'"),
    ] {
        let insert = format!(
            "insert into outbox_events (aggregate_id, event_type, event_data, created_at, \
             available_at, retry_count, max_retries) \
             values ('{}', 't', '1', {created}, {available}, null, null)",
            Uuid::now_v7()
        );
        run_sql(&outbox, &insert).await.unwrap();
    }
    let found = pending(&outbox).await;
    assert_eq!(found.len(), 4);
    for found in &found {
        assert!(found.wait > Duration::from_secs(3_600), "{:?}", found.wait);
        assert_eq!((found.event.retry_count(), found.event.max_retries()), (0, 3));
    }
    assert_eq!(outbox.backlog(0).await.unwrap().scheduled, 4);
    let old = EventFilter {
        created_before: Some("2026-01-02T03:04:06Z".parse().unwrap()),
        created_from: Some("2026-01-02T03:04:05Z".parse().unwrap()),
        ..EventFilter::all()
    };
    assert_eq!(outbox.count_events(&old, 10).await.unwrap(), 1);
}

#[tokio::test]
async fn a_row_that_cannot_be_read_is_dead_lettered_and_stops_nobody() {
    let (_directory, outbox) = outbox().await;
    // As rows that are older than the triggers, or were changed later.
    run_sql(&outbox, "drop trigger outbox_events_refused; drop trigger outbox_events_as_meant")
        .await
        .unwrap();
    let id = Uuid::now_v7();
    let long = format!("'{}'", "k".repeat(5_000_000));
    let bad = [
        ("id", "'not-a-uuid'", "\"not-a-uuid\" is not a UUID"),
        ("aggregate_id", "'7'", "\"7\" is not a UUID"),
        ("aggregate_id", "'customer-0000001'", "\"customer-0000001\" is not a UUID"),
        ("id", "'{018f0000-0000-7000-8000-000000000000}'", "is not a UUID"),
        ("headers", "'[1]'", "headers must be one JSON object"),
        ("headers", "'{\"a b\": \"c\"}'", "a header name is"),
        ("partition_key", "char(10)", "control characters"),
        ("partition_key", "x'6b'", "a key is text"),
        ("partition_key", &long, "more than 512 bytes"),
        ("available_at", "'soon'", "not an ISO 8601 time"),
        ("created_at", "'once'", "not an ISO 8601 time"),
    ];
    for (column, value, _) in bad {
        let aggregate = Uuid::now_v7();
        let (columns, values) = match column {
            "aggregate_id" => ("aggregate_id".to_owned(), value.to_owned()),
            column => (format!("aggregate_id, {column}"), format!("'{aggregate}', {value}")),
        };
        let insert = format!(
            "insert into outbox_events (event_type, event_data, {columns}) \
             values ('t', '1', {values})"
        );
        run_sql(&outbox, &insert).await.unwrap();
    }
    let good = event();
    outbox.store(std::slice::from_ref(&good)).await.unwrap();
    let found = pending(&outbox).await;
    assert_eq!(found.iter().map(|found| found.event.id()).collect::<Vec<_>>(), [good.id()]);
    let dead = outbox.failed_events(100).await.unwrap();
    assert_eq!(dead.len(), bad.len());
    for (event, (column, _, message)) in dead.iter().zip(bad) {
        assert_eq!(event.dead_reason(), Some("corrupt"));
        let error = event.error_message().unwrap();
        assert!(error.contains(message) && error.contains(column), "{error}");
    }
    assert_eq!(outbox.dead_heads(0, 100).await.unwrap().len(), bad.len());
    // Mended and retried, it is an event like any other.
    let mend = format!("update outbox_events set id = '{id}' where id = 'not-a-uuid'");
    run_sql(&outbox, &mend).await.unwrap();
    assert_eq!(outbox.retry_events(&EventFilter::with_ids([id])).await.unwrap(), 1);
    assert_eq!(pending(&outbox).await.len(), 2);
}

#[tokio::test]
async fn a_page_tells_of_the_rows_that_it_buried() {
    let (_directory, outbox) = outbox().await;
    let key = Uuid::now_v7();
    let of_key = || posthaste_core::OutboxEvent::new(key, "t", &1).unwrap();
    let (before, corrupt, behind, other) = (of_key(), of_key(), of_key(), event());
    let all = [before.clone(), corrupt.clone(), behind.clone(), other.clone()];
    outbox.store(&all).await.unwrap();
    let spoil = format!("update outbox_events set headers = '[]' where id = '{}'", corrupt.id());
    run_sql(&outbox, &spoil).await.unwrap();
    let query = posthaste_core::PendingQuery {
        leases: None,
        selection: PendingSelection::Forward { gaps: Vec::new(), after: 0 },
        events_max: 3,
        bytes_max: 1_000,
    };
    let page = outbox.fetch_pending(&query).await.unwrap();
    let places: Vec<_> = page.events.iter().map(|found| found.seq).collect();
    assert_eq!((&places[..], page.more), (&[1, 3][..], true), "cut after three rows");
    assert_eq!((page.buried.len(), page.buried[0].seq), (1, 2));
    assert_eq!(page.buried[0].key, *corrupt.order_key());
    assert_eq!(outbox.dead_heads(0, 10).await.unwrap(), page.buried);
}

#[tokio::test]
async fn what_is_no_event_is_refused_by_the_table() {
    let (_directory, outbox) = outbox().await;
    let long = "x".repeat(101);
    for values in [
        "null, 't', '1'".to_owned(),
        "'a', null, '1'".to_owned(),
        "'a', '', '1'".to_owned(),
        format!("'a', '{long}', '1'"),
        "'a', 't', null".to_owned(),
        "'a', 't', 'not json'".to_owned(),
        "'a', 't', ''".to_owned(),
    ] {
        let insert = format!(
            "insert into outbox_events (aggregate_id, event_type, event_data) values ({values})"
        );
        assert!(run_sql(&outbox, &insert).await.is_err(), "{values}");
    }
}

#[tokio::test]
async fn cleanup_spares_a_time_written_in_another_form() {
    let (_directory, outbox) = outbox().await;
    outbox.store(&[event(), event()]).await.unwrap();
    // As text it sorts before every time of the same day that has a `T`.
    let mark = "update outbox_events set processed_at = case seq \
                when 1 then datetime('now', '-1 hours') else datetime('now', '-3 days') end";
    run_sql(&outbox, mark).await.unwrap();
    assert_eq!(outbox.cleanup_processed(Duration::from_secs(2 * 3_600)).await.unwrap(), 1);
    let left = outbox.list_events(&EventFilter::in_state(EventState::Delivered), 9).await.unwrap();
    assert_eq!(left.len(), 1);
}

#[tokio::test]
async fn plain_sql_of_an_operator_is_noticed_by_relays() {
    let (_directory, outbox) = outbox().await;
    outbox.store(&[event(), event(), event()]).await.unwrap();
    let mut revision = outbox.watermark().await.unwrap().revision;
    for (sql, changes) in [
        ("update outbox_events set dead_at = 'x', dead_reason = 'y' where seq <= 2", false),
        ("update outbox_events set dead_at = null where seq = 1", true),
        ("delete from outbox_events where seq = 2", true),
        ("update outbox_events set processed_at = datetime('now') where seq = 3", false),
        ("update outbox_events set processed_at = null where seq = 3", true),
    ] {
        run_sql(&outbox, sql).await.unwrap();
        let now = outbox.watermark().await.unwrap().revision;
        assert_eq!(now != revision, changes, "{sql}");
        revision = now;
    }
}

#[tokio::test]
async fn a_large_backlog_is_estimated() {
    let (_directory, outbox) = outbox().await;
    let fill = "with recursive numbers (n) as \
                (select 1 union all select n + 1 from numbers where n < 25000) \
                insert into outbox_events (aggregate_id, event_type, event_data) \
                select '018f0000-0000-7000-8000-000000000000', 't', '1' from numbers";
    run_sql(&outbox, fill).await.unwrap();
    run_sql(&outbox, "update outbox_events set retry_count = 1 where seq <= 100").await.unwrap();
    let backlog = outbox.backlog(0).await.unwrap();
    assert_eq!((backlog.ready, backlog.retrying), (24_900, 100));
}
