//! The configuration as a whole.

use std::fs;

use posthaste_config::{DefaultValue, ValueKind};
use posthaste_processor::UnknownDestination;

use super::*;
use crate::kinds;

/// Loads `text` as a file, with these environment variables, and one that names a database.
fn load(text: &str, environment: &[(&str, &str)]) -> Result<Config, Problems> {
    load_as_it_is(text, &[environment, &[("DATABASE_URL", "sqlite:posthaste.db")]].concat())
}

fn load_as_it_is(text: &str, environment: &[(&str, &str)]) -> Result<Config, Problems> {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("posthaste.toml");
    fs::write(&file, text).unwrap();
    let environment =
        environment.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect();
    Inputs { file: Some(file), environment, ..Inputs::default() }.load()
}

fn problems(text: &str) -> Vec<Problem> {
    load(text, &[]).unwrap_err().0
}

#[test]
fn without_any_input_the_defaults_of_the_processor_are_in_force() {
    let config = Inputs::default().load().unwrap();
    assert_eq!(config.relay, ProcessorSettings::default());
    assert_eq!(config.database, Database::Sqlite { path: "posthaste.db".into() });
    assert_eq!(config.destinations.len(), 1);
    assert_eq!(config.destinations[0].kind.unwrap().name(), "stdout");
    assert_eq!(config.ops.listen, Listen::At("127.0.0.1:9464".into()));
    assert!(!config.listen_was_given);
}

#[test]
fn the_environment_overrules_the_file_and_the_option_overrules_both() {
    let text = "[relay]\nbatch_size = 7\npoll_interval = \"2s\"\n[database]\nurl = \"a.db\"\n";
    let config = load(text, &[("POSTHASTE_RELAY__BATCH_SIZE", "9")]).unwrap();
    assert_eq!(config.relay.batch_size, 9);
    assert_eq!(config.relay.poll_interval.as_secs(), 2);
    let inputs = Inputs {
        database_url: Some("sqlite:option.db".into()),
        environment: vec![("POSTHASTE_DATABASE_URL".into(), "sqlite:environment.db".into())],
        ..Inputs::default()
    };
    let config = inputs.load().unwrap();
    assert_eq!(config.database, Database::Sqlite { path: "option.db".into() });
}

#[test]
fn all_problems_are_reported_at_once_with_path_and_place() {
    let text = "\
[relay]
batchsize = 5
poll_interval = 5
max_concurrent_events = 0
[relay.retry]
jitter = \"yes\"
[opps]
listen = \"x\"
[destinations.main]
type = \"nats\"
path = \"x\"
[[routes]]
event_type = \"*\"
destination = \"mian\"
";
    let found = problems(text);
    let messages: Vec<String> = found.iter().map(|problem| problem.message.clone()).collect();
    for expected in [
        "unknown key relay.batchsize; did you mean relay.batch_size?",
        "relay.poll_interval is a whole number, not a duration",
        "relay.max_concurrent_events 0 is out of range",
        "relay.retry.jitter is text, not `true` or `false`",
        "unknown key opps; did you mean ops?",
        "a destination of type nats has no path",
        "names \"mian\", which is not there",
    ] {
        assert!(
            messages.iter().any(|message| message.contains(expected)),
            "{expected}: {messages:#?}"
        );
    }
    assert_eq!(found.len(), 7, "{messages:#?}");
    for problem in &found {
        assert!(problem.place.as_deref().unwrap().contains("posthaste.toml:"), "{problem:?}");
        assert!(!problem.help.is_empty(), "{problem:?}");
    }
}

#[test]
fn a_file_with_a_syntax_error_is_still_looked_at_for_values_and_variables() {
    let text = "\
[relay]
poll_interval = 5
batch_size = = 3
[log
level = \"loud\"
[destinations.a]
type = nats
";
    let found = load(text, &[("POSTHASTE_RELAY__BATCHSIZE", "5")]).unwrap_err().0;
    let has = |part: &str| found.iter().any(|problem| problem.message.contains(part));
    for part in
        ["TOML syntax", "relay.poll_interval is a whole number", "POSTHASTE_RELAY__BATCHSIZE"]
    {
        assert!(has(part), "{part}: {found:#?}");
    }
    // What may be a consequence of the syntax is not told.
    for part in ["is missing", "unknown key", "relay.batch_size is", "is not there"] {
        assert!(!has(part), "{part}: {found:#?}");
    }
}

#[test]
fn a_value_that_is_refused_hides_no_other_mistake_and_makes_up_none() {
    let text = "\
[relay]
poll_interval = 5
[relay.retry]
base_delay = \"9s\"
max_delay = \"1s\"
";
    let found = problems(text);
    assert_eq!(found.len(), 2, "{found:#?}");
    assert!(found[1].message.contains("relay.retry.max_delay must be at least"), "{found:#?}");
    // The default of the first is below the second, and that is nobody's mistake.
    let text = "[relay.retry]\nbase_delay = 90\nmax_delay = \"500ms\"\n";
    let found = problems(text);
    assert_eq!(found.len(), 1, "{found:#?}");
    // Of a type that is not known, nobody knows the keys.
    let found = problems("[destinations.a]\ntype = \"webhok\"\nurl = \"https://h\"\n");
    assert_eq!(found.len(), 1, "{found:#?}");
}

#[test]
fn a_route_in_single_brackets_is_told_how_it_is_written() {
    let found = problems("[routes]\nevent_type = \"a\"\ndestination = \"default\"\n");
    assert_eq!(found.len(), 1, "{found:#?}");
    assert!(found[0].help.contains("[[routes]]"), "{found:#?}");
}

#[test]
fn a_section_where_a_value_belongs_is_one_problem() {
    assert_eq!(problems("[relay.batch_size]\nx = 1\ny = 2\n").len(), 1);
    assert_eq!(problems("relay = 5\n").len(), 1);
    assert_eq!(problems("destinations = 5\n").len(), 1);
}

#[test]
fn a_destination_needs_a_known_type_and_its_required_keys() {
    assert!(problems("[destinations.a]\n")[0].message.contains("destinations.a.type is missing"));
    let found = problems("[destinations.a]\ntype = \"natts\"\n");
    assert!(found[0].message.contains("did you mean \"nats\"?"), "{found:?}");
    let found = problems("[destinations.a]\ntype = \"file\"\n");
    assert!(found[0].message.contains("destinations.a.path is missing"), "{found:?}");
    assert!(found[0].help.contains("POSTHASTE_DESTINATIONS__A__PATH"), "{found:?}");
}

#[test]
fn destinations_without_a_database_are_refused() {
    let destination = "[destinations.a]\ntype = \"stdout\"\n";
    let in_environment = ("POSTHASTE_DESTINATIONS__A__TYPE", "stdout");
    for found in [
        load_as_it_is(destination, &[]).unwrap_err().0,
        load_as_it_is("", &[in_environment]).unwrap_err().0,
    ] {
        assert_eq!(found.len(), 1);
        assert!(found[0].message.contains("no database is named"), "{found:?}");
        assert!(found[0].help.contains("database.url = \"sqlite:posthaste.db\""), "{found:?}");
    }
    let misspelt = [("POSTHASTE_DATABSE_URL", "postgres://h/d")];
    let found = load_as_it_is("", &misspelt).unwrap_err().0;
    assert!(found[0].message.contains("did you mean POSTHASTE_DATABASE_URL?"), "{found:?}");
    let named = [destination, "[database]\nurl = \"sqlite:a.db\"\n"].concat();
    load_as_it_is(&named, &[]).unwrap();
    load_as_it_is(destination, &[("PGHOST", "h")]).unwrap();
}

#[test]
fn the_first_destination_is_default_or_the_first_of_the_file() {
    let names = |text: &str| {
        let config = load(text, &[]).unwrap();
        config.destinations.into_iter().map(|destination| destination.name).collect::<Vec<_>>()
    };
    let file = |name: &str| format!("[destinations.{name}]\ntype = \"file\"\npath = \"x\"\n");
    assert_eq!(names(&(file("z") + &file("a"))), ["z", "a"]);
    assert_eq!(names(&(file("z") + &file("default"))), ["default", "z"]);
}

#[test]
fn rules_across_keys_are_checked() {
    let found = problems("[relay.retry]\nbase_delay = \"2m\"\nmax_delay = \"1m\"\n");
    assert_eq!(found.len(), 1);
    assert!(found[0].message.contains("relay.retry.max_delay must be at least base_delay"));
}

#[test]
fn a_destination_has_its_own_attempts_and_delays_or_those_of_all() {
    let text = "\
[relay]
unknown_destination = \"dead\"
[relay.retry]
max_attempts = 5
max_delay = \"30s\"
[destinations.a]
type = \"stdout\"
[destinations.b]
type = \"file\"
path = \"x\"
max_attempts = 20
base_delay = \"5s\"
max_delay = \"10m\"
";
    let config = load(text, &[]).unwrap();
    assert_eq!(config.relay.unknown_destination, UnknownDestination::Dead);
    let of = |index: usize| {
        let destination = &config.destinations[index];
        let policy = &destination.retry_policy;
        (destination.max_attempts, policy.base_delay.as_secs(), policy.max_delay.as_secs())
    };
    assert_eq!((of(0), of(1)), ((Some(5), 1, 30), (Some(20), 5, 600)));
    let found = problems("[destinations.a]\ntype = \"stdout\"\nbase_delay = \"2m\"\n");
    assert!(found[0].message.contains("destinations.a.base_delay"), "{found:?}");
    assert!(found[0].place.as_deref().unwrap().ends_with(":3:1"), "{found:?}");
}

#[test]
fn a_secret_is_taken_by_reference_and_never_shown() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("token");
    fs::write(&file, "s3cr3t-token\n").unwrap();
    let text = format!(
        "[database]\nurl = \"postgres://u:s3cr3t-word@h/d\"\n[destinations.a]\ntype = \"nats\"\n\
         token = \"file:{}\"\n",
        file.display()
    );
    let config = load(&text, &[]).unwrap();
    let token = config.destinations[0].given.get::<String>("token");
    assert_eq!(token.as_deref(), Some("s3cr3t-token"));
    let shown: Vec<_> = config.values.iter().filter_map(|value| value.shown.clone()).collect();
    assert!(!shown.iter().any(|text| text.contains("s3cr3t-")), "{shown:?}");
    assert!(shown.contains(&"postgres://u:***@h/d".to_owned()), "{shown:?}");
}

#[test]
fn a_missing_secret_is_a_problem() {
    let found = problems("[database]\nurl = \"env:POSTHASTE_TEST_NOT_SET_ANYWHERE\"\n");
    assert!(found[0].message.contains("POSTHASTE_TEST_NOT_SET_ANYWHERE"), "{found:?}");
}

#[test]
fn every_key_of_every_type_of_destination_is_taken() {
    for kind in kinds::SECTIONS {
        let mut text = format!("[destinations.a]\ntype = \"{}\"\n", kind.name);
        for key in kind.keys {
            let value = match (key.kind, key.default) {
                (_, DefaultValue::Value(value)) if value.parse::<i64>().is_ok() => value.into(),
                (ValueKind::Bool, _) => "true".to_owned(),
                (_, DefaultValue::Value(value)) => format!("{value:?}"),
                _ => "\"some text\"".to_owned(),
            };
            text.push_str(&format!("{} = {value}\n", key.path));
        }
        load(&text, &[]).unwrap();
    }
}

#[test]
fn docs_hold_the_generated_reference() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/configuration.md");
    if std::env::var_os("UPDATE").is_some() {
        fs::write(path, reference()).unwrap();
    }
    let committed = fs::read_to_string(path).unwrap_or_default();
    const MEND: &str = "run `UPDATE=1 cargo test -p posthaste-cli --all-features` and commit";
    for kind in kinds::KINDS {
        assert!(committed.contains(&reference::of_kind(kind)), "{kind:?}: {MEND}");
    }
    // A program with fewer kinds has less to say.
    let is_whole = committed.matches("\n### type = ").count() == kinds::KINDS.len();
    assert!(!is_whole || committed == reference(), "{MEND}");
}
