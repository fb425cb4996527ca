//! `posthaste migrate sql`: each option writes what it says, without a database.

use crate::common::Cli;

const POSTGRES: [&str; 4] = ["migrate", "sql", "--dialect", "postgres"];

fn sql(options: &[&str]) -> String {
    Cli::without_database().run(&[&POSTGRES[..], options].concat()).succeeded().stdout
}

#[test]
fn no_sql_is_written_for_a_version_that_is_not_known() {
    let cli = Cli::without_database();
    for dialect in ["postgres", "sqlite"] {
        cli.run(&["migrate", "sql", "--dialect", dialect, "--from", "99"])
            .failed(2, &["--from 99", "versions up to"]);
    }
}

#[test]
fn an_upgrade_leaves_out_what_is_there_and_the_way_back_is_its_own() {
    let (all, upgrade) = (sql(&[]), sql(&["--from", "2"]));
    for step in ["create table outbox_events", "create table outbox_shards"] {
        assert!(all.contains(step) && !upgrade.contains(step), "{step}");
    }
    // Both record what they did, so that the program knows.
    assert!(all.contains("'guards'") && upgrade.contains("'guards'"));
    assert!(sql(&["--down"]).contains("drop table"));
    let back = sql(&["--down", "--from", "2"]);
    assert!(
        !back.contains("drop table") && back.contains("delete from outbox_migrations"),
        "{back}"
    );
    let cli = Cli::without_database();
    cli.run(&[&POSTGRES[..], &["--down", "--from", "1"]].concat())
        .failed(2, &["no way back to version 1", "--from 2"]);
}

/// What a tool needs that splits at semicolons, or at lines that end with one.
#[test]
fn statements_are_a_line_each_without_dollar_quotes_or_comments() {
    for options in
        [&[][..], &["--from", "2"], &["--down"], &["--down", "--from", "2"], &["--roles"]]
    {
        let written = sql(&[options, &["--format", "statements"]].concat());
        assert!(!written.contains("$$") && written.lines().count() > 0, "{options:?}");
        for line in written.lines() {
            assert!(line.ends_with(';') && !line.starts_with("--"), "{options:?}: {line}");
            // Bodies are in quotes that close on their line.
            assert_eq!(line.matches('\'').count() % 2, 0, "{options:?}: {line}");
        }
    }
}

#[test]
fn roles_are_printed_alone_and_as_the_page_has_them() {
    let roles = sql(&["--roles"]);
    assert!(include_str!("../../../../docs/roles.md").contains(roles.trim()));
    let cli = Cli::without_database();
    cli.run(&[&POSTGRES[..], &["--roles", "--down"]].concat()).failed(2, &["--roles", "--down"]);
}

#[test]
fn whose_sql_is_wanted_is_never_guessed_and_what_sqlite_has_not_is_refused() {
    let cli = Cli::without_database();
    cli.run(&["migrate", "sql"]).failed(2, &["--dialect postgres", "--dialect sqlite"]);
    for option in [&["--roles"][..], &["--down"], &["--format", "statements"]] {
        cli.run(&[&["migrate", "sql", "--dialect", "sqlite"][..], option].concat())
            .failed(2, &["are for PostgreSQL"]);
    }
}
