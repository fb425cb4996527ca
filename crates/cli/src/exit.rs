//! How the program ends: the one place that knows exit codes.

use std::fmt;
use std::process::ExitCode;

use posthaste_core::{Error, ErrorKind};

use crate::config::{Problems, secrets};

/// It did not work.
const FAILED: u8 = 1;
/// It was asked for in the wrong way (clap uses the same).
const USAGE: u8 = 2;
/// `EX_CONFIG` of sysexits.h: the configuration is wrong, and trying again will not help.
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

/// A failure with a word on what to do.
#[derive(Debug)]
pub(crate) struct Hint {
    /// What happened.
    pub(crate) message: String,
    /// What to do.
    pub(crate) hint: String,
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
    eprintln!("error: {}", secrets::redact(&text_of(error)));
    if let Some(hint) = hint_of(error) {
        eprintln!("hint: {}", secrets::redact(&hint));
    }
    ExitCode::from(code_of(error))
}

fn code_of(error: &anyhow::Error) -> u8 {
    let is_config = |error: &Error| error.kind() == ErrorKind::Config;
    if error.is::<UsageError>() {
        USAGE
    } else if error.is::<Problems>() || error.downcast_ref::<Error>().is_some_and(is_config) {
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

/// What the error says to do, where it says something.
pub(crate) fn hint_of(error: &anyhow::Error) -> Option<String> {
    if let Some(hint) = error.downcast_ref::<Hint>() {
        return Some(hint.hint.clone());
    }
    let error = error.downcast_ref::<Error>()?;
    let hint = error.kind().hint();
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
        assert_eq!(code_of(&core(ErrorKind::Unreachable)), FAILED);
        assert_eq!(code_of(&UsageError("x".into()).into()), USAGE);
        assert_eq!(code_of(&Problems(vec![]).into()), CONFIG);
        assert_eq!(code_of(&anyhow::anyhow!("x")), FAILED);
    }

    #[test]
    fn the_chain_is_told_once() {
        let source: anyhow::Result<()> = Err(anyhow::anyhow!("refused"));
        let error = source.context("connect: refused").context("open the outbox").unwrap_err();
        assert_eq!(text_of(&error), "open the outbox: connect: refused");
    }
}
