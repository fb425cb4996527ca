//! An `EventBus` of one's own: anything that can take an event and say that it has it.
//!
//! Run it with `cargo run -p posthaste --example custom_bus`.

use anyhow::Result;
use async_trait::async_trait;
use posthaste::memory::MemoryRepository;
use posthaste::{
    BusCapabilities, Error, ErrorKind, EventBus, OutboxEvent, OutboxProcessor, PublishResult,
};
use serde_json::json;
use uuid::Uuid;

/// Prints events. Refuses those without a body that it could print.
struct Printer;

#[async_trait]
impl EventBus for Printer {
    fn capabilities(&self) -> BusCapabilities {
        BusCapabilities::new("printer")
    }

    async fn publish(&self, events: &[OutboxEvent]) -> Vec<PublishResult> {
        events.iter().map(print).collect()
    }
}

/// One result per event. The error's kind decides what follows: `Rejected` will not pass, so the
/// event becomes a dead letter; `Failed` may pass, so it is tried again; `Unreachable` is nobody's
/// fault, so the bus is given time and no attempt is counted.
fn print(event: &OutboxEvent) -> PublishResult {
    match std::str::from_utf8(event.payload().body()) {
        Ok(text) => {
            println!("{} {text}", event.event_type());
            Ok(())
        }
        Err(_) => Err(Error::new(ErrorKind::Rejected, "print", "the body is not text")),
    }
}

#[tokio::main]
async fn main() -> Result<()> {
    let outbox = MemoryRepository::new();
    let processor = OutboxProcessor::builder(outbox.clone()).bus(Printer).build()?;

    let order = Uuid::now_v7();
    let mut work = outbox.begin();
    work.add_event(OutboxEvent::new(order, "order.placed", &json!({ "total": 42 }))?);
    work.add_event(OutboxEvent::new(order, "order.paid", &json!({ "method": "card" }))?);
    let image = posthaste::Payload::bytes(vec![0xff, 0xd8], "image/jpeg")?;
    work.add_event(OutboxEvent::builder(Uuid::now_v7(), "image.added").payload(image).build()?);
    work.commit().await?;

    println!("delivered: {}", processor.process_events().await?);
    for event in processor.get_failed_events(10).await? {
        let why = event.error_message().unwrap_or_default();
        println!("dead: {} ({why})", event.event_type());
    }
    Ok(())
}
