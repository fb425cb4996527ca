//! Logs: on standard error, without secrets.

use std::io::{self, IsTerminal, Write};

use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;

use crate::config::{LogFormat, secrets};

/// Sends the logs of this process to standard error from now on.
pub(crate) fn install(level: &str, format: LogFormat) {
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter(level))
        .with_writer(RedactedStderr)
        .with_ansi(io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none());
    // An error means that a subscriber is there already (a test's): its choice then counts.
    let _ = match format {
        LogFormat::Text => builder.try_init(),
        LogFormat::Json => builder.json().flatten_event(true).try_init(),
    };
}

/// `RUST_LOG` where it is given and sound; otherwise our own crates at `level`, and the libraries
/// beneath at `warn`, or as severe as that.
fn filter(level: &str) -> EnvFilter {
    if let Ok(filter) = EnvFilter::try_from_default_env()
        && std::env::var_os("RUST_LOG").is_some_and(|value| !value.is_empty())
    {
        return filter;
    }
    let others = if level == "error" { "error" } else { "warn" };
    EnvFilter::new(format!("{others},posthaste={level}"))
}

struct RedactedStderr;

impl<'a> MakeWriter<'a> for RedactedStderr {
    type Writer = Line;

    fn make_writer(&'a self) -> Line {
        Line(Vec::new())
    }
}

/// One message; written as a whole when it is complete.
struct Line(Vec<u8>);

impl Write for Line {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        let text = String::from_utf8_lossy(&self.0);
        // Where standard error is closed there is nobody left to tell.
        let _ = io::stderr().lock().write_all(secrets::redact(&text).as_bytes());
    }
}
