//! The conformance suite of buses.

use std::collections::BTreeMap;
use std::sync::Arc;

use anyhow::{Context, ensure};
use async_trait::async_trait;
use bytes::Bytes;
use futures_util::future::try_join_all;
use posthaste_core::{ErrorStatus, EventBus, KeyPipelining, OutboxEvent, Payload, PublishResult};
use uuid::Uuid;

use crate::report::{Suite, run_checks};
use crate::{Report, samples, skip};

/// Gives the suite buses to check, and reads back what the broker holds.
#[async_trait]
pub trait BusHarness: Send + Sync {
    /// The bus under test.
    type Bus: EventBus;

    /// A bus to an empty destination that nothing else uses. Called once or more per check.
    async fn fresh(&self) -> anyhow::Result<Self::Bus>;

    /// All that the broker holds of what `bus` published, in the broker's order.
    async fn received(&self, bus: &Self::Bus) -> anyhow::Result<Vec<Received>>;

    /// An event over the size limit of the destination. Default: `None`, for a bus without one.
    fn oversized_event(&self) -> Option<OutboxEvent> {
        None
    }

    /// A bus whose broker cannot be reached. Default: `None`, and what needs it is skipped.
    async fn unreachable(&self) -> anyhow::Result<Option<Self::Bus>> {
        Ok(None)
    }

    /// Why the check of this name is not to run, where it is not. It is reported as skipped.
    /// Default: `None`, and all run.
    fn skips(&self, _check: &str) -> Option<String> {
        None
    }
}

/// An event as a consumer meets it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Received {
    /// The event's id.
    pub id: Uuid,
    /// The order key's text.
    pub key: String,
    /// The event's type.
    pub event_type: String,
    /// The media type of the body.
    pub content_type: String,
    /// The event's own headers. Names may come in another case and there may be more of them.
    pub headers: BTreeMap<String, String>,
    /// The body.
    pub body: Bytes,
}

impl Received {
    /// Reads an event back from a message of the plain envelope: all but the body is in headers.
    ///
    /// # Errors
    /// A header of the envelope that is not there, or an id that is none.
    pub fn from_plain(
        body: Bytes,
        headers: impl IntoIterator<Item = (String, String)>,
    ) -> anyhow::Result<Self> {
        let decode = |(name, value)| anyhow::Ok((name, decoded(value)?));
        let headers: BTreeMap<_, _> =
            headers.into_iter().map(decode).collect::<anyhow::Result<_>>()?;
        let get = |name: &str| headers.get(name).cloned().context(format!("no {name} header"));
        Ok(Self {
            id: get("ph-id")?.parse()?,
            key: get("ph-key")?,
            event_type: get("ph-type")?,
            content_type: get("content-type")?,
            body,
            headers,
        })
    }
}

/// A header's value as it was written: what is not ASCII is percent-encoded, and ASCII is as it is.
fn decoded(value: String) -> anyhow::Result<String> {
    ensure!(value.is_ascii(), "a header is not ASCII: {value}");
    let decoded = percent_encoding::percent_decode_str(&value).decode_utf8().ok();
    Ok(match decoded.filter(|decoded| !decoded.is_ascii()) {
        Some(decoded) => decoded.into_owned(),
        None => value,
    })
}

/// Checks all that the documentation of [`EventBus`] promises.
pub async fn bus_suite<H: BusHarness>(harness: &H) -> Report {
    let name = match harness.fresh().await {
        Ok(bus) => bus.capabilities().name,
        Err(_) => "a bus that does not open",
    };
    let mut suite = Suite::new(format!("bus suite on {name}"));
    run_checks!(suite, harness:
        check_succeeds_and_capabilities_make_sense,
        an_acknowledged_event_is_at_the_broker,
        an_empty_batch_gives_an_empty_result,
        a_full_batch_gives_one_result_per_event,
        id_key_type_and_headers_arrive_intact,
        unicode_header_values_arrive_intact,
        bodies_arrive_intact,
        a_repeated_event_is_accepted_and_recognisable,
        events_of_one_key_keep_their_order_over_calls,
        events_of_one_key_keep_their_order_within_a_call,
        an_oversized_event_fails_alone_and_for_good,
        concurrent_calls_lose_and_mix_up_nothing,
        an_unreachable_broker_is_nobodys_fault,
    );
    suite.end()
}

async fn check_succeeds_and_capabilities_make_sense<H: BusHarness>(
    harness: &H,
) -> anyhow::Result<()> {
    let bus = harness.fresh().await?;
    bus.check().await?;
    let capabilities = bus.capabilities();
    ensure!(capabilities.batch_events_max >= 1, "a batch must hold at least one event");
    ensure!(!capabilities.name.is_empty(), "the bus has no name");
    Ok(())
}

async fn an_acknowledged_event_is_at_the_broker<H: BusHarness>(harness: &H) -> anyhow::Result<()> {
    let bus = harness.fresh().await?;
    for _ in 0..5 {
        let event = samples::event()?;
        publish_all(&bus, std::slice::from_ref(&event)).await?;
        // At once: `Ok` comes after the broker's acknowledgement, never before.
        let found = harness.received(&bus).await?;
        ensure!(found.iter().any(|found| found.id == event.id()), "acknowledged, yet not there");
    }
    Ok(())
}

async fn an_empty_batch_gives_an_empty_result<H: BusHarness>(harness: &H) -> anyhow::Result<()> {
    let bus = harness.fresh().await?;
    ensure!(bus.publish(&[]).await.is_empty(), "results for no events");
    ensure!(harness.received(&bus).await?.is_empty(), "something was published");
    Ok(())
}

async fn a_full_batch_gives_one_result_per_event<H: BusHarness>(harness: &H) -> anyhow::Result<()> {
    let bus = harness.fresh().await?;
    let events = samples::events(bus.capabilities().batch_events_max.min(5_000))?;
    publish_all(&bus, &events).await?;
    let mut found: Vec<Uuid> = harness.received(&bus).await?.iter().map(|found| found.id).collect();
    found.sort_unstable();
    let mut expected = samples::ids(&events);
    expected.sort_unstable();
    ensure!(found == expected, "{} of {} events arrived", found.len(), expected.len());
    Ok(())
}

async fn id_key_type_and_headers_arrive_intact<H: BusHarness>(harness: &H) -> anyhow::Result<()> {
    let bus = harness.fresh().await?;
    let named = samples::builder()?
        .order_key("customer-7")
        .header("tenant", "acme")
        .header("Request-Id", "a b; c=\"d\", 7")
        .build()?;
    for event in [named, samples::event()?] {
        let found = published(harness, &bus, &event).await?;
        ensure!(found.key == event.order_key().to_string(), "key: {}", found.key);
        ensure!(found.event_type == event.event_type(), "type: {}", found.event_type);
        ensure_headers(&found, &event)?;
    }
    Ok(())
}

async fn unicode_header_values_arrive_intact<H: BusHarness>(harness: &H) -> anyhow::Result<()> {
    let bus = harness.fresh().await?;
    let event = samples::builder()?.header("note", samples::UNICODE).build()?;
    ensure_headers(&published(harness, &bus, &event).await?, &event)
}

async fn bodies_arrive_intact<H: BusHarness>(harness: &H) -> anyhow::Result<()> {
    let bus = harness.fresh().await?;
    let payloads = [
        Payload::json(&serde_json::json!({ "text": samples::UNICODE, "n": [1, 2.5, null] }))?,
        Payload::json_text("\"just a string\"")?,
        Payload::bytes(&b""[..], "application/octet-stream")?,
        Payload::bytes(&b"\xff\xfe\x00\xc3\x28\n\r\0"[..], "application/avro")?,
        Payload::bytes((0..=255).cycle().take(20_000).collect::<Vec<u8>>(), "image/png")?,
    ];
    for payload in payloads {
        let event = samples::builder()?.payload(payload).build()?;
        let found = published(harness, &bus, &event).await?;
        let (body, expected) = (&found.body, event.payload().body());
        ensure!(body == expected, "{:?} instead of {:?}", head(body), head(expected));
        ensure!(
            found.content_type == event.payload().content_type(),
            "content type {} instead of {}",
            found.content_type,
            event.payload().content_type()
        );
    }
    Ok(())
}

async fn a_repeated_event_is_accepted_and_recognisable<H: BusHarness>(
    harness: &H,
) -> anyhow::Result<()> {
    let bus = harness.fresh().await?;
    let event = samples::event()?;
    for _ in 0..3 {
        publish_all(&bus, std::slice::from_ref(&event)).await?;
    }
    let found = harness.received(&bus).await?;
    let first = found.first().context("nothing arrived")?;
    ensure!(first.id == event.id(), "another id");
    ensure!(found.iter().all(|again| again == first), "a repeated delivery differs: {found:?}");
    let expected = if bus.capabilities().deduplicates { 1 } else { 3 };
    ensure!(found.len() == expected, "{} copies instead of {expected}", found.len());
    Ok(())
}

async fn events_of_one_key_keep_their_order_over_calls<H: BusHarness>(
    harness: &H,
) -> anyhow::Result<()> {
    let bus = harness.fresh().await?;
    let (one, other) = (samples::series(Uuid::now_v7(), 30)?, samples::series(Uuid::now_v7(), 30)?);
    for (first, second) in one.iter().zip(&other) {
        if bus.capabilities().batch_events_max > 1 {
            publish_all(&bus, &[first.clone(), second.clone()]).await?;
        } else {
            publish_all(&bus, std::slice::from_ref(first)).await?;
            publish_all(&bus, std::slice::from_ref(second)).await?;
        }
    }
    ensure_order(&harness.received(&bus).await?, &[one, other])
}

async fn events_of_one_key_keep_their_order_within_a_call<H: BusHarness>(
    harness: &H,
) -> anyhow::Result<()> {
    let bus = harness.fresh().await?;
    if bus.capabilities().key_pipelining == KeyPipelining::OnePerKey {
        return Err(skip("a call holds one event of a key"));
    }
    let count = bus.capabilities().batch_events_max.min(500);
    let events = samples::series(Uuid::now_v7(), count)?;
    publish_all(&bus, &events).await?;
    ensure_order(&harness.received(&bus).await?, &[events])
}

async fn an_oversized_event_fails_alone_and_for_good<H: BusHarness>(
    harness: &H,
) -> anyhow::Result<()> {
    let Some(oversized) = harness.oversized_event() else {
        return Err(skip("the bus has no limit of its own"));
    };
    let bus = harness.fresh().await?;
    let batch = [samples::event()?, oversized, samples::event()?];
    let mut results = Vec::new();
    for part in batch.chunks(bus.capabilities().batch_events_max) {
        results.extend(bus.publish(part).await);
    }
    let [before, refused, after] = results.as_slice() else {
        anyhow::bail!("{} results for 3 events", results.len());
    };
    for result in [before, after] {
        ensure!(result.is_ok(), "an event beside an oversized one failed: {}", text(result));
    }
    let status = refused.as_ref().err().map(posthaste_core::Error::status);
    ensure!(status == Some(ErrorStatus::Permanent), "not permanent: {}", text(refused));
    let found: Vec<Uuid> = harness.received(&bus).await?.iter().map(|found| found.id).collect();
    let expected = [batch[0].id(), batch[2].id()];
    ensure!(found.len() == 2 && expected.iter().all(|id| found.contains(id)), "arrived: {found:?}");
    Ok(())
}

async fn concurrent_calls_lose_and_mix_up_nothing<H: BusHarness>(
    harness: &H,
) -> anyhow::Result<()> {
    let bus = Arc::new(harness.fresh().await?);
    let mut written = Vec::new();
    let mut tasks = Vec::new();
    for _ in 0..8 {
        let events = samples::series(Uuid::now_v7(), 20)?;
        written.push(events.clone());
        let bus = Arc::clone(&bus);
        tasks.push(tokio::spawn(async move {
            for event in &events {
                publish_all(&*bus, std::slice::from_ref(event)).await?;
            }
            anyhow::Ok(())
        }));
    }
    for ended in try_join_all(tasks).await? {
        ended?;
    }
    ensure_order(&harness.received(&bus).await?, &written)
}

async fn an_unreachable_broker_is_nobodys_fault<H: BusHarness>(harness: &H) -> anyhow::Result<()> {
    let Some(bus) = harness.unreachable().await? else {
        return Err(skip("the harness has no unreachable broker"));
    };
    let events = samples::events(bus.capabilities().batch_events_max.min(3))?;
    let results = bus.publish(&events).await;
    ensure!(results.len() == events.len(), "{} results", results.len());
    for result in &results {
        let status = result.as_ref().err().map(posthaste_core::Error::status);
        ensure!(status == Some(ErrorStatus::Unavailable), "not unavailable: {}", text(result));
    }
    ensure!(bus.check().await.is_err(), "`check` finds nothing wrong");
    Ok(())
}

/// Publishes and expects `Ok` for each.
async fn publish_all<B: EventBus>(bus: &B, events: &[OutboxEvent]) -> anyhow::Result<()> {
    let results = bus.publish(events).await;
    let (count, expected) = (results.len(), events.len());
    ensure!(count == expected, "{count} results for {expected} events");
    for result in &results {
        ensure!(result.is_ok(), "publish failed: {}", text(result));
    }
    Ok(())
}

/// Publishes one event and reads it back.
async fn published<H: BusHarness>(
    harness: &H,
    bus: &H::Bus,
    event: &OutboxEvent,
) -> anyhow::Result<Received> {
    publish_all(bus, std::slice::from_ref(event)).await?;
    let found = harness.received(bus).await?.into_iter().find(|found| found.id == event.id());
    found.context("an acknowledged event is not at the broker under its id")
}

/// Each list of events is there in its order, and nothing else is.
fn ensure_order(found: &[Received], written: &[Vec<OutboxEvent>]) -> anyhow::Result<()> {
    for events in written {
        let expected = samples::ids(events);
        let kept: Vec<Uuid> =
            found.iter().map(|found| found.id).filter(|id| expected.contains(id)).collect();
        ensure!(kept.len() == expected.len(), "{} of {} arrived", kept.len(), expected.len());
        ensure!(kept == expected, "the events of one key arrived in another order");
    }
    let expected: usize = written.iter().map(Vec::len).sum();
    ensure!(found.len() == expected, "{} events at the broker, {expected} sent", found.len());
    Ok(())
}

fn ensure_headers(found: &Received, event: &OutboxEvent) -> anyhow::Result<()> {
    for (name, value) in event.headers().iter() {
        let arrived = found.headers.iter().find(|(other, _)| other.eq_ignore_ascii_case(name));
        ensure!(
            arrived.is_some_and(|(_, arrived)| arrived == value),
            "header {name}: {arrived:?} instead of {value:?}"
        );
    }
    Ok(())
}

fn head(bytes: &Bytes) -> Bytes {
    bytes.slice(..bytes.len().min(60))
}

fn text(result: &PublishResult) -> String {
    match result {
        Ok(()) => "ok".to_owned(),
        Err(error) => format!("{} {}", error.kind(), error.report()),
    }
}
