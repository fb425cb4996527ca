//! What whoever writes rows can put on an operator's screen.

use crate::common::Cli;
use sqlx::ConnectOptions as _;

#[tokio::test]
async fn a_row_shows_on_one_line_and_steers_no_terminal() {
    let cli = Cli::migrated();
    let file = sqlx::sqlite::SqliteConnectOptions::new().filename(cli.path("posthaste.db"));
    let mut connection = file.connect().await.unwrap();
    let insert = "insert into outbox_events (aggregate_id, event_type, event_data, destination)
                  values ('01890a5d-ac96-774b-bcce-b302099a8057', ?, ?, ?)";
    let evil = |name: &str| format!("{name}\u{1b}]0;pwned\u{7}\u{9b}\nok  forged\u{202e}\u{2028}");
    sqlx::query(insert)
        .bind(evil("type"))
        .bind("{\"a\":\"\u{202e}\"}")
        .bind(evil("to"))
        .execute(&mut connection)
        .await
        .unwrap();
    let mut shown = vec![cli.run(&["run", "--once"])];
    let id = cli.json(&["events", "list"])["events"][0]["id"].as_str().unwrap().to_owned();
    for command in [&["status"][..], &["doctor"], &["events", "list"], &["events", "show", &id]] {
        shown.push(cli.run(command));
        shown.push(cli.run(&[&["--output", "json"], command].concat()));
    }
    assert!(shown.iter().any(|ended| ended.stdout.contains("type\\u{1b}]0;pwned")), "{shown:?}");
    for ended in shown {
        let text = format!("{}{}", ended.stdout, ended.stderr);
        assert!(!text.contains(['\u{1b}', '\u{7}', '\u{9b}', '\u{202e}', '\u{2028}']), "{text:?}");
        assert!(!text.lines().any(|line| line.starts_with("ok  forged")), "{text}");
    }
}
