//! Logs: on standard error, without secrets, by a thread of their own.
//!
//! Whoever reads standard error may stand still (a log driver whose disk is full). What writes there
//! then waits for ever, so nobody who does anything else may write there: lines are handed over, and
//! where too many wait, they are dropped and counted.

use std::io::{self, IsTerminal, Write};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{self, SyncSender};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;

use crate::config::{LogFormat, secrets};
use crate::plain;

/// Lines that may wait for standard error. A line has some 200 bytes.
const WAITING_LINES_MAX: usize = 8_192;
/// How long an end waits for what was said last. A reader that stands still must not keep the
/// program from ending.
const LAST_WORDS_WITHIN: Duration = Duration::from_secs(2);

/// Sends the logs of this process to standard error from now on.
pub(crate) fn install(level: &str, format: LogFormat) {
    let queue = Queue::of_process();
    queue.in_json.store(format == LogFormat::Json, Ordering::Relaxed);
    let in_colour = io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
    queue.in_colour.store(in_colour && format == LogFormat::Text, Ordering::Relaxed);
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter(level))
        .with_writer(Lines(Arc::clone(queue)))
        .with_ansi(in_colour);
    // An error means that a subscriber is there already (a test's): its choice then counts.
    let _ = match format {
        LogFormat::Text => builder.try_init(),
        LogFormat::Json => builder.json().flatten_event(true).try_init(),
    };
}

/// Writes text for a person to standard error, behind what was logged before.
///
/// Waits for nothing: whoever ends the process calls [`flush`].
pub(crate) fn say(text: &str) {
    say_styled(&plain::lines(text));
}

/// As [`say()`], of a text that may steer the terminal: our own, with colours.
pub(crate) fn say_styled(text: &str) {
    Queue::of_process().add(format!("{}\n", secrets::redact(text)).into_bytes());
}

/// Waits until all that was logged and said so far is written, for two seconds at most: the exit
/// code must come out, whatever becomes of the words.
pub(crate) fn flush() {
    Queue::of_process().flush(LAST_WORDS_WITHIN);
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

/// What waits to be written.
struct Queue {
    lines: SyncSender<Message>,
    dropped: AtomicU64,
    in_json: AtomicBool,
    /// Whether lines hold colours, beside which the subscriber escapes what steers a terminal.
    in_colour: AtomicBool,
}

enum Message {
    Line(Vec<u8>),
    /// All before it is written: say so.
    Flush(SyncSender<()>),
}

impl Queue {
    /// The one of this process; its thread is started with it.
    fn of_process() -> &'static Arc<Self> {
        static QUEUE: OnceLock<Arc<Queue>> = OnceLock::new();
        QUEUE.get_or_init(|| {
            let (lines, waiting) = mpsc::sync_channel(WAITING_LINES_MAX);
            let queue = Arc::new(Self {
                lines,
                dropped: AtomicU64::new(0),
                in_json: AtomicBool::new(false),
                in_colour: AtomicBool::new(false),
            });
            let writer = Arc::clone(&queue);
            let thread = std::thread::Builder::new().name("logs".into());
            // Without the thread, lines are dropped and counted.
            let _ = thread.spawn(move || writer.write(waiting.iter(), &mut io::stderr()));
            queue
        })
    }

    fn add(&self, line: Vec<u8>) {
        if self.lines.try_send(Message::Line(line)).is_err() {
            self.dropped.fetch_add(1, Ordering::Relaxed);
            metrics::counter!("outbox_log_lines_dropped_total").increment(1);
        }
    }

    fn flush(&self, limit: Duration) {
        let deadline = Instant::now() + limit;
        let (written, all_written) = mpsc::sync_channel(1);
        let mut message = Message::Flush(written);
        // The standard library has no sending with a limit of time.
        while let Err(mpsc::TrySendError::Full(again)) = self.lines.try_send(message) {
            if Instant::now() >= deadline {
                return;
            }
            message = again;
            std::thread::sleep(Duration::from_millis(5));
        }
        let _ = all_written.recv_timeout(deadline.saturating_duration_since(Instant::now()));
    }

    fn write(&self, messages: impl Iterator<Item = Message>, out: &mut impl Write) {
        let mut told = 0;
        for message in messages {
            match message {
                // Where standard error is closed there is nobody left to tell.
                Message::Line(line) => drop(out.write_all(&line)),
                Message::Flush(written) => drop(written.send(())),
            }
            let dropped = self.dropped.load(Ordering::Relaxed);
            if dropped > told && out.write_all(self.notice(dropped - told).as_bytes()).is_ok() {
                told = dropped;
            }
        }
    }

    fn notice(&self, lines: u64) -> String {
        let message = format!("{lines} log lines were dropped: standard error was not read");
        if !self.in_json.load(Ordering::Relaxed) {
            return format!("{} WARN posthaste: {message}\n", jiff::Timestamp::now());
        }
        let line = serde_json::json!({
            "timestamp": jiff::Timestamp::now().to_string(),
            "level": "WARN",
            "message": message,
            "target": "posthaste",
        });
        format!("{line}\n")
    }
}

struct Lines(Arc<Queue>);

impl<'a> MakeWriter<'a> for Lines {
    type Writer = Line;

    fn make_writer(&'a self) -> Line {
        Line { queue: Arc::clone(&self.0), text: Vec::new() }
    }
}

/// One message; handed over as a whole when it is complete.
struct Line {
    queue: Arc<Queue>,
    text: Vec<u8>,
}

impl Write for Line {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.text.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        let text = String::from_utf8_lossy(&self.text);
        let text = secrets::redact(text.trim_end_matches('\n'));
        let line = if self.queue.in_json.load(Ordering::Relaxed) {
            plain::json(&text)
        } else if self.queue.in_colour.load(Ordering::Relaxed) {
            plain::coloured_line(&text)
        } else {
            plain::line(&text)
        };
        self.queue.add(format!("{line}\n").into_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_that_find_no_room_are_dropped_counted_and_told() {
        let (lines, waiting) = mpsc::sync_channel(2);
        let (in_json, in_colour) = (AtomicBool::new(false), AtomicBool::new(false));
        let queue = Queue { lines, dropped: AtomicU64::new(0), in_json, in_colour };
        for number in 0..5 {
            // Nobody reads: this must not wait.
            queue.add(format!("line {number}\n").into_bytes());
        }
        queue.flush(Duration::from_millis(20));
        let mut written = Vec::new();
        queue.write(waiting.try_iter(), &mut written);
        let written = String::from_utf8(written).unwrap();
        assert!(written.starts_with("line 0\n"), "{written}");
        assert!(written.contains("line 1\n") && !written.contains("line 2\n"), "{written}");
        assert!(written.contains("3 log lines were dropped"), "{written}");
    }
}
