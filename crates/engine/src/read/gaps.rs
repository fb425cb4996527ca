//! Places that were passed without an event, where one may still turn up.
//!
//! Numbers are drawn before commit, so a reader that goes upward passes the events of
//! transactions that are still open. Each number it passes without seeing an event is a *gap*.
//! Every forward read asks for its gaps again, in the same snapshot as what lies above: so an
//! event is never taken in before an earlier one that was visible with it.
//!
//! A gap closes when a [`Watermark`] proves that nothing can turn up there any more. Let `H` be
//! the `high` of a watermark and `W` its `writers`:
//!
//! - A transaction seen for the first time did not hold its token when the watermark before was
//!   read, so it draws numbers above that one's `high` only: its *floor*.
//! - So a number at or below `H` and every floor in `W` was drawn by a transaction that had ended.
//!   Its event is visible to any read begun later, or it never comes.
//!
//! Such numbers are *proven*: the next complete read closes their gaps, and passing one leaves
//! none. No read may be under way while a watermark is read.
//!
//! All of this is said of one incarnation of the database. A transaction that was prepared comes back
//! from a restart under a token that was never seen, and would be given a floor above its own numbers;
//! numbers that were drawn and not written to disk are drawn again. So the next incarnation begins with
//! nothing proven, and with everything read again.

use std::collections::{BTreeMap, HashMap};

use posthaste_core::{Seq, Watermark};

/// Above so many ranges, those closest to each other become one. That costs reads of places that
/// were seen already and changes nothing else.
const RANGES_MAX: usize = 500;

#[derive(Debug, Default)]
pub(crate) struct Gaps {
    /// Inclusive ranges, by their lower end.
    ranges: BTreeMap<Seq, Seq>,
    high: Seq,
    floors: HashMap<Box<str>, Seq>,
    proven: Seq,
}

impl Gaps {
    /// Takes the next watermark.
    pub(crate) fn observe(&mut self, watermark: &Watermark) {
        let mut floors = HashMap::with_capacity(watermark.writers.len());
        for writer in &watermark.writers {
            let floor = self.floors.get(&writer.token).copied().unwrap_or(self.high);
            floors.insert(writer.token.clone(), floor);
        }
        self.floors = floors;
        self.high = watermark.high;
        self.proven = self.floors.values().copied().fold(watermark.high, Seq::min);
    }

    /// The greatest number that was known to be drawn.
    pub(crate) const fn high(&self) -> Seq {
        self.high
    }

    /// Another incarnation of the database answers: nothing is known of it.
    pub(crate) fn forget(&mut self) {
        *self = Self::default();
    }

    /// A forward read begun after the last watermark brought `places`, ascending, from the gaps
    /// and above `after`; `more` says that it was cut short. Returns the place up to which all has
    /// been passed now.
    pub(crate) fn page_read(&mut self, after: Seq, places: &[Seq], more: bool) -> Seq {
        let passed = places.last().copied().filter(|last| *last > after);
        // Cut short among the gaps: beyond the last event nothing was looked at.
        let looked_at = match (passed, more) {
            (None, true) => places.last().copied().unwrap_or(0),
            _ => after,
        };
        let mut previous = after;
        for place in places {
            if *place <= after {
                self.close(*place);
            } else {
                let low = (previous + 1).max(self.proven + 1);
                if low < *place {
                    self.ranges.insert(low, *place - 1);
                }
                previous = *place;
            }
        }
        self.close_up_to(self.proven.min(looked_at));
        if !more {
            self.merge_closest();
        }
        passed.unwrap_or(after)
    }

    /// The ranges to ask for.
    pub(crate) fn ranges(&self) -> Vec<(Seq, Seq)> {
        self.ranges.iter().map(|(low, high)| (*low, *high)).collect()
    }

    /// Whether there is one at this place.
    pub(crate) fn contains(&self, place: Seq) -> bool {
        self.ranges.range(..=place).next_back().is_some_and(|(_, high)| *high >= place)
    }

    /// Whether there are any.
    pub(crate) fn is_empty(&self) -> bool {
        self.ranges.is_empty()
    }

    /// Everything above `after` will be read again.
    pub(crate) fn rewind(&mut self, after: Seq) {
        self.ranges.split_off(&(after + 1));
        if let Some(mut last) = self.ranges.last_entry()
            && *last.get() > after
        {
            *last.get_mut() = after;
        }
    }

    /// The event at this place, which was read, is not pending any more: to look there again costs
    /// nothing, and two ranges may become one. For a reader of a share of the keys, to which the
    /// numbers of all others are gaps.
    pub(crate) fn reopen(&mut self, place: Seq) {
        if place <= self.proven {
            return;
        }
        let (mut low, mut high) = (place, place);
        if let Some((before, end)) = self.ranges.range(..=place).next_back().map(|(l, h)| (*l, *h))
        {
            if end >= place {
                return;
            }
            if end + 1 == place {
                low = before;
            }
        }
        if let Some(end) = self.ranges.remove(&(place + 1)) {
            high = end;
        }
        self.ranges.insert(low, high);
    }

    fn close(&mut self, place: Seq) {
        let Some((low, high)) = self.ranges.range(..=place).next_back().map(|(l, h)| (*l, *h))
        else {
            return;
        };
        if place > high {
            return;
        }
        self.ranges.remove(&low);
        if low < place {
            self.ranges.insert(low, place - 1);
        }
        if place < high {
            self.ranges.insert(place + 1, high);
        }
    }

    fn close_up_to(&mut self, proven: Seq) {
        while let Some(first) = self.ranges.first_entry()
            && *first.key() <= proven
        {
            let high = first.remove();
            if high > proven {
                self.ranges.insert(proven + 1, high);
            }
        }
    }

    /// Between two complete reads, never amid one: places that were read already are in the merged
    /// ranges, and a read in short pages would come past the same ones for ever.
    fn merge_closest(&mut self) {
        // Not at every range too many: half of them at once.
        if self.ranges.len() <= 2 * RANGES_MAX {
            return;
        }
        let ranges = self.ranges();
        let mut distances: Vec<Seq> = ranges.windows(2).map(|pair| pair[1].0 - pair[0].1).collect();
        let surplus = ranges.len() - RANGES_MAX;
        let (_, widest, _) = distances.select_nth_unstable(surplus - 1);
        let (widest, mut surplus) = (*widest, surplus);
        let mut merged: Vec<(Seq, Seq)> = Vec::with_capacity(RANGES_MAX);
        for (low, high) in ranges {
            match merged.last_mut() {
                Some(last) if surplus > 0 && low - last.1 <= widest => {
                    last.1 = high;
                    surplus -= 1;
                }
                _ => merged.push((low, high)),
            }
        }
        self.ranges = merged.into_iter().collect();
    }
}

#[cfg(test)]
mod schedules;

#[cfg(test)]
mod tests {
    use super::*;
    use posthaste_core::OpenWriter;
    use proptest::prelude::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(40))]
        #[test]
        fn merging_ranges_keeps_every_gap(places in prop::collection::btree_set(1_i64..12_000, 0..3_000)) {
            let mut gaps = Gaps::default();
            let page: Vec<Seq> = places.iter().copied().collect();
            gaps.page_read(0, &page, false);
            let ranges = gaps.ranges();
            prop_assert!(ranges.len() <= 2 * RANGES_MAX);
            prop_assert!(ranges.windows(2).all(|pair| pair[0].1 < pair[1].0));
            let last = page.last().copied().unwrap_or(0);
            for seq in (1..last).filter(|seq| !places.contains(seq)) {
                prop_assert!(ranges.iter().any(|(low, high)| (*low..=*high).contains(&seq)));
            }
        }
    }

    /// Every other number is an event that stays pending, and the writer of the rest is open: merged
    /// ranges hold events that were read before, and short pages must come past them all the same.
    #[test]
    fn a_read_in_short_pages_comes_to_its_end_however_many_gaps_there_are() {
        let pending: Vec<Seq> = (1..=3_000).map(|n| 2 * n).collect();
        let mut gaps = Gaps::default();
        let mut hint = gaps.page_read(0, &pending, false);
        for pages in 1.. {
            let ranges = gaps.ranges();
            let asked = |seq: &Seq| {
                *seq > hint || ranges.iter().any(|(low, high)| (low..=high).contains(&seq))
            };
            let mut found: Vec<Seq> = pending.iter().copied().filter(asked).collect();
            let more = found.len() > 100;
            found.truncate(100);
            hint = gaps.page_read(hint, &found, more);
            if !more {
                break;
            }
            assert!(pages < 100, "it reads the same events again and again");
        }
        assert!(gaps.ranges().len() <= 2 * RANGES_MAX);
    }

    #[test]
    fn a_place_that_is_reopened_joins_its_neighbours() {
        let mut gaps = Gaps::default();
        gaps.page_read(0, &[2, 4, 9], false);
        assert_eq!(gaps.ranges(), [(1, 1), (3, 3), (5, 8)]);
        gaps.reopen(4);
        assert_eq!(gaps.ranges(), [(1, 1), (3, 8)]);
        gaps.reopen(9);
        gaps.reopen(2);
        assert_eq!(gaps.ranges(), [(1, 9)]);
        gaps.reopen(7);
        assert_eq!(gaps.ranges(), [(1, 9)]);
        gaps.observe(&Watermark { high: 20, writers: Vec::new(), revision: 0, incarnation: 0 });
        gaps.page_read(9, &[], false);
        gaps.reopen(4);
        assert!(gaps.is_empty(), "nothing can turn up there any more");
    }

    #[test]
    fn a_gap_closes_only_when_proven_and_looked_at_again() {
        let mut gaps = Gaps::default();
        assert_eq!(gaps.page_read(0, &[1, 4], false), 4);
        assert_eq!(gaps.ranges(), [(2, 3)]);
        let writer = OpenWriter { token: "w".into() };
        gaps.observe(&Watermark { high: 4, writers: vec![writer], revision: 0, incarnation: 0 });
        gaps.page_read(4, &[], false);
        assert_eq!(gaps.ranges(), [(2, 3)], "a writer that may have drawn it is open");
        gaps.observe(&Watermark { high: 4, writers: Vec::new(), revision: 0, incarnation: 0 });
        assert_eq!(gaps.ranges(), [(2, 3)], "not looked at since");
        gaps.page_read(4, &[2], true);
        assert_eq!(gaps.ranges(), [(3, 3)], "the page was cut at 2");
        gaps.page_read(4, &[], false);
        assert!(gaps.is_empty());
    }
}
