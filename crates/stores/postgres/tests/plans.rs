//! Hot statements keep their plans, whatever the statistics say.

#![allow(clippy::unwrap_used, reason = "a test states what it expects")]

mod common;

use posthaste_core::{
    OrderKey, OutboxAdmin, OutboxRepository, PendingQuery, PendingSelection, ShardLease, ShardSet,
    StuckBy, StuckKeyQuery,
};
use sqlx::{AssertSqlSafe, PgConnection, Row};

use common::{TestDatabase, pending, run};

/// The plan of what sqlx has prepared on this connection whose text contains `part`.
async fn plan(connection: &mut PgConnection, part: &str, arguments: &str) -> String {
    let find = "select name from pg_prepared_statements where statement like $1 order by length(statement) limit 1";
    let name: String = sqlx::query(find)
        .bind(format!("%{part}%"))
        .fetch_one(&mut *connection)
        .await
        .unwrap()
        .get(0);
    let explain = AssertSqlSafe(format!("explain (costs off) execute {name}({arguments})"));
    let rows = sqlx::query(explain).persistent(false).fetch_all(connection).await.unwrap();
    rows.iter().map(|row| row.get::<String, _>(0)).collect::<Vec<_>>().join("\n")
}

/// One connection, so that the statements the store has prepared are those we look at.
async fn filled(
    database: &TestDatabase,
    rows: u32,
    analyze: bool,
) -> posthaste_postgres::PostgresOutbox {
    let options = posthaste_postgres::PostgresOptions { max_connections: 1, ..database.options() };
    let outbox = posthaste_postgres::PostgresOutbox::connect(&options).await.unwrap();
    posthaste_core::OutboxMigrations::migrate(&outbox).await.unwrap();
    if !analyze {
        database.run("alter table outbox_events_pending set (autovacuum_enabled = false)").await;
    }
    database
        .run(&format!(
            "insert into outbox_events (aggregate_id, event_type, event_data) \
             select gen_random_uuid(), 'bulk', '{{\"n\": 1}}' from generate_series(1, {rows})"
        ))
        .await;
    if analyze {
        database.run("analyze outbox_events_pending").await;
    }
    outbox
}

#[tokio::test]
async fn fetch_and_settle_walk_the_index_on_seq_at_any_size() {
    for (rows, analyze) in [(10_000, true), (50_000, true), (50_000, false)] {
        let Some(database) = TestDatabase::create().await else { return };
        let outbox = filled(&database, rows, analyze).await;
        let page = outbox
            .fetch_pending(&PendingQuery {
                leases: None,
                selection: PendingSelection::Forward {
                    gaps: Vec::new(),
                    after: i64::from(rows) / 2,
                },
                events_max: 10,
                bytes_max: 1 << 20,
            })
            .await
            .unwrap();
        let key = OrderKey::named("a key").unwrap();
        let of_key = PendingSelection::Key { key, after: 10, up_to: i64::from(rows) };
        let query =
            PendingQuery { leases: None, selection: of_key, events_max: 10, bytes_max: 1 << 20 };
        outbox.fetch_pending(&query).await.unwrap();
        outbox.backlog(0).await.unwrap();
        outbox.dead_heads(0, 10).await.unwrap();
        database.run("update outbox_events set dead_at = now() where seq = 2").await;
        for by in [StuckBy::DeadLetter, StuckBy::Retry] {
            let query = StuckKeyQuery { by, after: 0, limit: 10 };
            outbox.stuck_keys(&query).await.unwrap();
        }
        let forward = PendingSelection::Forward { gaps: vec![(3, 4), (9, 9)], after: 90 };
        let query =
            PendingQuery { leases: None, selection: forward, events_max: 5, bytes_max: 1 << 20 };
        let ahead = outbox.fetch_pending(&query).await.unwrap();
        let places: Vec<_> = ahead.events.iter().map(|found| found.seq).collect();
        assert_eq!((&places[..], ahead.more), (&[3, 4, 9, 91, 92][..], true));
        let half_of_shards = ShardSet::ALL.iter().take(32);
        let leases: Vec<ShardLease> =
            half_of_shards.map(|shard| ShardLease { shard, generation: 0 }).collect();
        for gaps in [vec![(3, 4), (9, 9)], Vec::new()] {
            let query = PendingQuery {
                leases: Some(leases.clone()),
                selection: PendingSelection::Forward { gaps, after: 90 },
                events_max: 5,
                bytes_max: 1 << 20,
            };
            assert_eq!(outbox.fetch_pending(&query).await.unwrap().events.len(), 5);
        }
        let settle = |found: &posthaste_core::PendingEvent| posthaste_core::Settlement {
            lease: None,
            seq: found.seq,
            id: found.event.id(),
            outcome: posthaste_core::SettlementOutcome::Delivered,
        };
        let mut settlements: Vec<_> = page.events.iter().map(settle).collect();
        for settlement in &mut settlements[5..] {
            settlement.outcome = posthaste_core::SettlementOutcome::DeliveredAndRemoved;
        }
        for alike in settlements.chunks(5) {
            assert_eq!(outbox.settle(alike).await.unwrap(), 5);
        }

        let mut connection = outbox.pool().acquire().await.unwrap();
        let numbers: Vec<String> = (1..=1000).map(|n| n.to_string()).collect();
        let numbers = format!("'{{{}}}'", numbers.join(","));
        let places = format!(
            "'{{1, 2}}', '{{0, 0}}', {numbers}, array_fill(gen_random_uuid(), '{{1000}}'), \
             array_fill(1::smallint, '{{1000}}')"
        );
        for mode in ["force_custom_plan", "force_generic_plan"] {
            run(&mut connection, &format!("set plan_cache_mode = {mode}")).await;
            let what = format!("{rows} rows, analyzed {analyze}, {mode}");
            let half = rows / 2;
            for (part, arguments) in [
                ("seq > $3 order by", format!("1001, 8000000, {half}")),
                ("seq > $3 and (($4", format!("1001, 8000000, {half}, 4294967295")),
                ("as due, seq", format!("{half}, 10001")),
                ("event_type, destination, outbox_shard", "5, 1000".into()),
                ("having min(seq) >", "5, 51, 1000000".into()),
                ("where retry_count > 0 and", "5, 51, 100000".into()),
                ("left join walked", "5, 100000, '{7}', '{k}', '{true}'".into()),
            ] {
                let fetch = plan(&mut connection, part, &arguments).await;
                check_plan(&fetch, &what);
                assert!(!fetch.contains("Sort Key: outbox_events"), "{what}: {fetch}");
            }
            // Rare, and of one key: a bitmap of the range may be sorted, but nothing more is read.
            let range = format!("1001, 8000000, {half}, {rows}, 'a key'");
            let of_key = plan(&mut connection, "partition_key = $5", &range).await;
            assert!(
                of_key.contains("can on outbox_events_pending_seq_key")
                    || of_key.contains("using outbox_events_pending_seq_key"),
                "{what}: {of_key}"
            );
            assert!(!of_key.contains("Seq Scan"), "{what}: {of_key}");
            let gaps = format!("1001, 8000000, {half}, {numbers}, {numbers}");
            check_plan(&plan(&mut connection, "as gap (low", &gaps).await, &what);
            let share = format!("{gaps}, 4294967295");
            check_plan(&plan(&mut connection, "as gap (low%$6", &share).await, &what);
            for settle in ["update outbox_events event", "delete from outbox_events event"] {
                check_plan(&plan(&mut connection, settle, &places).await, &what);
            }
        }
    }
}

fn check_plan(plan: &str, what: &str) {
    assert!(plan.contains("using outbox_events_pending_"), "{what}: {plan}");
    assert!(!plan.contains("Seq Scan on outbox_events_pending"), "{what}: {plan}");
    assert!(!plan.contains("outbox_events_processed"), "{what}: {plan}");
}

#[tokio::test]
async fn numbers_are_drawn_in_the_order_given() {
    let Some(database) = TestDatabase::create().await else { return };
    let outbox = database.outbox().await;
    let events: Vec<_> = (0..5_000).map(|_| common::event(uuid::Uuid::now_v7())).collect();
    outbox.store(&events).await.unwrap();
    let found = pending(&outbox).await;
    assert!(found.iter().zip(&events).all(|(found, event)| found.event.id() == event.id()));
}
