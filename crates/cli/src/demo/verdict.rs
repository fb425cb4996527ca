//! The verdict: the shop's own records against what the broker received.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::time::Duration;

use posthaste_core::{EventFilter, EventState, OutboxAdmin};
use posthaste_processor::ProcessorStatistics;
use posthaste_sqlite::SqliteOutbox;
use uuid::Uuid;

use super::broker::{Broker, Received};
use super::shop::Shop;

/// What the demo found.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub(super) struct Verdict {
    stored: u64,
    rolled_back: u64,
    rolled_back_orders: u64,
    delivered: u64,
    retried: u64,
    dead: u64,
    died_and_retried: u64,
    duplicates: u64,
    interrupted_calls: u64,
    order_violations: u64,
    losses: u64,
    phantoms: u64,
    took_seconds: f64,
    events_per_second: f64,
    promises_kept: bool,
}

impl Verdict {
    pub(super) async fn reach(
        shop: &Shop,
        broker: &Broker,
        outbox: &SqliteOutbox,
        statistics: ProcessorStatistics,
        took: Duration,
    ) -> anyhow::Result<Self> {
        let received = broker.received();
        let expected = shop.events_by_customer().await?;
        let dead = EventFilter::in_state(EventState::Dead);
        let retried = outbox.list_events(&EventFilter::all(), usize::MAX >> 1).await?;
        let dead_letters = outbox.count_events(&dead, u64::MAX >> 1).await?;
        let checked = check(&expected, &received);
        Ok(Self {
            stored: expected.iter().map(|(_, events)| events).sum(),
            rolled_back: shop.rolled_back_events(),
            rolled_back_orders: shop.rolled_back_orders(),
            delivered: checked.distinct,
            retried: retried.iter().filter(|event| event.retry_count() > 0).count() as u64,
            dead: dead_letters,
            died_and_retried: statistics.dead_lettered,
            duplicates: checked.duplicates,
            interrupted_calls: broker.refused(),
            order_violations: checked.order_violations,
            losses: checked.losses,
            phantoms: checked.phantoms,
            took_seconds: took.as_secs_f64(),
            events_per_second: checked.distinct as f64 / took.as_secs_f64(),
            promises_kept: checked.promises_kept() && dead_letters == 0,
        })
    }

    /// Whether every promise was kept.
    pub(super) const fn is_good(&self) -> bool {
        self.promises_kept
    }
}

#[derive(Debug, Default, PartialEq, Eq)]
struct Checked {
    distinct: u64,
    duplicates: u64,
    order_violations: u64,
    losses: u64,
    phantoms: u64,
}

impl Checked {
    const fn promises_kept(&self) -> bool {
        self.losses == 0 && self.phantoms == 0 && self.order_violations == 0
    }
}

/// Compares the number of events that each customer's row counts with what was received: the
/// numbers 1 to n, each at least once, first deliveries ascending.
fn check(expected: &[(Uuid, u64)], received: &[Received]) -> Checked {
    let mut checked = Checked::default();
    let mut ids = HashSet::new();
    let mut first_deliveries: HashMap<Uuid, Vec<u64>> = HashMap::new();
    for delivery in received {
        if ids.insert(delivery.id) {
            first_deliveries.entry(delivery.customer).or_default().push(delivery.number);
        } else {
            checked.duplicates += 1;
        }
    }
    checked.distinct = ids.len() as u64;
    for (customer, events) in expected {
        let numbers = first_deliveries.remove(customer).unwrap_or_default();
        checked.order_violations +=
            numbers.windows(2).filter(|pair| pair[1] <= pair[0]).count() as u64;
        let known: HashSet<u64> = numbers.iter().copied().collect();
        checked.losses += (1..=*events).filter(|number| !known.contains(number)).count() as u64;
        checked.phantoms += numbers.iter().filter(|number| *number > events).count() as u64;
    }
    // Deliveries for customers that the shop does not know.
    checked.phantoms += first_deliveries.values().map(|numbers| numbers.len() as u64).sum::<u64>();
    checked
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let line = |f: &mut fmt::Formatter<'_>, name: &str, value: u64, remark: &str| {
            writeln!(f, "  {name:<18}{value:>8}  {remark}")
        };
        writeln!(f, "\nVerdict after {:.1} s", self.took_seconds)?;
        line(f, "events stored", self.stored, "by transactions that committed")?;
        let orders = format!("in {} orders that changed their mind", self.rolled_back_orders);
        line(f, "rolled back", self.rolled_back, &orders)?;
        line(f, "delivered", self.delivered, &format!("{:.0} events/s", self.events_per_second))?;
        line(f, "retried", self.retried, "delivered after failed attempts of their own")?;
        let interrupted = "calls that met the outage; no event lost an attempt";
        line(f, "interrupted", self.interrupted_calls, interrupted)?;
        line(
            f,
            "dead letters",
            self.dead,
            &format!("left; {} died and were retried", self.died_and_retried),
        )?;
        line(
            f,
            "duplicates",
            self.duplicates,
            "lost answers and the killed relay; same id each time",
        )?;
        let promise = |broken: u64| if broken == 0 { "promise kept" } else { "PROMISE BROKEN" };
        line(f, "lost", self.losses, promise(self.losses))?;
        line(f, "phantoms", self.phantoms, promise(self.phantoms))?;
        line(f, "out of order", self.order_violations, promise(self.order_violations))?;
        let verdict = if self.is_good() {
            "Every committed event arrived, none that was rolled back, each key in order."
        } else {
            "A promise broke. Please report it, with the seed."
        };
        f.write_str(verdict)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn deliveries(numbers: &[(u128, u64)]) -> Vec<Received> {
        let customer = Uuid::nil();
        numbers
            .iter()
            .map(|(id, number)| Received { id: Uuid::from_u128(*id), customer, number: *number })
            .collect()
    }

    #[test]
    fn each_broken_promise_is_seen() {
        let expected = [(Uuid::nil(), 3)];
        let good = Checked { distinct: 3, ..Checked::default() };
        let cases: [(&[(u128, u64)], Checked); 5] = [
            (&[(1, 1), (2, 2), (3, 3)], Checked { ..good }),
            (&[(1, 1), (2, 2), (1, 1), (3, 3)], Checked { duplicates: 1, ..good }),
            (&[(1, 1), (3, 3), (2, 2)], Checked { order_violations: 1, ..good }),
            (&[(1, 1), (2, 2)], Checked { distinct: 2, losses: 1, ..good }),
            (&[(1, 1), (2, 2), (3, 3), (4, 4)], Checked { distinct: 4, phantoms: 1, ..good }),
        ];
        for (numbers, wanted) in cases {
            let broken = wanted.order_violations + wanted.losses + wanted.phantoms > 0;
            let checked = check(&expected, &deliveries(numbers));
            assert_eq!(checked, wanted, "{numbers:?}");
            assert_eq!(checked.promises_kept(), !broken, "{numbers:?}");
        }
    }
}
