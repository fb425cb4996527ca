//! Whoever gets something wrong gets one clear message, and nothing is lost.

use crate::common::{AGGREGATE, Cli};

#[test]
fn an_unknown_key_names_the_nearest_and_its_place() {
    let cli = Cli::new();
    cli.write("posthaste.toml", "[relay]\nbatchsize = 5\n");
    for command in [&["run", "--once"][..], &["status"], &["config", "check"], &["config", "show"]]
    {
        cli.run(command).failed(
            78,
            &["posthaste.toml:2:1", "unknown key relay.batchsize; did you mean relay.batch_size?"],
        );
    }
    assert!(!cli.path("posthaste.db").exists(), "nothing was started");
}

#[test]
fn an_unknown_variable_names_the_nearest() {
    let cli = Cli::new().env("POSTHASTE_RELAY__BATCHSIZE", "5");
    cli.run(&["run", "--once"]).failed(78, &["did you mean POSTHASTE_RELAY__BATCH_SIZE?"]);
}

#[test]
fn a_bad_duration_says_how_to_write_it() {
    let cli = Cli::new();
    cli.write("posthaste.toml", "[relay]\npoll_interval = \"5 parsecs\"\n");
    cli.run(&["run", "--once"]).failed(78, &["relay.poll_interval", "parsecs", "\"5s\""]);
    cli.run(&["cleanup", "--older-than", "30"]).failed(2, &["no unit"]);
}

#[test]
fn a_toml_mistake_is_shown_with_line_and_column() {
    let cli = Cli::new();
    cli.write("posthaste.toml", "[relay]\nbatch_size = = 5\n");
    cli.run(&["config", "check"]).failed(78, &["posthaste.toml:2:14", "TOML syntax"]);
}

#[test]
fn a_missing_configuration_file_is_named() {
    let cli = Cli::new();
    cli.run(&["-c", "nowhere.toml", "run"]).failed(78, &["nowhere.toml", "No such file"]);
}

#[test]
fn wrong_database_addresses_are_refused_without_their_password() {
    let cli = Cli::new();
    for (url, expected) in [
        ("mysql://joe:hunter2hunter2@h/d", "mysql:// is not a database that posthaste knows"),
        ("host=h password=hunter2hunter2", "is not the address of a database"),
        ("sqlite::memory:", "database in memory"),
        ("postgres://joe:hunter2hunter2@h:port/d", "database"),
    ] {
        let ended = cli.run(&["--database-url", url, "status"]).failed(78, &[expected]);
        assert!(!ended.stderr.contains("hunter2"), "{ended:?}");
    }
}

#[test]
fn a_configuration_that_names_no_database_makes_no_new_outbox() {
    let cli = Cli::without_database();
    let destination = "[destinations.a]\ntype = \"file\"\npath = \"out\"\n";
    cli.write("posthaste.toml", destination);
    for command in [&["run", "--once"][..], &["migrate", "up"], &["status"], &["config", "check"]] {
        cli.run(command).failed(78, &["no database is named", "sqlite:posthaste.db"]);
    }
    assert!(!cli.path("posthaste.db").exists());
    let cli = Cli::without_database().env("POSTHASTE_DATABSE_URL", "postgres://h/d");
    cli.run(&["run", "--once"]).failed(78, &["did you mean POSTHASTE_DATABASE_URL?"]);
    assert!(!cli.path("posthaste.db").exists());
    let cli = Cli::without_database();
    cli.write("posthaste.toml", destination);
    cli.run(&["--database-url", "sqlite:named.db", "run", "--once"]).succeeded();
    assert!(cli.path("named.db").exists());
}

#[test]
fn a_missing_outbox_says_how_to_create_it() {
    let cli = Cli::new();
    for command in [&["status"][..], &["events", "list"], &["cleanup", "--older-than", "1d"]] {
        cli.run(command).failed(1, &["posthaste.db does not exist", "posthaste migrate up"]);
    }
    let publish = ["publish", "t", "--aggregate-id", AGGREGATE, "--data", "1"];
    cli.run(&publish).failed(1, &["posthaste migrate up"]);
    assert!(!cli.path("posthaste.db").exists(), "a mistyped path must not become an outbox");
    let missing_folder = ["--database-url", "sqlite:no/such/folder/a.db", "migrate", "up"];
    cli.run(&missing_folder).failed(78, &["no/such/folder"]);
}

#[test]
fn a_file_that_is_no_database_is_left_alone() {
    let cli = Cli::new();
    let content = "this is not a database, and long enough to be taken for one. ".repeat(40);
    cli.write("posthaste.db", &content);
    for command in [&["status"][..], &["migrate", "up"], &["run", "--once"]] {
        let code = if command[0] == "run" { 78 } else { 1 };
        cli.run(command).failed(code, &["posthaste.db"]);
    }
    assert_eq!(std::fs::read_to_string(cli.path("posthaste.db")).unwrap(), content);
}

#[tokio::test]
async fn a_database_of_a_newer_version_is_refused() {
    use sqlx::Connection as _;
    let cli = Cli::migrated();
    let url = format!("sqlite:{}", cli.path("posthaste.db").display());
    let mut connection = sqlx::SqliteConnection::connect(&url).await.unwrap();
    let insert = "insert into outbox_migrations (version, name) values (999, 'from the future')";
    sqlx::raw_sql(insert).execute(&mut connection).await.unwrap();
    connection.close().await.unwrap();
    for command in [
        &["run", "--once"][..],
        &["status"],
        &["events", "list"],
        &["migrate", "up"],
        &["publish", "t", "--aggregate-id", AGGREGATE, "--data", "1"],
    ] {
        let code = if command[0] == "run" { 78 } else { 1 };
        cli.run(command).failed(code, &["999"]);
    }
}

#[test]
fn malformed_events_are_refused_before_anything_is_stored() {
    let cli = Cli::migrated();
    let publish = |rest: &[&str]| {
        let mut all = vec!["publish", "order.placed", "--aggregate-id", AGGREGATE];
        all.extend(rest);
        cli.run(&all)
    };
    let bad_id = ["publish", "t", "--aggregate-id", "no-uuid", "--data", "1"];
    cli.run(&bad_id).failed(2, &["--aggregate-id", "no-uuid"]);
    publish(&["--header", "no-value", "--data", "1"]).failed(2, &["NAME=VALUE"]);
    publish(&["--header", "a b=c", "--data", "1"]).failed(2, &["a header name is"]);
    publish(&["--header", "a=b\nc", "--data", "1"]).failed(2, &["control characters"]);
    publish(&["--data", ""]).failed(1, &["payload is empty"]);
    publish(&["--data", "{not json"]).failed(1, &["not JSON"]);
    publish(&["--data", "1", "--content-type", "nonsense"]).failed(1, &["type/subtype"]);
    publish(&["--data", "1", "-f", "x"]).failed(2, &["cannot be used with"]);
    publish(&["-f", "missing.json"]).failed(1, &["missing.json"]);
    publish(&["--data", "1", "--key", ""]).failed(1, &["order key is empty"]);
    publish(&["--data", "1", "--delay", "soon"]).failed(2, &["soon"]);
    publish(&[]).failed(2, &["--data"]);
    let long = "x".repeat(101);
    cli.run(&["publish", &long, "--aggregate-id", AGGREGATE, "--data", "1"])
        .failed(1, &["event_type is over 100 characters"]);
    assert_eq!(cli.pending(), 0);
}

#[test]
fn large_and_binary_bodies_pass_through_unharmed() {
    let cli = Cli::migrated();
    let large = format!("\"{}\"", "x".repeat(5 * 1024 * 1024));
    cli.write("large.json", &large).write("bytes", [0xff, 0xfe, 0x00, 0x80]);
    let publish = ["publish", "t", "--aggregate-id", AGGREGATE];
    cli.run(&[&publish[..], &["-f", "large.json"]].concat()).succeeded();
    cli.run(&[&publish[..], &["-f", "bytes", "--content-type", "application/avro"]].concat())
        .succeeded();
    cli.run_with_input(
        &[&publish[..], &["-f", "-", "--content-type", "application/empty"]].concat(),
        b"",
    )
    .succeeded();
    let events = cli.run(&["run", "--drain"]).succeeded().events();
    assert_eq!(events[0]["data"].as_str().unwrap().len(), 5 * 1024 * 1024);
    assert_eq!(events[1]["data_base64"], "//4AgA==");
    assert_eq!(events[2]["data_base64"], "");
}

#[test]
fn wrong_usage_ends_with_two() {
    let cli = Cli::new();
    cli.run(&["run", "--once", "--drain"]).failed(2, &["cannot be used with"]);
    cli.run(&["fly"]).failed(2, &["unrecognized subcommand"]);
    cli.run(&["events", "retry"]).failed(2, &["--all-matching"]);
    cli.run(&["events", "discard", "--state", "delivered", "--all-matching", "--yes"])
        .failed(2, &["cannot be discarded"]);
    cli.run(&["events", "list", "--since", "yesterday"]).failed(2, &["2026-01-31"]);
    cli.run(&["events", "list", "--state", "ded"]).failed(2, &["dead"]);
}

#[test]
fn a_wrong_destination_is_a_configuration_error_and_stops_before_anything_starts() {
    let cli = Cli::new();
    let nats = "[destinations.a]\ntype = \"nats\"\nsubject = \"events.{nonsense}\"\n\
                user = \"u\"\ntoken = \"env:HOME_OF_TOKEN\"\n";
    cli.write("posthaste.toml", nats);
    cli.run(&["config", "check"]).failed(78, &["HOME_OF_TOKEN"]);
    cli.write("posthaste.toml", nats.replace("env:HOME_OF_TOKEN", "t"));
    for command in [&["config", "check"][..], &["run", "--once"]] {
        cli.run(command).failed(78, &["destinations.a"]);
    }
    assert!(!cli.path("posthaste.db").exists());
}

#[test]
fn a_port_in_use_is_named() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let cli = Cli::new().env("POSTHASTE_OPS__LISTEN", &address);
    cli.run(&["run"]).failed(1, &[&address, "ops.listen"]);
}

/// What became of words that nobody can write down.
fn code_with_stderr(cli: &Cli, arguments: &[&str], stderr: impl Into<std::process::Stdio>) -> i32 {
    let mut command = cli.command(arguments);
    let mut child = command.stdout(std::process::Stdio::null()).stderr(stderr).spawn().unwrap();
    child.wait().unwrap().code().unwrap()
}

#[test]
fn the_promised_code_comes_out_whatever_becomes_of_the_words() {
    let cli = Cli::new();
    cli.write("bad.toml", "x =");
    let cases: [(&[&str], i32); 4] = [
        (&["run", "-c", "bad.toml"], 78),
        (&["config", "check", "-c", "bad.toml"], 78),
        (&["status", "--database-url", "sqlite:none.db"], 1),
        (&["no-such-command"], 2),
    ];
    for (arguments, code) in cases {
        let full = || std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
        assert_eq!(code_with_stderr(&cli, arguments, full()), code, "{arguments:?}, full");
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        assert_eq!(code_with_stderr(&cli, arguments, writer), code, "{arguments:?}, closed");
        // Full and never read: the words are given up in time.
        let (_reader, mut writer) = std::io::pipe().unwrap();
        let held = writer.try_clone().unwrap();
        let filler = std::thread::spawn(move || {
            use std::io::Write as _;
            let _ = writer.write_all(&vec![b'x'; 1 << 20]);
        });
        std::thread::sleep(std::time::Duration::from_millis(100));
        assert_eq!(code_with_stderr(&cli, arguments, held), code, "{arguments:?}, stalled");
        drop(_reader);
        filler.join().unwrap();
    }
}

#[test]
fn check_knows_what_run_refuses_and_names_destination_and_key() {
    let cli = Cli::new().env("PGSSLROOTCERT", "");
    cli.write("no.pem", "").write("folder.creds", "");
    for (text, parts) in [
        ("[database]\nurl = \"postgres://h:nope/d\"", &["c.toml:2:1", "database.url", "port"][..]),
        ("[database]\nurl = \"postgres://h/d?sslmode=maybe\"", &["database.url", "sslmode"]),
        ("[database]\nurl = \"postgres://h/d?sslmodee=x\"", &["did you mean sslmode?"]),
        (
            "[database]\nurl = \"postgres://h/d?sslrootcert=/no/ca.pem\"",
            &["sslrootcert: the file cannot be read"],
        ),
        (
            "[destinations.a]\ntype = \"nats\"\ntls_ca_file = \"/no/ca.pem\"",
            &["c.toml:3:1", "destinations.a.tls_ca_file: /no/ca.pem cannot be read"],
        ),
        (
            "[destinations.a]\ntype = \"nats\"\ntls_ca_file = \"no.pem\"",
            &["destinations.a.tls_ca_file: no.pem has no line -----BEGIN CERTIFICATE-----"],
        ),
        (
            "[destinations.a]\ntype = \"nats\"\ncredentials_file = \".\"",
            &["c.toml:3:1", "destinations.a.credentials_file: . cannot be read"],
        ),
        (
            "[destinations.a]\ntype = \"nats\"\nnkey = \"SUNKEY\"",
            &["c.toml:3:1", "destinations.a.nkey: is no NKey seed"],
        ),
        (
            "[destinations.a]\ntype = \"nats\"\nstream = \"a.b\"",
            &["c.toml:3:1", "destinations.a.stream:"],
        ),
        (
            "[destinations.a]\ntype = \"webhook\"\nurl = \"ftp://h/\"",
            &["c.toml:3:1", "destinations.a.url:"],
        ),
        (
            "[destinations.a]\ntype = \"file\"\npath = \"no/such/out\"",
            &["c.toml:3:1", "destinations.a.path: the folder no/such is not there"],
        ),
        (
            "[destinations.a]\ntype = \"file\"\npath = \"out\"\n\
             [destinations.b]\ntype = \"file\"\npath = \"./out\"",
            &["c.toml:6:1", "destinations.b.path: a writes to", "already"],
        ),
    ] {
        cli.write("c.toml", text);
        cli.run(&["config", "check", "-c", "c.toml"]).failed(78, parts);
    }
}

#[test]
fn a_configuration_of_twenty_thousand_destinations_is_checked_in_seconds() {
    let cli = Cli::new();
    let text: String = (0..20_000)
        .map(|n| format!("[destinations.d{n}]\ntype = \"file\"\npath = \"out{n}\"\n"))
        .collect();
    cli.write("c.toml", text);
    // The watchdog ends what takes longer than 30 s, as this did.
    cli.run(&["config", "check", "-c", "c.toml"]).succeeded();
}

#[test]
fn an_empty_variable_names_no_file() {
    let cli = Cli::new().env("POSTHASTE_CONFIG", "").env("POSTHASTE_LOG__LEVEL", "INFO");
    cli.run(&["config", "check"]).succeeded();
}

#[test]
fn a_configuration_that_others_may_write_is_not_taken_unless_it_is_named() {
    use std::os::unix::fs::PermissionsExt as _;

    let cli = Cli::new();
    cli.write("posthaste.toml", "");
    let open = std::fs::Permissions::from_mode(0o666);
    std::fs::set_permissions(cli.path("posthaste.toml"), open).unwrap();
    cli.run(&["config", "check"])
        .failed(78, &["others may write to it", "--config posthaste.toml"]);
    cli.run(&["config", "check", "-c", "posthaste.toml"]).succeeded();
    let open = std::fs::Permissions::from_mode(0o644);
    std::fs::set_permissions(cli.path("posthaste.toml"), open).unwrap();
    let ended = cli.run(&["migrate", "up"]).succeeded();
    assert!(ended.stderr.contains("configuration: posthaste.toml"), "{ended:?}");
}

/// Syntax, names, values, rules across keys, and what a destination says of its settings: whoever mends a
/// file does not meet the next kind only when the one before is gone.
#[test]
fn every_mistake_that_can_be_known_is_told_at_once() {
    let cli = Cli::new();
    cli.write(
        "posthaste.toml",
        "[relay]\nbatchsize = 5\npoll_interval = 5\n[relay.retry]\nbase_delay = \"9s\"\nmax_delay = \"1s\"\n\
         [destinations.a]\ntype = \"nats\"\nurl = \"htp://h\"\nsubject = \"a b\"\nuser = \"u\"\n\
         [destinations.b]\ntype = \"file\"\npath = \"no/such/file\"\n\
         [[routes]]\nevent_type = \"x\"\ndestination = \"c\"\n",
    );
    let parts = [
        "unknown key relay.batchsize",
        "relay.poll_interval is a whole number",
        "relay.retry.max_delay must be at least base_delay",
        "destinations.a.url: ",
        "destinations.a.subject: ",
        "user and password belong together",
        "the folder no/such is not there",
        "names \"c\", which is not there",
    ];
    let told = cli.run(&["config", "check"]).failed(78, &parts);
    assert!(told.stderr.contains("8 problems"), "{}", told.stderr);
    // What may be there when the relay starts keeps it from nothing.
    let told = cli.run(&["run", "--once"]).failed(78, &parts[..6]);
    assert!(!told.stderr.contains("the folder no/such"), "{}", told.stderr);
}
