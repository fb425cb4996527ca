//! What an operator does: bulk publishing, status, events, cleanup, configuration.

use crate::common::{AGGREGATE, Cli};
use serde_json::json;

fn line(number: usize) -> String {
    json!({ "aggregate_id": AGGREGATE, "type": "t", "data": { "n": number } }).to_string() + "\n"
}

#[test]
fn bulk_publishing_stops_at_the_first_bad_line_and_goes_on_with_skip() {
    let cli = Cli::migrated();
    let lines = |bad: &str| {
        let mut text: String = (1..=600).map(line).collect();
        text.push_str(bad);
        text.extend((602..=700).map(line));
        text
    };
    cli.write("events.ndjson", lines("{\"aggregate_id\": \"nonsense\"}\n"));
    cli.run(&["publish", "--from", "events.ndjson"])
        .failed(1, &["events.ndjson, line 601", "600 events were stored", "--skip 600"]);
    assert_eq!(cli.pending(), 600);
    cli.write("events.ndjson", lines(&line(601)));
    let ended = cli.run(&["publish", "--from", "events.ndjson", "--skip", "600"]).succeeded();
    assert_eq!(ended.stdout, "stored 100 events\n");
    assert_eq!(ended.stderr, "", "no progress bar without a terminal");
    let events = cli.run(&["run", "--drain"]).succeeded().events();
    let numbers: Vec<u64> =
        events.iter().map(|event| event["data"]["n"].as_u64().unwrap()).collect();
    assert_eq!(numbers, (1..=700).collect::<Vec<u64>>());
}

#[test]
fn what_the_relay_wrote_can_be_stored_again() {
    let cli = Cli::migrated();
    let bytes = ["--content-type", "a/b", "--key", "k", "--header", "h=v", "--data", "x"];
    cli.run(&[&["publish", "t", "--aggregate-id", AGGREGATE][..], &bytes].concat()).succeeded();
    cli.publish("null", "null");
    let first = cli.run(&["run", "--drain"]).succeeded();
    let other = Cli::migrated();
    other.run_with_input(&["publish", "--from", "-"], first.stdout.as_bytes()).succeeded();
    let strip = |events: Vec<serde_json::Value>| -> Vec<serde_json::Value> {
        let without_time = |mut event: serde_json::Value| {
            event.as_object_mut().unwrap().remove("created_at");
            event
        };
        events.into_iter().map(without_time).collect()
    };
    let second = other.run(&["run", "--drain"]).succeeded();
    assert_eq!(strip(second.events()), strip(first.events()));
}

#[test]
fn events_are_listed_by_filters_and_shown_whole() {
    let cli = Cli::migrated();
    cli.publish("a", r#"{"n":1}"#);
    cli.publish("b", r#"{"n":2}"#);
    let list = |filters: &[&str]| cli.json(&[&["events", "list"][..], filters].concat());
    assert_eq!(list(&[])["events"].as_array().unwrap().len(), 2);
    let only = list(&["--type", "b"]);
    assert_eq!(only["events"][0]["type"], "b");
    assert_eq!(only["events"].as_array().unwrap().len(), 1);
    assert_eq!(list(&["--limit", "1"])["more"], true);
    assert_eq!(list(&["--state", "dead"])["events"], json!([]));
    assert_eq!(list(&["--until", "1h"])["events"], json!([]));
    assert_eq!(list(&["--since", "1h", "--key", AGGREGATE])["events"].as_array().unwrap().len(), 2);
    let id = only["events"][0]["id"].as_str().unwrap().to_owned();
    let shown = cli.json(&["events", "show", &id]);
    assert_eq!(shown["data"], json!({ "n": 2 }));
    assert_eq!(shown["state"], "pending");
    let human = cli.run(&["events", "show", &id]).succeeded().stdout;
    assert!(human.contains("\"n\": 2") && human.contains(&id), "{human}");
    cli.run(&["events", "show", AGGREGATE]).failed(1, &["there is no event"]);
}

#[test]
fn nothing_is_changed_in_bulk_without_a_yes() {
    let cli = Cli::migrated();
    cli.publish("a", "1");
    cli.publish("b", "2");
    cli.run(&["events", "discard", "--all-matching"]).failed(2, &["--yes"]);
    assert_eq!(cli.pending(), 2);
    let discard = ["events", "discard", "--type", "a", "--all-matching", "--yes"];
    assert_eq!(cli.json(&discard), json!({ "discarded": 1 }));
    assert_eq!(cli.pending(), 1);
    // Pending and never tried: there is nothing to retry.
    let id = cli.json(&["events", "list"])["events"][0]["id"].as_str().unwrap().to_owned();
    assert_eq!(cli.run(&["events", "discard", &id]).succeeded().stdout, "discarded 1 event\n");
    assert_eq!(cli.run(&["events", "discard", &id]).code, Some(1));
}

#[test]
fn a_dead_letter_is_visible_and_can_be_retried() {
    let cli = Cli::migrated().env("POSTHASTE_RELAY__UNKNOWN_DESTINATION", "dead");
    let to_nowhere = ["--destination", "nowhere", "--data", "1"];
    cli.run(&[&["publish", "t", "--aggregate-id", AGGREGATE][..], &to_nowhere].concat())
        .succeeded();
    cli.run(&["run", "--drain"]).succeeded();
    let dead = cli.json(&["events", "list", "--state", "dead"]);
    let id = dead["events"][0]["id"].as_str().unwrap().to_owned();
    assert!(dead["events"][0]["dead_reason"].is_string(), "{dead}");
    assert_eq!(cli.json(&["status"])["backlog"]["dead"], 1);
    assert_eq!(cli.json(&["events", "retry", &id]), json!({ "retried": 1 }));
    cli.write(
        "posthaste.toml",
        "[destinations.default]\ntype = \"stdout\"\n\
         [destinations.nowhere]\ntype = \"file\"\npath = \"out\"\n",
    );
    cli.run(&["run", "--drain"]).succeeded();
    assert!(std::fs::read_to_string(cli.path("out")).unwrap().contains(&id));
}

#[test]
fn cleanup_removes_only_what_was_delivered() {
    let cli = Cli::migrated();
    cli.publish("a", "1");
    cli.run(&["run", "--drain"]).succeeded();
    cli.publish("b", "2");
    assert_eq!(cli.json(&["cleanup", "--older-than", "1d"]), json!({ "removed": 0 }));
    std::thread::sleep(std::time::Duration::from_millis(20));
    assert_eq!(cli.json(&["cleanup", "--older-than", "1ms"]), json!({ "removed": 1 }));
    assert_eq!(cli.pending(), 1);
}

#[test]
fn without_retention_nothing_delivered_is_left_and_commands_say_so() {
    let cli = Cli::migrated().env("POSTHASTE_RELAY__UNKNOWN_DESTINATION", "dead");
    // Delivered while there still was a history: cleaned up as before.
    cli.publish("old", "1");
    cli.run(&["run", "--drain"]).succeeded();
    let cli = cli.env("POSTHASTE_RELAY__RETENTION", "0s").env("POSTHASTE_OPS__LISTEN", "off");
    let to_nowhere = ["--key", "other", "--destination", "nowhere", "--data", "1"];
    cli.run(&[&["publish", "dead", "--aggregate-id", AGGREGATE][..], &to_nowhere].concat())
        .succeeded();
    cli.publish("sent", "1");
    let id = cli.json(&["events", "list", "--type", "sent"])["events"][0]["id"].clone();
    assert_eq!(cli.run(&["run", "--drain"]).succeeded().events().len(), 1);
    cli.run(&["events", "show", id.as_str().unwrap()])
        .failed(1, &["there is no event", "delivered", "retention"]);
    let all = |cli: &Cli| {
        let events = cli.json(&["events", "list"])["events"].clone();
        events.as_array().unwrap().iter().map(|event| event["type"].clone()).collect::<Vec<_>>()
    };
    assert_eq!(all(&cli), ["dead", "old"], "what was kept before, and what is to be acted on");
    let backlog = &cli.json(&["status"])["backlog"];
    assert_eq!((&backlog["pending"], &backlog["dead"]), (&json!(0), &json!(1)));
    let running = cli.start(&["run"]);
    running.wait_for_log("removed delivered events past their retention");
    drop(running);
    assert_eq!(all(&cli), ["dead"]);
    let delivered = cli.run(&["events", "list", "--state", "delivered"]).succeeded();
    assert!(delivered.stdout.contains("not kept"), "{delivered:?}");
}

#[test]
fn configuration_is_shown_with_origins_and_without_secrets() {
    let cli = Cli::new()
        .env("POSTHASTE_RELAY__BATCH_SIZE", "9")
        .env("DATABASE_URL", "postgresql+psycopg://joe:hunter2hunter2@h/d");
    cli.write("posthaste.toml", "[log]\nlevel = \"debug\"\n");
    let shown = cli.json(&["config", "show"]);
    let of = |path: &str| {
        let values = shown["values"].as_array().unwrap();
        values.iter().find(|value| value["path"] == path).unwrap().clone()
    };
    assert_eq!(of("relay.batch_size")["value"], "9");
    assert_eq!(of("relay.batch_size")["origin"], "POSTHASTE_RELAY__BATCH_SIZE");
    assert_eq!(of("log.level")["origin"], "posthaste.toml:2:1");
    assert_eq!(of("relay.poll_interval")["origin"], "default");
    assert_eq!(of("database.url")["value"], "postgresql+psycopg://joe:***@h/d");
    assert_eq!(shown["database"]["address"], "postgres://joe:***@h/d");
    assert!(!shown.to_string().contains("hunter2"));
    let human = cli.run(&["config", "show"]).succeeded().stdout;
    assert!(human.contains("joe:***@h/d") && !human.contains("hunter2"), "{human}");
    assert_eq!(cli.json(&["config", "check"])["ok"], true);
}

#[test]
fn problems_are_told_to_programs_too() {
    let cli = Cli::new();
    cli.write("posthaste.toml", "[relay]\nbatchsize = 5\nretention = \"x\"\n");
    let ended = cli.run(&["-o", "json", "config", "check"]);
    assert_eq!(ended.code, Some(78));
    let result: serde_json::Value = serde_json::from_str(&ended.stdout).unwrap();
    assert_eq!(result["ok"], false);
    assert_eq!(result["problems"].as_array().unwrap().len(), 2);
    assert_eq!(result["problems"][1]["path"], "relay.batchsize");
}

#[test]
fn migrations_are_applied_once_and_shown() {
    let cli = Cli::new();
    let applied = cli.json(&["migrate", "up"]);
    assert_eq!(applied["applied"][0]["version"], 1);
    assert_eq!(cli.json(&["migrate", "up"])["applied"], json!([]));
    let status = cli.json(&["migrate", "status"]);
    assert_eq!(status["current"], status["wanted"]);
    let sql = cli.run(&["migrate", "sql", "--dialect", "sqlite"]).succeeded().stdout;
    assert!(sql.to_lowercase().contains("create table"), "{sql}");
    let postgres = ["--database-url", "postgres://nobody@192.0.2.1/x", "migrate", "sql"];
    assert!(cli.run(&postgres).succeeded().stdout.contains("jsonb"), "no server is needed");
}

#[test]
fn completions_are_written_for_each_shell() {
    for shell in ["bash", "zsh", "fish"] {
        let script = Cli::new().run(&["completions", shell]).succeeded().stdout;
        assert!(script.contains("posthaste"), "{shell}");
    }
}

#[test]
fn every_json_field_is_documented() {
    let docs = include_str!("../../../../docs/commands.md");
    let cli = Cli::migrated();
    cli.publish("a", "1");
    let id = cli.json(&["events", "list"])["events"][0]["id"].as_str().unwrap().to_owned();
    let results = [
        cli.json(&["status"]),
        cli.json(&["events", "list"]),
        cli.json(&["events", "show", &id]),
        cli.json(&["migrate", "up"]),
        cli.json(&["migrate", "status"]),
        cli.json(&["config", "check"]),
        cli.json(&["config", "show"]),
        cli.json(&["publish", "t", "--aggregate-id", AGGREGATE, "--data", "1"]),
        cli.json(&["events", "discard", &id]),
        cli.json(&["cleanup", "--older-than", "1d"]),
    ];
    let mut fields = Vec::new();
    for result in &results {
        collect_fields(result, &mut fields);
    }
    for field in fields {
        assert!(docs.contains(&format!("`{field}`")), "{field} is not in docs/commands.md");
    }
}

fn collect_fields(value: &serde_json::Value, fields: &mut Vec<String>) {
    match value {
        serde_json::Value::Object(object) => {
            for (name, value) in object {
                fields.push(name.clone());
                collect_fields(value, fields);
            }
        }
        serde_json::Value::Array(values) => {
            values.iter().for_each(|value| collect_fields(value, fields));
        }
        _ => {}
    }
}

#[test]
fn a_list_goes_on_where_its_page_says_and_types_are_patterns() {
    let cli = Cli::migrated();
    for event_type in ["order.placed", "order.paid", "user.born"] {
        cli.publish(event_type, "1");
    }
    let types = |list: &serde_json::Value| -> Vec<String> {
        let events = list["events"].as_array().unwrap().iter();
        events.map(|event| event["type"].as_str().unwrap().to_owned()).collect()
    };
    let orders = cli.json(&["events", "list", "--type", "order.*"]);
    assert_eq!(types(&orders), ["order.placed", "order.paid"]);
    assert_eq!(orders["next"], json!(null));
    let mut seen = Vec::new();
    let mut arguments = vec!["events".to_owned(), "list".into(), "--limit".into(), "1".into()];
    loop {
        let page = cli.json(&arguments.iter().map(String::as_str).collect::<Vec<_>>());
        seen.extend(types(&page));
        let Some(next) = page["next"].as_str() else { break };
        arguments.truncate(4);
        arguments.extend(["--after".to_owned(), next.to_owned()]);
    }
    assert_eq!(seen, ["order.placed", "order.paid", "user.born"]);
    let human = cli.run(&["events", "list", "--limit", "1"]).succeeded().stdout;
    assert!(human.contains("there are more: --after 1"), "{human}");
    cli.run(&["events", "list", "--after", "nowhere"]).failed(2, &["posthaste events list"]);
}

#[test]
fn the_beginning_of_an_id_is_enough_where_it_is_the_only_one() {
    let cli = Cli::migrated();
    let id = |end: &str| format!("0189aaaa-bbbb-7ccc-8ddd-{end}");
    for end in ["000000000001", "00000000ff02"] {
        let id = id(end);
        let args = ["publish", "t", "--aggregate-id", AGGREGATE, "--id", &id, "--data", "1"];
        cli.run(&args).succeeded();
    }
    cli.run(&["events", "show", "0189aaaa"])
        .failed(2, &["several ids begin so", &id("000000000001")]);
    let short = &id("00000000ff02")[..33];
    assert_eq!(cli.json(&["events", "show", short])["id"], id("00000000ff02"));
    assert_eq!(cli.json(&["events", "list", "--id", short])["events"][0]["id"], id("00000000ff02"));
    assert_eq!(cli.json(&["events", "discard", short]), json!({ "discarded": 1 }));
    cli.run(&["events", "show", short]).failed(1, &["no event whose id begins so"]);
    cli.run(&["events", "show", "018"]).failed(2, &["hexadecimal digits"]);
}

#[test]
fn what_cannot_be_done_to_delivered_events_is_refused_with_what_does_it() {
    let cli = Cli::migrated();
    cli.run(&["events", "retry", "--state", "delivered", "--all-matching", "--yes"])
        .failed(2, &["it has arrived", "posthaste publish"]);
    cli.run(&["events", "discard", "--state", "delivered", "--all-matching", "--yes"])
        .failed(2, &["posthaste cleanup"]);
}

#[test]
fn what_waits_can_be_sent_elsewhere_and_at_once() {
    let cli = Cli::migrated();
    let to_nowhere = ["--destination", "nowhere", "--delay", "1h", "--data", "1"];
    cli.run(&[&["publish", "t", "--aggregate-id", AGGREGATE][..], &to_nowhere].concat())
        .succeeded();
    cli.run(&["run", "--drain"]).succeeded();
    assert_eq!(cli.pending(), 1, "its destination is not configured: it waits");
    let id = cli.json(&["events", "list"])["events"][0]["id"].as_str().unwrap().to_owned();
    cli.run(&["events", "reroute", &id, "--to", "elsewhere"])
        .failed(2, &["no destination \"elsewhere\" is configured; there is default", "[[routes]]"]);
    assert_eq!(cli.json(&["events", "release", &id]), json!({ "released": 1 }));
    assert_eq!(cli.json(&["events", "reroute", &id, "--to", "default"]), json!({ "rerouted": 1 }));
    assert!(cli.run(&["run", "--drain"]).succeeded().stdout.contains(&id));
    assert_eq!(cli.pending(), 0);
}

#[tokio::test]
async fn a_dead_letter_that_is_sent_elsewhere_stays_one_and_that_is_said() {
    let cli = Cli::migrated();
    let to = ["--destination", "nowhere", "--key", "k", "--data", "1"];
    for _ in 0..2 {
        let publish = ["publish", "t", "--aggregate-id", AGGREGATE];
        cli.run(&[&publish[..], &to].concat()).succeeded();
    }
    let ids: Vec<String> = cli.json(&["events", "list"])["events"]
        .as_array()
        .unwrap()
        .iter()
        .map(|event| event["id"].as_str().unwrap().to_owned())
        .collect();
    let alive = cli.run(&["events", "reroute", &ids[0], "--to", "default"]).succeeded();
    assert!(!alive.stderr.contains("dead"), "{alive:?}");
    let file = sqlx::sqlite::SqliteConnectOptions::new().filename(cli.path("posthaste.db"));
    let mut connection = sqlx::ConnectOptions::connect(&file).await.unwrap();
    let kill = "update outbox_events set dead_at = '2026-01-01T00:00:00Z' where seq = 2";
    sqlx::query(kill).execute(&mut connection).await.unwrap();
    let told =
        cli.run(&["events", "reroute", "--all-matching", "--yes", "--by-routes"]).succeeded();
    assert_eq!(told.stdout, "rerouted 2 events\n");
    for part in ["1 dead letter among those that match", "`posthaste events retry`"] {
        assert!(told.stderr.contains(part), "{part}: {told:?}");
    }
}
