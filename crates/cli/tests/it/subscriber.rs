//! A relay on a database that logical replication fills, as before a cut-over.

use std::time::{Duration, Instant};

use crate::common::Cli;
use crate::common::database::TestDatabase;
use posthaste_testkit::servers::PostgresServer;

fn insert(event_type: &str, rows: u32) -> String {
    format!(
        "insert into outbox_events (aggregate_id, event_type, event_data) \
         select gen_random_uuid(), '{event_type}', '{{}}' from generate_series(1, {rows})"
    )
}

/// Waits until the relay has delivered as many events, and gives their types.
fn delivered(cli: &Cli, number: usize) -> Vec<String> {
    let begun = Instant::now();
    loop {
        let written = std::fs::read_to_string(cli.path("out")).unwrap_or_default();
        let types: Vec<String> = crate::common::lines_of(&written)
            .iter()
            .map(|event| event["type"].as_str().unwrap().to_owned())
            .collect();
        if types.len() >= number {
            return types;
        }
        assert!(begun.elapsed().as_secs() < 60, "delivered: {types:?}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Nothing at the subscriber shows that the publisher holds a transaction open, which drew its numbers
/// before those that were applied and delivered.
#[tokio::test]
async fn what_commits_late_at_a_publisher_is_delivered_by_a_relay_that_has_passed_it() {
    let Some(server) = PostgresServer::start(&["wal_level=logical"]).await else { return };
    let publisher = TestDatabase::create_at(server.url("postgres")).await;
    let subscriber = TestDatabase::create_at(server.url("postgres")).await;
    for database in [&publisher, &subscriber] {
        let cli = Cli::new().env("DATABASE_URL", &database.url());
        cli.run(&["migrate", "up"]).succeeded();
    }
    publisher
        .run(
            "create publication outbox for table outbox_events \
             with (publish = 'insert', publish_via_partition_root = true)",
        )
        .await;
    publisher.run("select pg_create_logical_replication_slot('outbox', 'pgoutput')").await;
    subscriber
        .run(&format!(
            "create subscription outbox connection '{}' publication outbox \
             with (slot_name = 'outbox', create_slot = false, copy_data = false)",
            publisher.url()
        ))
        .await;
    // As one does before a cut-over.
    subscriber.run("select setval('outbox_events_seq', 100000)").await;

    let cli = Cli::new().env("DATABASE_URL", &subscriber.url());
    cli.write("posthaste.toml", "[destinations.default]\ntype = \"file\"\npath = \"out\"\n");
    let relay = cli.start(&["run"]);
    relay.wait_for_log("a subscription fills this outbox");
    publisher.run(&insert("early", 3)).await;
    delivered(&cli, 3);

    let mut late = publisher.connection().await;
    let begin = format!("begin; {}", insert("late", 1));
    sqlx::raw_sql(sqlx::AssertSqlSafe(begin)).execute(&mut late).await.unwrap();
    publisher.run(&insert("next", 4)).await;
    delivered(&cli, 7);
    // Time for several watermarks, any of which would have closed the gap.
    tokio::time::sleep(Duration::from_secs(3)).await;
    sqlx::raw_sql("commit").execute(&mut late).await.unwrap();
    assert_eq!(delivered(&cli, 8).last().unwrap(), "late");

    relay.signal("TERM");
    assert_eq!(relay.end().0, Some(0));
    subscriber
        .run("alter subscription outbox disable; alter subscription outbox set (slot_name = none)")
        .await;
    subscriber.run("drop subscription outbox").await;
}
