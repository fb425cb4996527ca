//! What no builder makes, and what a store that another program reads must take with care.
//!
//! A store may refuse an odd event, or take it; both are right if nothing is lost on the way. It is
//! wrong to keep half of a call, to give back another event, and to blame the database.

use anyhow::{Context, ensure};
use jiff::Timestamp;
use posthaste_core::{
    ErrorStatus, EventRecord, Headers, OrderKey, OutboxEvent, OutboxRepository, Payload,
};
use uuid::Uuid;

use super::{RepositoryHarness, pending, pending_events};
use crate::samples::{self, same_payload};

type Change = fn(EventRecord) -> EventRecord;

fn json(record: EventRecord, text: &'static str) -> EventRecord {
    EventRecord { payload: Payload::Json(text.into()), ..record }
}

fn named(record: EventRecord, key: String) -> EventRecord {
    EventRecord { order_key: OrderKey::Named(key.into()), ..record }
}

/// Each with what is odd about it.
const ODD: [(&str, Change); 26] = [
    ("an empty type", |record| EventRecord { event_type: "".into(), ..record }),
    ("a type of 101 characters", |record| EventRecord {
        event_type: "x".repeat(101).into(),
        ..record
    }),
    ("a type with a NUL", |record| EventRecord { event_type: "a\0b".into(), ..record }),
    ("a type with a line break", |record| EventRecord { event_type: "a\nb".into(), ..record }),
    ("a topic with a NUL", |record| EventRecord { topic: Some("\0".into()), ..record }),
    ("a topic of 300 characters", |record| EventRecord {
        topic: Some("x".repeat(300).into()),
        ..record
    }),
    ("empty names", |record| EventRecord {
        aggregate_type: Some("".into()),
        destination: Some("".into()),
        topic: Some("".into()),
        ..record
    }),
    ("an empty key", |record| named(record, String::new())),
    ("a key with a NUL", |record| named(record, "\0".to_owned())),
    ("a key of 600 bytes", |record| named(record, "k".repeat(600))),
    ("a key of 10,000 different bytes", |record| {
        named(record, (0..10_000_u32).filter_map(|n| char::from_u32(33 + n * 7 % 90)).collect())
    }),
    ("a key that is its aggregate's id", |record| {
        let key = record.aggregate_id.to_string();
        named(record, key)
    }),
    ("an aggregate with the nil id", |record| EventRecord {
        aggregate_id: Uuid::nil(),
        order_key: OrderKey::Aggregate(Uuid::nil()),
        ..record
    }),
    ("NUL in JSON", |record| json(record, r#"{"a":"\u0000"}"#)),
    ("half a surrogate pair in JSON", |record| json(record, r#"["\ud800"]"#)),
    ("a number of 400,000 digits in JSON", |record| json(record, "[1e400000]")),
    ("a number of 300 digits in JSON", |record| json(record, "[1e300]")),
    ("the same name twice in JSON", |record| json(record, r#"{"a":1,"a":2}"#)),
    ("a body that is not JSON", |record| json(record, "{nonsense")),
    ("a body that is null", |record| json(record, "null")),
    ("an empty body", |record| EventRecord {
        payload: Payload::Bytes { data: "".into(), content_type: "".into() },
        ..record
    }),
    ("reserved headers", |record| {
        let mut headers = Headers::new();
        for name in ["ph-id", "content-type", "ce-id", "Nats-Msg-Id"] {
            // No name here breaks a rule of theirs.
            let _ = headers.insert(name, "x");
        }
        EventRecord { headers, ..record }
    }),
    ("no attempt at all", |record| EventRecord { max_retries: 0, ..record }),
    ("more attempts than a column holds", |record| EventRecord { max_retries: u32::MAX, ..record }),
    ("due at the end of time", |record| EventRecord {
        available_at: Some(Timestamp::MAX),
        ..record
    }),
    ("due at the beginning of time", |record| EventRecord {
        available_at: Some(Timestamp::MIN),
        ..record
    }),
];

pub(super) async fn an_odd_event_is_refused_whole_or_comes_back_as_it_was<H: RepositoryHarness>(
    harness: &H,
) -> anyhow::Result<()> {
    let mut wrong = Vec::new();
    for (oddity, change) in ODD {
        let repository = harness.fresh().await?;
        let odd = OutboxEvent::restore(change(samples::event()?.record().clone()));
        if let Err(error) = stored_or_refused(&repository, &odd).await {
            wrong.push(format!("{oddity}: {error:#}"));
        }
    }
    ensure!(wrong.is_empty(), "{}", wrong.join("; "));
    Ok(())
}

async fn stored_or_refused<R: OutboxRepository>(
    repository: &R,
    odd: &OutboxEvent,
) -> anyhow::Result<()> {
    let [before, after, later] = [samples::event()?, samples::event()?, samples::event()?];
    let stored = repository.store(&[before.clone(), odd.clone(), after.clone()]).await;
    let mut expected = Vec::new();
    match stored {
        Ok(()) => expected.extend([before.id(), odd.id(), after.id()]),
        Err(error) => ensure!(
            error.status() != ErrorStatus::Unavailable,
            "it will always be refused, yet the error is {}: {}",
            error.kind(),
            error.report()
        ),
    }
    repository.store(std::slice::from_ref(&later)).await.context("what comes after it")?;
    expected.push(later.id());
    let found = pending(repository).await?;
    let ids = samples::ids(found.iter().map(|found| &found.event));
    ensure!(ids == expected, "{} of {} events are pending", ids.len(), expected.len());
    match found.iter().find(|found| found.event.id() == odd.id()) {
        Some(found) => compare(&found.event, odd),
        None => Ok(()),
    }
}

/// An empty name is none, no attempts are none given, and a column for attempts ends somewhere. A header
/// that names the media type is the column's of that name.
fn compare(found: &OutboxEvent, odd: &OutboxEvent) -> anyhow::Result<()> {
    let (left, right) = (found.record(), odd.record());
    let name = |name: &Option<Box<str>>| name.clone().filter(|name| !name.is_empty());
    let key = |record: &EventRecord| match &record.order_key {
        OrderKey::Named(key) if key.is_empty() => record.aggregate_id.to_string(),
        key => key.to_string(),
    };
    ensure!(left.event_type == right.event_type, "its type is {:?}", left.event_type);
    ensure!(name(&left.aggregate_type) == name(&right.aggregate_type), "its aggregate's type");
    ensure!(name(&left.destination) == name(&right.destination), "its destination");
    ensure!(name(&left.topic) == name(&right.topic), "its topic");
    ensure!(key(left) == key(right), "its key");
    let headers = |record: &EventRecord| {
        let mut headers = record.headers.clone();
        headers.take("content-type");
        headers
    };
    ensure!(headers(left) == headers(right), "its headers");
    let largest = i32::MAX.cast_unsigned();
    // Of attempts one is the least: a store may write 0 so, or as none given.
    let given = right.max_retries > 0;
    let same = left.max_retries.min(largest) == right.max_retries.min(largest);
    ensure!(same || !given, "max_retries");
    match (&left.payload, &right.payload) {
        // A column holds no empty type; what is not given is the most general one, or JSON's.
        (Payload::Bytes { data, .. }, Payload::Bytes { data: sent, content_type })
            if content_type.is_empty() =>
        {
            ensure!(data == sent, "its body");
        }
        // What is not JSON to us may be to a database.
        (left, right) if left.body() == right.body() => {}
        (left, right) => ensure!(same_payload(left, right)?, "its body"),
    }
    Ok(())
}

pub(super) async fn no_store_takes_what_no_relay_could_tell_apart<H: RepositoryHarness>(
    harness: &H,
) -> anyhow::Result<()> {
    let repository = harness.fresh().await?;
    let event = samples::event()?;
    let twice = [event.clone(), samples::event()?, event.clone()];
    ensure!(repository.store(&twice).await.is_err(), "the same event twice in one call");
    let nil = EventRecord { id: Uuid::nil(), ..event.record().clone() };
    let nil = [samples::event()?, OutboxEvent::restore(nil)];
    ensure!(repository.store(&nil).await.is_err(), "an event without an id of its own");
    ensure!(pending_events(&repository).await?.is_empty(), "part of a refused call was stored");
    Ok(())
}

pub(super) async fn what_happened_to_an_event_before_is_not_stored<H: RepositoryHarness>(
    harness: &H,
) -> anyhow::Result<()> {
    let repository = harness.fresh().await?;
    let now = Timestamp::now();
    let history = EventRecord {
        processed_at: Some(now),
        dead_at: Some(now),
        dead_reason: Some("rejected".into()),
        retry_count: 3,
        error_message: Some("no".into()),
        ..samples::event()?.record().clone()
    };
    repository.store(&[OutboxEvent::restore(history)]).await?;
    let found = pending_events(&repository).await?;
    let [event] = found.as_slice() else {
        anyhow::bail!("{} events are pending instead of one", found.len());
    };
    ensure!(event.retry_count() == 0 && event.error_message().is_none(), "it has a history");
    Ok(())
}
