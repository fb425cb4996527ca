//! Which part of the outbox must be read again for events that committed late.
//!
//! Numbers are drawn before commit, so the fast path, which reads upward from the last number it
//! saw, passes events of transactions that are still open. This turns two successive
//! [`Watermark`]s into the range in which such events may have appeared since.
//!
//! Why that is enough. Let `H` be the `high` of one watermark and `W` its `writers`.
//!
//! - A transaction seen for the first time now did not hold its token when `W` was read, so it
//!   drew all its numbers after that: they are greater than `H`. That is its *floor*.
//! - A transaction that came and went between two watermarks drew all its numbers above the
//!   earlier `H` too.
//! - An event becomes visible when its transaction ends. So what became visible between two
//!   watermarks lies above the smallest of: the earlier `H`, and the floors of the transactions
//!   that ended in between. All of it is visible to any fetch begun after the later watermark.
//!
//! The caller must not have a fetch under way while a watermark is read: a fetch begun before it
//! could move the fast path past an event that it did not see.

use std::collections::HashMap;

use posthaste_core::{Seq, Watermark};

/// Remembers the last watermark and the floors of the transactions that were open at it.
#[derive(Debug, Default)]
pub(super) struct LateCommits {
    high: Seq,
    floors: HashMap<Box<str>, Seq>,
}

impl LateCommits {
    /// Takes the next watermark; returns the exclusive lower end of the range to read again.
    pub(super) fn observe(&mut self, watermark: &Watermark) -> Seq {
        let previous_high = self.high;
        let mut still_open = HashMap::with_capacity(watermark.writers.len());
        for writer in &watermark.writers {
            let floor = self.floors.remove(&writer.token).unwrap_or(previous_high);
            still_open.insert(writer.token.clone(), floor);
        }
        // What is left in `floors` has ended.
        let reread_after = self.floors.values().copied().fold(previous_high, Seq::min);
        self.floors = still_open;
        self.high = watermark.high;
        reread_after
    }

    /// Whether some transaction may still bring events to a place already passed.
    pub(super) fn writers_are_open(&self) -> bool {
        !self.floors.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use posthaste_core::OpenWriter;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    /// A transaction of the model database.
    #[derive(Debug, Clone, Default)]
    struct Transaction {
        drawn: Vec<Seq>,
        ended: bool,
    }

    /// One step of a schedule; the numbers pick a transaction.
    #[derive(Debug, Clone)]
    enum Step {
        Begin,
        Draw(usize),
        Commit(usize),
        Abort(usize),
        FastPath { limit: usize },
        Watermark,
    }

    fn any_step() -> impl Strategy<Value = Step> {
        prop_oneof![
            2 => Just(Step::Begin),
            4 => any::<usize>().prop_map(Step::Draw),
            2 => any::<usize>().prop_map(Step::Commit),
            1 => any::<usize>().prop_map(Step::Abort),
            3 => (1_usize..4).prop_map(|limit| Step::FastPath { limit }),
            2 => Just(Step::Watermark),
        ]
    }

    /// How a reader under test uses a watermark: gives the range's lower end, or `None` for no
    /// second look at all.
    type Reread = fn(&mut LateCommits, &Watermark) -> Option<Seq>;

    /// Runs a schedule and returns the committed events that the reader never saw.
    fn lost(steps: &[Step], reread: Reread) -> Vec<Seq> {
        let mut transactions: Vec<Transaction> = Vec::new();
        let mut committed: BTreeSet<Seq> = BTreeSet::new();
        let mut seen: BTreeSet<Seq> = BTreeSet::new();
        let (mut high, mut hint) = (0, 0);
        let mut late = LateCommits::default();
        let open = |transactions: &[Transaction], pick: usize| {
            let open: Vec<usize> =
                (0..transactions.len()).filter(|index| !transactions[*index].ended).collect();
            (!open.is_empty()).then(|| open[pick % open.len()])
        };
        let mut look = |late: &mut LateCommits,
                        transactions: &[Transaction],
                        committed: &BTreeSet<Seq>,
                        seen: &mut BTreeSet<Seq>,
                        high: Seq,
                        hint: Seq| {
            let writers = (0..transactions.len())
                .filter(|index| !transactions[*index].ended)
                .map(|index| OpenWriter { token: index.to_string().into() })
                .collect();
            let watermark = Watermark { high, writers, revision: 0 };
            if let Some(after) = reread(late, &watermark)
                && after < hint
            {
                seen.extend(committed.range(after + 1..=hint));
            }
        };
        for step in steps {
            match step {
                Step::Begin => transactions.push(Transaction::default()),
                Step::Draw(pick) => {
                    if let Some(index) = open(&transactions, *pick) {
                        high += 1;
                        transactions[index].drawn.push(high);
                    }
                }
                Step::Commit(pick) => {
                    if let Some(index) = open(&transactions, *pick) {
                        transactions[index].ended = true;
                        committed.extend(&transactions[index].drawn);
                    }
                }
                Step::Abort(pick) => {
                    if let Some(index) = open(&transactions, *pick) {
                        transactions[index].ended = true;
                    }
                }
                Step::FastPath { limit } => {
                    let page: Vec<Seq> =
                        committed.range(hint + 1..).take(*limit).copied().collect();
                    hint = page.last().copied().unwrap_or(hint);
                    seen.extend(page);
                }
                Step::Watermark => {
                    look(&mut late, &transactions, &committed, &mut seen, high, hint)
                }
            }
        }
        for transaction in &mut transactions {
            if !transaction.ended {
                transaction.ended = true;
                committed.extend(&transaction.drawn);
            }
        }
        seen.extend(committed.range(hint + 1..));
        hint = high;
        look(&mut late, &transactions, &committed, &mut seen, high, hint);
        committed.difference(&seen).copied().collect()
    }

    fn ours(late: &mut LateCommits, watermark: &Watermark) -> Option<Seq> {
        Some(late.observe(watermark))
    }

    /// A cursor that trusts the number alone.
    fn cursor_only(_: &mut LateCommits, _: &Watermark) -> Option<Seq> {
        None
    }

    /// Forgets the floors: looks only above the last watermark.
    fn without_floors(late: &mut LateCommits, watermark: &Watermark) -> Option<Seq> {
        let previous = late.high;
        late.observe(watermark);
        Some(previous)
    }

    /// Looks only at what long transactions brought, not at those that came and went between.
    fn without_short_ones(late: &mut LateCommits, watermark: &Watermark) -> Option<Seq> {
        let ended: Vec<Seq> = late
            .floors
            .iter()
            .filter(|(token, _)| watermark.writers.iter().all(|writer| writer.token != **token))
            .map(|(_, floor)| *floor)
            .collect();
        late.observe(watermark);
        ended.into_iter().min()
    }

    fn schedules() -> impl Strategy<Value = Vec<Step>> {
        prop::collection::vec(any_step(), 0..120)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(3_000))]
        #[test]
        fn no_committed_event_is_lost_under_any_schedule(steps in schedules()) {
            prop_assert_eq!(lost(&steps, ours), Vec::<Seq>::new());
        }
    }

    #[test]
    fn the_checker_rejects_every_weaker_reader() {
        use proptest::strategy::ValueTree;
        use proptest::test_runner::TestRunner;
        for (name, reread) in [
            ("cursor only", cursor_only as Reread),
            ("without floors", without_floors),
            ("without short ones", without_short_ones),
        ] {
            let mut runner = TestRunner::deterministic();
            let caught = (0..2_000).any(|_| {
                let steps = schedules().new_tree(&mut runner).expect("a schedule").current();
                !lost(&steps, reread).is_empty()
            });
            assert!(caught, "the checker passes the reader {name}");
        }
    }
}
