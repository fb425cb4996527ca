//! With a real PostgreSQL and a real NATS JetStream.

use std::time::{Duration, Instant};

use crate::common::database::TestDatabase;
use crate::common::roles::OwnRoles;
use crate::common::{AGGREGATE, Cli};
use posthaste_testkit::servers::{free_port, shared_nats};
use serde_json::{Value, json};
use sqlx::postgres::PgConnectOptions;
use uuid::Uuid;

#[tokio::test]
async fn rows_that_plain_sql_inserted_are_delivered() {
    let Some(database) = TestDatabase::create().await else { return };
    let cli = Cli::new().env("DATABASE_URL", &database.url());
    cli.run(&["migrate", "up"]).succeeded();
    let insert = format!(
        "insert into outbox_events (aggregate_id, event_type, event_data) \
         values ('{AGGREGATE}', 'order.placed', '{{\"total\": 42}}')"
    );
    database.run(&insert).await;
    cli.publish("order.paid", "{}");
    let events = cli.run(&["run", "--drain"]).succeeded().events();
    assert_eq!(events.len(), 2, "{events:?}");
    assert_eq!(events[0]["data"]["total"], 42);
    assert_eq!(events[1]["type"], "order.paid");
    assert_eq!(cli.pending(), 0);
}

#[tokio::test]
async fn without_retention_all_is_delivered_and_no_row_remains() {
    let Some(database) = TestDatabase::create().await else { return };
    let cli = Cli::new()
        .env("DATABASE_URL", &database.url())
        .env("POSTHASTE_RELAY__RETENTION", "0s")
        .env("POSTHASTE_RELAY__BATCH_SIZE", "100");
    cli.run(&["migrate", "up"]).succeeded();
    database
        .run(
            "insert into outbox_events (aggregate_id, event_type, event_data) \
             select md5((n % 50)::text)::uuid, 'numbered', to_jsonb(n) \
             from generate_series(1, 1000) as n",
        )
        .await;
    let events = cli.run(&["run", "--drain"]).succeeded().events();
    let mut numbers: Vec<u64> =
        events.iter().map(|event| event["data"].as_u64().unwrap()).collect();
    numbers.sort_unstable();
    assert!(numbers.into_iter().eq(1..=1_000), "{}", events.len());
    assert_eq!(database.count("select count(*) from outbox_events").await, 0);
}

#[tokio::test]
async fn the_schema_is_asked_for_by_name_where_it_may_not_be_created() {
    let Some(database) = TestDatabase::create().await else { return };
    let cli =
        Cli::new().env("DATABASE_URL", &database.url()).env("POSTHASTE_DATABASE__MIGRATE", "false");
    for command in [&["status"][..], &["events", "list"], &["run", "--once"]] {
        let code = if command[0] == "run" { 78 } else { 1 };
        cli.run(command).failed(code, &["no outbox in this database", "posthaste migrate up"]);
    }
    cli.run(&["migrate", "up"]).succeeded();
    cli.run(&["run", "--once"]).succeeded();
    let newer = "insert into outbox_migrations (version, name) values (999, 'from the future')";
    database.run(newer).await;
    for command in [&["status"][..], &["run", "--once"], &["migrate", "up"]] {
        let code = if command[0] == "run" { 78 } else { 1 };
        cli.run(command).failed(code, &["999"]);
    }
}

#[tokio::test]
async fn a_table_of_ones_own_is_adopted() {
    let Some(database) = TestDatabase::create().await else { return };
    let cli = Cli::new().env("DATABASE_URL", &database.url());
    let table = "create table outbox_events (id uuid primary key default gen_random_uuid(), \
                 aggregate_id uuid not null, event_type varchar(100) not null, event_data jsonb \
                 not null, created_at timestamptz default now(), processed_at timestamptz, \
                 retry_count integer default 0, max_retries integer default 3, error_message text)";
    database.run(table).await;
    let insert = format!(
        "insert into outbox_events (aggregate_id, event_type, event_data) \
         values ('{AGGREGATE}', 'old', '1')"
    );
    database.run(&insert).await;
    cli.run(&["migrate", "up"]).failed(1, &["posthaste migrate adopt"]);
    assert_eq!(cli.json(&["migrate", "adopt", "--yes"])["pending"], 1);
    assert_eq!(cli.run(&["run", "--drain"]).succeeded().events()[0]["type"], "old");
}

#[tokio::test]
async fn a_writer_can_publish_and_one_without_its_rights_is_told_what_is_missing() {
    let Some(database) = TestDatabase::create().await else { return };
    let owner = Cli::new().env("DATABASE_URL", &database.url());
    owner.run(&["migrate", "up"]).succeeded();
    let sql = owner.run(&["migrate", "sql", "--roles"]).succeeded().stdout;
    let roles = OwnRoles::create(&database, &sql).await;
    let writer = Cli::new().env("DATABASE_URL", &roles.login("writer").await);
    writer.publish("stored", "1");
    let line = format!(r#"{{"aggregate_id":"{AGGREGATE}","type":"stored","data":2}}"#);
    let from = ["publish", "--from", "-"];
    assert_eq!(
        writer.run_with_input(&from, line.as_bytes()).succeeded().stdout,
        "stored 1 event\n"
    );
    assert_eq!(database.count("select count(*) from outbox_events").await, 2);

    let operator = Cli::new().env("DATABASE_URL", &roles.login("operator").await);
    let publish = ["publish", "stored", "--aggregate-id", AGGREGATE, "--data", "3"];
    operator.run(&publish).failed(1, &["permission denied", "migrate sql --roles", "hint: grant"]);
}

#[tokio::test]
async fn a_relay_warns_at_its_start_of_a_sequence_that_breaks_order() {
    let Some(database) = TestDatabase::create().await else { return };
    let cli = Cli::new().env("DATABASE_URL", &database.url());
    cli.run(&["migrate", "up"]).succeeded();
    let silent = cli.run(&["run", "--drain"]).succeeded();
    assert!(!silent.stderr.contains("order within a key"), "{}", silent.stderr);
    // An ORM's allocation size.
    database.run("alter sequence outbox_events_seq cache 50").await;
    let warned = cli.run(&["run", "--drain"]).succeeded();
    for part in ["order within a key is not kept", "cache 50", "alter sequence"] {
        assert!(warned.stderr.contains(part), "{part}: {}", warned.stderr);
    }
    let times = warned.stderr.matches("order within a key is not kept").count();
    assert_eq!(times, 1, "it is said once: {}", warned.stderr);
}

#[tokio::test]
async fn a_missing_database_is_named_and_an_unreachable_server_too() {
    let Some(database) = TestDatabase::create().await else { return };
    let missing = database.url().replace(&database.name, &format!("{}_missing", database.name));
    let ended = Cli::new().run(&["--database-url", &missing, "status"]);
    ended.failed(1, &["does not exist", &format!("{}_missing", database.name)]);
    let unreachable = "postgres://joe:hunter2hunter2@127.0.0.1:1/x";
    let ended = Cli::new().run(&["--database-url", unreachable, "status"]);
    let ended = ended.failed(1, &["127.0.0.1:1/x"]);
    assert!(!ended.stderr.contains("hunter2"), "{ended:?}");
}

#[tokio::test]
async fn the_standard_variables_choose_the_database() {
    let Some(database) = TestDatabase::create().await else { return };
    let server: PgConnectOptions = database.url().parse().unwrap();
    let cli = Cli::without_database()
        .env("PGHOST", server.get_host())
        .env("PGPORT", &server.get_port().to_string())
        .env("PGUSER", server.get_username())
        .env("PGDATABASE", &database.name);
    cli.run(&["migrate", "up"]).succeeded();
    let status = cli.json(&["status"]);
    let address = status["database"]["address"].as_str().unwrap();
    assert!(address.contains(&database.name) && address.contains("PG*"), "{address}");
}

#[tokio::test]
async fn a_stream_that_is_missing_costs_no_attempt_and_delivery_begins_when_it_is_there() {
    let Some(server) = shared_nats().await else { return };
    let client = async_nats::connect(&server).await.unwrap();
    let jetstream = async_nats::jetstream::new(client);
    let name = format!("posthaste_test_{}", uuid::Uuid::now_v7().simple());
    let cli = Cli::migrated()
        .env("POSTHASTE_OPS__LISTEN", "off")
        .env("POSTHASTE_DESTINATIONS__DEFAULT__TYPE", "nats")
        .env("POSTHASTE_DESTINATIONS__DEFAULT__URL", &server)
        .env("POSTHASTE_DESTINATIONS__DEFAULT__SUBJECT", &format!("{name}.{{event_type}}"));
    cli.publish("order.placed", r#"{"total":42}"#);
    let mut running = cli.start(&["run", "--drain"]);
    running.wait_for_log("no JetStream stream covers");
    let event = &cli.json(&["events", "list"])["events"][0];
    assert_eq!(event["retry_count"], 0, "{event}");
    let stream = async_nats::jetstream::stream::Config {
        name: name.clone(),
        subjects: vec![format!("{name}.>")],
        ..Default::default()
    };
    let stream = jetstream.create_stream(stream).await.unwrap();
    assert_eq!(running.child.wait().unwrap().code(), Some(0));
    let message = stream.get_last_raw_message_by_subject(&format!("{name}.order.placed")).await;
    assert_eq!(&message.unwrap().payload[..], br#"{"total":42}"#);
    jetstream.delete_stream(&name).await.unwrap();
}

/// Fewer keys than are an outage: nothing is paused, and the reason must show all the same.
#[tokio::test]
async fn a_destination_that_fails_says_why_wherever_an_operator_looks() {
    let Some(server) = shared_nats().await else { return };
    let name = format!("posthaste_test_{}", Uuid::now_v7().simple());
    let ops = format!("127.0.0.1:{}", free_port());
    let cli = Cli::migrated()
        .env("POSTHASTE_OPS__LISTEN", &ops)
        .env("POSTHASTE_OPS__STALL_AFTER", "5s")
        .env("POSTHASTE_DESTINATIONS__DEFAULT__TYPE", "nats")
        .env("POSTHASTE_DESTINATIONS__DEFAULT__URL", &server)
        .env("POSTHASTE_DESTINATIONS__DEFAULT__SUBJECT", &format!("{name}.{{event_type}}"));
    cli.publish("order.placed", "1");
    let relay = cli.start(&["run"]);
    relay.wait_for_log("nothing tells yet");
    let why = "no JetStream stream covers";
    let said = cli.json_when(&["status"], |status| {
        status["relays"][0]["report"]["destinations"][0]["failing_since"].is_string()
    });
    let to = &said["relays"][0]["report"]["destinations"][0];
    assert_eq!(
        (&to["paused_for"], &to["last_error_kind"]),
        (&Value::Null, &json!("destination_missing"))
    );
    assert!(to["last_error"].as_str().unwrap().contains(why), "{said}");
    assert_eq!((&to["uncounted_keys"], &to["uncounted"][0]["key"]), (&json!(1), &json!(AGGREGATE)));
    for (command, hint) in [("status", "place 1"), ("doctor", "create the stream")] {
        let shown = cli.run(&[command]).stdout;
        for part in ["destination default takes nothing since 2", "1 key with", why, hint] {
            assert!(shown.contains(part), "{command}: {part}: {shown}");
        }
    }
    let url = format!("http://{ops}");
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        let ready = reqwest::get(format!("{url}/readyz")).await.unwrap().text().await.unwrap();
        if ready.contains("destination default takes nothing") && ready.contains(why) {
            break;
        }
        assert!(Instant::now() < deadline, "{ready}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert!(reqwest::get(format!("{url}/livez")).await.unwrap().status().is_success());
    // The gauge moves by itself, and may be a moment behind what was just asked.
    let gauge = "outbox_destination_failing_seconds{destination=\"default\"} ";
    loop {
        let metrics = reqwest::get(format!("{url}/metrics")).await.unwrap().text().await.unwrap();
        let seconds = metrics.lines().find_map(|line| line.strip_prefix(gauge)).unwrap();
        if seconds.parse::<f64>().unwrap() >= 5.0 {
            break;
        }
        assert!(Instant::now() < deadline, "{seconds}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

#[tokio::test]
async fn a_database_that_is_renamed_while_a_relay_starts_is_waited_for() {
    let Some(database) = TestDatabase::create().await else { return };
    let Some(other) = TestDatabase::create().await else { return };
    let cli = Cli::new().env("DATABASE_URL", &database.url()).env("POSTHASTE_OPS__LISTEN", "off");
    cli.run(&["migrate", "up"]).succeeded();
    cli.publish("a", "1");
    let away = format!("{}_away", database.name);
    other.run(&format!("alter database {} rename to {away}", database.name)).await;
    let mut running = cli.start(&["run", "--drain"]);
    running.wait_for_log("trying again");
    other.run(&format!("alter database {away} rename to {}", database.name)).await;
    other.run(&format!("alter database {} with allow_connections false", database.name)).await;
    running.wait_for_log("takes no connections");
    other.run(&format!("alter database {} with allow_connections true", database.name)).await;
    assert_eq!(running.child.wait().unwrap().code(), Some(0));
    assert_eq!(cli.pending(), 0);
}

#[tokio::test]
async fn a_drain_waits_for_the_leases_of_dead_relays_and_says_what_live_ones_have() {
    let Some(database) = TestDatabase::create().await else { return };
    let cli = Cli::new()
        .env("DATABASE_URL", &database.url())
        .env("POSTHASTE_OPS__LISTEN", "off")
        .env("POSTHASTE_RELAY__LEASE_TTL", "2s");
    cli.run(&["migrate", "up"]).succeeded();
    let mut relays = [cli.start(&["run"]), cli.start(&["run"])];
    let deadline = Instant::now() + Duration::from_secs(20);
    while database.count("select count(distinct owner) from outbox_shards").await < 2 {
        assert!(Instant::now() < deadline, "the two do not share");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    for relay in &mut relays {
        relay.child.kill().unwrap();
        relay.child.wait().unwrap();
    }
    let insert = "insert into outbox_events (aggregate_id, event_type, event_data) \
                  select gen_random_uuid(), 't', '1' from generate_series(1, 200)";
    database.run(insert).await;
    assert_eq!(cli.run(&["run", "--drain"]).succeeded().events().len(), 200);

    // One that lives and cannot deliver what it has.
    cli.write("stuck.toml", "[destinations.log]\ntype = \"file\"\npath = \"missing/out\"\n");
    let stuck = cli.start(&["run", "-c", "stuck.toml"]);
    stuck.wait_for_log("destination not ready");
    while database.count("select count(*) from outbox_shards where owner is not null").await < 64 {
        assert!(Instant::now() < deadline + Duration::from_secs(20), "it does not take over");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    database.run(insert).await;
    cli.run(&["run", "--drain"]).failed(1, &["due and were not delivered", "another relay"]);
}

#[tokio::test]
async fn a_line_that_the_database_refuses_is_named_and_what_came_before_it_is_stored() {
    let Some(database) = TestDatabase::create().await else { return };
    let cli = Cli::new().env("DATABASE_URL", &database.url());
    cli.run(&["migrate", "up"]).succeeded();
    let line = |number: usize, data: &str, id: Uuid| {
        format!(
            "{{\"id\":\"{id}\",\"aggregate_id\":\"{AGGREGATE}\",\"type\":\"t{number}\",\"data\":{data}}}\n"
        )
    };
    let file = |bad: &dyn Fn(usize) -> Option<String>| -> String {
        (1..=400).map(|n| bad(n).unwrap_or_else(|| line(n, "1", Uuid::now_v7()))).collect()
    };
    let twice = Uuid::now_v7();
    let both = |n| (n == 8 || n == 301).then(|| line(n, "1", twice));
    cli.write("twice.ndjson", file(&both));
    let ended = cli.run(&["publish", "--from", "twice.ndjson"]);
    let ended = ended.failed(1, &["twice.ndjson, line 301", "already exists", "--skip 300"]);
    assert!(!ended.stderr.contains("at line"), "a line of the server's source: {ended:?}");
    assert_eq!(cli.pending(), 300);
    let zero = |n| (n == 301).then(|| line(n, "\"a\\u0000b\"", Uuid::now_v7()));
    cli.write("zero.ndjson", file(&zero));
    cli.run(&["publish", "--from", "zero.ndjson"])
        .failed(1, &["zero.ndjson, line 301", "300 events"]);
    assert_eq!(cli.pending(), 600);
    cli.write("marked.ndjson", format!("\u{feff}{}", line(1, "1", Uuid::now_v7())));
    cli.run(&["publish", "--from", "marked.ndjson"]).succeeded();
}
