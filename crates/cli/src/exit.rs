//! How the program ends: the one place that knows exit codes.

use std::fmt;
use std::io::{self, IsTerminal as _};
use std::process::ExitCode;

use posthaste_core::{Error, ErrorKind};

use crate::config::{Config, Problems};
use crate::{logs, plain};

/// It did not work.
const FAILED: u8 = 1;
/// It was asked for in the wrong way (clap uses the same).
const USAGE: u8 = 2;
/// `EX_CONFIG` of sysexits.h: the configuration is wrong, or what a relay finds at its start, and trying
/// again will not help.
const CONFIG: u8 = 78;

/// The command line makes sense to the parser, but not as a whole.
#[derive(Debug)]
pub(crate) struct UsageError(pub(crate) String);

impl fmt::Display for UsageError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for UsageError {}

/// Whoever read our standard output has closed it (`posthaste events list | head`).
#[derive(Debug)]
pub(crate) struct OutputClosed;

impl fmt::Display for OutputClosed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("standard output was closed")
    }
}

impl std::error::Error for OutputClosed {}

/// What a relay finds is not what it needs, and will not be by itself: rights, or the schema. A context
/// for the error that says what.
#[derive(Debug)]
pub(crate) struct WrongSetUp(pub(crate) &'static str);

impl fmt::Display for WrongSetUp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

/// A failure with a word on what to do.
#[derive(Debug)]
pub(crate) struct Hint {
    /// What happened.
    pub(crate) message: String,
    /// What to do.
    pub(crate) hint: String,
}

impl Hint {
    /// With the outbox that it concerns.
    pub(crate) fn at(self, config: &Config) -> Self {
        Self { message: format!("{} ({})", self.message, config.database.address()), ..self }
    }
}

impl fmt::Display for Hint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Hint {}

/// Reports an error on standard error and gives the exit code that belongs to it.
pub(crate) fn report(error: &anyhow::Error) -> ExitCode {
    if error.is::<OutputClosed>() {
        // The reader has all that it wanted.
        return ExitCode::SUCCESS;
    }
    let hint = hint_of(error).map(|hint| format!("\nhint: {hint}")).unwrap_or_default();
    // Problems are a list of lines; all else is told on one.
    let text = text_of(error);
    let text = if error.is::<Problems>() { text } else { plain::line(&text) };
    logs::say(&format!("error: {text}{hint}"));
    ExitCode::from(code_of(error))
}

/// Shows what the parser of the command line says, and gives the exit code that belongs to it.
pub(crate) fn parsed(error: &clap::Error) -> ExitCode {
    if error.use_stderr() {
        let text = if io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none() {
            error.render().ansi().to_string()
        } else {
            error.render().to_string()
        };
        logs::say_styled(text.trim_end());
        return ExitCode::from(USAGE);
    }
    // Help and version, which whoever asked may not read to the end.
    let _ = error.print();
    ExitCode::SUCCESS
}

fn code_of(error: &anyhow::Error) -> u8 {
    let is_config = |error: &Error| error.kind() == ErrorKind::Config;
    if error.is::<UsageError>() {
        USAGE
    } else if error.is::<Problems>()
        || error.is::<WrongSetUp>()
        || error.downcast_ref::<Error>().is_some_and(is_config)
    {
        CONFIG
    } else {
        FAILED
    }
}

/// The whole chain on one line. Many libraries repeat their source in their own text.
pub(crate) fn text_of(error: &anyhow::Error) -> String {
    let mut text = String::new();
    for cause in error.chain() {
        let cause = cause.to_string();
        if text.is_empty() {
            text = cause;
        } else if !text.contains(&cause) {
            text.push_str(": ");
            text.push_str(&cause);
        }
    }
    text
}

/// What to do about what is said, where more is known than by the kind.
const HINTS: [(&str, &str); 13] = [
    (
        "lacks rights that a relay needs",
        "grant them as the tables' owner, or log in as another user",
    ),
    (
        "takes no writes: default_transaction_read_only",
        "`posthaste doctor` has the statement that switches it off",
    ),
    ("(SQLSTATE 28", "correct the user or password in the address, or create that role"),
    ("(SQLSTATE 42501)", "grant this user what is missing, or name another with --database-url"),
    (
        "(SQLSTATE 53300)",
        "end idle sessions of this user, or raise its connection limit or max_connections",
    ),
    (
        "(SQLSTATE 25006)",
        "name the primary in the address; of several hosts the one that takes writes is used",
    ),
    ("(SQLSTATE 55000)", "`posthaste doctor` says which table lacks a replica identity"),
    ("(SQLSTATE 3F000)", "`create schema NAME`, or correct the address"),
    (
        "(SQLSTATE 53200)",
        "give the server more memory, or raise max_locks_per_transaction; its log says which",
    ),
    (
        "(SQLSTATE 57P05)",
        "the next try connects anew; `alter role USER set idle_session_timeout = 0` ends it",
    ),
    (
        "is not an SQLite database",
        "correct --database-url, or `posthaste migrate up` at the name of a new file",
    ),
    ("the directory does not exist", "`mkdir` it, or correct --database-url (database.url)"),
    ("the server's certificate", "see docs/tls.md; nothing was sent"),
];

/// What the error says to do, where it says something.
pub(crate) fn hint_of(error: &anyhow::Error) -> Option<String> {
    if let Some(hint) = error.downcast_ref::<Hint>() {
        return Some(hint.hint.clone());
    }
    let error = error.downcast_ref::<Error>()?;
    let text = error.to_string();
    let known = HINTS.iter().find(|(sign, _)| text.contains(sign));
    let hint = known.map_or(error.kind().hint(), |(_, hint)| hint);
    // Where the error itself already says it, once is enough.
    (!error.to_string().contains(hint)).then(|| hint.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::Context;

    #[test]
    fn each_kind_of_failure_has_its_exit_code() {
        let core = |kind| anyhow::Error::from(Error::new(kind, "open", "no"));
        assert_eq!(code_of(&core(ErrorKind::Config)), CONFIG);
        assert_eq!(code_of(&core(ErrorKind::Config).context("while starting")), CONFIG);
        assert_eq!(code_of(&core(ErrorKind::Schema)), FAILED);
        assert_eq!(code_of(&core(ErrorKind::Schema).context(WrongSetUp("cannot start"))), CONFIG);
        assert_eq!(code_of(&core(ErrorKind::Unreachable)), FAILED);
        assert_eq!(code_of(&UsageError("x".into()).into()), USAGE);
        assert_eq!(code_of(&Problems(vec![]).into()), CONFIG);
        assert_eq!(code_of(&anyhow::anyhow!("x")), FAILED);
    }

    #[test]
    fn what_is_said_has_the_hint_that_helps() {
        for (kind, message, helps) in [
            (ErrorKind::Throttled, "no memory (SQLSTATE 53200)", "max_locks_per_transaction"),
            (ErrorKind::Unreachable, "was idle (SQLSTATE 57P05)", "idle_session_timeout"),
            (ErrorKind::Throttled, "no connection (SQLSTATE 53300)", "connection limit"),
            (ErrorKind::Unauthorized, "refused (SQLSTATE 28P01)", "password in the address"),
            (ErrorKind::Unauthorized, "lacks rights that a relay needs: x", "grant them"),
            (ErrorKind::Schema, "the file is not an SQLite database", "--database-url"),
            (ErrorKind::Unreachable, "the server's certificate does not hold", "docs/tls.md"),
            (ErrorKind::Unreachable, "refused", "the server is up"),
        ] {
            let hint = hint_of(&Error::new(kind, "fetch", message).into()).unwrap_or_default();
            assert!(hint.contains(helps), "{message}: {hint}");
        }
    }

    #[test]
    fn the_chain_is_told_once() {
        let source: anyhow::Result<()> = Err(anyhow::anyhow!("refused"));
        let error = source.context("connect: refused").context("open the outbox").unwrap_err();
        assert_eq!(text_of(&error), "open the outbox: connect: refused");
    }
}
