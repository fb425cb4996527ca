//! Progress: live bars on a terminal, plain lines elsewhere.

use std::io::IsTerminal;
use std::sync::Arc;
use std::time::{Duration, Instant};

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use tokio::task::JoinHandle;

use super::broker::Broker;
use super::shop::Shop;
use crate::logs;

/// Between two updates of the bars.
const BAR_INTERVAL: Duration = Duration::from_millis(100);
/// Between two plain lines.
const LINE_INTERVAL: Duration = Duration::from_secs(1);

pub(super) struct Display {
    bars: Option<MultiProgress>,
    started: Instant,
    refresh: JoinHandle<()>,
}

impl Display {
    pub(super) fn start(shop: Arc<Shop>, broker: Broker, orders: u32) -> Self {
        let started = Instant::now();
        if std::io::stderr().is_terminal() {
            let bars = MultiProgress::new();
            let refresh = tokio::spawn(refresh_bars(bars.clone(), shop, broker, orders));
            return Self { bars: Some(bars), started, refresh };
        }
        let refresh = tokio::spawn(async move {
            loop {
                tokio::time::sleep(LINE_INTERVAL).await;
                logs::say(&format!(
                    "{:5.1} s  orders {}/{orders}  events stored {}  delivered {}",
                    started.elapsed().as_secs_f64(),
                    shop.progress(),
                    shop.stored_events(),
                    broker.distinct_events(),
                ));
            }
        });
        Self { bars: None, started, refresh }
    }

    /// Tells what happens now.
    pub(super) fn say(&self, text: &str) {
        let line = format!("{:5.1} s  {text}", self.started.elapsed().as_secs_f64());
        match &self.bars {
            // A terminal that cannot be written to shows nothing; the verdict still comes.
            Some(bars) => drop(bars.println(line)),
            None => logs::say(&line),
        }
    }

    pub(super) fn finish(self) {
        self.refresh.abort();
        if let Some(bars) = self.bars {
            drop(bars.clear());
        }
    }
}

async fn refresh_bars(bars: MultiProgress, shop: Arc<Shop>, broker: Broker, orders: u32) {
    let bar = |label: &'static str, length: u64| {
        let style =
            ProgressStyle::with_template("{prefix:>10} {bar:40.cyan/dim} {pos:>7}/{len} {msg}")
                .unwrap_or_else(|_| ProgressStyle::default_bar());
        bars.add(ProgressBar::new(length).with_style(style).with_prefix(label))
    };
    let taken = bar("orders", u64::from(orders));
    let delivered = bar("delivered", 0);
    let mut last = (Instant::now(), 0);
    loop {
        taken.set_position(shop.progress());
        delivered.set_length(shop.stored_events());
        let events = broker.distinct_events();
        delivered.set_position(events);
        if last.0.elapsed() >= LINE_INTERVAL {
            let rate = (events - last.1) as f64 / last.0.elapsed().as_secs_f64();
            delivered.set_message(format!("{rate:.0} events/s"));
            last = (Instant::now(), events);
        }
        tokio::time::sleep(BAR_INTERVAL).await;
    }
}
