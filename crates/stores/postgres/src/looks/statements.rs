//! Whether the server would run what a relay asks of it: each statement is planned, as this user, and not
//! carried out. Planning meets missing rights, row level security, and columns that are gone or altered.

use posthaste_core::{ErrorKind, Finding, Result, Severity};
use sqlx::AssertSqlSafe;

use super::{LOOK, reading};
use crate::error::failed;
use crate::outbox::PostgresOutbox;
use crate::{backlog, fetch, heads, lease, plans, relays, repository, settle, watermark};

/// What a relay does, with all of its statements. Each row is a name that stands in messages.
fn statements() -> impl Iterator<Item = (&'static str, &'static str)> {
    [
        ("read events", fetch::STATEMENTS),
        ("read the watermark", watermark::STATEMENTS),
        ("look at what waits", heads::STATEMENTS),
        ("read dead letters", repository::STATEMENTS),
        ("count what waits", backlog::STATEMENTS),
        ("record outcomes", settle::STATEMENTS),
        ("take and renew a share", lease::STATEMENTS),
        ("say what it does", relays::STATEMENTS),
    ]
    .into_iter()
    .flat_map(|(what, statements)| statements.iter().map(move |sql| (what, *sql)))
}

/// `has_rights`: where it has not, the rights were named already, and only what else is wrong is told.
pub(super) async fn look(outbox: &PostgresOutbox, has_rights: bool) -> Result<Finding> {
    const ABOUT: &str = "statements";
    let mut refused: Vec<Refused> = Vec::new();
    for (what, sql) in statements() {
        let mut session = reading(outbox).await?;
        // As a relay has it: rows that row level security would hide are an error.
        let explain = format!("{}; explain {}", plans::for_transaction(), without_values(sql));
        let planned = sqlx::raw_sql(AssertSqlSafe(explain)).execute(session.connection()).await;
        let Err(error) = planned.map_err(failed(LOOK)) else {
            session.finish().await?;
            continue;
        };
        if !has_rights && error.kind() == ErrorKind::Unauthorized {
            continue;
        }
        let said = error.report();
        let why = said.strip_prefix(LOOK).unwrap_or(&said).trim_start_matches(": ").to_owned();
        match refused.iter_mut().find(|known| known.why == why) {
            Some(known) if known.what.contains(&what) => {}
            Some(known) => known.what.push(what),
            None => refused.push(Refused { what: vec![what], why, kind: error.kind() }),
        }
    }
    let Some(first) = refused.first() else {
        let message = if has_rights {
            "the server takes each statement of a relay"
        } else {
            "the server takes each statement of a relay that this user has the rights for"
        };
        return Ok(Finding::fine(ABOUT, message));
    };
    let hint = match first.kind {
        // The server's own words; the other looks know the usual reasons.
        ErrorKind::Internal => "what is found below may say why",
        kind => kind.hint(),
    };
    let lines = refused.iter().map(|it| format!("to {}: {}", it.what.join(", "), it.why));
    let message = format!("the server refuses {}", lines.collect::<Vec<_>>().join("; "));
    Ok(Finding::new(ABOUT, Severity::Error, message).with_hint(hint))
}

/// What of a relay's work the server refuses for one reason.
struct Refused {
    what: Vec<&'static str>,
    why: String,
    kind: ErrorKind,
}

/// With `null` in the place of each parameter.
fn without_values(sql: &str) -> String {
    let mut text = String::with_capacity(sql.len());
    let mut rest = sql;
    while let Some((before, after)) = rest.split_once('$') {
        text.push_str(before);
        let number = after.bytes().take_while(u8::is_ascii_digit).count();
        text.push_str(if number > 0 { "null" } else { "$" });
        rest = &after[number..];
    }
    text + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_become_null_and_nothing_else_does() {
        assert_eq!(
            without_values("a = $1 and b = any($22::int[])"),
            "a = null and b = any(null::int[])"
        );
        assert_eq!(without_values("'$' || x"), "'$' || x");
        for (_, sql) in statements() {
            assert!(!without_values(sql).contains('$'), "{sql}");
        }
    }
}
