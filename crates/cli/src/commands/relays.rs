//! What the running relays say of themselves.

use std::time::Duration;

use posthaste_core::RelayView;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::config::{secrets, units};
use crate::output::count;
use crate::store::Store;

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
    database_error: Option<String>,
    lost_as_repeat: u64,
    unknown_destinations: Vec<String>,
    destinations: Vec<Destination>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Destination {
    name: String,
    paused_for: Option<String>,
    failing_keys: u64,
}

/// All relays of the outbox.
pub(crate) async fn find(store: &dyn Store) -> anyhow::Result<Vec<Relay>> {
    let relay = |view: RelayView| {
        let said = view.report.as_deref().and_then(|report| serde_json::from_str(report).ok());
        Relay { view, said: said.unwrap_or_default() }
    };
    Ok(store.relays().await?.into_iter().map(relay).collect())
}

impl Relay {
    /// Whether its lease runs.
    pub(crate) fn is_alive(&self) -> bool {
        !self.view.lease_left.is_zero()
    }

    /// One line of who it is.
    pub(crate) fn as_line(&self) -> String {
        let shards = count(self.view.shards as u64, "shard");
        let life = if self.is_alive() {
            format!("lease of {} left", units::format_duration(whole(self.view.lease_left)))
        } else {
            "its lease is over: another takes its shards".into()
        };
        let version = if self.said.version.is_empty() { "unknown" } else { &self.said.version };
        let state = if self.said.state.is_empty() { "says nothing" } else { &self.said.state };
        format!("{}: {state}, version {version}, {shards}, {life}", self.view.name)
    }

    /// What keeps it from delivering something, a line each.
    pub(crate) fn troubles(&self) -> Vec<String> {
        let mut troubles = Vec::new();
        if let Some(error) = &self.said.database_error {
            troubles.push(format!("the database fails for it: {error}"));
        }
        for to in &self.said.destinations {
            if let Some(why) = &to.paused_for {
                troubles.push(format!("destination {} is paused: {why}", to.name));
            }
            if to.failing_keys > 0 {
                let keys = count(to.failing_keys, "key");
                troubles.push(format!("destination {}: {keys} with an event that fails", to.name));
            }
        }
        for name in &self.said.unknown_destinations {
            troubles.push(format!("events wait for destination {name}, which is not configured"));
        }
        if self.said.lost_as_repeat > 0 {
            let events = count(self.said.lost_as_repeat, "event");
            troubles
                .push(format!("{events} dropped by a broker as repeats of others with their ids"));
        }
        troubles.iter().map(|trouble| secrets::redact(trouble)).collect()
    }

    pub(crate) fn as_json(&self) -> Value {
        let said: Option<Value> = self
            .view
            .report
            .as_deref()
            .and_then(|report| serde_json::from_str(&secrets::redact(report)).ok());
        json!({
            "name": self.view.name,
            "lease_left_seconds": self.view.lease_left.as_secs_f64(),
            "shards": self.view.shards,
            "report": said,
        })
    }
}

fn whole(time: Duration) -> Duration {
    Duration::from_secs(time.as_secs().max(1))
}
