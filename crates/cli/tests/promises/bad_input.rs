//! What other programs can write into the table, and what a broker will not take.

use std::collections::{BTreeMap, BTreeSet};

use async_nats::jetstream::{Message, stream};
use posthaste_testkit::servers::{NatsServer, shared_nats};
use sqlx::Row as _;

use crate::support::{Database, Figures, Relay, RelayConfig, Stream, eventually, raw_messages};

fn header<'a>(message: &'a Message, name: &str) -> Option<&'a str> {
    Some(message.headers.as_ref()?.get(name)?.as_str())
}

/// The type of each message, in the order of the stream.
async fn delivered_types(stream: &Stream) -> Vec<String> {
    let messages = raw_messages(stream).await;
    messages.iter().map(|message| header(message, "ph-type").unwrap().to_owned()).collect()
}

/// Type, reason and message of each dead letter.
async fn dead(database: &Database) -> BTreeMap<String, (String, String)> {
    let sql = "select event_type, dead_reason, error_message from outbox_events \
               where dead_at is not null";
    let rows = database.rows(sql).await;
    rows.iter().map(|row| (row.get(0), (row.get(1), row.get(2)))).collect()
}

/// Three events of one key; the second has a body of so many bytes.
fn three_events(key: &str, prefix: &str, bytes: usize) -> String {
    [("1", 1), ("2", bytes), ("3", 1)]
        .map(|(name, bytes)| {
            format!(
                "insert into outbox_events (aggregate_id, partition_key, event_type, event_data)
                 values (gen_random_uuid(), '{key}', '{prefix}.{name}',
                         to_jsonb(repeat('x', {bytes})));"
            )
        })
        .concat()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_event_over_the_brokers_limit_is_dead_for_that_reason_and_its_key_proceeds_as_told() {
    let Some(nats) = shared_nats().await else { return };
    let Some(database) = Database::create().await else { return };
    let mut figures = Figures::of("events over the broker's limit");
    let stream = Stream::named(&nats);
    stream.make(stream::Config { max_message_size: 64 * 1024, ..Default::default() }).await;
    let more = format!(
        "[destinations.skipping]\ntype = \"nats\"\nurl = \"{nats}\"\nsubject = \"{}\"\n\
         dead_head = \"skip\"\n\
         [[routes]]\nevent_type = \"skip.*\"\ndestination = \"skipping\"\n",
        stream.subject()
    );
    let mut relay = Relay::started(
        &database,
        &stream,
        &RelayConfig { more, relay: "unknown_destination = \"dead\"", ..RelayConfig::default() },
    );
    let (over_stream, over_server) = (100_000, 2_000_000);
    database
        .run(
            &[
                three_events("a", "block.stream", over_stream),
                three_events("b", "block.server", over_server),
                three_events("c", "skip.stream", over_stream),
                three_events("d", "skip.server", over_server),
                three_events("e", "block.fine", 1_000),
            ]
            .concat(),
        )
        .await;
    // Only the events behind the two blocking ones are left.
    eventually("the rest", async || {
        dead(&database).await.len() == 4 && database.pending().await == 2
    })
    .await;
    let expected: BTreeSet<String> =
        ["block.stream.1", "block.server.1", "skip.stream.1", "skip.stream.3", "skip.server.1"]
            .into_iter()
            .chain(["skip.server.3", "block.fine.1", "block.fine.2", "block.fine.3"])
            .map(str::to_owned)
            .collect();
    assert_eq!(delivered_types(&stream).await.into_iter().collect::<BTreeSet<_>>(), expected);
    for (event_type, (reason, message)) in dead(&database).await {
        assert!(event_type.ends_with(".2"), "{event_type}");
        assert_eq!(reason, "too_large", "{event_type}");
        let limit = if event_type.contains("stream") { "max_msg_size" } else { "max_payload" };
        assert!(message.contains(limit), "{event_type}: {message}");
    }
    let listed = relay.cli.json(&["events", "list", "--state", "dead"]);
    assert_eq!(listed["events"].as_array().unwrap().len(), 4, "{listed}");
    let discard = ["events", "discard", "--state", "dead", "--all-matching", "--yes"];
    relay.cli.run(&discard).succeeded();
    eventually("what was blocked", async || database.pending().await == 0).await;
    let delivered = delivered_types(&stream).await;
    assert!(
        delivered.ends_with(&["block.stream.3".into(), "block.server.3".into()])
            || delivered.ends_with(&["block.server.3".into(), "block.stream.3".into()]),
        "{delivered:?}"
    );
    assert_eq!(relay.terminate().await.0, Some(0));
    figures.add("delivered", delivered.len()).add("dead", 4).add("lost", 0).print();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn large_and_binary_payloads_arrive_byte_for_byte() {
    let Some(nats) = NatsServer::start("max_payload: 8MB\n").await else { return };
    let Some(database) = Database::create().await else { return };
    let mut figures = Figures::of("payloads");
    let stream = Stream::create(&nats.url()).await;
    let insert = "insert into outbox_events \
                  (aggregate_id, event_type, event_data, payload, content_type) values \
                  (gen_random_uuid(),";
    database
        .run(&format!(
            "{insert} 'five_megabytes', to_jsonb(repeat('x', 5 * 1024 * 1024)), null, null);
             {insert} 'five_megabytes_of_bytes', '{{}}',
                      decode(repeat('ff00', 5 * 1024 * 512), 'hex'), 'application/x-protobuf');
             {insert} 'not_utf_8', '{{}}', '\\xfffe0080', 'application/avro');
             {insert} 'bytes_without_type', '{{}}', '\\xc328', null);
             {insert} 'no_bytes', '{{}}', '', 'application/empty');
             {insert} 'null', 'null', null, null);
             {insert} 'text', '\"grüße\\u0001\"', null, null);"
        ))
        .await;
    let relay = Relay::new(&database, &stream, &RelayConfig::default());
    relay.cli.run(&["run", "--drain"]).succeeded();
    let messages = raw_messages(&stream).await;
    let body = |event_type: &str| {
        let found = messages.iter().find(|message| header(message, "ph-type") == Some(event_type));
        let message = found.unwrap_or_else(|| panic!("{event_type} did not arrive"));
        (header(message, "content-type").unwrap(), &message.payload[..])
    };
    let json = "application/json";
    let mebibytes = 5 * 1024 * 1024;
    assert_eq!(body("five_megabytes"), (json, format!("\"{}\"", "x".repeat(mebibytes)).as_bytes()));
    let bytes = [0xff, 0x00].repeat(mebibytes / 2);
    assert_eq!(body("five_megabytes_of_bytes"), ("application/x-protobuf", &bytes[..]));
    assert_eq!(body("not_utf_8"), ("application/avro", &[0xff, 0xfe, 0x00, 0x80][..]));
    assert_eq!(body("bytes_without_type"), ("application/octet-stream", &[0xc3, 0x28][..]));
    assert_eq!(body("no_bytes"), ("application/empty", &[][..]));
    assert_eq!(body("null"), (json, &b"null"[..]));
    assert_eq!(body("text"), (json, "\"grüße\\u0001\"".as_bytes()));
    assert_eq!(messages.len(), 7);
    assert_eq!((database.pending().await, database.blamed().await), (0, 0));
    figures.add("delivered", messages.len()).add("largest in MB", "5.2").add("lost", 0).print();
}

/// What becomes of a row that another program got wrong.
enum Outcome {
    /// A dead letter for this reason, with a message that contains the text.
    Dead(&'static str, &'static str),
    Delivered,
}
use Outcome::{Dead, Delivered};

/// Event type, other columns and their values, and what becomes of it.
const MISTAKES: &[(&str, &str, &str, Outcome)] = &[
    ("headers.empty_list", "headers", "'[]'", Delivered),
    ("headers.nested", "headers", "'{\"a\": {\"b\": 1}}'", Dead("corrupt", "header=a")),
    ("headers.line_break", "headers", r#"'{"a": "b\nc: d"}'"#, Dead("corrupt", "control char")),
    ("headers.bad_name", "headers", "'{\"a b\": \"c\"}'", Dead("corrupt", "header=a b")),
    ("headers.reserved", "headers", "'{\"ph-id\": \"c\"}'", Dead("malformed", "header=ph-id")),
    ("type with spaces", "headers", "null", Dead("malformed", "no spaces")),
    ("type.*", "headers", "null", Dead("malformed", "no wildcard")),
    ("", "headers", "null", Dead("malformed", "no empty part")),
    ("topic.bad", "topic", "'a b'", Dead("malformed", "subject=a b")),
    ("topic.nowhere", "topic", "'no.such.place'", Dead("malformed", "allow_topic")),
    ("destination.nowhere", "destination", "'nowhere'", Dead("destination_missing", "nowhere")),
    (
        "content_type",
        "payload, content_type",
        r"'x', E'a/b\nc: d'",
        Dead("malformed", "content-type"),
    ),
    ("key.empty", "partition_key", "''", Delivered),
    ("created.never", "created_at", "null", Delivered),
    ("created.infinity", "created_at", "'infinity'", Delivered),
    ("retries.negative", "retry_count", "-1", Delivered),
    ("retries.null", "max_retries", "null", Delivered),
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn malformed_rows_are_dead_for_a_reason_that_is_said_and_stop_nobody() {
    let Some(nats) = shared_nats().await else { return };
    let Some(database) = Database::create().await else { return };
    let mut figures = Figures::of("malformed rows");
    let stream = Stream::create(&nats).await;
    let insert = "insert into outbox_events (aggregate_id, event_type, event_data";
    let rows: Vec<String> = MISTAKES
        .iter()
        .map(|(event_type, column, value, _)| {
            format!(
                "{insert}, {column}) values (gen_random_uuid(), '{event_type}', '{{}}', {value});
                 {insert}) values (gen_random_uuid(), 'fine', '{{}}');"
            )
        })
        .collect();
    database.run(&rows.concat()).await;
    let relay = "unknown_destination = \"dead\"\n\
                 retry = { base_delay = \"10ms\", max_delay = \"10ms\" }";
    let relay = Relay::new(&database, &stream, &RelayConfig { relay, ..RelayConfig::default() });
    relay.cli.run(&["run", "--drain"]).succeeded();

    let (mut delivered, dead) = (delivered_types(&stream).await, dead(&database).await);
    let fine = delivered.extract_if(.., |event_type| event_type == "fine").count();
    assert_eq!(fine, MISTAKES.len(), "the others arrive");
    let mut expected_dead = 0;
    for (event_type, _, _, outcome) in MISTAKES {
        match outcome {
            Delivered => {
                assert!(delivered.iter().any(|found| found == event_type), "{event_type}");
            }
            Dead(expected, part) => {
                expected_dead += 1;
                let (reason, message) = &dead[*event_type];
                assert_eq!(reason, expected, "{event_type}: {message}");
                assert!(message.contains(part), "{event_type}: {message}");
            }
        }
    }
    assert_eq!((dead.len(), database.pending().await), (expected_dead, 0), "{dead:?}");
    figures.add("delivered", delivered.len()).add("dead", dead.len()).add("lost", 0).print();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_that_is_newer_or_not_there_is_refused_and_left_alone() {
    let Some(nats) = shared_nats().await else { return };
    let Some(database) = Database::create().await else { return };
    let stream = Stream::create(&nats).await;
    let relay = Relay::new(&database, &stream, &RelayConfig::default());
    let missing = format!("{}_missing", database.url());
    // A relay that goes on waits for it: it may be on its way.
    let ending = ["run", "--drain", "--give-up-after", "1s"];
    for command in [&ending[..], &["migrate", "up"], &["status"]] {
        let command = [&["--database-url", &missing][..], command].concat();
        relay.cli.run(&command).failed(1, &["does not exist", "_missing"]);
    }
    database
        .run(&format!(
            "{} insert into outbox_migrations (version, name) values (999, 'from the future');",
            three_events("a", "kept", 1)
        ))
        .await;
    for command in [&["run"][..], &["run", "--drain"], &["migrate", "up"], &["status"]] {
        let code = if command[0] == "run" { 78 } else { 1 };
        relay.cli.run(command).failed(code, &["999"]);
    }
    assert_eq!(database.pending().await, 3);
    database.run("delete from outbox_migrations where version = 999").await;
    relay.cli.run(&["run", "--drain"]).succeeded();
    assert_eq!(delivered_types(&stream).await, ["kept.1", "kept.2", "kept.3"]);
}
