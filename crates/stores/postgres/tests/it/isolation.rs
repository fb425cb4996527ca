//! One odd row, lock, encoding or policy stops nothing but its own event.

use std::time::Duration;

use posthaste_core::{
    ErrorKind, EventFilter, HeadSelection, OrderKey, OutboxAdmin, OutboxRepository, PendingEvent,
    PendingPage, PendingQuery, Settlement, SettlementOutcome,
};
use posthaste_postgres::{PostgresOptions, PostgresOutbox};
use uuid::Uuid;

use crate::common::{
    TestDatabase, delivered, event, everything, insert, pending, pending_types, run,
    until_someone_waits_for_a_lock,
};

fn dead(found: &PendingEvent, error: &str) -> Settlement {
    let outcome =
        SettlementOutcome::Dead { retry_count: 3, reason: "rejected", error: error.into() };
    Settlement { outcome, ..delivered(found) }
}

/// Every page until there is no more, as a relay reads them.
async fn pages(outbox: &PostgresOutbox, events_max: usize) -> PendingPage {
    let mut all = PendingPage::default();
    for _ in 0..1_000 {
        let query = PendingQuery { events_max, ..everything() };
        let page = outbox.fetch_pending(&query).await.unwrap();
        for found in &page.events {
            outbox.settle(&[delivered(found)]).await.unwrap();
        }
        all.events.extend(page.events);
        all.buried.extend(page.buried);
        if !page.more {
            return all;
        }
    }
    panic!("reading never comes to its end");
}

#[tokio::test]
async fn what_another_session_holds_is_left_out_and_named_and_the_rest_is_recorded() {
    let Some(database) = TestDatabase::create().await else { return };
    let outbox = database.outbox().await;
    outbox.store(&(0..20).map(|_| event(Uuid::now_v7())).collect::<Vec<_>>()).await.unwrap();
    let found = pending(&outbox).await;
    let mut other = database.connection().await;
    run(&mut other, "begin; select 1 from outbox_events where seq = 7 for update").await;
    let pid: i32 =
        sqlx::query_scalar("select pg_backend_pid()").fetch_one(&mut other).await.unwrap();

    let settlements: Vec<Settlement> = found.iter().map(delivered).collect();
    let settled = tokio::time::timeout(Duration::from_secs(10), outbox.settle(&settlements)).await;
    assert_eq!(settled.unwrap().unwrap(), 19);
    let left = outbox.unsettled(&settlements).await.unwrap();
    assert_eq!((left.len(), left[0].seq), (1, 7));
    assert!(left[0].why.contains(&format!("session {pid} ")), "{}", left[0].why);

    run(&mut other, "rollback").await;
    assert_eq!(outbox.settle(&settlements).await.unwrap(), 1);
    assert_eq!(outbox.unsettled(&settlements).await.unwrap(), []);
}

#[tokio::test]
async fn what_changes_nothing_without_an_error_is_told() {
    let Some(database) = TestDatabase::create().await else { return };
    let outbox = database.outbox().await;
    outbox.store(&[event(Uuid::now_v7()), event(Uuid::now_v7())]).await.unwrap();
    database
        .run(
            "create function keep() returns trigger language plpgsql as $$ begin return null; end $$; \
             create trigger keep before update on outbox_events_pending for each row \
             when (old.seq = 1) execute function keep()",
        )
        .await;
    let found = pending(&outbox).await;
    let settlements: Vec<Settlement> = found.iter().map(|found| dead(found, "no")).collect();
    assert_eq!(outbox.settle(&settlements).await.unwrap(), 1);
    let left = outbox.unsettled(&settlements).await.unwrap();
    assert_eq!((left.len(), left[0].seq), (1, 1));
    assert!(left[0].why.contains("trigger"), "{}", left[0].why);
}

#[tokio::test]
async fn a_dead_letter_is_recorded_without_the_right_to_delete() {
    let Some(database) = TestDatabase::create().await else { return };
    let outbox = database.outbox().await;
    outbox.store(&[event(Uuid::now_v7()), event(Uuid::now_v7())]).await.unwrap();
    let role = format!("relay_{}", Uuid::now_v7().simple());
    database
        .run(&format!(
            "create role {role} login; \
             grant select, update on outbox_events, outbox_events_pending, outbox_shards to {role}; \
             grant select on outbox_signal, outbox_events_seq to {role}"
        ))
        .await;
    let url = database.url().replace("root@", &format!("{role}@"));
    let relay = PostgresOutbox::connect(&PostgresOptions::from_url(url)).await.unwrap();
    let found = pending(&relay).await;
    let settled = relay.settle(&[delivered(&found[0]), dead(&found[1], "no")]).await;
    relay.pool().close().await;
    database.run(&format!("drop owned by {role}; drop role {role}")).await;
    assert_eq!(settled.unwrap(), 2);
}

#[tokio::test]
async fn an_error_text_that_the_encoding_lacks_is_recorded_in_other_letters() {
    let Some(database) = TestDatabase::create_encoded("LATIN1").await else { return };
    let outbox = database.outbox().await;
    outbox.store(&[event(Uuid::now_v7()), event(Uuid::now_v7())]).await.unwrap();
    let found = pending(&outbox).await;
    for (found, error) in found.iter().zip(["can’t, größer", "日本"]) {
        assert_eq!(outbox.settle(&[dead(found, error)]).await.unwrap(), 1, "{error}");
    }
    let errors: Vec<String> = outbox
        .failed_events(10)
        .await
        .unwrap()
        .iter()
        .filter_map(|event| event.error_message().map(Into::into))
        .collect();
    assert_eq!(errors, ["can't, gr\\u{f6}\\u{df}er", "\\u{65e5}\\u{672c}"]);
}

#[tokio::test]
async fn a_byte_that_is_no_text_makes_its_own_row_a_dead_letter() {
    let Some(database) = TestDatabase::create_encoded("SQL_ASCII").await else { return };
    let outbox = database.outbox().await;
    database.run(&insert("first")).await;
    for (column, value) in [("topic", "'a' || chr(233)"), ("event_data", "to_jsonb(chr(233))")] {
        let insert = format!(
            "set client_encoding = 'SQL_ASCII'; insert into outbox_events \
             (aggregate_id, event_type, {column}{}) values (gen_random_uuid(), 'odd', {value}{})",
            if column == "topic" { ", event_data" } else { "" },
            if column == "topic" { ", '{}'" } else { "" },
        );
        database.run(&insert).await;
    }
    database.run(&insert("last")).await;
    let page = outbox.fetch_pending(&everything()).await.unwrap();
    let types: Vec<&str> = page.events.iter().map(|found| found.event.event_type()).collect();
    assert_eq!((types, page.buried.len()), (vec!["first", "last"], 2));
    let listed = outbox.list_events(&EventFilter::all(), 10).await.unwrap();
    assert_eq!(listed.len(), 4, "an operator sees them all");
    let failed = outbox.failed_events(10).await.unwrap();
    assert_eq!(failed.len(), 2);
    for event in failed {
        assert_eq!(event.dead_reason(), Some("corrupt"));
        assert!(
            event.error_message().unwrap().contains("not UTF-8"),
            "{:?}",
            event.error_message()
        );
    }
}

/// A few kilobytes on disk that are more than a gigabyte as text: no statement can read that row.
#[tokio::test]
async fn a_row_that_cannot_be_read_stands_alone_and_is_a_dead_letter() {
    let Some(database) = TestDatabase::create().await else { return };
    let outbox = database.outbox().await;
    for number in 0..30 {
        if number == 13 {
            database
                .run(
                    "insert into outbox_events (aggregate_id, event_type, event_data) \
                     select gen_random_uuid(), 'bomb', jsonb_agg('1e131071'::jsonb) \
                     from generate_series(1, 9000)",
                )
                .await;
        }
        database.run(&insert(&format!("n{number}"))).await;
    }
    let all = pages(&outbox, 20).await;
    assert_eq!((all.events.len(), all.buried.len(), all.buried[0].seq), (30, 1, 14));
    let expected: Vec<String> = (0..30).map(|number| format!("n{number}")).collect();
    let types: Vec<&str> = all.events.iter().map(|found| found.event.event_type()).collect();
    assert_eq!(types, expected);
    let reason: String =
        database.value("select dead_reason::text from outbox_events where seq = 14").await;
    assert_eq!(reason, "too_large");
}

#[tokio::test]
async fn a_body_is_counted_as_it_is_read_not_as_it_is_stored() {
    let Some(database) = TestDatabase::create().await else { return };
    let outbox = database.outbox().await;
    // Thirteen megabytes of text each, of a kilobyte or two on disk.
    database
        .run(
            "insert into outbox_events (aggregate_id, event_type, event_data) \
             select gen_random_uuid(), 'wide', (select jsonb_agg('1e131071'::jsonb) \
             from generate_series(1, 100)) from generate_series(1, 12)",
        )
        .await;
    let query = PendingQuery { bytes_max: 20_000_000, ..everything() };
    let page = outbox.fetch_pending(&query).await.unwrap();
    assert_eq!((page.events.len(), page.more), (2, true));
    // One of more than is ever read.
    database
        .run(
            "update outbox_events set event_data = (select jsonb_agg('1e131071'::jsonb) \
             from generate_series(1, 1100)) where seq = 1",
        )
        .await;
    let page = outbox.fetch_pending(&query).await.unwrap();
    assert_eq!(page.buried.iter().map(|head| head.seq).collect::<Vec<_>>(), [1]);
    let failed = outbox.failed_events(1).await;
    drop(failed);
    let reason: String =
        database.value("select dead_reason::text from outbox_events where seq = 1").await;
    assert_eq!(reason, "too_large");
}

#[tokio::test]
async fn long_texts_make_dead_letters_or_are_cut_and_never_fill_memory() {
    let Some(database) = TestDatabase::create().await else { return };
    let outbox = database.outbox().await;
    // Written before the table refused them, or past its triggers.
    database
        .run(
            "set session_replication_role = replica; \
             insert into outbox_events (aggregate_id, event_type, event_data, partition_key) \
             select gen_random_uuid(), 'long key', '{}', i || repeat('k', 5000000) \
             from generate_series(1, 3) as i; \
             insert into outbox_events (aggregate_id, event_type, event_data, error_message) \
             values (gen_random_uuid(), 'long error', '{}', repeat('e', 5000000)); \
             insert into outbox_events (aggregate_id, event_type, event_data, headers) \
             values (gen_random_uuid(), 'long headers', '{}', jsonb_build_object('h', repeat('h', 5000000)))",
        )
        .await;
    let page = outbox.fetch_pending(&everything()).await.unwrap();
    assert_eq!(page.buried.len(), 4);
    let key_lengths: Vec<usize> =
        page.buried.iter().map(|head| head.key.to_string().len()).collect();
    assert!(key_lengths.iter().all(|length| *length <= 1_024), "{key_lengths:?}");
    assert_eq!(page.events.len(), 1);
    assert_eq!(page.events[0].event.error_message().unwrap().len(), 2_000);
    let heads = outbox.heads(&HeadSelection::Between { after: 0, up_to: 3 }, 10).await.unwrap();
    assert!(heads.iter().all(|head| head.key.to_string().len() <= 1_024 && head.dead));
    assert_eq!(outbox.dead_heads(0, 10).await.unwrap(), page.buried);
}

/// Languages without null write their zero for "not given", and ORMs write null into objects.
#[tokio::test]
async fn what_was_not_given_is_not_taken_for_a_value() {
    let Some(database) = TestDatabase::create().await else { return };
    let outbox = database.outbox().await;
    database
        .run(
            "insert into outbox_events (aggregate_id, event_type, event_data, partition_key, \
                 destination, topic, max_retries, headers, payload) \
             values (gen_random_uuid(), 'zero', '{}', '', '', '', 0, \
                 '{\"traceparent\": null, \"Content-Type\": \"application/avro\"}', '\\x01')",
        )
        .await;
    let found = pending(&outbox).await;
    let record = found[0].event.record();
    assert_eq!(record.order_key, OrderKey::Aggregate(record.aggregate_id));
    assert_eq!((&record.destination, &record.topic, record.max_retries), (&None, &None, 3));
    assert!(record.headers.is_empty(), "{:?}", record.headers);
    assert_eq!(record.payload.content_type(), "application/avro");
    // Such a key is fetched like any other of its aggregate.
    let query = PendingQuery {
        selection: posthaste_core::PendingSelection::Key {
            key: record.order_key.clone(),
            after: 0,
            up_to: 10,
        },
        ..everything()
    };
    assert_eq!(outbox.fetch_pending(&query).await.unwrap().events.len(), 1);
    let by_key = record.aggregate_id.to_string();
    let filter = posthaste_core::EventFilter {
        order_key: Some(by_key),
        ..posthaste_core::EventFilter::all()
    };
    assert_eq!(outbox.count_events(&filter, 10).await.unwrap(), 1);
}

#[tokio::test]
async fn a_policy_on_rows_is_an_error_and_no_empty_outbox() {
    let Some(database) = TestDatabase::create().await else { return };
    let outbox = database.outbox().await;
    outbox.store(&[event(Uuid::now_v7())]).await.unwrap();
    let role = format!("relay_{}", Uuid::now_v7().simple());
    database
        .run(&format!(
            "create role {role} login; \
             grant select, update, delete on outbox_events, outbox_events_pending, outbox_shards to {role}; \
             alter table outbox_events enable row level security; \
             alter table outbox_events_pending enable row level security"
        ))
        .await;
    let url = database.url().replace("root@", &format!("{role}@"));
    let relay = PostgresOutbox::connect(&PostgresOptions::from_url(url)).await.unwrap();
    let found = relay.fetch_pending(&everything()).await;
    relay.pool().close().await;
    database.run(&format!("drop owned by {role}; drop role {role}")).await;
    let error = found.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unauthorized);
    assert!(error.report().contains("row-level security"), "{}", error.report());
}

/// It concerns all rows, so none of them is to blame.
#[tokio::test]
async fn a_column_of_another_type_makes_no_dead_letters() {
    let Some(database) = TestDatabase::create().await else { return };
    let outbox = database.outbox().await;
    database.run(&insert("good")).await;
    database.run("alter table outbox_events alter column aggregate_id type text").await;
    let error = outbox.fetch_pending(&everything()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Schema, "{}", error.report());
    database
        .run(
            "alter table outbox_events alter column aggregate_id type uuid \
             using aggregate_id::uuid",
        )
        .await;
    assert_eq!(pending_types(&outbox).await, ["good"]);
}

#[tokio::test]
async fn rows_that_cannot_be_buried_are_left_out_and_the_rest_is_read() {
    let Some(database) = TestDatabase::create().await else { return };
    let outbox = database.outbox().await;
    database.run(&insert("good")).await;
    database
        .run(
            "insert into outbox_events (aggregate_id, event_type, event_data, headers) \
             values (gen_random_uuid(), 'odd', '{}', '{\"a\": []}'); \
             create function refuse() returns trigger language plpgsql as \
             $$ begin raise exception 'not this one'; end $$; \
             create trigger refuse before update on outbox_events_pending for each row \
             execute function refuse()",
        )
        .await;
    let page = outbox.fetch_pending(&everything()).await.unwrap();
    assert_eq!((page.events.len(), page.buried.len()), (1, 1));
}

#[tokio::test]
async fn an_operators_change_that_meets_a_relay_at_work_is_tried_again() {
    let Some(database) = TestDatabase::create().await else { return };
    let outbox = database.outbox().await;
    let (all, mut relay) = (EventFilter::all(), database.connection().await);
    for what in ["retry", "release", "reroute", "discard"] {
        database.run("begin; delete from outbox_events; commit").await;
        let mut first = None;
        for _ in 0..2 {
            let one = event(Uuid::now_v7());
            first.get_or_insert(one.id());
            outbox.store(&[one]).await.unwrap();
        }
        database
            .run("update outbox_events set retry_count = 1, available_at = now() + '1 h'")
            .await;
        let settled = format!(
            "begin; update outbox_events set processed_at = now() where id = '{}'",
            first.unwrap()
        );
        run(&mut relay, &settled).await;
        let change = async {
            match what {
                "retry" => outbox.retry_events(&all).await,
                "release" => outbox.release_events(&all).await,
                "reroute" => outbox.reroute_events(&all, Some("elsewhere")).await,
                _ => outbox.discard_events(&all).await,
            }
        };
        let commit = async {
            until_someone_waits_for_a_lock(&database).await;
            run(&mut relay, "commit").await;
        };
        let (changed, ()) = tokio::join!(change, commit);
        assert_eq!(changed.unwrap(), 1, "{what}");
    }
}
