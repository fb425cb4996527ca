//! Recording what came of attempts.

use jiff::Timestamp;
use posthaste_core::{Result, Settlement, SettlementOutcome};
use serde_json::{Value, json};

use crate::SqliteOutbox;
use crate::error::database;
use crate::time::to_text;

/// The whole batch in one statement, hence in one transaction and one flush to disk.
///
/// The id guards against a place of another database (a restored file). It is compared in one
/// spelling, since writers store UUIDs in several.
const SETTLE: &str = "\
with outcome as (
    select
        value ->> 0 as place, value ->> 1 as event_id, value ->> 2 as kind,
        value ->> 3 as attempts, value ->> 4 as retry_at, value ->> 5 as reason,
        value ->> 6 as error
    from json_each(?1)
)
update outbox_events set
    processed_at = case kind when 'delivered' then strftime('%Y-%m-%dT%H:%M:%fZ', 'now') end,
    dead_at = case kind when 'dead' then strftime('%Y-%m-%dT%H:%M:%fZ', 'now') end,
    dead_reason = reason,
    retry_count = coalesce(attempts, retry_count),
    available_at = coalesce(retry_at, available_at),
    error_message = coalesce(error, error_message)
from outcome
where outbox_events.seq = outcome.place
    and processed_at is null and dead_at is null
    and case typeof(id) when 'blob' then lower(hex(id)) else lower(replace(id, '-', '')) end
        = event_id";

impl SqliteOutbox {
    pub(crate) async fn settle_all(&self, settlements: &[Settlement]) -> Result<u64> {
        if settlements.is_empty() {
            return Ok(0);
        }
        let done = sqlx::query(SETTLE)
            .bind(outcomes(settlements, Timestamp::now()))
            .execute(&self.writer)
            .await
            .map_err(|error| database("settle events", error))?;
        Ok(done.rows_affected())
    }
}

/// One JSON array for each: place, id, kind, attempts, time of the retry, reason, error.
fn outcomes(settlements: &[Settlement], now: Timestamp) -> String {
    let outcome = |settlement: &Settlement| {
        let (place, id) = (settlement.seq, settlement.id.simple().to_string());
        match &settlement.outcome {
            SettlementOutcome::Delivered => json!([place, id, "delivered"]),
            SettlementOutcome::Retry { retry_count, delay, error } => {
                let retry_at = to_text(now.checked_add(*delay).unwrap_or(Timestamp::MAX));
                json!([place, id, "retry", retry_count, retry_at, null, storable(error)])
            }
            SettlementOutcome::Dead { retry_count, reason, error } => {
                json!([place, id, "dead", retry_count, null, reason, storable(error)])
            }
        }
    };
    Value::Array(settlements.iter().map(outcome).collect()).to_string()
}

/// SQLite's text ends at the first NUL for most of its functions and tools.
fn storable(text: &str) -> String {
    text.replace('\0', "\u{fffd}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn settling_looks_each_event_up_by_its_place() {
        let plan = crate::plan::of(SETTLE).await;
        assert!(plan.contains("SEARCH outbox_events USING INTEGER PRIMARY KEY"), "{plan}");
        assert!(!plan.contains("SCAN outbox_events"), "{plan}");
    }
}
