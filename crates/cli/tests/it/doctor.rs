//! `doctor` in a database that is set up wrongly: what, where, and the next step.

use crate::common::Cli;
use crate::common::database::TestDatabase;
use serde_json::Value;
use uuid::Uuid;

fn doctor(cli: &Cli) -> (Option<i32>, Value) {
    let ended = cli.run(&["--output", "json", "doctor"]);
    (ended.code, serde_json::from_str(&ended.stdout).unwrap())
}

fn finding<'a>(report: &'a Value, about: &str) -> &'a Value {
    let findings = report["findings"].as_array().unwrap();
    let found = findings.iter().find(|finding| finding["about"] == about);
    found.unwrap_or_else(|| panic!("nothing about {about}: {report}"))
}

#[tokio::test]
async fn of_a_login_without_rights_all_that_is_missing_is_named_by_doctor_and_by_run() {
    let Some(database) = TestDatabase::create().await else { return };
    Cli::new().run(&["--database-url", &database.url(), "migrate", "up"]).succeeded();
    let role = format!("doctor_{}", Uuid::now_v7().simple());
    database.run(&format!("create role {role} login")).await;
    let url = database.url();
    let (_, host) = url.split_once('@').unwrap();
    let cli = Cli::new()
        .env("DATABASE_URL", &format!("postgres://{role}@{host}"))
        .env("POSTHASTE_OPS__LISTEN", "off");
    let (code, report) = doctor(&cli);
    let missing = "select, insert, update, delete on outbox_relays";
    let rights = finding(&report, "rights");
    assert_eq!((code, &rights["level"]), (Some(1), &Value::from("error")), "{report}");
    assert!(rights["message"].as_str().unwrap().contains(missing), "{rights}");
    // Each of these could not look, and said so.
    for about in ["relays", "keys", "backlog"] {
        assert_eq!(finding(&report, about)["level"], "error", "{report}");
    }
    assert_eq!(finding(&report, "open transactions")["level"], "ok", "{report}");
    cli.run(&["run", "--once"]).failed(78, &[missing, "migrate sql --roles"]);
    database.run(&format!("drop role {role}")).await;
}

#[tokio::test]
async fn an_outbox_in_another_schema_is_named_by_each_command() {
    let Some(database) = TestDatabase::create().await else { return };
    Cli::new().run(&["--database-url", &database.url(), "migrate", "up"]).succeeded();
    let url = database.url();
    let mark = if url.contains('?') { '&' } else { '?' };
    let cli = Cli::new()
        .env("DATABASE_URL", &format!("{url}{mark}schema=nowhere"))
        .env("POSTHASTE_DATABASE__MIGRATE", "false")
        .env("POSTHASTE_OPS__LISTEN", "off");
    let (code, report) = doctor(&cli);
    let schema = finding(&report, "schema");
    assert_eq!(
        (code, &schema["hint"]),
        (Some(1), &"name it in the address: `?schema=public`".into())
    );
    assert_eq!(
        report["findings"].as_array().unwrap().len(),
        4,
        "nothing follows from it: {report}"
    );
    let parts = ["(nowhere) exists", "there is one in public", "?schema=public"];
    cli.run(&["status"]).failed(1, &parts);
    cli.run(&["events", "list"]).failed(1, &parts);
    cli.run(&["run"]).failed(78, &parts);
    // Nor does a relay that may migrate begin a second outbox there.
    database.run("create schema other").await;
    let other = Cli::new()
        .env("DATABASE_URL", &format!("{url}{mark}schema=other"))
        .env("POSTHASTE_OPS__LISTEN", "off");
    let parts = ["schema other", "there is one in public", "run `posthaste migrate up`"];
    other.run(&["run", "--once"]).failed(78, &parts);
    other.run(&["migrate", "up"]).succeeded();
    other.run(&["run", "--once"]).succeeded();
}
