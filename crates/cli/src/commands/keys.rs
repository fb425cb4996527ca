//! `posthaste keys`.

use posthaste_core::{Seq, StuckBy, StuckKey, StuckKeyPage, StuckKeyQuery};
use posthaste_processor::{DeadHeadPolicy, DestinationRules, RouteTable};
use serde_json::json;

use super::relays;
use crate::arguments::{KeysBy, KeysCommand};
use crate::config::Config;
use crate::listing::Listing;
use crate::output::{Output, count, time};
use crate::store::{self, Store};

impl KeysBy {
    const ALL: [Self; 2] = [Self::Dead, Self::Retry];

    const fn as_str(self) -> &'static str {
        match self {
            Self::Dead => "dead",
            Self::Retry => "retry",
        }
    }

    const fn stuck_by(self) -> StuckBy {
        match self {
            Self::Dead => StuckBy::DeadLetter,
            Self::Retry => StuckBy::Retry,
        }
    }
}

/// A key, and what the routes make of it.
struct Listed {
    key: StuckKey,
    /// `blocked`, `skipped` or `retrying`.
    state: &'static str,
    /// Where its head goes, also where no such destination is configured.
    destination: String,
}

/// Where a list that was cut short goes on.
struct Next {
    by: KeysBy,
    after: Seq,
    /// Whether the limit cut it, or the events that a store looks at.
    by_limit: bool,
}

/// Lists keys.
pub(crate) async fn run(
    command: KeysCommand,
    config: &Config,
    output: Output,
) -> anyhow::Result<()> {
    let KeysCommand::List { by, limit, after } = command;
    let routes = route_table(config)?;
    let store = store::open_ready(config).await?;
    let (keys, next) = list(&*store, &routes, by, limit, after).await?;
    // Further pages are of what the table knows.
    let unlisted = match by {
        None | Some(KeysBy::Retry) if after == 0 => unlisted(&*store, &keys).await,
        _ => None,
    };
    let result = json!({
        "keys": keys.iter().map(as_json).collect::<Vec<_>>(),
        "more": next.is_some(),
        "next": next.as_ref().map(|next| json!({ "by": next.by.as_str(), "after": next.after })),
        "unlisted": unlisted,
    });
    output.write(&result, || human(&keys, next.as_ref(), unlisted.unwrap_or_default()))
}

/// How many more keys fail than are listed, by the word of the relays that live: an event that counts no
/// attempt leaves nothing in its row while it is tried. `None` where relays cannot be asked: who may see
/// what waits need not be allowed to see who delivers it.
async fn unlisted(store: &dyn Store, listed: &[Listed]) -> Option<u64> {
    let relays = relays::find(store).await.ok()?;
    let uncounted = |listed: &&Listed| listed.state == "retrying" && listed.key.retry_count == 0;
    let known = listed.iter().filter(uncounted).count() as u64;
    Some(relays::uncounted_keys(&relays).saturating_sub(known))
}

/// Where this configuration sends events. The database does not know.
///
/// # Errors
/// `Config`, which loading the configuration has found before.
pub(crate) fn route_table(config: &Config) -> anyhow::Result<RouteTable> {
    let destinations = config.destinations.iter().map(|destination| {
        DestinationRules::new(&*destination.name).dead_head(destination.dead_head)
    });
    Ok(RouteTable::new(destinations, config.routes.iter().cloned())?)
}

async fn list(
    store: &dyn Store,
    routes: &RouteTable,
    only: Option<KeysBy>,
    limit: usize,
    after: Seq,
) -> anyhow::Result<(Vec<Listed>, Option<Next>)> {
    let mut keys = Vec::new();
    for by in KeysBy::ALL.into_iter().filter(|by| only.is_none_or(|only| only == *by)) {
        let left = limit - keys.len();
        // With no room left, one tells whether there are any.
        let query = StuckKeyQuery { by: by.stuck_by(), after, limit: left.max(1) };
        let StuckKeyPage { keys: found, next } = store.stuck_keys(&query).await?;
        if left == 0 && (!found.is_empty() || next.is_some()) {
            return Ok((keys, Some(Next { by, after, by_limit: true })));
        }
        let by_limit = found.len() == left;
        keys.extend(found.into_iter().map(|key| listed(key, by, routes)));
        if let Some(after) = next {
            return Ok((keys, Some(Next { by, after, by_limit })));
        }
    }
    Ok((keys, None))
}

fn listed(key: StuckKey, by: KeysBy, routes: &RouteTable) -> Listed {
    let routed = routes.resolve(key.destination.as_deref(), &key.event_type);
    let policy = routed.map_or(DeadHeadPolicy::Block, |routed| routed.dead_head);
    let destination = match (&key.destination, routed) {
        (Some(name), _) => name.to_string(),
        (None, Some(routed)) => routes.name(routed.destination).to_owned(),
        (None, None) => String::new(),
    };
    let state = match (by, policy) {
        (KeysBy::Retry, _) => "retrying",
        (KeysBy::Dead, DeadHeadPolicy::Block) => "blocked",
        (KeysBy::Dead, DeadHeadPolicy::Skip) => "skipped",
    };
    Listed { key, state, destination }
}

fn as_json(listed: &Listed) -> serde_json::Value {
    let Listed { key, state, destination } = listed;
    json!({
        "key": key.key.to_string(),
        "state": state,
        "waiting": key.waiting,
        "waiting_is_minimum": key.waiting_is_minimum,
        "head": {
            "id": key.id,
            "place": key.seq,
            "type": key.event_type,
            "destination": destination,
            "retry_count": key.retry_count,
            "dead_at": key.dead_at.map(|at| at.to_string()),
            "dead_reason": key.dead_reason,
            "next_attempt_at": key.next_attempt_at.map(|at| at.to_string()),
            "error_message": key.error_message,
        },
    })
}

fn human(keys: &[Listed], next: Option<&Next>, unlisted: u64) -> String {
    let mut text = if keys.is_empty() && unlisted > 0 {
        "no key waits by what its row says".to_owned()
    } else if keys.is_empty() {
        "no key waits".to_owned()
    } else {
        let header = ["key", "state", "waiting", "event", "place", "type", "to", "when", "why"];
        let mut listing = Listing::new(header, 2);
        for listed in keys {
            listing.add(row(listed));
        }
        listing.for_stdout()
    };
    if let Some(Next { by, after, by_limit }) = next {
        let why = if *by_limit {
            "there are more"
        } else {
            "only the first pending events were looked at for retries; there may be more"
        };
        text.push_str(&format!(
            "\n{why}: posthaste keys list --by {} --after {after}",
            by.as_str()
        ));
    }
    if unlisted > 0 {
        let keys = count(unlisted, "more key");
        text.push_str(&format!(
            "\nrelays know of {keys} whose events fail and count no attempt: posthaste status"
        ));
    }
    text
}

fn row(listed: &Listed) -> [String; 9] {
    let Listed { key, state, destination } = listed;
    let when = match (key.dead_at, key.next_attempt_at) {
        (Some(dead_at), _) => format!("since {}", time(dead_at)),
        (None, Some(at)) => format!("next {}", time(at)),
        (None, None) => String::new(),
    };
    let error = key.error_message.as_deref().unwrap_or_default();
    // The first line is enough to recognise an error; `events show` has all of it.
    let error = error.lines().next().unwrap_or_default();
    let why = match &key.dead_reason {
        Some(reason) => format!("{reason}: {error}"),
        None => format!("{}: {error}", count(key.retry_count.into(), "failed attempt")),
    };
    [
        key.key.to_string(),
        (*state).to_owned(),
        if key.waiting_is_minimum {
            format!("{} or more", key.waiting)
        } else {
            key.waiting.to_string()
        },
        key.id.to_string(),
        key.seq.to_string(),
        key.event_type.to_string(),
        destination.clone(),
        when,
        why,
    ]
}
