//! Readers against random schedules of transactions: begun early or late, with savepoints, aborted,
//! prepared, idle for long while others commit. The checker passes ours and the one other reader that
//! is right, and rejects every reader that is commonly taken for right.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use posthaste_core::{OpenWriter, Seq, Watermark};
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::TestRunner;

use super::Gaps;

/// A transaction of the model database. It holds the locks of the keys it has drawn for.
#[derive(Debug, Clone, Default)]
struct Transaction {
    /// Given out when it first writes, or before, if it did something else first.
    xid: Option<u64>,
    drawn: Vec<Seq>,
    /// How much was drawn when the savepoint was set, and which keys were locked.
    savepoint: Option<(usize, BTreeSet<usize>)>,
    prepared: bool,
    ended: bool,
}

/// One step of a schedule; the numbers pick a transaction and a key.
#[derive(Debug, Clone)]
enum Step {
    Begin { early: bool },
    Draw { pick: usize, key: usize },
    Savepoint(usize),
    RollBackToSavepoint(usize),
    Prepare(usize),
    Commit(usize),
    Abort(usize),
    Read { limit: usize },
    Watermark,
}

fn any_step() -> impl Strategy<Value = Step> {
    prop_oneof![
        2 => any::<bool>().prop_map(|early| Step::Begin { early }),
        6 => (any::<usize>(), 0..3_usize).prop_map(|(pick, key)| Step::Draw { pick, key }),
        1 => any::<usize>().prop_map(Step::Savepoint),
        1 => any::<usize>().prop_map(Step::RollBackToSavepoint),
        1 => any::<usize>().prop_map(Step::Prepare),
        2 => any::<usize>().prop_map(Step::Commit),
        1 => any::<usize>().prop_map(Step::Abort),
        4 => (1_usize..5).prop_map(|limit| Step::Read { limit }),
        2 => Just(Step::Watermark),
    ]
}

fn schedules() -> impl Strategy<Value = Vec<Step>> {
    prop::collection::vec(any_step(), 0..150)
}

/// What a statement sees: transactions below `xmax` that were not active when it began.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Snapshot {
    xmin: u64,
    xmax: u64,
    active: BTreeSet<u64>,
}

impl Snapshot {
    fn sees(&self, xid: u64) -> bool {
        xid < self.xmax && !self.active.contains(&xid)
    }
}

/// A database that gives out transaction and sequence numbers as PostgreSQL does.
#[derive(Default)]
struct Database {
    transactions: Vec<Transaction>,
    xids: u64,
    latest_ended: u64,
    high: Seq,
    /// Every number that was drawn and not taken back, with its transaction and its key.
    rows: BTreeMap<Seq, (u64, usize)>,
    committed: BTreeSet<u64>,
    /// Which transaction holds a key.
    locks: HashMap<usize, usize>,
}

impl Database {
    fn open(&self, pick: usize) -> Option<usize> {
        let open: Vec<usize> =
            (0..self.transactions.len()).filter(|index| !self.transactions[*index].ended).collect();
        (!open.is_empty()).then(|| open[pick % open.len()])
    }

    /// One that can still do something.
    fn active(&self, pick: usize) -> Option<usize> {
        self.open(pick).filter(|index| !self.transactions[*index].prepared)
    }

    fn begin(&mut self, early: bool) {
        let mut transaction = Transaction::default();
        if early {
            transaction.xid = Some(self.next_xid());
        }
        self.transactions.push(transaction);
    }

    fn next_xid(&mut self) -> u64 {
        self.xids += 1;
        self.xids
    }

    fn draw(&mut self, pick: usize, key: usize) {
        let Some(index) = self.active(pick) else { return };
        if *self.locks.entry(key).or_insert(index) != index {
            return; // It waits for the lock: append last.
        }
        let xid = match self.transactions[index].xid {
            Some(xid) => xid,
            None => self.next_xid(),
        };
        self.transactions[index].xid = Some(xid);
        self.high += 1;
        self.rows.insert(self.high, (xid, key));
        self.transactions[index].drawn.push(self.high);
    }

    fn set_savepoint(&mut self, pick: usize) {
        let Some(index) = self.active(pick) else { return };
        let held = self.locks.iter().filter(|(_, owner)| **owner == index).map(|(key, _)| *key);
        let held = held.collect();
        let transaction = &mut self.transactions[index];
        transaction.savepoint = Some((transaction.drawn.len(), held));
    }

    /// Takes back what was drawn since, and the locks that were taken since. The transaction goes on.
    fn roll_back_to_savepoint(&mut self, pick: usize) {
        let Some(index) = self.active(pick) else { return };
        let Some((drawn, held)) = self.transactions[index].savepoint.take() else { return };
        for seq in self.transactions[index].drawn.split_off(drawn) {
            self.rows.remove(&seq);
        }
        self.locks.retain(|key, owner| *owner != index || held.contains(key));
    }

    fn prepare(&mut self, pick: usize) {
        if let Some(index) = self.active(pick) {
            self.transactions[index].prepared = true;
        }
    }

    fn end(&mut self, pick: usize, commit: bool) {
        let Some(index) = self.open(pick) else { return };
        self.transactions[index].ended = true;
        self.locks.retain(|_, owner| *owner != index);
        let Some(xid) = self.transactions[index].xid else { return };
        self.latest_ended = self.latest_ended.max(xid);
        if commit {
            self.committed.insert(xid);
        } else {
            for seq in self.transactions[index].drawn.clone() {
                self.rows.remove(&seq);
            }
        }
    }

    fn snapshot(&self) -> Snapshot {
        let xmax = self.latest_ended + 1;
        let open = self.transactions.iter().filter(|transaction| !transaction.ended);
        let active: BTreeSet<u64> =
            open.filter_map(|transaction| transaction.xid).filter(|xid| *xid < xmax).collect();
        let xmin = active.first().copied().unwrap_or(xmax);
        Snapshot { xmin, xmax, active }
    }

    /// What is committed, with the transaction that wrote it.
    fn visible(&self) -> impl Iterator<Item = (Seq, u64)> {
        let committed = |xid: &u64| self.committed.contains(xid);
        self.rows
            .iter()
            .filter(move |(_, (xid, _))| committed(xid))
            .map(|(seq, (xid, _))| (*seq, *xid))
    }

    fn watermark(&self) -> Watermark {
        let writers = (0..self.transactions.len())
            .filter(|index| !self.transactions[*index].ended)
            .filter(|index| !self.transactions[*index].drawn.is_empty())
            .map(|index| OpenWriter { token: index.to_string().into() })
            .collect();
        Watermark { high: self.high, writers, revision: 0, incarnation: 0 }
    }
}

/// A reader under test: returns what it takes in, in order.
trait Reader {
    fn read(&mut self, database: &Database, limit: usize) -> Vec<Seq>;

    fn watermark(&mut self, _: &Database) -> Vec<Seq> {
        Vec::new()
    }
}

/// Ours.
#[derive(Default)]
struct Forward {
    gaps: Gaps,
    hint: Seq,
}

impl Reader for Forward {
    fn read(&mut self, database: &Database, limit: usize) -> Vec<Seq> {
        let ranges = self.gaps.ranges();
        let in_gaps = |seq: &Seq| ranges.iter().any(|(low, high)| (*low..=*high).contains(seq));
        let visible = database.visible().map(|(seq, _)| seq);
        let mut page: Vec<Seq> = visible.filter(|seq| *seq > self.hint || in_gaps(seq)).collect();
        let more = page.len() > limit;
        page.truncate(limit);
        self.hint = self.gaps.page_read(self.hint, &page, more);
        page
    }

    fn watermark(&mut self, database: &Database) -> Vec<Seq> {
        self.gaps.observe(&database.watermark());
        Vec::new()
    }
}

/// The other one that is right: all that became visible between two snapshots, by number. It stalls
/// nobody, but it must remember snapshots, and cannot tell what was delivered.
#[derive(Default)]
struct Window {
    from: Snapshot,
    to: Option<Snapshot>,
    last: Seq,
}

impl Reader for Window {
    fn read(&mut self, database: &Database, limit: usize) -> Vec<Seq> {
        let to = self.to.get_or_insert_with(|| database.snapshot()).clone();
        let new = database.visible().filter(|(_, xid)| to.sees(*xid) && !self.from.sees(*xid));
        let mut page: Vec<Seq> = new.map(|(seq, _)| seq).filter(|seq| *seq > self.last).collect();
        let more = page.len() > limit;
        page.truncate(limit);
        if more {
            self.last = page.last().copied().unwrap_or(self.last);
        } else {
            (self.from, self.to, self.last) = (to, None, 0);
        }
        page
    }
}

/// Trusts the number alone.
#[derive(Default)]
struct CursorOnly(Seq);

impl Reader for CursorOnly {
    fn read(&mut self, database: &Database, limit: usize) -> Vec<Seq> {
        let above = database.visible().map(|(seq, _)| seq).filter(|seq| *seq > self.0);
        let page: Vec<Seq> = above.take(limit).collect();
        self.0 = page.last().copied().unwrap_or(self.0);
        page
    }
}

/// Trusts the number once the transaction is older than every open one.
#[derive(Default)]
struct CursorBelowXmin(Seq);

impl Reader for CursorBelowXmin {
    fn read(&mut self, database: &Database, limit: usize) -> Vec<Seq> {
        let xmin = database.snapshot().xmin;
        let above = database.visible().filter(|(seq, xid)| *seq > self.0 && *xid < xmin);
        let page: Vec<Seq> = above.map(|(seq, _)| seq).take(limit).collect();
        self.0 = page.last().copied().unwrap_or(self.0);
        page
    }
}

/// By transaction and then by number, below every open transaction: loses nothing, and puts the events
/// of a key in the order in which their transactions began.
#[derive(Default)]
struct ByTransactionBelowXmin((u64, Seq));

impl Reader for ByTransactionBelowXmin {
    fn read(&mut self, database: &Database, limit: usize) -> Vec<Seq> {
        let xmin = database.snapshot().xmin;
        let new = database.visible().map(|(seq, xid)| (xid, seq));
        let mut page: Vec<(u64, Seq)> =
            new.filter(|place| *place > self.0 && place.0 < xmin).collect();
        page.sort_unstable();
        page.truncate(limit);
        self.0 = page.last().copied().unwrap_or(self.0);
        page.into_iter().map(|(_, seq)| seq).collect()
    }
}

/// The window, by transaction.
#[derive(Default)]
struct WindowByTransaction {
    from: Snapshot,
    to: Option<Snapshot>,
    last: (u64, Seq),
}

impl Reader for WindowByTransaction {
    fn read(&mut self, database: &Database, limit: usize) -> Vec<Seq> {
        let to = self.to.get_or_insert_with(|| database.snapshot()).clone();
        let new = database.visible().filter(|(_, xid)| to.sees(*xid) && !self.from.sees(*xid));
        let mut page: Vec<(u64, Seq)> =
            new.map(|(seq, xid)| (xid, seq)).filter(|place| *place > self.last).collect();
        page.sort_unstable();
        let more = page.len() > limit;
        page.truncate(limit);
        if more {
            self.last = page.last().copied().unwrap_or(self.last);
        } else {
            (self.from, self.to, self.last) = (to, None, (0, 0));
        }
        page.into_iter().map(|(_, seq)| seq).collect()
    }
}

/// The window, with the snapshots of a standby: they do not name transactions that are running.
#[derive(Default)]
struct OnStandby(Snapshot);

impl Reader for OnStandby {
    fn read(&mut self, database: &Database, _: usize) -> Vec<Seq> {
        let to = Snapshot { active: BTreeSet::new(), ..database.snapshot() };
        let new = database.visible().filter(|(_, xid)| to.sees(*xid) && !self.0.sees(*xid));
        let page = new.map(|(seq, _)| seq).collect();
        self.0 = to;
        page
    }
}

/// Reads upward from a hint, and sweeps below it in a statement of its own.
#[derive(Default)]
struct HintAndSweep {
    hint: Seq,
    floors: HashMap<Box<str>, Seq>,
    high: Seq,
}

impl Reader for HintAndSweep {
    fn read(&mut self, database: &Database, limit: usize) -> Vec<Seq> {
        let above = database.visible().map(|(seq, _)| seq).filter(|seq| *seq > self.hint);
        let page: Vec<Seq> = above.take(limit).collect();
        self.hint = page.last().copied().unwrap_or(self.hint);
        page
    }

    fn watermark(&mut self, database: &Database) -> Vec<Seq> {
        let watermark = database.watermark();
        let still = |token: &str| watermark.writers.iter().any(|writer| *writer.token == *token);
        let ended = self.floors.iter().filter(|(token, _)| !still(token)).map(|(_, floor)| *floor);
        let after = ended.fold(self.high, Seq::min);
        let floor = |token: &str| self.floors.get(token).copied().unwrap_or(self.high);
        self.floors = watermark
            .writers
            .iter()
            .map(|writer| (writer.token.clone(), floor(&writer.token)))
            .collect();
        self.high = watermark.high;
        let below = |seq: &Seq| *seq > after && *seq <= self.hint;
        database.visible().map(|(seq, _)| seq).filter(below).collect()
    }
}

/// Ours, but believing that a number is decided once a greater one was drawn before a watermark:
/// forgets the writers that are still open.
#[derive(Default)]
struct WithoutFloors(Forward);

impl Reader for WithoutFloors {
    fn read(&mut self, database: &Database, limit: usize) -> Vec<Seq> {
        self.0.read(database, limit)
    }

    fn watermark(&mut self, database: &Database) -> Vec<Seq> {
        let blind = Watermark { writers: Vec::new(), ..database.watermark() };
        self.0.gaps.observe(&blind);
        Vec::new()
    }
}

#[derive(Debug, PartialEq, Eq, Default)]
struct Verdict {
    lost: Vec<Seq>,
    phantom: Vec<Seq>,
    out_of_order: Vec<Seq>,
}

fn judge(steps: &[Step], reader: &mut dyn Reader) -> Verdict {
    let mut database = Database::default();
    let mut keys: HashMap<Seq, usize> = HashMap::new();
    let mut taken: Vec<Seq> = Vec::new();
    for step in steps {
        match step {
            Step::Begin { early } => database.begin(*early),
            Step::Draw { pick, key } => database.draw(*pick, *key),
            Step::Savepoint(pick) => database.set_savepoint(*pick),
            Step::RollBackToSavepoint(pick) => database.roll_back_to_savepoint(*pick),
            Step::Prepare(pick) => database.prepare(*pick),
            Step::Commit(pick) => database.end(*pick, true),
            Step::Abort(pick) => database.end(*pick, false),
            Step::Read { limit } => taken.extend(reader.read(&database, *limit)),
            Step::Watermark => taken.extend(reader.watermark(&database)),
        }
        keys.extend(database.rows.iter().map(|(seq, (_, key))| (*seq, *key)));
    }
    while database.open(0).is_some() {
        database.end(0, true);
    }
    for _ in 0..3 {
        taken.extend(reader.read(&database, usize::MAX));
        taken.extend(reader.watermark(&database));
    }
    taken.extend(reader.read(&database, usize::MAX));
    let mut verdict = Verdict::default();
    let mut seen = HashSet::new();
    let mut last: HashMap<usize, Seq> = HashMap::new();
    for seq in taken {
        if seen.insert(seq) && last.insert(keys[&seq], seq).unwrap_or_default() > seq {
            verdict.out_of_order.push(seq);
        }
    }
    let committed: BTreeSet<Seq> = database.visible().map(|(seq, _)| seq).collect();
    verdict.lost = committed.iter().filter(|seq| !seen.contains(seq)).copied().collect();
    verdict.phantom = seen.iter().filter(|seq| !committed.contains(seq)).copied().collect();
    verdict
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]
    #[test]
    fn nothing_is_lost_or_out_of_order_under_any_schedule(steps in schedules()) {
        prop_assert_eq!(judge(&steps, &mut Forward::default()), Verdict::default());
        prop_assert_eq!(judge(&steps, &mut Window::default()), Verdict::default());
    }
}

#[test]
fn the_checker_rejects_every_weaker_reader() {
    type Make = fn() -> Box<dyn Reader>;
    let readers: [(&str, Make); 7] = [
        ("cursor only", || Box::<CursorOnly>::default()),
        ("cursor below xmin", || Box::<CursorBelowXmin>::default()),
        ("by transaction below xmin", || Box::<ByTransactionBelowXmin>::default()),
        ("window by transaction", || Box::<WindowByTransaction>::default()),
        ("window on a standby", || Box::<OnStandby>::default()),
        ("hint and sweep in two statements", || Box::<HintAndSweep>::default()),
        ("without floors", || Box::<WithoutFloors>::default()),
    ];
    for (name, make) in readers {
        let mut runner = TestRunner::deterministic();
        let caught = (0..3_000).any(|_| {
            let steps = schedules().new_tree(&mut runner).expect("a schedule").current();
            judge(&steps, &mut *make()) != Verdict::default()
        });
        assert!(caught, "the checker passes the reader: {name}");
    }
}
