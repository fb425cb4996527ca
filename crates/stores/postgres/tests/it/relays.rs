//! What operators are told by the database: relays, and how much waits.

use std::time::Duration;

use posthaste_core::{LeaseRequest, OutboxAdmin, OutboxRepository};
use uuid::Uuid;

use crate::common::TestDatabase;

#[tokio::test]
async fn relays_are_listed_with_their_shards_and_what_they_say_of_themselves() {
    let Some(database) = TestDatabase::create().await else { return };
    let outbox = database.outbox().await;
    let relay = Uuid::now_v7();
    let request = LeaseRequest {
        relay,
        name: "host:1".into(),
        ttl: Duration::from_secs(5),
        release: Vec::new(),
        leaving: false,
    };
    outbox.lease(&request).await.unwrap();
    assert_eq!(outbox.relays().await.unwrap()[0].report, None);
    outbox.tell(relay, "host:1", r#"{"state": "running"}"#).await.unwrap();
    let relays = outbox.relays().await.unwrap();
    assert_eq!((&*relays[0].name, relays[0].shards), ("host:1", 64));
    assert!(relays[0].lease_left > Duration::ZERO);
    assert!(relays[0].report.as_deref().unwrap().contains("running"));
    outbox.leave(relay).await.unwrap();
    assert_eq!(outbox.relays().await.unwrap(), []);
}

/// Never analyzed, as right after a bulk insert; delivered from the front, with a few that stay.
#[tokio::test]
async fn a_large_backlog_is_estimated_and_the_figure_moves_with_what_is_delivered() {
    let Some(database) = TestDatabase::create().await else { return };
    let outbox = database.outbox().await;
    database
        .run(
            "insert into outbox_events (aggregate_id, event_type, event_data) \
             select gen_random_uuid(), 't', '{}' from generate_series(1, 40000)",
        )
        .await;
    for delivered in [0, 10_000, 20_000, 25_000, 39_000] {
        database
            .run(&format!(
                "update outbox_events set processed_at = now() \
                 where processed_at is null and seq <= {delivered} and seq % 100 > 0"
            ))
            .await;
        let waits: i64 =
            database.value("select count(*) from outbox_events where processed_at is null").await;
        let backlog = outbox.backlog(0).await.unwrap();
        assert_eq!(backlog.is_estimated, waits > 10_000, "{waits}");
        let off = backlog.pending().abs_diff(waits.cast_unsigned());
        assert!(off <= waits.cast_unsigned() / 10, "{} for {waits}", backlog.pending());
    }
}
