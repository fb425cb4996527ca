//! What `diagnose` finds in a file.

use std::time::Duration;

use posthaste_core::{Finding, OutboxAdmin, Severity};
use posthaste_sqlite::{SqliteOptions, SqliteOutbox};

use crate::support::{outbox, run_sql};

const INSERT: &str = "insert into outbox_events (aggregate_id, event_type, event_data) values \
    ('01890a5d-ac96-774b-bcce-b302099a8057', 't', '{}')";

async fn found(outbox: &SqliteOutbox, about: &str) -> Finding {
    let findings = outbox.diagnose().await;
    findings.iter().find(|finding| &*finding.about == about).unwrap().clone()
}

#[tokio::test]
async fn rows_that_wait_for_ever_or_count_as_something_else_are_found() {
    let (_folder, outbox) = outbox().await;
    for (set, part) in [
        ("seq = -3", "seq of 0 or less"),
        ("available_at = '9999-01-01'", "over a year ahead"),
        ("created_at = '2999-01-01'", "created_at in the future"),
        ("processed_at = '0001-01-01'", "processed_at that no relay set"),
        ("processed_at = 'None'", "processed_at that no relay set"),
        ("processed_at = x''", "processed_at that no relay set"),
        ("dead_at = '2026-01-01', dead_reason = 'corrupt'", "could not be read as an event"),
        (r#"event_data = '"{\"a\": 1}"'"#, "JSON within a JSON string"),
    ] {
        run_sql(&outbox, INSERT).await.unwrap();
        run_sql(&outbox, &format!("update outbox_events set {set}")).await.unwrap();
        let rows = found(&outbox, "rows").await;
        assert_eq!(rows.severity, Severity::Warning, "{set}: {rows:?}");
        assert!(rows.message.contains(part) && !rows.message.contains("; "), "{set}: {rows:?}");
        run_sql(&outbox, "delete from outbox_events").await.unwrap();
    }
    for finding in outbox.diagnose().await {
        assert_eq!(finding.severity, Severity::Fine, "{finding:?}");
    }
}

#[tokio::test]
async fn a_lock_that_another_process_keeps_is_told_and_the_rows_are_looked_at_all_the_same() {
    use sqlx::{Connection, SqliteConnection};
    let (_folder, outbox) = outbox().await;
    let url = format!("sqlite://{}", outbox.path().display());
    let mut writer = SqliteConnection::connect(&url).await.unwrap();
    sqlx::query("begin immediate").execute(&mut writer).await.unwrap();
    let options = SqliteOptions::new(outbox.path()).busy_timeout(Duration::from_millis(50));
    let outbox = SqliteOutbox::open_with(options).await.unwrap();
    let writes = found(&outbox, "writes").await;
    assert_eq!(writes.severity, Severity::Error, "{writes:?}");
    assert!(writes.message.contains("another connection is writing"), "{writes:?}");
    assert_eq!(found(&outbox, "rows").await.severity, Severity::Fine);
}
