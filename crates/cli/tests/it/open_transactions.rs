//! `status` and `doctor` name who holds events back, and what else is wrong.

use crate::common::database::TestDatabase;
use crate::common::{AGGREGATE, Cli};
use posthaste_testkit::servers::PostgresServer;
use serde_json::{Value, json};
use sqlx::{Connection as _, PgConnection};

fn insert() -> String {
    format!(
        "insert into outbox_events (aggregate_id, event_type, event_data) \
         values ('{AGGREGATE}', 'held', '{{}}')"
    )
}

async fn run(connection: &mut PgConnection, sql: &str) {
    sqlx::raw_sql(sqlx::AssertSqlSafe(sql.to_owned())).execute(connection).await.unwrap();
}

/// Waits until `status` shows as many transactions, and gives them: a transaction is shown from
/// its first second on.
fn shown(cli: &Cli, number: usize) -> Value {
    let begun = std::time::Instant::now();
    loop {
        let open = cli.json(&["status"])["open_transactions"].take();
        if open.as_array().unwrap().len() == number {
            return open;
        }
        assert!(begun.elapsed().as_secs() < 20, "{open}");
    }
}

fn finding<'a>(report: &'a Value, about: &str) -> &'a Value {
    let findings = report["findings"].as_array().unwrap();
    findings.iter().find(|finding| finding["about"] == about).unwrap()
}

#[tokio::test]
async fn a_transaction_left_open_is_named_by_status_and_doctor_until_it_ends() {
    let Some(server) = PostgresServer::start(&["max_prepared_transactions=5"]).await else {
        return;
    };
    let database = TestDatabase::create_at(server.url("postgres")).await;
    let cli = Cli::new().env("DATABASE_URL", &database.url());
    cli.run(&["migrate", "up"]).succeeded();
    assert_eq!(cli.json(&["status"])["open_transactions"], json!([]));
    let mut writer = database.connection().await;
    run(&mut writer, &format!("begin; {}; prepare transaction 'order 42'", insert())).await;
    run(&mut writer, "set application_name = 'shop'").await;
    run(&mut writer, &format!("begin;\n  {}", insert())).await;

    let open = shown(&cli, 2);
    let kind = |kind: &str| {
        let mut open = open.as_array().unwrap().iter();
        open.find(|open| open["kind"] == kind).unwrap()
    };
    let prepared = kind("prepared");
    assert_eq!((&prepared["prepared"], &prepared["user"]), (&json!("order 42"), &json!("root")));
    let session = kind("session");
    for (name, value) in [
        ("application", json!("shop")),
        ("client", json!("127.0.0.1")),
        ("state", json!("idle in transaction")),
        ("permitted", json!(true)),
    ] {
        assert_eq!(session[name], value, "{name}: {session}");
    }
    let query = session["query"].as_str().unwrap();
    assert!(query.starts_with("begin; insert into outbox_events ("), "on one line: {query}");
    assert!(query.ends_with('…'), "shortened: {query}");
    let pid = session["pid"].as_i64().unwrap();
    assert!(session["age_seconds"].as_f64().unwrap() >= 1.0, "{session}");
    let human = cli.run(&["status"]).succeeded().stdout;
    assert!(human.contains("holds events back"), "{human}");
    let human = cli.run(&["doctor"]).succeeded().stdout;
    for part in [&*format!("pid {pid}, user root, application shop"), "\"order 42\"", "idle in tra"]
    {
        assert!(human.contains(part), "{part}: {human}");
    }
    let report = cli.json(&["doctor"]);
    let finding = finding(&report, "open transactions");
    assert_eq!(finding["level"], "ok", "not for a minute yet: {finding}");
    assert_eq!(finding["open_transactions"].as_array().unwrap().len(), 2);

    run(&mut writer, "commit").await;
    database.run("rollback prepared 'order 42'").await;
    assert_eq!(cli.json(&["status"])["open_transactions"], json!([]));
}

#[tokio::test]
async fn a_user_who_may_not_see_sessions_is_told_so_and_sees_the_process() {
    let Some(server) = PostgresServer::start(&[]).await else { return };
    let database = TestDatabase::create_at(server.url("postgres")).await;
    Cli::new().run(&["--database-url", &database.url(), "migrate", "up"]).succeeded();
    database
        .run(
            "create role watcher login; grant select on outbox_events, outbox_events_pending, \
             outbox_migrations, outbox_signal, outbox_events_seq to watcher",
        )
        .await;
    let cli = Cli::new().env("DATABASE_URL", &database.url().replace("root@", "watcher@"));
    let mut writer = database.connection().await;
    run(&mut writer, &format!("begin; {}", insert())).await;
    let pid: i32 =
        sqlx::query_scalar("select pg_backend_pid()").fetch_one(&mut writer).await.unwrap();
    let open = shown(&cli, 1);
    let [open] = &open.as_array().unwrap()[..] else { panic!("{open}") };
    assert_eq!((&open["pid"], &open["permitted"]), (&json!(pid), &json!(false)), "{open}");
    assert_eq!((&open["query"], &open["age_seconds"]), (&Value::Null, &Value::Null), "{open}");
    let human = cli.run(&["status"]).succeeded().stdout;
    assert!(human.contains("not permitted to see (grant pg_read_all_stats"), "{human}");
    writer.close().await.unwrap();
}

#[test]
fn doctor_says_what_is_wrong_what_to_do_and_fails_only_where_delivery_stops() {
    let cli = Cli::new().env("POSTHASTE_RELAY__UNKNOWN_DESTINATION", "dead");
    let ended = cli.run(&["doctor"]);
    assert_eq!(ended.code, Some(1), "{ended:?}");
    assert!(ended.stdout.contains("error    database: ") && ended.stdout.contains("migrate up"));
    cli.run(&["migrate", "up"]).succeeded();
    let report = cli.json(&["doctor"]);
    assert_eq!(report["ok"], true, "{report}");
    let nowhere = ["publish", "t", "--aggregate-id", AGGREGATE, "--destination", "nowhere"];
    cli.run(&[&nowhere[..], &["--data", "1"]].concat()).succeeded();
    cli.run(&["run", "--drain"]).succeeded();
    cli.publish("behind", "1");
    let report = cli.json(&["doctor"]);
    let keys = finding(&report, "keys");
    assert_eq!((&report["ok"], &keys["level"]), (&json!(true), &json!("warning")), "{report}");
    assert_eq!(keys["message"], "1 key blocked by a dead letter, 1 event behind");
    assert_eq!(finding(&report, "destination default")["level"], "ok");
    cli.write(
        "posthaste.toml",
        "[destinations.default]\ntype = \"file\"\npath = \"no/such/folder/events\"\n",
    );
    let ended = cli.run(&["--output", "json", "doctor"]);
    let report: Value = serde_json::from_str(&ended.stdout).unwrap();
    assert_eq!((ended.code, &report["ok"]), (Some(1), &json!(false)), "{report}");
    assert_eq!(finding(&report, "destination default")["level"], "error", "{report}");
}

#[tokio::test]
async fn a_standby_is_refused_by_every_command_that_would_deliver_or_change() {
    let Some(server) = PostgresServer::start(&["wal_level=replica", "max_wal_senders=4"]).await
    else {
        return;
    };
    Cli::new().run(&["--database-url", &server.url("postgres"), "migrate", "up"]).succeeded();
    let standby = server.standby().await;
    let what = "standby";
    for migrate in ["true", "false"] {
        let cli = Cli::new()
            .env("DATABASE_URL", &standby.url("postgres"))
            .env("POSTHASTE_OPS__LISTEN", "off")
            .env("POSTHASTE_DATABASE__MIGRATE", migrate);
        for command in [&["run"][..], &["run", "--drain"], &["run", "--once"]] {
            // Wrong configuration: to start again would not help.
            cli.run(command).failed(78, &[what, "address of the primary"]);
        }
        cli.run(&["migrate", "up"]).failed(78, &[what, "address of the primary"]);
        let publish = ["publish", "t", "--aggregate-id", AGGREGATE, "--data", "1"];
        cli.run(&publish).failed(1, &["read-only", what]);
        let ended = cli.run(&["doctor"]);
        assert_eq!(ended.code, Some(1), "{ended:?}");
        assert!(ended.stdout.contains("address of the primary"), "{ended:?}");
    }
}

/// What a relay knows and the database does not.
#[tokio::test]
async fn doctor_and_status_tell_what_a_running_relay_says_of_itself() {
    let Some(database) = TestDatabase::create().await else { return };
    says_what_it_does(&Cli::new().env("DATABASE_URL", &database.url()));
}

#[test]
fn a_relay_on_sqlite_says_of_itself_what_one_on_postgresql_does() {
    says_what_it_does(&Cli::new().env("DATABASE_URL", "sqlite:posthaste.db"));
}

fn says_what_it_does(cli: &Cli) {
    cli.write(
        "posthaste.toml",
        "[database]\nurl = \"env:DATABASE_URL\"\n[ops]\nlisten = \"off\"\n\
         [destinations.billing]\ntype = \"webhook\"\n\
         url = \"http://127.0.0.1:9/hook\"\nallow_private_addresses = true\n",
    );
    cli.run(&["migrate", "up"]).succeeded();
    let report: Value =
        serde_json::from_str(&cli.run(&["--output", "json", "doctor"]).stdout).unwrap();
    assert!(finding(&report, "relays")["message"].as_str().unwrap().contains("none runs"));
    cli.publish("order.placed", "1");
    let relay = cli.start(&["run"]);
    relay.wait_for_log("paused");
    let begun = std::time::Instant::now();
    loop {
        let ended = cli.run(&["--output", "json", "doctor"]);
        let report: Value = serde_json::from_str(&ended.stdout).unwrap();
        let relays = finding(&report, "relays");
        if relays["message"].as_str().unwrap().contains("destination billing is paused since 2") {
            assert_eq!(relays["level"], "warning");
            break;
        }
        assert!(begun.elapsed().as_secs() < 30, "{relays}");
    }
    let human = cli.run(&["status"]).succeeded().stdout;
    assert!(human.contains("relay") && human.contains("64 shards"), "{human}");
    assert!(human.contains("0.0/s in the last seconds") && human.contains("empty in"), "{human}");
    let shown = cli.json(&["status"]);
    assert_eq!(shown["relays"][0]["report"]["destinations"][0]["name"], "billing", "{shown}");
    assert_eq!(shown["throughput"]["delivered_per_second"], 0.0, "{shown}");
    assert_eq!(shown["throughput"]["seconds_to_empty"], Value::Null, "{shown}");
    relay.signal("TERM");
    assert_eq!(relay.end().0, Some(0));
    let shown = cli.json(&["status"]);
    assert_eq!(shown["relays"], json!([]), "one that stopped says nothing more");
    assert_eq!(shown["throughput"]["delivered_per_second"], Value::Null, "{shown}");
}
