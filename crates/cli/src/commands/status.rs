//! `posthaste status`.

use serde_json::json;

use super::{open_transactions, relays};
use crate::config::{Config, secrets, units};
use crate::exit;
use crate::output::{Output, table, time};
use crate::store;

/// Shows the schema's version, what waits, and who holds events back.
pub(crate) async fn run(config: &Config, output: Output) -> anyhow::Result<()> {
    let store = store::open_ready(config).await?;
    let schema = store.migration_status().await?;
    let backlog = store.backlog(0).await?;
    let open = open_transactions::find(&*store).await?;
    // Who may see what waits need not be allowed to see who delivers it.
    let (relays, unseen) = match relays::find(&*store).await {
        Ok(relays) => (relays, None),
        Err(error) => (Vec::new(), Some(secrets::redact(&exit::text_of(&error)))),
    };
    let result = json!({
        "database": { "kind": config.database.kind(), "address": config.database.address() },
        "schema": { "current": schema.current, "wanted": schema.wanted },
        "backlog": {
            "pending": backlog.pending(),
            "ready": backlog.ready,
            "retrying": backlog.retrying,
            "scheduled": backlog.scheduled,
            "dead": backlog.dead,
            "estimated": backlog.is_estimated,
            "oldest_pending_at": backlog.oldest_pending_at.map(|time| time.to_string()),
            "oldest_pending_age_seconds": backlog
                .oldest_pending_at
                .map(|_| backlog.oldest_pending_age.as_secs_f64()),
        },
        "relays": relays.iter().map(relays::Relay::as_json).collect::<Vec<_>>(),
        "open_transactions": open.iter().map(open_transactions::as_json).collect::<Vec<_>>(),
    });
    output.write(&result, || {
        let oldest = backlog.oldest_pending_at.map_or_else(
            || "none".to_owned(),
            |at| {
                format!("{} ({} ago)", time(at), units::format_duration(backlog.oldest_pending_age))
            },
        );
        let about = if backlog.is_estimated { "~" } else { "" };
        let figure = |events: u64| format!("{about}{events}");
        let mut table = table(["outbox", ""]);
        for (name, value) in [
            ("database", config.database.address()),
            ("schema", format!("version {}", schema.current)),
            ("ready", figure(backlog.ready)),
            ("retrying", figure(backlog.retrying)),
            ("scheduled", figure(backlog.scheduled)),
            ("dead letters", backlog.dead.to_string()),
            ("oldest that is due", oldest),
        ] {
            table.add_row([name.to_owned(), value]);
        }
        if let Some(why) = &unseen {
            table.add_row(["relays".to_owned(), why.clone()]);
        }
        for relay in &relays {
            table.add_row(["relay".to_owned(), relay.as_line()]);
            for trouble in relay.troubles() {
                table.add_row([String::new(), trouble]);
            }
        }
        for open in &open {
            table.add_row(["holds events back".to_owned(), open_transactions::as_line(open)]);
        }
        table.to_string()
    })
}
