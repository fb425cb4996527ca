//! `posthaste publish --from`: an event for each line of a file.

use std::fs::File;
use std::io::{self, BufRead, BufReader, IsTerminal, Read};
use std::path::Path;

use anyhow::Context as _;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use jiff::Timestamp;
use posthaste_core::{ErrorStatus, OutboxEvent, Payload};
use serde::Deserialize;
use serde_json::json;
use serde_json::value::RawValue;
use uuid::Uuid;

use crate::exit::Hint;
use crate::output::{Output, count};
use crate::store::Store;

/// Events stored by one transaction.
const BATCH_EVENTS: usize = 500;
/// A batch ends when its bodies reach this, so that large events do not fill the memory.
const BATCH_BYTES: usize = 8 * 1024 * 1024;
/// A longer line is refused before it is read whole.
const LINE_BYTES_MAX: u64 = 256 * 1024 * 1024;

/// One line. The names are those of the relay's own lines, and of the table's columns.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Line<'a> {
    id: Option<Uuid>,
    aggregate_id: Uuid,
    aggregate_type: Option<String>,
    #[serde(rename = "type", alias = "event_type")]
    event_type: String,
    #[serde(alias = "order_key", alias = "partition_key")]
    key: Option<String>,
    destination: Option<String>,
    topic: Option<String>,
    #[serde(default, borrow)]
    headers: Option<&'a RawValue>,
    #[serde(default, borrow, alias = "event_data", deserialize_with = "present")]
    data: Option<&'a RawValue>,
    data_base64: Option<String>,
    content_type: Option<String>,
    available_at: Option<Timestamp>,
    max_retries: Option<u32>,
    /// Taken so that the relay's own lines can be stored; the database sets its own.
    #[serde(rename = "created_at")]
    _created_at: Option<serde::de::IgnoredAny>,
}

/// A key that is there, `null` included: an event may carry just that.
fn present<'de, D>(deserializer: D) -> Result<Option<&'de RawValue>, D::Error>
where
    D: serde::Deserializer<'de>,
{
    <&RawValue>::deserialize(deserializer).map(Some)
}

/// Stores every line after the first `skip`; stops at the first that is bad.
pub(crate) async fn run(
    path: &Path,
    skip: u64,
    store: &dyn Store,
    output: Output,
) -> anyhow::Result<()> {
    let (mut input, length) = open(path)?;
    let progress = progress(length);
    let mut batch = Batch::default();
    let mut stored = Stored::default();
    let mut line = Vec::new();
    for number in 1_u64.. {
        line.clear();
        let read = (&mut input)
            .take(LINE_BYTES_MAX)
            .read_until(b'\n', &mut line)
            .with_context(|| format!("cannot read {}", path.display()))?;
        if read == 0 {
            break;
        }
        progress.inc(read as u64);
        if number <= skip {
            continue;
        }
        let line = if number == 1 { without_mark(&line) } else { &line };
        match parse(line) {
            Ok(None) => batch.last_line = number,
            Ok(Some(event)) => batch.push(event, number),
            Err(why) => {
                // What came before the bad line is stored: --skip then starts at it.
                stored.add(path, batch, store, skip).await?;
                progress.finish_and_clear();
                return Err(bad_line(path, number, &why, &stored).into());
            }
        }
        if batch.is_full() {
            stored.add(path, std::mem::take(&mut batch), store, skip).await?;
            progress.set_message(count(stored.events, "event"));
        }
    }
    stored.add(path, batch, store, skip).await?;
    progress.finish_and_clear();
    output.write(&json!({ "stored": stored.events }), || {
        format!("stored {}", count(stored.events, "event"))
    })
}

fn open(path: &Path) -> anyhow::Result<(Box<dyn BufRead>, Option<u64>)> {
    if path == Path::new("-") {
        return Ok((Box::new(BufReader::new(io::stdin())), None));
    }
    let file = File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
    let length = file.metadata().ok().filter(std::fs::Metadata::is_file).map(|data| data.len());
    Ok((Box::new(BufReader::with_capacity(1 << 16, file)), length))
}

/// A bar on a terminal, nothing elsewhere.
fn progress(length: Option<u64>) -> ProgressBar {
    let target = if io::stderr().is_terminal() {
        ProgressDrawTarget::stderr()
    } else {
        ProgressDrawTarget::hidden()
    };
    let bar = ProgressBar::with_draw_target(length, target);
    let template = if length.is_some() {
        "{bar:40} {bytes}/{total_bytes} {msg} {elapsed}, {eta} left"
    } else {
        "{spinner} {bytes} {msg} {elapsed}"
    };
    // A template that does not parse would only change how the bar looks.
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style);
    }
    bar
}

#[derive(Default)]
struct Batch {
    /// Each with the number of its line.
    events: Vec<(OutboxEvent, u64)>,
    bytes: usize,
    last_line: u64,
}

impl Batch {
    fn push(&mut self, event: OutboxEvent, line: u64) {
        self.last_line = line;
        self.bytes += event.payload().body().len();
        self.events.push((event, line));
    }

    fn is_full(&self) -> bool {
        self.events.len() >= BATCH_EVENTS || self.bytes >= BATCH_BYTES
    }
}

/// How far the file is stored.
#[derive(Default)]
struct Stored {
    events: u64,
    last_line: u64,
}

impl Stored {
    /// Stores a batch in one transaction; where the database refuses it, what comes before the line
    /// that is to blame.
    async fn add(
        &mut self,
        path: &Path,
        batch: Batch,
        store: &dyn Store,
        skip: u64,
    ) -> anyhow::Result<()> {
        let (events, lines): (Vec<_>, Vec<_>) = batch.events.into_iter().unzip();
        // What is left to store; halved until a single line is refused.
        let mut parts = Vec::new();
        let mut next = Some(0..events.len());
        while let Some(part) = next.take().or_else(|| parts.pop()).filter(|part| !part.is_empty()) {
            let Err(error) = store.store(&events[part.clone()]).await else {
                self.events += part.len() as u64;
                self.last_line = lines[part.end - 1];
                continue;
            };
            if error.status() != ErrorStatus::Permanent {
                let span = format!("{} to {}", lines[part.start], lines[part.end - 1]);
                return Err(self.failed(&span, &error, skip).into());
            }
            if part.len() == 1 {
                return Err(bad_line(path, lines[part.start], &error.report(), self).into());
            }
            let middle = part.start + part.len() / 2;
            parts.extend([middle..part.end, part.start..middle]);
        }
        self.last_line = self.last_line.max(batch.last_line);
        Ok(())
    }

    /// For what is no line's fault.
    fn failed(&self, lines: &str, error: &posthaste_core::Error, skip: u64) -> Hint {
        let resume = self.last_line.max(skip);
        Hint {
            message: format!("lines {lines} could not be stored: {}", error.report()),
            hint: format!(
                "lines up to {resume} are stored; the answer for those behind may have been lost: \
                 look with `posthaste events list`, then go on with --skip {resume}"
            ),
        }
    }
}

fn bad_line(path: &Path, number: u64, why: &str, stored: &Stored) -> Hint {
    Hint {
        message: format!("{}, line {number}: {why}", path.display()),
        hint: format!(
            "{} stored, and nothing from line {number} on; correct the line and go on with \
             --skip {}",
            match stored.events {
                1 => "1 event was".to_owned(),
                events => format!("{events} events were"),
            },
            number - 1
        ),
    }
}

/// A line without the mark that some editors put before UTF-8.
fn without_mark(line: &[u8]) -> &[u8] {
    line.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(line)
}

/// The event of a line; none for a blank one.
fn parse(line: &[u8]) -> Result<Option<OutboxEvent>, String> {
    if line.starts_with(b"\xFF\xFE") || line.starts_with(b"\xFE\xFF") {
        return Err(
            "is UTF-16; save the file as UTF-8 (PowerShell: Out-File -Encoding utf8)".into()
        );
    }
    if line.len() as u64 >= LINE_BYTES_MAX && !line.ends_with(b"\n") {
        return Err(format!("is over {} MiB long", LINE_BYTES_MAX >> 20));
    }
    if line.iter().all(u8::is_ascii_whitespace) {
        return Ok(None);
    }
    let line: Line<'_> = serde_json::from_slice(line).map_err(|error| {
        // serde counts lines within this one line.
        let text = error.to_string();
        match text.split_once(" at line ") {
            Some((why, _)) => format!("{why} (column {})", error.column()),
            None => text,
        }
    })?;
    event_of(line).map(Some)
}

fn event_of(line: Line<'_>) -> Result<OutboxEvent, String> {
    let payload = payload_of(&line)?;
    let mut builder = OutboxEvent::builder(line.aggregate_id, line.event_type).payload(payload);
    if let Some(id) = line.id {
        builder = builder.id(id);
    }
    // The relay writes the aggregate's id as the key of events without one of their own.
    if let Some(key) = line.key.filter(|key| *key != line.aggregate_id.to_string()) {
        builder = builder.order_key(key);
    }
    if let Some(aggregate_type) = line.aggregate_type {
        builder = builder.aggregate_type(aggregate_type);
    }
    if let Some(destination) = line.destination {
        builder = builder.destination(destination);
    }
    if let Some(topic) = line.topic {
        builder = builder.topic(topic);
    }
    if let Some(headers) = line.headers {
        let headers = posthaste_core::Headers::from_json(headers.get().as_bytes())
            .map_err(|error| error.report())?;
        for (name, value) in headers.iter() {
            builder = builder.header(name, value);
        }
    }
    if let Some(time) = line.available_at {
        builder = builder.available_at(time);
    }
    if let Some(max_retries) = line.max_retries {
        builder = builder.max_retries(max_retries);
    }
    builder.build().map_err(|error| error.report())
}

fn payload_of(line: &Line<'_>) -> Result<Payload, String> {
    let is_json = line
        .content_type
        .as_deref()
        .is_none_or(|content_type| content_type == posthaste_core::JSON_CONTENT_TYPE);
    let payload = match (line.data, &line.data_base64) {
        (Some(_), Some(_)) => return Err("has both data and data_base64; give one".into()),
        (None, None) => return Err("has no data (give `\"data\": {}` for none)".into()),
        (Some(data), None) if is_json => Payload::json_text(data.get().to_owned()),
        (Some(_), None) => {
            return Err("has a content_type with data; give the bytes as data_base64".into());
        }
        (None, Some(text)) => {
            let Some(content_type) = &line.content_type else {
                return Err("has data_base64 without a content_type".into());
            };
            let bytes = STANDARD
                .decode(text)
                .map_err(|error| format!("data_base64 is not base64: {error}"))?;
            Payload::bytes(bytes, content_type)
        }
    };
    payload.map_err(|error| error.report())
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "01890a5d-ac96-774b-bcce-b302099a8057";

    fn parsed(rest: &str) -> Result<Option<OutboxEvent>, String> {
        parse(format!(r#"{{"aggregate_id":"{ID}","type":"t"{rest}}}"#).as_bytes())
    }

    #[test]
    fn data_is_kept_byte_for_byte_and_bytes_come_as_base64() {
        let event = parsed(r#","data":{"b": 1.10, "a":[]}"#).unwrap().unwrap();
        assert_eq!(event.payload().body(), r#"{"b": 1.10, "a":[]}"#);
        let event = parsed(r#","data_base64":"//4=","content_type":"a/b""#).unwrap().unwrap();
        assert_eq!(event.payload().body(), &[0xff, 0xfe][..]);
    }

    #[test]
    fn the_relays_own_lines_are_taken() {
        let event = parsed(&format!(
            r#","id":"{ID}","key":"{ID}","created_at":"2026-01-01T00:00:00Z",
            "content_type":"application/json","headers":{{"n":"v"}},"data":null"#
        ));
        let event = event.unwrap().unwrap();
        assert_eq!(event.order_key().as_named(), None);
        assert_eq!(event.headers().get("n"), Some("v"));
        assert_eq!(event.payload().body(), "null");
    }

    #[test]
    fn a_bad_line_says_what_is_wrong() {
        for (rest, expected) in [
            (r#","typ":"x","data":1"#, "unknown field `typ`"),
            ("", "no data"),
            (r#","data":1,"data_base64":"""#, "both data and data_base64"),
            (r#","data_base64":"AA==""#, "without a content_type"),
            (r#","data_base64":"!","content_type":"a/b""#, "not base64"),
            (r#","data":1,"headers":[]"#, "one JSON object"),
            (r#","data":1,"headers":{"a b":"c"}"#, "header name"),
            (r#","data":1,"max_retries":-1"#, "invalid value"),
        ] {
            let why = parsed(rest).unwrap_err();
            assert!(why.contains(expected), "{rest}: {why}");
        }
        assert!(parse(b"{").unwrap_err().contains("column"));
        assert!(parse(b"\xff\xfe{\0").unwrap_err().contains("UTF-16"));
        assert_eq!(without_mark(b"\xef\xbb\xbf{}"), b"{}");
        assert_eq!(parse(b"  \n").unwrap(), None);
    }
}
