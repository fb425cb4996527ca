//! Hot statements keep their plans, whatever the statistics say.

use std::time::Duration;

use posthaste_core::{
    OrderKey, OutboxAdmin, OutboxMigrations, OutboxRepository, PendingQuery, PendingSelection,
    SettlementOutcome, ShardLease, ShardSet, StuckBy, StuckKeyQuery,
};
use posthaste_postgres::statements;
use posthaste_postgres::{PostgresOptions, PostgresOutbox};
use sqlx::postgres::PgPoolOptions;
use sqlx::{AssertSqlSafe, PgConnection, Row};

use crate::common::{TestDatabase, delivered, everything, pending, run, settlement};

/// The plan of what sqlx has prepared on this connection whose text contains `part`.
async fn plan(connection: &mut PgConnection, part: &str, arguments: &str) -> String {
    let find = "select name from pg_prepared_statements where statement like $1 order by length(statement) limit 1";
    let name: String = sqlx::query(find)
        .bind(format!("%{part}%"))
        .fetch_one(&mut *connection)
        .await
        .unwrap()
        .get(0);
    let explain = AssertSqlSafe(format!("explain execute {name}({arguments})"));
    let rows = sqlx::query(explain).persistent(false).fetch_all(connection).await.unwrap();
    rows.iter().map(|row| row.get::<String, _>(0)).collect::<Vec<_>>().join("\n")
}

/// One connection, so that the statements the store has prepared are those we look at.
async fn with_one_connection(database: &TestDatabase) -> PostgresOutbox {
    let options = PostgresOptions { max_connections: 1, ..database.options() };
    let outbox = PostgresOutbox::connect(&options).await.unwrap();
    outbox.migrate().await.unwrap();
    outbox
}

async fn fill(database: &TestDatabase, rows: u32) {
    database
        .run(&format!(
            "insert into outbox_events (aggregate_id, event_type, event_data) \
             select gen_random_uuid(), 'bulk', '{{\"n\": 1}}' from generate_series(1, {rows})"
        ))
        .await;
}

/// What `vacuum` and `analyze` know of the outbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Statistics {
    Right,
    None,
    /// They came by when all was delivered: the state of a healthy outbox.
    OfEmpty,
}

/// So many events, and what the planner thinks of them.
async fn refill(database: &TestDatabase, rows: u32, statistics: Statistics) {
    let pending = "alter table outbox_events_pending set (autovacuum_enabled = false)";
    database.run(&format!("{pending}; truncate outbox_events")).await;
    if statistics == Statistics::OfEmpty {
        fill(database, 3_000).await;
        // The last page stays, and with it the others.
        database
            .run("delete from outbox_events where seq < (select max(seq) from outbox_events)")
            .await;
        database.run("vacuum outbox_events_pending").await;
        database.run("delete from outbox_events").await;
        database.run("vacuum (analyze, truncate off) outbox_events_pending").await;
        let known = "select (relpages > 0 and reltuples = 0) from pg_class \
                     where oid = 'outbox_events_pending'::regclass";
        assert!(database.value::<bool>(known).await);
    }
    database.run("alter sequence outbox_events_seq restart").await;
    fill(database, rows).await;
    if statistics == Statistics::Right {
        database.run("analyze outbox_events_pending").await;
    }
}

/// Has the store prepare each of its statements.
async fn prepare(database: &TestDatabase, outbox: &PostgresOutbox) {
    fill(database, 200).await;
    let fetch = |leases, selection, events_max| async move {
        let query = PendingQuery { leases, selection, events_max, bytes_max: 1 << 20 };
        outbox.fetch_pending(&query).await.unwrap()
    };
    let forward = |gaps, after| PendingSelection::Forward { gaps, after };
    let page = fetch(None, forward(Vec::new(), 100), 10).await;
    let key = OrderKey::named("a key").unwrap();
    fetch(None, PendingSelection::Key { key, after: 10, up_to: 100 }, 10).await;
    fetch(None, PendingSelection::At(vec![150, 160]), 10).await;
    outbox.backlog(0).await.unwrap();
    outbox.dead_heads(0, 10).await.unwrap();
    database.run("update outbox_events set dead_at = now() where seq = 2").await;
    for by in [StuckBy::DeadLetter, StuckBy::Retry] {
        outbox.stuck_keys(&StuckKeyQuery { by, after: 0, limit: 10 }).await.unwrap();
    }
    let ahead = fetch(None, forward(vec![(3, 4), (9, 9)], 90), 5).await;
    let places: Vec<_> = ahead.events.iter().map(|found| found.seq).collect();
    assert_eq!((&places[..], ahead.more), (&[3, 4, 9, 91, 92][..], true));
    let half_of_shards = ShardSet::ALL.iter().take(32);
    let leases: Vec<ShardLease> =
        half_of_shards.map(|shard| ShardLease { shard, generation: 0 }).collect();
    for gaps in [vec![(3, 4), (9, 9)], Vec::new()] {
        assert_eq!(fetch(Some(leases.clone()), forward(gaps, 90), 5).await.events.len(), 5);
    }
    use SettlementOutcome::{Delivered, DeliveredAndRemoved};
    let outcomes = [
        [Delivered, Delivered],
        [DeliveredAndRemoved, DeliveredAndRemoved],
        [Delivered, DeliveredAndRemoved],
    ];
    for (events, outcomes) in page.events.chunks(2).zip(outcomes) {
        let settlements: Vec<_> = events
            .iter()
            .zip(outcomes)
            .map(|(found, outcome)| settlement(found, outcome))
            .collect();
        assert_eq!(outbox.settle(&settlements).await.unwrap(), 2);
    }
}

#[tokio::test]
async fn fetch_and_settle_walk_the_index_on_seq_whatever_the_statistics() {
    let Some(database) = TestDatabase::create().await else { return };
    let outbox = with_one_connection(&database).await;
    prepare(&database, &outbox).await;
    let mut connection = outbox.pool().acquire().await.unwrap();
    // Whatever the connection was used for before.
    database.run("truncate outbox_events").await;
    database.run("vacuum analyze outbox_events_pending").await;
    run(&mut connection, "set plan_cache_mode = force_generic_plan").await;
    let before = plan(&mut connection, "seq > $3 order by", "1001, 8000000, 0").await;
    assert!(before.contains("Seq Scan on outbox_events_pending"), "{before}");
    run(&mut connection, &statements::for_session()).await;
    check_plans(&mut connection, 0, "what was planned before").await;
    use Statistics::{None, OfEmpty, Right};
    for (rows, statistics) in [
        // A plan that is kept may be from then.
        (0, OfEmpty),
        (0, None),
        (3, OfEmpty),
        (3, Right),
        (10_000, Right),
        (50_000, Right),
        (50_000, None),
        (50_000, OfEmpty),
    ] {
        refill(&database, rows, statistics).await;
        let what = format!("{rows} rows, statistics: {statistics:?}");
        run(&mut connection, &statements::for_session()).await;
        check_plans(&mut connection, rows, &what).await;
        check_kept_plans(&mut connection, &what).await;
        // A transaction's are made for the arguments.
        run(&mut connection, "set plan_cache_mode = force_custom_plan").await;
        check_plans(&mut connection, rows, &format!("{what}, of the arguments")).await;
    }
}

/// Numbers, identifiers and leases of a thousand events.
fn thousand() -> (String, String) {
    let numbers: Vec<String> = (1..=1000).map(|n| n.to_string()).collect();
    let numbers = format!("'{{{}}}'", numbers.join(","));
    let rest = "array_fill(gen_random_uuid(), '{1000}'), array_fill(1::smallint, '{1000}')";
    (format!("{numbers}, {rest}"), numbers)
}

async fn check_plans(connection: &mut PgConnection, rows: u32, what: &str) {
    let half = rows / 2;
    let (places, numbers) = thousand();
    for (part, arguments) in [
        ("seq > $3 order by", format!("1001, 8000000, {half}")),
        ("seq > $3 and (($4", format!("1001, 8000000, {half}, 4294967295")),
        ("as due, seq", format!("{half}, 10001")),
        ("event_type, destination, outbox_shard", "5, 1000".into()),
        ("having min(seq) >", "5, 51, 1000000".into()),
        ("where failed and", "5, 51, 100000".into()),
        ("left join walked", "5, 100000, '{7}', '{k}', '{true}'".into()),
    ] {
        let fetch = plan(connection, part, &arguments).await;
        check_plan(&fetch, what);
        let of_dead = part.starts_with("event_type") || part.starts_with("having");
        let index = if of_dead {
            "using outbox_events_pending_dead"
        } else {
            "using outbox_events_pending_seq_key"
        };
        assert!(fetch.contains(index), "{what}: {fetch}");
        assert!(!fetch.contains("Sort Key: outbox_events"), "{what}: {fetch}");
    }
    // Rare, and of one key: a bitmap of the range may be sorted, but nothing more is read.
    let range = format!("1001, 8000000, {half}, {rows}, 'a key'");
    let of_key = plan(connection, "partition_key = $5", &range).await;
    assert!(
        of_key.contains("can on outbox_events_pending_seq_key")
            || of_key.contains("using outbox_events_pending_seq_key"),
        "{what}: {of_key}"
    );
    assert!(!of_key.contains("Seq Scan"), "{what}: {of_key}");
    let gaps = format!("1001, 8000000, {half}, {numbers}, {numbers}");
    check_plan(&plan(connection, "as gap (low", &gaps).await, what);
    let share = format!("{gaps}, 4294967295");
    check_plan(&plan(connection, "as gap (low%$6", &share).await, what);
    for settle in ["update outbox_events event", "delete from outbox_events event"] {
        let arguments = format!("'{{1, 2}}', '{{0, 0}}', {places}");
        let settle = plan(connection, settle, &arguments).await;
        check_plan(&settle, what);
        assert!(settle.contains("Index Cond: (seq = "), "{what}: it reads more: {settle}");
    }
}

/// Those on which a relay's connections rest, when they keep their plans.
async fn check_kept_plans(connection: &mut PgConnection, what: &str) {
    let (places, numbers) = thousand();
    let failed = format!("{places}, {numbers}");
    let mixed = format!(
        "'{{1, 2}}', '{{0, 0}}', {places}, {failed}, {numbers}, null, {failed}, null, null, {places}"
    );
    for (part, arguments, scans) in [
        ("seq > $3 order by", "1001, 8000000, 0".to_owned(), 1),
        ("seq = any($3)", format!("1001, 8000000, {numbers}"), 1),
        ("partition_key = $5", "1001, 8000000, 0, 1000, 'a key'".into(), 1),
        ("as gap (low", format!("1001, 8000000, 0, {numbers}, {numbers}"), 2),
        ("update outbox_events event", format!("'{{1, 2}}', '{{0, 0}}', {places}"), 1),
        ("delete from outbox_events event", format!("'{{1, 2}}', '{{0, 0}}', {places}"), 1),
        ("retried as", mixed, 4),
    ] {
        let kept = plan(connection, part, &arguments).await;
        let of_any_arguments = ["$3)", "ANY (", "gap.low"];
        assert!(of_any_arguments.iter().any(|part| kept.contains(part)), "{what}: {kept}");
        for unwanted in ["Seq Scan on outbox_events", "Bitmap", "JIT"] {
            assert!(!kept.contains(unwanted), "{what}: {unwanted}: {kept}");
        }
        let gaps = part.contains("gap");
        assert!(gaps || !kept.contains("Sort"), "{what}: {kept}");
        let lines: Vec<&str> = kept.lines().collect();
        let mut by_seq = 0;
        for (line, next) in lines.iter().zip(&lines[1..]) {
            if line.contains("using outbox_events_pending_seq_key") {
                assert!(next.contains("Index Cond: ("), "{what}: a walk along all of it: {kept}");
                by_seq += 1;
            }
        }
        assert_eq!(by_seq, scans, "{what}: {kept}");
        // Each outcome would be compared with each event.
        assert!(gaps || !kept.contains("Nested Loop"), "{what}: {kept}");
    }
}

fn check_plan(plan: &str, what: &str) {
    assert!(plan.contains("using outbox_events_pending_"), "{what}: {plan}");
    assert!(!plan.contains("Seq Scan on outbox_events_pending"), "{what}: {plan}");
    assert!(!plan.contains("outbox_events_processed"), "{what}: {plan}");
}

/// On each kind of connection that there is: kept by the relay, of a pool too small for that, and of a
/// pooler's.
#[tokio::test]
async fn a_page_and_its_settlement_touch_no_other_events() {
    let Some(database) = TestDatabase::create().await else { return };
    database.outbox().await;
    for (max_connections, transaction_pooler) in [(5, false), (1, false), (5, true)] {
        refill(&database, 3_000, Statistics::Right).await;
        refill(&database, 50_000, Statistics::OfEmpty).await;
        let before = events_read(&database).await;
        let options = PostgresOptions { max_connections, transaction_pooler, ..database.options() };
        let outbox = PostgresOutbox::connect(&options).await.unwrap();
        let selection = PendingSelection::Forward { gaps: Vec::new(), after: 25_000 };
        let query = PendingQuery { selection, events_max: 100, ..everything() };
        let page = outbox.fetch_pending(&query).await.unwrap();
        let settlements: Vec<_> = page.events.iter().map(delivered).collect();
        assert_eq!(outbox.settle(&settlements).await.unwrap(), 100);
        outbox.pool().close().await;
        let read = events_read(&database).await - before;
        let what = format!("of {max_connections}, pooler: {transaction_pooler}");
        assert!((200..500).contains(&read), "{what}: {read} events");
    }
}

/// Of two indexes that an empty table has, a kept plan may have the wrong one for good.
#[tokio::test]
async fn what_is_asked_seldom_is_planned_for_each_call() {
    let Some(database) = TestDatabase::create().await else { return };
    database.outbox().await;
    // An application's, without settings of ours.
    let pool =
        PgPoolOptions::new().max_connections(3).connect_lazy_with(database.connect_options());
    let outbox = PostgresOutbox::from_pool(pool.clone());
    for _ in 0..20 {
        outbox.dead_heads(0, 10).await.unwrap();
        outbox.backlog(0).await.unwrap();
        let query = StuckKeyQuery { by: StuckBy::DeadLetter, after: 0, limit: 10 };
        outbox.stuck_keys(&query).await.unwrap();
    }
    let planned = "select coalesce(sum(custom_plans), 0)::bigint, coalesce(sum(generic_plans), 0)::bigint \
                   from pg_prepared_statements where statement like $1";
    let mut connections = Vec::new();
    for _ in 0..3 {
        connections.push(pool.acquire().await.unwrap());
    }
    for part in ["%event_type, destination, outbox_shard%", "%as due, seq%", "%having min(seq) >%"]
    {
        let (mut each_time, mut kept) = (0, 0);
        for connection in &mut connections {
            let plans = sqlx::query_as(planned).bind(part).fetch_one(&mut **connection);
            let (custom, generic): (i64, i64) = plans.await.unwrap();
            (each_time, kept) = (each_time + custom, kept + generic);
        }
        assert_eq!((each_time, kept), (20, 0), "{part}");
    }
}

/// How many pending events were read by all who are not there any more: whoever ends reports first.
async fn events_read(database: &TestDatabase) -> i64 {
    let others = "select count(*) from pg_stat_activity \
                  where datname = current_database() and pid <> pg_backend_pid()";
    for _ in 0..500 {
        if database.value::<i64>(others).await == 0 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    if database.value("select current_setting('server_version_num')::integer < 150000").await {
        // There a process of its own collects what others report, and tells it half a second late.
        tokio::time::sleep(Duration::from_secs(2)).await;
    }
    let read = "select coalesce(seq_tup_read, 0) + coalesce(idx_tup_fetch, 0) \
                from pg_stat_user_tables where relid = 'outbox_events_pending'::regclass";
    database.value(read).await
}

#[tokio::test]
async fn numbers_are_drawn_in_the_order_given() {
    let Some(database) = TestDatabase::create().await else { return };
    let outbox = database.outbox().await;
    let events: Vec<_> = (0..5_000).map(|_| crate::common::event(uuid::Uuid::now_v7())).collect();
    outbox.store(&events).await.unwrap();
    let found = pending(&outbox).await;
    assert!(found.iter().zip(&events).all(|(found, event)| found.event.id() == event.id()));
}
