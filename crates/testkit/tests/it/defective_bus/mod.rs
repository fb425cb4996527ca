//! A bus over a list, with one defect at a time.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use posthaste_core::{
    BusCapabilities, Error, ErrorKind, EventBus, KeyPipelining, OutboxEvent, Payload, PublishResult,
};
use posthaste_testkit::{BusHarness, Received};
use uuid::Uuid;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum BusDefect {
    None,
    DropsAndSaysOk,
    SaysOkBeforeWriting,
    OneResultForTheBatch,
    Reorders,
    ForgetsHeaders,
    BodiesAsText,
    NewIdEachTime,
    OversizedFailsTheBatch,
    OversizedIsTriedAgain,
    BlamesTheEventForAnOutage,
}

const BODY_BYTES_MAX: usize = 100_000;

pub(crate) struct DefectiveBus {
    defect: BusDefect,
    reachable: bool,
    written: Arc<Mutex<Vec<Received>>>,
}

impl DefectiveBus {
    fn new(defect: BusDefect, reachable: bool) -> Self {
        Self { defect, reachable, written: Arc::default() }
    }

    fn received(&self, event: &OutboxEvent) -> Received {
        let mut received = Received {
            id: event.id(),
            key: event.order_key().to_string(),
            event_type: event.event_type().to_owned(),
            content_type: event.payload().content_type().to_owned(),
            headers: event.headers().iter().map(|(n, v)| (n.to_owned(), v.to_owned())).collect(),
            body: event.payload().body().clone(),
        };
        match self.defect {
            BusDefect::ForgetsHeaders => received.headers.clear(),
            BusDefect::BodiesAsText => {
                received.body = String::from_utf8_lossy(&received.body).into_owned().into();
            }
            BusDefect::NewIdEachTime => received.id = Uuid::now_v7(),
            _ => {}
        }
        received
    }

    fn unavailable(&self) -> Error {
        let blames = self.defect == BusDefect::BlamesTheEventForAnOutage;
        let kind = if blames { ErrorKind::Failed } else { ErrorKind::Unreachable };
        Error::new(kind, "publish", "no broker")
    }

    fn write(&self, events: &[OutboxEvent]) {
        let mut written: Vec<Received> = events.iter().map(|event| self.received(event)).collect();
        match self.defect {
            BusDefect::Reorders => written.reverse(),
            BusDefect::DropsAndSaysOk => drop(written.pop()),
            BusDefect::SaysOkBeforeWriting => {
                let later = Arc::clone(&self.written);
                tokio::spawn(async move {
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    later.lock().unwrap().extend(written);
                });
                return;
            }
            _ => {}
        }
        self.written.lock().unwrap().extend(written);
    }
}

#[async_trait]
impl EventBus for DefectiveBus {
    fn capabilities(&self) -> BusCapabilities {
        BusCapabilities {
            key_pipelining: KeyPipelining::SuffixFails,
            ..BusCapabilities::new("defective")
        }
    }

    async fn publish(&self, events: &[OutboxEvent]) -> Vec<PublishResult> {
        if !self.reachable {
            return events.iter().map(|_| Err(self.unavailable())).collect();
        }
        let is_oversized = |event: &OutboxEvent| event.payload().body().len() > BODY_BYTES_MAX;
        let fails_all = self.defect == BusDefect::OversizedFailsTheBatch;
        let spoilt = fails_all && events.iter().any(is_oversized);
        let fits: Vec<OutboxEvent> =
            events.iter().filter(|event| !spoilt && !is_oversized(event)).cloned().collect();
        self.write(&fits);
        let kind = match self.defect {
            BusDefect::OversizedIsTriedAgain => ErrorKind::Failed,
            _ => ErrorKind::TooLarge,
        };
        let result = |event: &OutboxEvent| {
            if spoilt || is_oversized(event) {
                return Err(Error::new(kind, "publish", "too large"));
            }
            Ok(())
        };
        let mut results: Vec<PublishResult> = events.iter().map(result).collect();
        if self.defect == BusDefect::OneResultForTheBatch {
            results.truncate(1);
        }
        results
    }

    async fn check(&self) -> posthaste_core::Result<()> {
        if self.reachable { Ok(()) } else { Err(self.unavailable()) }
    }
}

pub(crate) struct DefectiveBusHarness(pub(crate) BusDefect);

#[async_trait]
impl BusHarness for DefectiveBusHarness {
    type Bus = DefectiveBus;

    async fn fresh(&self) -> anyhow::Result<DefectiveBus> {
        Ok(DefectiveBus::new(self.0, true))
    }

    async fn received(&self, bus: &DefectiveBus) -> anyhow::Result<Vec<Received>> {
        Ok(bus.written.lock().unwrap().clone())
    }

    fn oversized_event(&self) -> Option<OutboxEvent> {
        let payload = Payload::bytes(vec![7; BODY_BYTES_MAX + 1], "application/octet-stream");
        OutboxEvent::builder(Uuid::now_v7(), "oversized").payload(payload.ok()?).build().ok()
    }

    async fn unreachable(&self) -> anyhow::Result<Option<DefectiveBus>> {
        Ok(Some(DefectiveBus::new(self.0, false)))
    }
}
