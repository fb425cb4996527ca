//! What the running relays say of themselves.

use std::time::Duration;

use jiff::Timestamp;
use posthaste_core::{ErrorKind, RelayView};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::config::{secrets, units};
use crate::output::{count, time};
use crate::plain;
use crate::store::Store;

/// Of a list that writers can make as long as they like, so many are named.
const NAMED_MAX: usize = 5;
const NAME_CHARS_MAX: usize = 80;
/// Some lines of a screen; `--output json` has all of it.
const ERROR_CHARS_MAX: usize = 300;

/// A relay, with what it said last.
#[derive(Debug)]
pub(crate) struct Relay {
    view: RelayView,
    said: Said,
}

/// The report of a relay, of this version or another.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Said {
    version: String,
    state: String,
    started_at: Option<String>,
    database_error: Option<String>,
    database_error_kind: Option<String>,
    delivered_per_second: Option<f64>,
    backlog_change_per_second: Option<f64>,
    undecided: u64,
    unreadable_rows: u64,
    not_recorded: Vec<NotRecorded>,
    lost_as_repeat: u64,
    unknown_destinations: Vec<String>,
    destinations: Vec<Destination>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Destination {
    name: String,
    paused_for: Option<String>,
    paused_since: Option<String>,
    retry_at: Option<String>,
    failing_keys: u64,
    failing_since: Option<String>,
    last_error: Option<String>,
    last_error_kind: Option<String>,
    uncounted_keys: u64,
    uncounted: Vec<UncountedKey>,
}

/// A key whose first event fails, and counts no attempt.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct UncountedKey {
    seq: i64,
    key: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct NotRecorded {
    seq: i64,
    id: String,
    why: String,
}

/// What keeps a relay from delivering something.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Trouble {
    pub(crate) text: String,
    /// What to do.
    pub(crate) hint: &'static str,
}

/// How fast the outbox is delivered, by the word of the relays that live.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Throughput {
    /// Events a second, of all relays together.
    pub(crate) delivered: f64,
    /// How much more waits each second; below zero where it becomes less.
    pub(crate) backlog_change: Option<f64>,
}

/// All relays of the outbox.
pub(crate) async fn find(store: &dyn Store) -> anyhow::Result<Vec<Relay>> {
    Ok(store.relays().await?.into_iter().map(Relay::new).collect())
}

/// How fast it goes; `None` where no relay that lives says it.
pub(crate) fn throughput(relays: &[Relay]) -> Option<Throughput> {
    let alive = || relays.iter().filter(|relay| relay.is_alive()).map(|relay| &relay.said);
    let rates: Vec<f64> = alive().filter_map(|said| said.delivered_per_second).collect();
    // Each sees the whole outbox.
    let changes: Vec<f64> = alive().filter_map(|said| said.backlog_change_per_second).collect();
    (!rates.is_empty()).then(|| Throughput {
        delivered: rates.iter().sum(),
        backlog_change: (!changes.is_empty())
            .then(|| changes.iter().sum::<f64>() / changes.len() as f64),
    })
}

impl Throughput {
    /// How long until so many are delivered, if it goes on so. `None` where they do not become less.
    pub(crate) fn time_to_empty(&self, events: u64) -> Option<Duration> {
        let fewer = match self.backlog_change {
            Some(change) => -change,
            None => self.delivered,
        };
        if events == 0 {
            return Some(Duration::ZERO);
        }
        // Less than a tenth of an event a second is the noise of an estimate.
        (fewer >= 0.1).then(|| whole(Duration::from_secs_f64(events as f64 / fewer)))
    }
}

impl Relay {
    pub(super) fn new(view: RelayView) -> Self {
        let said = view.report.as_deref().and_then(|report| serde_json::from_str(report).ok());
        Self { view, said: said.unwrap_or_default() }
    }

    /// Host and process id.
    pub(crate) fn name(&self) -> &str {
        &self.view.name
    }

    /// Whether its lease runs.
    pub(crate) fn is_alive(&self) -> bool {
        !self.view.lease_left.is_zero()
    }

    /// Whether the database fails for it: it delivers nothing, or records nothing of it.
    pub(crate) fn is_stopped(&self) -> bool {
        self.said.database_error.is_some()
    }

    /// One line of who it is.
    pub(crate) fn as_line(&self) -> String {
        let shards = count(self.view.shards as u64, "shard");
        let life = match (self.is_alive(), self.view.said_ago) {
            (true, None) => {
                format!("lease of {} left", units::format_duration(whole(self.view.lease_left)))
            }
            (true, Some(ago)) => {
                format!("heard of {} ago", units::format_duration(whole(ago)))
            }
            (false, None) => "its lease is over: another takes its shards".into(),
            (false, Some(_)) => "nothing was heard of it for over two minutes: it died".into(),
        };
        let version = if self.said.version.is_empty() { "unknown" } else { &self.said.version };
        let since = when(self.said.started_at.as_deref());
        let since = since.map(|at| format!(" since {at}")).unwrap_or_default();
        let does = match (&self.view.report, self.said.state.as_str()) {
            (None, _) => self.has_not_reported(),
            (Some(_), "") => format!("says nothing that this version reads, version {version}"),
            (Some(_), state) => format!("{state}{since}, version {version}"),
        };
        plain::line(&format!("{}: {does}, {shards}, {life}", self.view.name))
    }

    /// A relay reports a moment after it has joined.
    fn has_not_reported(&self) -> String {
        match self.view.joined_ago {
            Some(ago) => {
                format!("started {} ago, has not reported yet", units::format_duration(whole(ago)))
            }
            None => "has not reported yet".into(),
        }
    }

    /// What keeps it from delivering something, a line each.
    pub(crate) fn troubles(&self) -> Vec<Trouble> {
        let mut troubles = Vec::new();
        let mut tell = |text: String, hint| {
            troubles.push(Trouble { text: plain::line(&secrets::redact(&text)), hint });
        };
        if let Some(error) = &self.said.database_error {
            let kind = self.said.database_error_kind.as_deref().and_then(ErrorKind::named);
            let hint = kind.map_or("its log says more", ErrorKind::hint);
            tell(format!("the database fails for it: {error}"), hint);
        }
        for to in &self.said.destinations {
            if let Some(text) = to.pause() {
                tell(text, "what is paused goes on by itself when the other side answers");
            }
            if let Some((text, hint)) = to.failure() {
                tell(text, hint);
            }
            if let Some(text) = to.uncounted() {
                tell(text, "`posthaste events list --key KEY` shows what waits of a key");
            }
        }
        let unknown = &self.said.unknown_destinations;
        let reroute = "configure it, or send them elsewhere with `posthaste events reroute`";
        for name in unknown.iter().take(NAMED_MAX) {
            let name = shortened(name, NAME_CHARS_MAX);
            tell(format!("events wait for destination {name}, which is not configured"), reroute);
        }
        if let Some(more) = more_than_named(unknown.len()) {
            let more = format!("and for {more} more destinations that are not configured");
            tell(more, reroute);
        }
        if self.said.undecided > 0 {
            let events = count(self.said.undecided, "event");
            tell(
                format!("{events} failed, and it is not known yet whose fault that is"),
                "no attempt is counted; others that are taken, or time, will tell",
            );
        }
        let again = "end what is in the way; until then a restart delivers that event again";
        for row in self.said.not_recorded.iter().take(NAMED_MAX) {
            let (id, seq, why) = (&row.id, row.seq, &row.why);
            tell(format!("cannot record event {id} (place {seq}): {why}"), again);
        }
        if let Some(more) = more_than_named(self.said.not_recorded.len()) {
            tell(format!("and {more} more events that cannot be recorded"), again);
        }
        if self.said.unreadable_rows > 0 {
            let rows = count(self.said.unreadable_rows, "row");
            tell(
                format!("{rows} met since its start that are no event: dead letters"),
                "`posthaste events list --state dead` shows them",
            );
        }
        if self.said.lost_as_repeat > 0 {
            let events = count(self.said.lost_as_repeat, "event");
            tell(
                format!("{events} dropped by a broker as repeats of others with their ids"),
                "its log names them; give each event an id of its own",
            );
        }
        troubles
    }

    pub(crate) fn as_json(&self) -> Value {
        let report = self.view.report.as_deref();
        let mut said: Value =
            report.and_then(|report| serde_json::from_str(report).ok()).unwrap_or_default();
        redact_values(&mut said);
        json!({
            "name": self.view.name,
            "lease_left_seconds": self.view.said_ago.is_none()
                .then_some(self.view.lease_left.as_secs_f64()),
            "said_seconds_ago": self.view.said_ago.map(|ago| ago.as_secs_f64()),
            "shards": self.view.shards,
            "report": said,
        })
    }
}

/// How many keys fail and count no attempt, by the word of the relays that live.
pub(crate) fn uncounted_keys(relays: &[Relay]) -> u64 {
    let alive = relays.iter().filter(|relay| relay.is_alive());
    alive.flat_map(|relay| &relay.said.destinations).map(|to| to.uncounted_keys).sum()
}

impl Destination {
    /// What fails there, why, and what helps. A pause says why itself.
    fn failure(&self) -> Option<(String, &'static str)> {
        const WHICH: &str = "`posthaste keys list` says which and why";
        if self.failing_keys == 0 {
            return None;
        }
        let (name, keys) = (&self.name, count(self.failing_keys, "key"));
        let error = match &self.last_error {
            Some(error) if self.paused_for.is_none() => shortened(error, ERROR_CHARS_MAX),
            _ => {
                return Some((
                    format!("destination {name}: {keys} with an event that fails"),
                    WHICH,
                ));
            }
        };
        Some(match when(self.failing_since.as_deref()) {
            Some(at) => {
                let kind = self.last_error_kind.as_deref().and_then(ErrorKind::named);
                let text = format!(
                    "destination {name} takes nothing since {at}, {keys} with an event that fails: {error}"
                );
                (text, kind.map_or(WHICH, ErrorKind::hint))
            }
            None => {
                let beside = "with an event that fails, others are taken";
                (format!("destination {name}: {keys} {beside}: {error}"), WHICH)
            }
        })
    }

    /// Keys that the table need not know of.
    fn uncounted(&self) -> Option<String> {
        if self.uncounted_keys == 0 {
            return None;
        }
        let named = self.uncounted.iter().take(NAMED_MAX);
        let named: Vec<String> = named
            .map(|key| format!("{} (place {})", shortened(&key.key, NAME_CHARS_MAX), key.seq))
            .collect();
        let more = match self.uncounted_keys.saturating_sub(named.len() as u64) {
            0 => String::new(),
            more => format!(" and {more} more"),
        };
        let keys = count(self.uncounted_keys, "key");
        let (name, named) = (&self.name, named.join(", "));
        Some(format!("destination {name}: no attempt is counted of {keys}: {named}{more}"))
    }

    fn pause(&self) -> Option<String> {
        let why = self.paused_for.as_ref()?;
        let since = when(self.paused_since.as_deref());
        let since = since.map(|at| format!(" since {at}")).unwrap_or_default();
        let retry = match when(self.retry_at.as_deref()) {
            Some(at) => format!(", next try {at}"),
            None => String::new(),
        };
        Some(format!("destination {} is paused{since}{retry}: {why}", self.name))
    }
}

/// Value by value: in the text as a whole, what is put in a secret's place could end a string.
fn redact_values(value: &mut Value) {
    match value {
        Value::String(text) => *text = secrets::redact(text),
        Value::Array(values) => values.iter_mut().for_each(redact_values),
        Value::Object(values) => values.values_mut().for_each(redact_values),
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

/// How many of a list were not named, if any.
fn more_than_named(all: usize) -> Option<usize> {
    all.checked_sub(NAMED_MAX).filter(|more| *more > 0)
}

/// A text as long as it needs to be told from others.
fn shortened(text: &str, chars_max: usize) -> String {
    match text.char_indices().nth(chars_max) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

fn when(text: Option<&str>) -> Option<String> {
    text?.parse::<Timestamp>().ok().map(time)
}

fn whole(time: Duration) -> Duration {
    Duration::from_secs(time.as_secs().max(1))
}

#[cfg(test)]
mod tests {
    use super::*;
    use posthaste_config::ValueKind;

    fn relay(report: &Value) -> Relay {
        Relay::new(RelayView::new("host:1", Duration::from_secs(5), 64, Some(&report.to_string())))
    }

    #[test]
    fn a_secret_in_a_report_is_hidden_and_the_rest_is_shown() {
        // Within the text of the whole, the quotes would be escaped, and so not found.
        let secret = "hunter\"2\\and-more";
        secrets::resolve(secret, ValueKind::Secret).unwrap();
        let report = json!({
            "state": "running",
            "destinations": [{ "name": "main", "paused_for": format!("refused: {secret}") }],
        });
        let shown = relay(&report).as_json();
        assert_eq!(shown["report"]["state"], "running");
        let paused = shown["report"]["destinations"][0]["paused_for"].as_str().unwrap_or_default();
        assert!(paused.starts_with("refused: ") && !paused.contains("hunter"), "{shown}");
    }

    #[test]
    fn a_pause_says_since_when_until_when_and_why() {
        let report = json!({ "destinations": [{
            "name": "main",
            "paused_for": "refused",
            "paused_since": "2026-03-01T03:00:00Z",
            "retry_at": "2026-03-01T03:05:07Z",
        }] });
        assert_eq!(
            relay(&report).troubles()[0].text,
            "destination main is paused since 2026-03-01 03:00:00Z, next try 2026-03-01 03:05:07Z: \
             refused"
        );
    }

    #[test]
    fn a_destination_that_fails_says_since_when_why_and_of_which_keys_nothing_is_counted() {
        let to = |more: Value| {
            let mut to = json!({
                "name": "main", "failing_keys": 7, "uncounted_keys": 7,
                "failing_since": "2026-03-01T03:00:00Z",
                "last_error": "publish: no JetStream stream covers the subject",
                "last_error_kind": "destination_missing",
                "uncounted": [{ "seq": 4, "id": "x", "key": "k\u{1b}1" }, { "seq": 9, "key": "k2" }],
            });
            to.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            relay(&json!({ "destinations": [to] })).troubles()
        };
        let [why, which] = &to(json!({}))[..] else { panic!("two lines") };
        assert_eq!(
            why.text,
            "destination main takes nothing since 2026-03-01 03:00:00Z, 7 keys with an event that \
             fails: publish: no JetStream stream covers the subject"
        );
        assert!(why.hint.contains("create the stream"), "{}", why.hint);
        assert_eq!(
            which.text,
            "destination main: no attempt is counted of 7 keys: k\\u{1b}1 (place 4), k2 (place 9) \
             and 5 more"
        );
        let beside = &to(json!({ "failing_since": null }))[0];
        assert!(beside.text.contains("7 keys with an event that fails, others are taken: publish"));
        assert!(beside.hint.contains("keys list"), "{}", beside.hint);
        let long = &to(json!({ "last_error": "x".repeat(5_000) }))[0];
        assert!(long.text.len() < 500, "{}", long.text);
        let paused = to(json!({ "paused_for": "8 keys failed" }));
        assert!(paused[0].text.ends_with("is paused: 8 keys failed"), "{paused:?}");
        assert_eq!(paused[1].text, "destination main: 7 keys with an event that fails");
        // A relay of the version before.
        let old = to(json!({ "last_error": null, "uncounted_keys": 0 }));
        assert_eq!(old[0].text, "destination main: 7 keys with an event that fails");
    }

    #[test]
    fn what_a_relay_cannot_do_is_told_with_what_helps() {
        let report = json!({
            "database_error": "settle events: no",
            "database_error_kind": "unauthorized",
            "undecided": 3,
            "unreadable_rows": 1,
            "not_recorded": [{ "seq": 7, "id": "abc", "why": "session 4711 holds a lock" }],
        });
        let troubles = relay(&report).troubles();
        for (part, hint) in [
            ("settle events: no", "credentials and the rights"),
            ("3 events failed", "no attempt is counted"),
            ("(place 7): session 4711", "in the way"),
            ("1 row met", "--state dead"),
        ] {
            let found = troubles.iter().find(|trouble| trouble.text.contains(part));
            assert!(found.is_some_and(|found| found.hint.contains(hint)), "{part}: {troubles:?}");
        }
    }

    #[test]
    fn a_relay_that_has_not_reported_yet_is_young_and_not_silent() {
        let view = RelayView::new("host:1", Duration::from_secs(5), 64, None);
        assert_eq!(
            Relay::new(view.that_joined(Duration::from_secs(2))).as_line(),
            "host:1: started 2 s ago, has not reported yet, 64 shards, lease of 5 s left"
        );
        let other = relay(&json!({ "version": "9.0.0" })).as_line();
        assert!(other.contains("says nothing that this version reads, version 9.0.0"), "{other}");
    }

    #[test]
    fn names_that_writers_chose_are_shown_on_one_line_and_not_all() {
        let names: Vec<String> = (0..20_000).map(|n| format!("{n}\u{1b}[2J\nok\u{202e}")).collect();
        let troubles = relay(&json!({ "unknown_destinations": names })).troubles();
        assert_eq!(troubles.len(), NAMED_MAX + 1);
        assert!(troubles[0].text.contains("destination 0\\u{1b}[2J\\nok\\u{202e}, which"));
        assert!(troubles[NAMED_MAX].text.contains("19995 more"), "{troubles:?}");
    }

    #[test]
    fn how_long_it_takes_hangs_on_what_is_left_over_from_what_is_stored() {
        let said = |delivered: f64, change: Option<f64>| {
            let report = json!({
                "delivered_per_second": delivered, "backlog_change_per_second": change,
            });
            throughput(&[relay(&report)]).and_then(|speed| speed.time_to_empty(1_000))
        };
        let seconds = |seconds| Some(Duration::from_secs(seconds));
        assert_eq!(said(50.0, Some(-10.0)), seconds(100), "40 a second are stored meanwhile");
        assert_eq!(said(50.0, None), seconds(20));
        assert_eq!(said(50.0, Some(3.0)), None, "more is stored than delivered");
        assert_eq!(said(0.0, Some(0.0)), None);
        assert_eq!(throughput(&[relay(&json!({}))]), None, "a relay of another version");
        let dead =
            RelayView::new("host:2", Duration::ZERO, 0, Some(r#"{"delivered_per_second":9}"#));
        assert_eq!(throughput(&[Relay::new(dead)]), None, "what a dead relay said last");
    }
}
