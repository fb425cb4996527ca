//! `posthaste run`, with SQLite and files.

use std::io::{BufRead, BufReader};
use std::process::{Output, Stdio};

use crate::common::{AGGREGATE, Cli, Running, Watchdog, lines_of};

#[test]
fn what_was_published_is_what_drain_writes_to_standard_output() {
    let cli = Cli::migrated();
    cli.publish("order.placed", r#"{"total":42}"#);
    cli.run_with_input(
        &["publish", "order.paid", "--aggregate-id", AGGREGATE, "--header", "tenant=acme", "-"],
        br#"{"paid":true}"#,
    )
    .succeeded();
    let events = cli.run(&["run", "--drain"]).succeeded().events();
    assert_eq!(events.len(), 2, "{events:?}");
    assert_eq!(events[0]["type"], "order.placed");
    assert_eq!(events[0]["data"]["total"], 42);
    assert_eq!(events[1]["type"], "order.paid");
    assert_eq!(events[1]["headers"]["tenant"], "acme");
    assert_eq!(cli.pending(), 0);
    assert_eq!(cli.run(&["run", "--once"]).succeeded().stdout, "");
}

#[test]
fn run_without_anything_creates_its_outbox_and_writes_no_log_to_standard_output() {
    let cli = Cli::without_database();
    let ended = cli.run(&["run", "--once"]).succeeded();
    assert_eq!(ended.stdout, "");
    assert!(ended.stderr.contains("reads sqlite:posthaste.db, sends to default (stdout)"));
    assert!(cli.path("posthaste.db").exists());
}

#[test]
fn a_copy_of_the_file_alone_has_all_that_a_command_committed() {
    let cli = Cli::migrated();
    for number in 0..5 {
        cli.publish("a", "1");
        let copy = format!("copy-{number}.db");
        std::fs::copy(cli.path("posthaste.db"), cli.path(&copy)).unwrap();
        let status = ["--database-url", &format!("sqlite:{copy}"), "status"];
        assert_eq!(cli.json(&status)["backlog"]["pending"], number + 1);
    }
}

#[test]
fn the_file_in_the_working_directory_is_used_and_named() {
    let cli = Cli::migrated();
    cli.publish("a", "1");
    cli.write("posthaste.toml", "[destinations.log]\ntype = \"file\"\npath = \"out.ndjson\"\n");
    let ended = cli.run(&["run", "--drain"]).succeeded();
    assert!(ended.stderr.contains("configuration posthaste.toml"), "{ended:?}");
    assert_eq!(ended.stdout, "");
    let written = std::fs::read_to_string(cli.path("out.ndjson")).unwrap();
    assert_eq!(lines_of(&written).len(), 1);
}

#[test]
fn routes_and_destination_columns_choose_where_events_go() {
    let cli = Cli::migrated();
    cli.write(
        "posthaste.toml",
        "[destinations.default]\ntype = \"stdout\"\n\
         [destinations.orders]\ntype = \"file\"\npath = \"orders.ndjson\"\n\
         [[routes]]\nevent_type = \"order.*\"\ndestination = \"orders\"\n",
    );
    for event_type in ["order.placed", "user.born"] {
        cli.publish(event_type, "{}");
    }
    cli.run(&["publish", "user.moved", "--aggregate-id", AGGREGATE, "--destination", "orders"])
        .failed(2, &["give the body"]);
    let args = ["--destination", "orders", "--data", "{}"];
    cli.run(&[&["publish", "user.moved", "--aggregate-id", AGGREGATE], &args[..]].concat())
        .succeeded();
    let events = cli.run(&["run", "--drain"]).succeeded().events();
    assert_eq!(events.len(), 1);
    assert_eq!(events[0]["type"], "user.born");
    let orders = std::fs::read_to_string(cli.path("orders.ndjson")).unwrap();
    let types: Vec<_> = lines_of(&orders).iter().map(|event| event["type"].clone()).collect();
    assert_eq!(types, ["order.placed", "user.moved"]);
}

#[test]
fn a_signal_drains_and_ends_with_zero() {
    for signal in ["TERM", "INT", "HUP"] {
        let cli = Cli::migrated().env("POSTHASTE_OPS__LISTEN", "off");
        let mut running = cli.start(&["run"]);
        running.wait_for_log("reads sqlite");
        let mut output = BufReader::new(running.child.stdout.take().unwrap());
        cli.publish("late", "1");
        let mut line = String::new();
        output.read_line(&mut line).unwrap();
        assert!(line.contains("\"late\""), "{line}");
        running.signal(signal);
        running.wait_for_log("stopped");
        assert_eq!(running.child.wait().unwrap().code(), Some(0));
        assert_eq!(cli.pending(), 0, "what was acknowledged is settled");
    }
}

#[test]
fn a_second_signal_exits_at_once() {
    // A pipe that nobody reads holds the write, and with it the drain.
    let cli = Cli::migrated().env("POSTHASTE_OPS__LISTEN", "off");
    let body = format!("\"{}\"", "x".repeat(100_000));
    cli.write("body", &body);
    cli.run(&["publish", "t", "--aggregate-id", AGGREGATE, "-f", "body"]).succeeded();
    let mut running = cli.start(&["run"]);
    let output = running.child.stdout.as_mut().unwrap();
    std::io::Read::read_exact(output, &mut [0; 10]).unwrap();
    running.signal("TERM");
    running.wait_for_log("a second signal exits at once");
    running.signal("TERM");
    running.wait_for_log("stopped at once");
    assert_eq!(running.child.wait().unwrap().code(), Some(1));
    assert_eq!(cli.pending(), 1);
}

/// A relay that has its outbox: it has delivered an event.
fn started(cli: &Cli) -> Running {
    cli.publish("first", "1");
    let mut running = cli.start(&["run"]);
    let output = running.child.stdout.as_mut().unwrap();
    BufReader::new(output).read_line(&mut String::new()).unwrap();
    running
}

#[test]
fn a_second_relay_on_the_same_file_is_refused() {
    let cli = Cli::migrated().env("POSTHASTE_OPS__LISTEN", "127.0.0.1:0");
    let _running = started(&cli);
    cli.run(&["run", "--once"]).failed(1, &["another"]);
}

fn run_with_a_closed_pipe(cli: &Cli, arguments: &[&str]) -> Output {
    let mut command = cli.command(arguments);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    let _watchdog = Watchdog::over(child.id());
    child.wait_with_output().unwrap()
}

#[test]
fn a_closed_pipe_ends_the_relay_and_loses_nothing() {
    let cli = Cli::migrated();
    cli.publish("a", "1");
    let ended = run_with_a_closed_pipe(&cli, &["run", "--drain"]);
    let stderr = String::from_utf8(ended.stderr).unwrap();
    assert_eq!(ended.status.code(), Some(0), "{stderr}");
    assert!(stderr.contains("standard output was closed"), "{stderr}");
    assert_eq!(cli.pending(), 1);
}

#[test]
fn a_closed_pipe_is_no_failure_of_a_listing() {
    let cli = Cli::migrated();
    cli.publish("a", "1");
    let ended = run_with_a_closed_pipe(&cli, &["events", "list"]);
    assert_eq!(ended.status.code(), Some(0));
    assert_eq!(String::from_utf8(ended.stderr).unwrap(), "");
}

#[test]
fn a_delayed_event_is_left_for_later() {
    let cli = Cli::migrated();
    let args = ["publish", "later", "--aggregate-id", AGGREGATE, "--delay", "1h", "--data", "1"];
    cli.run(&args).succeeded();
    assert_eq!(cli.run(&["run", "--drain"]).succeeded().stdout, "");
    let backlog = &cli.json(&["status"])["backlog"];
    assert_eq!(backlog["scheduled"], 1);
}

#[test]
fn a_stalled_standard_error_stops_nothing() {
    let cli = Cli::migrated().env("POSTHASTE_OPS__LISTEN", "off").env("RUST_LOG", "trace");
    // Nobody reads the pipe of standard error: it is full after a few dozen events at this level.
    let mut command = cli.command(&["run"]);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let watchdog = Watchdog::over(child.id());
    let stderr = child.stderr.take().unwrap();
    let mut output = BufReader::new(child.stdout.take().unwrap());
    for number in 0..3 {
        let lines: String = (0..400)
            .map(|_| {
                format!("{{\"aggregate_id\":\"{AGGREGATE}\",\"type\":\"t\",\"data\":{number}}}\n")
            })
            .collect();
        cli.run_with_input(&["publish", "--from", "-"], lines.as_bytes()).succeeded();
        for _ in 0..400 {
            assert!(output.read_line(&mut String::new()).unwrap() > 0, "it delivers");
        }
    }
    let id = child.id().to_string();
    assert!(
        std::process::Command::new("kill").args(["-s", "TERM", &id]).status().unwrap().success()
    );
    assert_eq!(child.wait().unwrap().code(), Some(0), "it stops when it is told to");
    drop((watchdog, stderr));
    assert_eq!(cli.pending(), 0);
}

#[test]
fn a_closed_standard_output_is_refused_as_a_destination() {
    let cli = Cli::migrated().env("POSTHASTE_OPS__LISTEN", "off");
    cli.publish("a", "1");
    let program = cli.command(&["run", "--drain"]);
    let mut shell = std::process::Command::new("sh");
    shell.args(["-c", "exec \"$0\" run --drain >&-"]).arg(program.get_program());
    shell.current_dir(program.get_current_dir().unwrap()).env_clear().stderr(Stdio::piped());
    let ended = shell.spawn().unwrap().wait_with_output().unwrap();
    let stderr = String::from_utf8(ended.stderr).unwrap();
    assert_eq!(ended.status.code(), Some(78), "{stderr}");
    assert!(stderr.contains("destinations.default writes to standard output, which is closed"));
    assert_eq!(cli.pending(), 1);
    let null = std::fs::File::create("/dev/null").unwrap();
    let ended = cli.command(&["run", "--drain"]).stdout(null).output().unwrap();
    assert_eq!(ended.status.code(), Some(0), "whoever asks for /dev/null gets it");
}

#[test]
fn a_run_that_ends_by_itself_gives_a_database_up_that_is_away() {
    // Nothing listens on port 1.
    let cli = Cli::new().env("DATABASE_URL", "postgres://u@127.0.0.1:1/x?connect_timeout=1");
    for kind in ["--once", "--drain"] {
        cli.run(&["run", kind, "--give-up-after", "1s"])
            .failed(1, &["could not be reached for", "--give-up-after"]);
    }
}
