//! Recording what came of attempts.

use jiff::Timestamp;
use posthaste_core::{Result, Seq, Settlement, SettlementOutcome, Unsettled};
use serde_json::{Value, json};

use crate::SqliteOutbox;
use crate::error::database;
use crate::time::to_text;

/// All outcomes that leave a row, in one statement.
///
/// The id guards against a place of another database (a restored file). It is compared in one
/// spelling, since writers store UUIDs in several.
const UPDATE: &str = "\
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

/// Those of these events, pairs of place and id, that are pending. `cross join` looks each event up by its
/// place.
macro_rules! pending_of {
    () => {
        "select event.seq
    from json_each(?1) as outcome cross join outbox_events as event
        on event.seq = outcome.value ->> 0
    where event.processed_at is null and event.dead_at is null
        and case typeof(event.id)
            when 'blob' then lower(hex(event.id)) else lower(replace(event.id, '-', '')) end
            = outcome.value ->> 1"
    };
}

/// Those that leave no row.
const DELETE: &str = concat!("delete from outbox_events where seq in (", pending_of!(), ")");

/// Which of these events are pending still.
const PENDING_STILL: &str = concat!(pending_of!(), " order by event.seq");

impl SqliteOutbox {
    /// In one transaction, hence with one flush to disk.
    pub(crate) async fn settle_all(&self, settlements: &[Settlement]) -> Result<u64> {
        if settlements.is_empty() {
            return Ok(0);
        }
        let fail = |error| database("settle events", error);
        let (left, removed) = outcomes(settlements, Timestamp::now());
        let mut changed = 0;
        let mut transaction = self.begin_write("settle events").await?;
        for (sql, outcomes) in [(UPDATE, left), (DELETE, removed)] {
            if !outcomes.is_empty() {
                let statement = sqlx::query(sql).bind(Value::Array(outcomes).to_string());
                changed +=
                    statement.execute(&mut *transaction).await.map_err(fail)?.rows_affected();
            }
        }
        transaction.commit().await.map_err(fail)?;
        Ok(changed)
    }

    /// Of settlements that changed fewer events than they name: which are pending still. No other
    /// session's lock can be in the way here, but a trigger of the owner's.
    pub(crate) async fn find_unsettled(
        &self,
        settlements: &[Settlement],
    ) -> Result<Vec<Unsettled>> {
        const LOOK: &str = "look for unsettled events";
        let given =
            settlements.iter().map(|given| json!([given.seq, given.id.simple().to_string()]));
        let mut connection = self.reader(LOOK).await?;
        let pending: Vec<Seq> = sqlx::query_scalar(PENDING_STILL)
            .bind(Value::from_iter(given).to_string())
            .fetch_all(&mut *connection)
            .await
            .map_err(|error| database(LOOK, error))?;
        let why = "the row is pending still: a trigger of this database's keeps it as it is";
        Ok(pending.into_iter().map(|seq| Unsettled { seq, why: why.into() }).collect())
    }
}

/// One JSON array for each: place, id and, of those that leave a row, kind, attempts, time of the
/// retry, reason, error. Those that leave none apart.
fn outcomes(settlements: &[Settlement], now: Timestamp) -> (Vec<Value>, Vec<Value>) {
    let (mut left, mut removed) = (Vec::new(), Vec::new());
    for settlement in settlements {
        let (place, id) = (settlement.seq, settlement.id.simple().to_string());
        match &settlement.outcome {
            SettlementOutcome::Delivered => left.push(json!([place, id, "delivered"])),
            SettlementOutcome::DeliveredAndRemoved => removed.push(json!([place, id])),
            SettlementOutcome::Retry { retry_count, delay, error } => {
                let retry_at = to_text(now.checked_add(*delay).unwrap_or(Timestamp::MAX));
                let error = storable(error);
                left.push(json!([place, id, "retry", retry_count, retry_at, null, error]));
            }
            SettlementOutcome::Dead { retry_count, reason, error } => {
                let error = storable(error);
                left.push(json!([place, id, "dead", retry_count, null, reason, error]));
            }
        }
    }
    (left, removed)
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
        for (sql, searches) in [
            (UPDATE, &["outbox_events"][..]),
            (DELETE, &["outbox_events", "event"]),
            (PENDING_STILL, &["event"]),
        ] {
            let plan = crate::plan::of(sql).await;
            for table in searches {
                let search = format!("SEARCH {table} USING INTEGER PRIMARY KEY (rowid=?)");
                assert!(plan.contains(&search), "{plan}");
                assert!(!plan.contains(&format!("SCAN {table}")), "{plan}");
            }
        }
    }
}
