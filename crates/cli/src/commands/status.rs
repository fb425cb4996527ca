//! `posthaste status`.

use std::time::Duration;

use serde_json::json;

use super::relays::Throughput;
use super::{open_transactions, relays};
use crate::config::{Config, secrets, units};
use crate::exit;
use crate::output::{Output, table, time};
use crate::plain;
use crate::store;

const NO_SPEED: &str = "not known: no relay that lives says how fast it goes";

/// Shows the schema's version, what waits, how fast it is delivered, and who holds events back.
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
    let speed = relays::throughput(&relays);
    let to_empty = speed.and_then(|speed| speed.time_to_empty(backlog.ready));
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
        "throughput": {
            "delivered_per_second": speed.map(|speed| speed.delivered),
            "backlog_change_per_second": speed.and_then(|speed| speed.backlog_change),
            "seconds_to_empty": to_empty.map(|time| time.as_secs_f64()),
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
            ("delivered", speed.map_or_else(|| NO_SPEED.to_owned(), per_second)),
            ("empty in", empty_in(backlog.ready, speed, to_empty)),
        ] {
            table.add_row([name.to_owned(), value]);
        }
        if let Some(why) = &unseen {
            table.add_row(["relays".to_owned(), plain::line(why)]);
        }
        for relay in &relays {
            table.add_row(["relay".to_owned(), relay.as_line()]);
            for trouble in relay.troubles() {
                table.add_row([String::new(), trouble.text]);
            }
        }
        for open in &open {
            table.add_row(["holds events back".to_owned(), open_transactions::as_line(open)]);
        }
        table.to_string()
    })
}

fn per_second(speed: Throughput) -> String {
    format!("{}/s in the last seconds", rounded(speed.delivered))
}

fn empty_in(ready: u64, speed: Option<Throughput>, time: Option<Duration>) -> String {
    match (ready, speed, time) {
        (0, ..) => "nothing is due".into(),
        (_, None, _) => "not known".into(),
        (_, Some(_), Some(time)) => {
            format!("about {}, if it goes on so", units::format_duration(time))
        }
        (_, Some(Throughput { backlog_change: Some(change), .. }), None) if change > 0.0 => {
            format!("never, if it goes on so: {} more wait each second", rounded(change))
        }
        (_, Some(_), None) => "never, if it goes on so: what waits does not become less".into(),
    }
}

fn rounded(figure: f64) -> String {
    if figure >= 10.0 { format!("{figure:.0}") } else { format!("{figure:.1}") }
}
