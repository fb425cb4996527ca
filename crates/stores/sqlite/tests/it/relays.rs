//! What a relay leaves for operators to read.

use std::time::Duration;

use posthaste_core::{OutboxAdmin, OutboxRepository};
use uuid::Uuid;

use crate::support::{outbox, run_sql};

#[tokio::test]
async fn the_relay_that_delivers_is_listed_until_it_leaves_or_falls_silent() {
    let (_folder, outbox) = outbox().await;
    let [died, lives] = [Uuid::now_v7(), Uuid::now_v7()];
    outbox.tell(died, "host:1", "{}").await.unwrap();
    outbox.tell(lives, "host:2", "{}").await.unwrap();
    outbox.tell(lives, "host:2", r#"{"state": "running"}"#).await.unwrap();
    let relays = outbox.relays().await.unwrap();
    assert_eq!(relays.len(), 1, "one takes the whole outbox: {relays:?}");
    assert_eq!((&*relays[0].name, relays[0].shards), ("host:2", 64));
    assert!(relays[0].report.as_deref().unwrap().contains("running"));
    assert!(relays[0].lease_left > Duration::ZERO && relays[0].said_ago.is_some());
    run_sql(&outbox, "update outbox_relays set said_at = '2026-01-01T00:00:00Z'").await.unwrap();
    assert_eq!(outbox.relays().await.unwrap()[0].lease_left, Duration::ZERO, "taken for dead");
    outbox.leave(lives).await.unwrap();
    assert_eq!(outbox.relays().await.unwrap(), []);
}
