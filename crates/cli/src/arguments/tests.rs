//! The command line, and the page that shows all of it.

use clap::CommandFactory;

use super::*;

#[test]
fn the_definition_is_sound() {
    Arguments::command().debug_assert();
}

/// A bullet for each command, with its options as `--help` has them.
fn reference() -> String {
    let mut command = Arguments::command();
    command.build();
    let mut text = String::new();
    describe(&command, "posthaste", &mut text);
    text
}

fn describe(command: &clap::Command, name: &str, text: &mut String) {
    let is_own = |argument: &&clap::Arg| {
        !argument.is_hide_set()
            && !["help", "version"].contains(&argument.get_id().as_str())
            && (!argument.is_global_set() || name == "posthaste")
    };
    let given = |argument: &clap::Arg| {
        let values: Vec<_> = argument.get_value_names().unwrap_or_default().iter().collect();
        let value = if argument.get_action().takes_values() {
            values.iter().map(|value| format!(" {value}")).collect::<String>()
        } else {
            String::new()
        };
        match (argument.get_long(), argument.get_short()) {
            (Some(long), Some(short)) => format!("-{short}, --{long}{value}"),
            (Some(long), None) => format!("--{long}{value}"),
            (None, _) => value.trim_start().to_owned(),
        }
    };
    let about = |help: Option<&clap::builder::StyledStr>| {
        help.map(|help| help.to_string().replace('\n', " ")).unwrap_or_default()
    };
    if !command.has_subcommands() || name == "posthaste" {
        let title = if name == "posthaste" { "all commands" } else { name };
        text.push_str(&format!("- **`{title}`**: {}\n", about(command.get_about())));
        for argument in command.get_arguments().filter(is_own) {
            let help = about(argument.get_help());
            text.push_str(&format!("  - `{}`: {help}\n", given(argument)));
        }
    }
    for inner in command.get_subcommands() {
        describe(inner, &format!("{name} {}", inner.get_name()), text);
    }
}

#[test]
fn the_page_of_commands_has_every_command_and_option() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/commands.md");
    let page = std::fs::read_to_string(path).unwrap_or_default();
    let (begin, end) = ("<!-- options -->\n", "<!-- /options -->");
    let at = page.find(begin).zip(page.find(end)).expect("the marks around the options");
    let wanted = format!("{}{begin}{}{}", &page[..at.0], reference(), &page[at.1..]);
    if std::env::var_os("UPDATE").is_some() {
        std::fs::write(path, &wanted).unwrap();
    }
    let page = std::fs::read_to_string(path).unwrap_or_default();
    assert!(page == wanted, "run `UPDATE=1 cargo test -p posthaste-cli` and commit");
}

#[test]
fn the_beginning_of_an_id_stands_for_all_that_begin_so() {
    let IdPrefix { first, last } = parse_id("01890a5d-AC").unwrap();
    assert_eq!(first.to_string(), "01890a5d-ac00-0000-0000-000000000000");
    assert_eq!(last.to_string(), "01890a5d-acff-ffff-ffff-ffffffffffff");
    let whole = parse_id("01890a5d-ac96-774b-bcce-b302099a8057").unwrap();
    assert_eq!(whole.first, whole.last);
    for bad in ["", "018", "xyzw", "01890a5d-ac96-774b-bcce-b302099a80571"] {
        assert!(parse_id(bad).is_err(), "{bad}");
    }
}

#[test]
fn times_are_instants_dates_or_durations_ago() {
    assert_eq!(parse_when("2026-01-31").unwrap().to_string(), "2026-01-31T00:00:00Z");
    assert_eq!(parse_when("2026-01-31T01:00:00+01:00"), parse_when("2026-01-31"));
    assert!(parse_when("2h").unwrap() < Timestamp::now());
    assert!(parse_when("yesterday").is_err());
}
