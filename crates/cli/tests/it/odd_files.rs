//! Paths and settings of the machine that would destroy the outbox, or end the program.

use std::os::unix::fs::symlink;

use crate::common::database::TestDatabase;
use crate::common::{AGGREGATE, Cli};

fn check(cli: &Cli, text: &str, parts: &[&str]) {
    cli.write("c.toml", text);
    cli.run(&["config", "check", "-c", "c.toml"]).failed(78, parts);
    cli.run(&["run", "--once", "-c", "c.toml"]).failed(78, parts);
}

#[test]
fn a_file_that_is_in_use_is_no_destination_whatever_it_is_called() {
    let cli = Cli::migrated();
    std::fs::create_dir(cli.path("folder")).unwrap();
    symlink(cli.path("posthaste.db"), cli.path("link")).unwrap();
    std::fs::hard_link(cli.path("posthaste.db"), cli.path("hard")).unwrap();
    let before = std::fs::read(cli.path("posthaste.db")).unwrap();
    for path in [
        "posthaste.db",
        "folder/../posthaste.db",
        "link",
        "hard",
        "posthaste.db-wal",
        "folder/../posthaste.db-shm",
        "posthaste.db.relay-lock",
    ] {
        let text = format!("[destinations.a]\ntype = \"file\"\npath = \"{path}\"\n");
        check(&cli, &text, &["destinations.a.path: the outbox has", path]);
    }
    let text = "[destinations.a]\ntype = \"file\"\npath = \"folder/../c.toml\"\n";
    check(&cli, text, &["destinations.a.path: the configuration is read from"]);
    assert_eq!(std::fs::read(cli.path("posthaste.db")).unwrap(), before, "nothing was written");
}

#[test]
fn two_destinations_do_not_write_to_one_file_by_two_names() {
    let cli = Cli::migrated();
    std::fs::create_dir(cli.path("folder")).unwrap();
    symlink("folder", cli.path("other")).unwrap();
    cli.write("there", "");
    std::fs::hard_link(cli.path("there"), cli.path("hard")).unwrap();
    for (one, two) in [("out", "folder/../out"), ("folder/out", "other/out"), ("there", "hard")] {
        let destination =
            |name, path| format!("[destinations.{name}]\ntype = \"file\"\npath = \"{path}\"\n");
        let text = destination("a", one) + &destination("b", two);
        check(&cli, &text, &["destinations.b.path: a writes to", "already"]);
    }
}

#[test]
fn a_file_without_an_end_is_no_configuration_and_no_secret() {
    let cli = Cli::migrated();
    cli.run(&["-c", "/dev/zero", "config", "check"]).failed(78, &["over 16384 KiB"]);
    cli.write(
        "c.toml",
        "[destinations.a]\ntype = \"webhook\"\nurl = \"https://example.com\"\n\
         secret = \"file:/dev/zero\"\n",
    );
    cli.run(&["-c", "c.toml", "config", "check"]).failed(78, &["/dev/zero", "over 64 KiB"]);
}

#[test]
fn threads_that_the_runtime_cannot_have_are_refused_in_words() {
    for threads in ["0", "many", "-1"] {
        let cli = Cli::new().env("TOKIO_WORKER_THREADS", threads);
        cli.run(&["config", "check"]).failed(78, &["TOKIO_WORKER_THREADS", "from 1 to"]);
    }
}

#[test]
fn a_host_that_does_not_resolve_is_told_as_that() {
    let cli = Cli::migrated().env("POSTHASTE_OPS__LISTEN", "no-such-host.invalid:9464");
    cli.run(&["run"]).failed(1, &["no-such-host.invalid:9464 does not resolve", "127.0.0.1"]);
}

#[tokio::test]
async fn a_limit_of_a_files_size_pauses_that_destination_and_no_other() {
    let Some(database) = TestDatabase::create().await else { return };
    let cli = Cli::without_database().env("DATABASE_URL", &database.url());
    cli.run(&["migrate", "up"]).succeeded();
    cli.write(
        "posthaste.toml",
        "[destinations.good]\ntype = \"file\"\npath = \"/dev/null\"\n\
         [destinations.full]\ntype = \"file\"\npath = \"full\"\n\
         [[routes]]\nevent_type = \"full\"\ndestination = \"full\"\n",
    );
    database
        .run(&format!(
            "insert into outbox_events (aggregate_id, event_type, event_data)
             select gen_random_uuid(), 'full', to_json(repeat('x', 500)) from generate_series(1, 50)
             union all select '{AGGREGATE}', 'good', '{{}}'"
        ))
        .await;
    let relay = cli.command(&["run", "--once"]);
    let mut limited = std::process::Command::new("/bin/sh");
    limited.args(["-c", "ulimit -f 4; exec \"$0\" \"$@\""]).arg(relay.get_program());
    limited.args(relay.get_args()).current_dir(cli.path(""));
    let environment = relay.get_envs().filter_map(|(name, value)| Some((name, value?)));
    limited.env_clear().envs(environment);
    let ended = limited.output().unwrap();
    assert!(ended.status.code().is_some(), "killed: {ended:?}");
    let delivered = |of: &'static str| {
        format!("select count(processed_at) from outbox_events where event_type = '{of}'")
    };
    assert_eq!(database.count(&delivered("good")).await, 1, "{ended:?}");
    assert!(database.count(&delivered("full")).await < 50, "{ended:?}");
}

/// As in a container whose file system is read-only.
#[test]
fn no_command_of_a_relay_needs_a_folder_for_temporary_files() {
    let cli =
        Cli::migrated().env("TMPDIR", "/no/such/folder").env("SQLITE_TMPDIR", "/no/such/folder");
    cli.publish("a", "1");
    assert_eq!(cli.run(&["run", "--drain"]).succeeded().events().len(), 1);
    for command in [
        &["doctor"][..],
        &["status"],
        &["events", "list"],
        &["cleanup", "--older-than", "0s"],
        &["migrate", "sql", "--dialect", "sqlite"],
    ] {
        let ended = cli.run(command);
        assert!(
            matches!(ended.code, Some(0 | 1)) && !ended.stderr.contains("/no/such"),
            "{ended:?}"
        );
    }
    cli.run(&["migrate", "sql", "--dialect", "sqlite"]).succeeded();
}
