//! `posthaste doctor`: what keeps events from being delivered.

use std::future::Future;
use std::pin::Pin;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use posthaste_core::{Backlog, OpenTransaction, Severity, StuckBy, StuckKeyQuery};
use posthaste_processor::DeadHeadPolicy;
use serde_json::{Value, json};
use tokio::sync::Notify;

use super::relays::{self, Relay};
use super::{keys, open_transactions};
use crate::config::{Config, secrets, units};
use crate::destinations;
use crate::exit;
use crate::output::{Output, count};
use crate::plain;
use crate::store::{self, Missing, Store};

/// A transaction that is open for longer is hardly still at work.
const OPEN_FOR_MAX: Duration = Duration::from_secs(60);

/// A destination that has not answered by then is taken for one that does not.
const DESTINATION_TIMEOUT: Duration = Duration::from_secs(15);

/// So long a look at the database may take.
const LOOK_TIMEOUT: Duration = Duration::from_secs(20);

/// Keys are counted up to here.
const KEYS_MAX: usize = 1_000;

type Look<'l> = Pin<Box<dyn Future<Output = anyhow::Result<Finding>> + 'l>>;

/// One look and what it found.
struct Finding {
    about: String,
    level: Severity,
    message: String,
    /// What it is made of, a line each.
    details: Vec<String>,
    /// What to do.
    hint: Option<String>,
    /// The transactions it is about.
    transactions: Vec<OpenTransaction>,
}

/// What a store found.
impl From<posthaste_core::Finding> for Finding {
    fn from(found: posthaste_core::Finding) -> Self {
        let finding = Self::new(found.about, found.severity, secrets::redact(&found.message));
        Self { hint: found.hint.map(|hint| secrets::redact(&hint)), ..finding }
    }
}

impl Finding {
    fn new(about: impl Into<String>, level: Severity, message: impl Into<String>) -> Self {
        let (about, message) = (about.into(), message.into());
        Self { about, level, message, details: Vec::new(), hint: None, transactions: Vec::new() }
    }

    fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    fn failed(about: impl Into<String>, error: &anyhow::Error) -> Self {
        let finding = Self::new(about, Severity::Error, secrets::redact(&exit::text_of(error)));
        Self { hint: exit::hint_of(error).map(|hint| secrets::redact(&hint)), ..finding }
    }

    fn as_json(&self) -> Value {
        let transactions = self.transactions.iter().map(open_transactions::as_json);
        json!({
            "about": self.about,
            "level": self.level.as_str(),
            "message": std::iter::once(&*self.message)
                .chain(self.details.iter().map(|detail| &**detail))
                .collect::<Vec<_>>()
                .join("; "),
            "hint": self.hint,
            "open_transactions": transactions.collect::<Vec<_>>(),
        })
    }

    fn human(&self) -> String {
        let (level, message) = (self.level.as_str(), plain::line(&self.message));
        let mut text = format!("{level:<8} {}: {message}\n", plain::line(&self.about));
        for detail in &self.details {
            text.push_str(&format!("         {}\n", plain::line(detail)));
        }
        for open in &self.transactions {
            text.push_str(&format!("         {}\n", open_transactions::as_line(open)));
        }
        if let Some(hint) = &self.hint {
            text.push_str(&format!("         {}\n", plain::line(hint)));
        }
        text
    }
}

/// Looks at everything; fails where something is wrong that stops delivery.
pub(crate) async fn run(config: &Config, output: Output) -> anyhow::Result<ExitCode> {
    let mut findings = look_at_destinations(config).await;
    match store::open(config, Missing::Refuse).await {
        Err(error) => findings.push(Finding::failed("database", &error)),
        Ok(store) => {
            findings.push(Finding::new("database", Severity::Fine, config.database.address()));
            findings.extend(look_at_database(&*store, config).await);
        }
    }
    let healthy = findings.iter().all(|finding| finding.level != Severity::Error);
    let result = json!({
        "ok": healthy,
        "findings": findings.iter().map(Finding::as_json).collect::<Vec<_>>(),
    });
    output.write(&result, || findings.iter().map(Finding::human).collect())?;
    Ok(if healthy { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// What the store finds, then what it refuses a relay for, then how the outbox is doing.
async fn look_at_database(store: &dyn Store, config: &Config) -> Vec<Finding> {
    let mut findings: Vec<Finding> = store.diagnose().await.into_iter().map(Into::into).collect();
    let is_wrong =
        |findings: &[Finding]| findings.iter().any(|finding| finding.level == Severity::Error);
    let status = within_limit(async { Ok(store.migration_status().await?) }).await;
    let is_missing = status.as_ref().is_ok_and(|status| status.current == 0);
    let status = status.and_then(|status| Ok(store::require_schema(&status)?));
    // What was found says more.
    if let Err(error) = status
        && !is_wrong(&findings)
    {
        findings.push(Finding::failed("schema", &error));
    }
    if is_missing {
        return findings;
    }
    if !is_wrong(&findings)
        && let Err(error) = within_limit(async { Ok(store.check().await?) }).await
    {
        findings.push(Finding::failed("schema", &error));
    }
    findings.extend(look_at_outbox(store, config).await);
    findings
}

/// One look that gets no answer must not keep the others from being shown.
async fn within_limit<T>(look: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    tokio::time::timeout(LOOK_TIMEOUT, look).await.unwrap_or_else(|_| {
        Err(anyhow::anyhow!("no answer within {}", units::format_duration(LOOK_TIMEOUT)))
    })
}

async fn look_at_destinations(config: &Config) -> Vec<Finding> {
    let problems = destinations::problems(config, &[]);
    if !problems.is_empty() {
        let finding = |problem: &crate::config::Problem| {
            let message = secrets::redact(&problem.message);
            Finding::new("configuration", Severity::Error, message).hint(problem.help.clone())
        };
        return problems.iter().map(finding).collect();
    }
    let opened = match destinations::open(&config.destinations, &Arc::new(Notify::new())).await {
        Ok(opened) => opened,
        Err(error) => return vec![Finding::failed("configuration", &error.into())],
    };
    let mut findings = Vec::new();
    for destination in &opened {
        let about = format!("destination {}", destination.name);
        let checked = tokio::time::timeout(DESTINATION_TIMEOUT, destination.bus.check()).await;
        findings.push(match checked {
            Ok(Ok(())) => {
                let answered = destination.bus.last_answer();
                let answered = answered.map(|answer| format!("; it answered: {answer}"));
                let message = format!("can be reached{}", answered.unwrap_or_default());
                Finding::new(about, Severity::Fine, secrets::redact(&message))
            }
            Ok(Err(error)) => Finding::failed(about, &error.into()),
            Err(_) => {
                let waited = units::format_duration(DESTINATION_TIMEOUT);
                Finding::new(about, Severity::Error, format!("no answer within {waited}"))
            }
        });
        // What it says on closing is about events, and there were none.
        let _ = tokio::time::timeout(DESTINATION_TIMEOUT, destination.bus.close()).await;
    }
    findings
}

async fn look_at_outbox(store: &dyn Store, config: &Config) -> Vec<Finding> {
    let stall_after = config.ops.stall_after;
    let backlog = within_limit(async { Ok(store.backlog(0).await?) }).await;
    let overdue = backlog.as_ref().is_ok_and(|backlog| is_overdue(backlog, stall_after));
    let looks: [(&str, Look<'_>); 4] = [
        ("relays", Box::pin(async { Ok(judge_relays(&relays::find(store).await?, overdue)) })),
        ("keys", Box::pin(look_at_keys(store, config))),
        ("open transactions", Box::pin(look_at_transactions(store))),
        ("backlog", Box::pin(async { Ok(look_at_backlog(&backlog?, stall_after)) })),
    ];
    let mut findings = Vec::new();
    for (about, look) in looks {
        let found = within_limit(look).await;
        findings.push(found.unwrap_or_else(|error| Finding::failed(about, &error)));
    }
    findings
}

/// What the running relays say of themselves. That none runs is wrong where events are `overdue`.
fn judge_relays(relays: &[Relay], overdue: bool) -> Finding {
    let about = "relays";
    let alive: Vec<&Relay> = relays.iter().filter(|relay| relay.is_alive()).collect();
    if alive.is_empty() {
        let level = if overdue { Severity::Error } else { Severity::Warning };
        return Finding::new(about, level, "none runs: nothing is delivered").hint(
            "start one with `posthaste run`; one that runs cannot keep its lease: its log says why",
        );
    }
    let is_stopped = alive.iter().any(|relay| relay.is_stopped());
    let level = if is_stopped { Severity::Error } else { Severity::Warning };
    let mut troubles = Vec::new();
    let mut hints: Vec<&str> = Vec::new();
    for relay in &alive {
        for trouble in relay.troubles() {
            troubles.push(format!("{}: {}", relay.name(), trouble.text));
            if !hints.contains(&trouble.hint) {
                hints.push(trouble.hint);
            }
        }
    }
    let running = format!("{} alive", count(alive.len() as u64, "relay"));
    if troubles.is_empty() {
        return Finding::new(
            about,
            Severity::Fine,
            format!("{running}, none has anything to tell"),
        );
    }
    let finding = Finding::new(about, level, running).hint(hints.join("; "));
    Finding { details: troubles, ..finding }
}

async fn look_at_keys(store: &dyn Store, config: &Config) -> anyhow::Result<Finding> {
    let routes = keys::route_table(config)?;
    let query = StuckKeyQuery { by: StuckBy::DeadLetter, after: 0, limit: KEYS_MAX };
    let page = store.stuck_keys(&query).await?;
    let blocked = page.keys.iter().filter(|key| {
        let routed = routes.resolve(key.destination.as_deref(), &key.event_type);
        routed.is_none_or(|routed| routed.dead_head == DeadHeadPolicy::Block)
    });
    let (mut keys, mut waiting) = (0, 0);
    for key in blocked {
        keys += 1;
        waiting += key.waiting;
    }
    let dead = count(page.keys.len() as u64, "key");
    let more = if page.next.is_some() { "or more " } else { "" };
    Ok(match keys {
        0 if page.keys.is_empty() => Finding::new("keys", Severity::Fine, "none has a dead letter"),
        0 => Finding::new(
            "keys",
            Severity::Warning,
            format!("{dead} {more}went on past a dead letter"),
        )
        .hint("see `posthaste keys list`; retry or discard them with `posthaste events`"),
        _ => Finding::new(
            "keys",
            Severity::Warning,
            format!(
                "{} {more}blocked by a dead letter, {} {more}behind",
                count(keys, "key"),
                count(waiting, "event")
            ),
        )
        .hint("see `posthaste keys list`; then `posthaste events retry ID` or `discard ID`"),
    })
}

async fn look_at_transactions(store: &dyn Store) -> anyhow::Result<Finding> {
    Ok(judge_transactions(open_transactions::find(store).await?))
}

fn judge_transactions(transactions: Vec<OpenTransaction>) -> Finding {
    let late = |open: &OpenTransaction| open.age.is_some_and(|age| age >= OPEN_FOR_MAX);
    let about = "open transactions";
    let finding = if transactions.is_empty() {
        Finding::new(about, Severity::Fine, "none holds events back")
    } else if transactions.iter().any(late) {
        let limit = units::format_duration(OPEN_FOR_MAX);
        Finding::new(
            about,
            Severity::Warning,
            format!("one or more hold events back for over {limit}"),
        )
        .hint(
            "their events cannot be seen before they commit; end a forgotten session with \
                 `select pg_terminate_backend(PID)`, which rolls it back",
        )
    } else {
        let shortest = units::format_duration(open_transactions::OPEN_FOR_MIN);
        let message = format!("some are open for over {shortest}");
        Finding::new(about, Severity::Fine, message)
    };
    Finding { transactions, ..finding }
}

fn is_overdue(backlog: &Backlog, stall_after: Duration) -> bool {
    backlog.ready > 0 && backlog.oldest_pending_age >= stall_after
}

fn look_at_backlog(backlog: &Backlog, stall_after: Duration) -> Finding {
    let about = if backlog.is_estimated { "~" } else { "" };
    let pending = format!("{about}{}", count(backlog.pending(), "event"));
    if !is_overdue(backlog, stall_after) {
        return Finding::new("backlog", Severity::Fine, format!("{pending} pending, none overdue"));
    }
    let age = units::format_duration(backlog.oldest_pending_age);
    Finding::new(
        "backlog",
        Severity::Warning,
        format!("{pending} pending, the oldest is due for {age}"),
    )
    .hint("if the above is in order, no relay runs or it lags: ask its /readyz, and read its log")
}

#[cfg(test)]
mod tests {
    use super::*;
    use posthaste_core::{RelayView, TransactionHolder};

    #[test]
    fn what_keeps_all_events_from_being_delivered_is_an_error() {
        let relay = |lease: u64, report: Value| {
            let lease = Duration::from_secs(lease);
            let view = RelayView::new("host:1", lease, 64, Some(&report.to_string()));
            vec![Relay::new(view)]
        };
        let failing = || json!({ "database_error": "renew lease: no" });
        for (relays, overdue, level) in [
            (vec![], false, Severity::Warning),
            (vec![], true, Severity::Error),
            (relay(0, json!({})), true, Severity::Error),
            (relay(5, json!({})), true, Severity::Fine),
            (relay(5, json!({ "undecided": 1 })), true, Severity::Warning),
            (relay(5, failing()), false, Severity::Error),
        ] {
            let finding = judge_relays(&relays, overdue);
            assert_eq!(finding.level, level, "{}", finding.human());
        }
    }

    #[test]
    fn a_transaction_is_a_warning_from_a_minute_on() {
        let open = |age: Option<u64>| OpenTransaction {
            token: "3/7".into(),
            holder: TransactionHolder::Prepared { name: "order 42".into() },
            user: None,
            age: age.map(Duration::from_secs),
        };
        for (ages, level) in [
            (vec![], Severity::Fine),
            (vec![Some(59), Some(2), None], Severity::Fine),
            (vec![Some(60), Some(2)], Severity::Warning),
        ] {
            let finding = judge_transactions(ages.iter().copied().map(open).collect());
            assert_eq!(finding.level, level, "{ages:?}");
            let lines = finding.human().matches("order 42").count();
            assert_eq!(lines, ages.len(), "each is named");
        }
    }
}
