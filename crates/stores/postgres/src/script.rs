//! The schema as SQL for others to run: alembic, Flyway, goose, Liquibase, a reviewer.

use crate::history::CREATE_AHEAD;
use crate::migrations::{BOOKKEEPING, STEPS, WANTED, record};

/// The version of the schema that this program makes, the latest that it knows.
pub const SCHEMA_VERSION: u32 = WANTED;

/// SQL that takes a database from version `from` of the schema to this program's; 0 is a database
/// without an outbox. With the bookkeeping that [`migrate`](posthaste_core::OutboxMigrations::migrate)
/// would have done.
#[must_use]
pub fn migration_sql(from: u32) -> String {
    let mut sql = if from == 0 {
        format!(
            "-- posthaste's schema for PostgreSQL, version {WANTED}. Run it once, in one \
             transaction.\n\n{BOOKKEEPING}\n"
        )
    } else {
        format!(
            "-- posthaste's schema for PostgreSQL, from version {from} to version {WANTED}. Run it \
             once, in one transaction,\n-- and again where a lock was not to be had in time.\n\
             set local lock_timeout = '5s';\n\n"
        )
    };
    for step in STEPS.iter().filter(|step| step.migration.version > from) {
        sql.push_str(step.sql);
        sql.push_str(&format!("\n{}\n\n", record(&step.migration)));
    }
    sql.push_str(CREATE_AHEAD);
    sql
}

/// SQL that takes a database of this program's version back to version `to`: 0, which drops the outbox
/// with all events, or 2. There is no way back to other versions.
#[must_use]
pub fn rollback_sql(to: u32) -> Option<String> {
    let sql = match to {
        0 => include_str!("../migrations/drop.sql"),
        2 => include_str!("../migrations/0003_guards.down.sql"),
        _ => return None,
    };
    Some(format!(
        "-- posthaste's schema for PostgreSQL, from version {WANTED} back to version {to}. Stop all \
         relays first.\n{sql}"
    ))
}

/// The same SQL with each statement on a line of its own, no comments, and function bodies in single
/// quotes: for drivers that take one statement at a time, and for tools that split at semicolons, or at
/// the ends of lines, and know nothing of dollar quotes.
#[must_use]
pub fn statement_per_line(sql: &str) -> String {
    let mut lines = String::new();
    let mut rest = sql;
    let mut line = String::new();
    while let Some(part) = next_part(&mut rest) {
        match part {
            Part::Space => {
                if !line.is_empty() && !line.ends_with(' ') {
                    line.push(' ');
                }
            }
            Part::End => {
                lines.push_str(line.trim_end());
                lines.push_str(";\n");
                line.clear();
            }
            Part::Text(text) => push_text(&mut line, text),
            Part::Body(body) => {
                let body = one_line(body);
                push_text(&mut line, &format!("'{}'", body.replace('\'', "''")));
            }
        }
    }
    lines
}

/// A body of a function, its statements behind each other.
fn one_line(body: &str) -> String {
    let mut line = String::new();
    let mut rest = body;
    while let Some(part) = next_part(&mut rest) {
        match part {
            Part::Space if line.is_empty() || line.ends_with(' ') => {}
            Part::Space => line.push(' '),
            Part::End => line.push(';'),
            Part::Text(text) | Part::Body(text) => push_text(&mut line, text),
        }
    }
    line.trim_end().to_owned()
}

/// Two literals that only a line break parts are one.
fn push_text(line: &mut String, text: &str) {
    if text.starts_with('\'') && line.ends_with("' ") {
        line.truncate(line.len() - 2);
        line.push_str(&text[1..]);
    } else {
        line.push_str(text);
    }
}

enum Part<'s> {
    /// White space or a comment.
    Space,
    /// The end of a statement.
    End,
    /// A quoted text as it is, or what is between such and blanks.
    Text(&'s str),
    /// What is between dollar quotes.
    Body(&'s str),
}

fn next_part<'s>(rest: &mut &'s str) -> Option<Part<'s>> {
    let text = *rest;
    let first = text.chars().next()?;
    let (part, length) = if first.is_whitespace() {
        (Part::Space, text.len() - text.trim_start().len())
    } else if text.starts_with("--") {
        (Part::Space, text.find('\n').unwrap_or(text.len()))
    } else if first == ';' {
        (Part::End, 1)
    } else if let Some(after) = text.strip_prefix("$$") {
        let end = after.find("$$").unwrap_or(after.len());
        (Part::Body(&after[..end]), (end + 4).min(text.len()))
    } else if first == '\'' || first == '"' {
        let end = text[1..].find(first).map_or(text.len(), |end| end + 2);
        (Part::Text(&text[..end]), end)
    } else {
        let is_end = |c: char| c.is_whitespace() || matches!(c, ';' | '\'' | '"' | '$');
        let end =
            text.char_indices().skip(1).find(|(at, c)| is_end(*c) || text[*at..].starts_with("--"));
        let end = end.map_or(text.len(), |(at, _)| at);
        (Part::Text(&text[..end]), end)
    };
    *rest = &text[length..];
    Some(part)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_statement_is_a_line_and_bodies_are_in_single_quotes() {
        let sql = "-- a comment; with a semicolon\ncreate table a (\n    b text default 'x;y' -- c\n);\n\
                   do $$\nbegin\n    -- why\n    raise warning 'one '\n        'two';\nend\n$$;\n";
        assert_eq!(
            statement_per_line(sql),
            "create table a ( b text default 'x;y' );\n\
             do 'begin raise warning ''one two''; end';\n"
        );
    }

    #[test]
    fn a_quote_within_a_literal_stays() {
        assert_eq!(statement_per_line("select 'it''s';"), "select 'it''s';\n");
    }
}
