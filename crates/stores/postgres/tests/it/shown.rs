//! What an operator lists and shows, whatever the rows hold.

use posthaste_core::{EventFilter, EventState, OutboxAdmin, OutboxEvent, OutboxRepository};

use crate::common::TestDatabase;

/// JSON of a few kilobytes that is so many times 128 KiB as text.
fn wide(event_type: &str, numbers: usize) -> String {
    format!(
        "insert into outbox_events (aggregate_id, event_type, event_data) \
         select gen_random_uuid(), '{event_type}', jsonb_agg('1e131071'::jsonb) \
         from generate_series(1, {numbers})"
    )
}

fn named<'e>(events: &'e [OutboxEvent], event_type: &str) -> &'e OutboxEvent {
    let found = events.iter().find(|event| event.event_type() == event_type);
    found.unwrap_or_else(|| panic!("{event_type} is not listed"))
}

#[tokio::test]
async fn an_event_with_too_much_body_is_shown_without_it_and_the_others_with_theirs() {
    let Some(database) = TestDatabase::create().await else { return };
    let outbox = database.outbox().await;
    let small = "insert into outbox_events (aggregate_id, event_type, event_data) values \
        (gen_random_uuid(), 'small', '{\"n\": 1}')";
    database.run(&format!("{}; {small}; {}", wide("bomb", 9_000), wide("large", 1_100))).await;
    let check = |events: &[OutboxEvent]| {
        assert_eq!(events.len(), 3);
        assert_eq!(&**named(events, "small").payload().body(), br#"{"n": 1}"#);
        assert_eq!(named(events, "small").error_message(), None);
        for (event_type, why) in [("bomb", "cannot be read"), ("large", "over 128 MiB")] {
            let event = named(events, event_type);
            let said = std::str::from_utf8(event.payload().body()).unwrap();
            assert!(said.starts_with("not shown") && said.contains(why), "{event_type}: {said}");
            assert_eq!(event.error_message(), None, "nothing failed yet");
        }
    };
    let listed = outbox.list_events(&EventFilter::all(), 10).await.unwrap();
    check(&listed);
    let id = named(&listed, "bomb").id();
    let found = outbox.find_event(id).await.unwrap().unwrap();
    assert_eq!(found.state(), EventState::Pending);
    database.run("update outbox_events set dead_at = now()").await;
    check(&outbox.failed_events(10).await.unwrap());
}
