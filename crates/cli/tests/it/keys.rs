//! What an operator sees of keys that wait.

use crate::common::database::TestDatabase;
use crate::common::{AGGREGATE, Cli};
use serde_json::{Value, json};

/// A line for `publish --from`.
fn line(key: &str, event_type: &str, destination: Option<&str>) -> String {
    let event = json!({
        "aggregate_id": AGGREGATE, "type": event_type, "key": key, "data": 1,
        "destination": destination,
    });
    event.to_string() + "\n"
}

/// The keys and states that are listed.
fn listed(list: &Value) -> Vec<(&str, &str)> {
    let keys = list["keys"].as_array().unwrap().iter();
    keys.map(|key| (key["key"].as_str().unwrap(), key["state"].as_str().unwrap())).collect()
}

#[test]
fn a_blocked_key_is_shown_with_its_head_why_since_when_and_what_waits() {
    let cli = Cli::migrated().env("POSTHASTE_RELAY__UNKNOWN_DESTINATION", "dead");
    assert_eq!(cli.run(&["keys", "list"]).succeeded().stdout, "no key waits\n");
    let mut lines = line("a", "placed", Some("nowhere"));
    lines.extend((0..3).map(|_| line("a", "paid", None)));
    lines.push_str(&line("b", "placed", None));
    cli.write("events.ndjson", lines);
    cli.run(&["publish", "--from", "events.ndjson"]).succeeded();
    cli.run(&["run", "--drain"]).succeeded();
    let list = cli.json(&["keys", "list"]);
    assert_eq!(listed(&list), [("a", "blocked")], "{list}");
    assert_eq!((&list["more"], &list["next"]), (&json!(false), &Value::Null));
    let key = &list["keys"][0];
    assert_eq!((&key["waiting"], &key["waiting_is_minimum"]), (&json!(3), &json!(false)));
    let head = &key["head"];
    assert_eq!((&head["place"], &head["type"]), (&json!(1), &json!("placed")), "{head}");
    assert_eq!((&head["destination"], &head["next_attempt_at"]), (&json!("nowhere"), &Value::Null));
    assert_eq!(head["dead_reason"], "destination_missing");
    assert!(head["error_message"].as_str().unwrap().contains("nowhere"), "{head}");
    head["dead_at"].as_str().unwrap().parse::<jiff::Timestamp>().unwrap();
    let id = head["id"].as_str().unwrap();
    assert_eq!(cli.json(&["events", "show", id])["state"], "dead");
    let human = cli.run(&["keys", "list"]).succeeded().stdout;
    for part in ["blocked", id, "placed", "nowhere", "destination_missing"] {
        assert!(human.contains(part), "{human}");
    }
    let full = cli.json(&["keys", "list", "--limit", "1"]);
    assert_eq!((&full["more"], &full["next"]), (&json!(false), &Value::Null));
    cli.run(&["events", "discard", id]).succeeded();
    assert_eq!(listed(&cli.json(&["keys", "list"])), []);
}

/// What an event met that counts no attempt is in its row only while it waits for the next try.
#[test]
fn keys_that_fail_uncounted_are_told_beside_those_of_the_table() {
    let cli = Cli::migrated();
    assert_eq!(cli.json(&["keys", "list"])["unlisted"], 0, "no relay runs");
    cli.write("events.ndjson", line("a", "placed", None) + &line("b", "placed", None));
    cli.run(&["publish", "--from", "events.ndjson"]).succeeded();
    sqlite(
        &cli,
        "insert into outbox_relays (relay, name, said_at, report) values ('r', 'host:1', \
         strftime('%Y-%m-%dT%H:%M:%SZ', 'now'), '{\"destinations\":[{\"name\":\"default\",\
         \"failing_keys\":3,\"uncounted_keys\":2}]}')",
    );
    assert_eq!(cli.json(&["keys", "list"])["unlisted"], 2);
    let human = cli.run(&["keys", "list"]).succeeded().stdout;
    assert!(human.contains("relays know of 2 more keys whose events fail"), "{human}");
    assert!(human.contains("posthaste status") && !human.contains("no key waits\n"), "{human}");
    assert_eq!(cli.json(&["keys", "list", "--by", "dead"])["unlisted"], Value::Null);
    sqlite(
        &cli,
        "update outbox_events set error_message = 'no', available_at = '2999-01-01T00:00:00Z' \
         where seq = 1",
    );
    let list = cli.json(&["keys", "list"]);
    assert_eq!((listed(&list), &list["unlisted"]), (vec![("a", "retrying")], &json!(1)), "{list}");
}

#[test]
fn a_key_whose_route_skips_is_shown_as_skipped() {
    let cli = Cli::migrated();
    let lines = [("a", "audit.seen"), ("b", "order.placed"), ("c", "metric.sent")];
    let lines = lines.map(|(key, event_type)| line(key, event_type, None)).concat();
    cli.write("events.ndjson", lines + &line("d", "audit.seen", Some("main")));
    cli.run(&["publish", "--from", "events.ndjson"]).succeeded();
    // Poison without a broker: no relay runs here, only the list is asked.
    let sql = "update outbox_events set dead_at = '2026-01-01T00:00:00Z', dead_reason = 'x'";
    sqlite(&cli, sql);
    cli.write(
        "posthaste.toml",
        "[destinations.main]\ntype = \"stdout\"\n\
         [destinations.metrics]\ntype = \"file\"\npath = \"m\"\ndead_head = \"skip\"\n\
         [[routes]]\nevent_type = \"audit.*\"\ndestination = \"main\"\ndead_head = \"skip\"\n\
         [[routes]]\nevent_type = \"metric.*\"\ndestination = \"metrics\"\n",
    );
    let list = cli.json(&["keys", "list"]);
    let expected = [("a", "skipped"), ("b", "blocked"), ("c", "skipped"), ("d", "blocked")];
    assert_eq!(listed(&list), expected, "{list}");
    assert_eq!(list["keys"][2]["head"]["destination"], "metrics");
}

/// Runs SQL on the outbox in the folder, the way any program would.
fn sqlite(cli: &Cli, sql: &'static str) {
    use sqlx::Connection as _;
    let url = format!("sqlite:{}", cli.path("posthaste.db").display());
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
        let mut connection = sqlx::SqliteConnection::connect(&url).await.unwrap();
        sqlx::raw_sql(sql).execute(&mut connection).await.unwrap();
        connection.close().await.unwrap();
    });
}

#[tokio::test]
async fn a_list_longer_than_a_page_goes_on_where_it_says() {
    let Some(database) = TestDatabase::create().await else { return };
    let cli = Cli::new().env("DATABASE_URL", &database.url());
    cli.run(&["migrate", "up"]).succeeded();
    // 30 keys with a dead letter (two each), 30 that wait for a retry, one that waits for nothing.
    database
        .run(
            "insert into outbox_events (aggregate_id, event_type, event_data, partition_key,
                                        dead_at, retry_count, available_at)
             select gen_random_uuid(), 't', '1', 'key ' || n % 61, case when n % 61 < 30 then now() end,
                    (n % 61 between 30 and 59)::int,
                    case when n % 61 between 30 and 59 then now() + interval '1 hour' end
               from generate_series(0, 121) as n",
        )
        .await;
    let mut found = Vec::new();
    let mut arguments = vec!["keys".to_owned(), "list".into(), "--limit".into(), "12".into()];
    let mut pages = 0;
    loop {
        let list = cli.json(&arguments.iter().map(String::as_str).collect::<Vec<_>>());
        pages += 1;
        let page = listed(&list);
        assert!(page.len() <= 12, "{list}");
        found.extend(page.iter().map(|(key, state)| format!("{key} {state}")));
        let next = &list["next"];
        arguments.truncate(4);
        if next.is_null() {
            // All with a dead letter; then those that wait for a retry, from their start.
            if found.len() > 30 {
                break;
            }
            arguments.extend(["--by".into(), "retry".into()]);
            continue;
        }
        arguments.extend(["--by".into(), next["by"].as_str().unwrap().into()]);
        arguments.extend(["--after".into(), next["after"].to_string()]);
    }
    let expected: Vec<String> = (0..60)
        .map(|n| format!("key {n} {}", if n < 30 { "blocked" } else { "retrying" }))
        .collect();
    let mut seen = std::collections::HashSet::new();
    found.retain(|key| seen.insert(key.clone()));
    assert_eq!(found, expected);
    assert!(pages >= 6, "{pages} pages");
    let human = cli.run(&["keys", "list", "--limit", "2"]).succeeded().stdout;
    assert!(human.contains("posthaste keys list --by dead --after 2"), "{human}");
    let full = cli.json(&["keys", "list", "--limit", "30"]);
    assert_eq!(full["next"], json!({ "by": "retry", "after": 0 }), "the other kind begins there");
    let full = cli.json(&["keys", "list", "--limit", "60"]);
    assert_eq!((&full["more"], &full["next"]), (&json!(false), &Value::Null));
    let both = cli.json(&["keys", "list"]);
    assert_eq!(both["keys"].as_array().unwrap().len(), 50, "30 and the first 20 of the others");
    let retrying = &both["keys"][30]["head"];
    assert!(retrying["next_attempt_at"].is_string() && retrying["dead_at"].is_null());
    cli.run(&["keys", "list", "--after", "7"]).failed(2, &["--by"]);
    cli.run(&["keys", "list", "--limit", "0"]).failed(2, &["from 1 on"]);
}
