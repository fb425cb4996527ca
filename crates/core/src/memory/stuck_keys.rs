//! Keys that wait, among events in memory.

use std::collections::{BTreeMap, HashSet};

use jiff::Timestamp;

use crate::{OutboxEvent, Seq, StuckBy, StuckKey, StuckKeyPage, StuckKeyQuery};

pub(super) fn page(
    events: &BTreeMap<Seq, OutboxEvent>,
    query: &StuckKeyQuery,
    now: Timestamp,
) -> StuckKeyPage {
    let mut seen = HashSet::new();
    let mut page = StuckKeyPage::default();
    for (seq, event) in events {
        let is_head = holds(event, query.by, now) && seen.insert(event.order_key());
        if !is_head || *seq <= query.after {
            continue;
        }
        if page.keys.len() == query.limit {
            page.next = Some(page.keys.last().map_or(query.after, |last| last.seq));
            break;
        }
        let mut key = StuckKey::new(*seq, event.record().clone());
        let behind = events.range(seq + 1..);
        key.waiting = behind
            .filter(|(_, later)| later.is_pending() && later.order_key() == event.order_key())
            .count() as u64;
        page.keys.push(key);
    }
    page
}

fn holds(event: &OutboxEvent, by: StuckBy, now: Timestamp) -> bool {
    match by {
        StuckBy::DeadLetter => event.is_dead(),
        StuckBy::Retry => {
            event.is_pending()
                && event.has_failed()
                && event.available_at().is_some_and(|at| at > now)
        }
    }
}
