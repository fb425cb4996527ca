//! What becomes of outcomes that were given to the database.

use std::time::Duration;

use posthaste_core::{Error, Settlement, Unsettled};
use rustc_hash::FxHashMap;

use crate::database::Work;
use crate::machine::Machine;
use crate::protocol::Report;
use crate::record::settling::{Refusal, stays_pending};

impl Machine {
    /// A batch is recorded, but for what is `left`.
    pub(crate) fn recorded(
        &mut self,
        settlements: Vec<Settlement>,
        left: Vec<Unsettled>,
        now: Duration,
    ) {
        let failed_before = self.database.fails_to_record() || self.database.refuses_rows();
        self.settling.ended(&settlements);
        let mut left: FxHashMap<_, _> =
            left.into_iter().map(|unsettled| (unsettled.seq, unsettled.why)).collect();
        let (alone, done): (Vec<_>, Vec<_>) =
            settlements.into_iter().partition(|settlement| left.contains_key(&settlement.seq));
        self.database_answered(Work::Recording);
        if !done.is_empty() {
            self.settling.recorded(&done);
            self.database_answered(Work::RefusedRows);
            if failed_before {
                self.settling.alone.hurry(now);
            }
        }
        for settlement in alone {
            if self.leases.is_current(settlement.lease)
                && let Some(why) = left.remove(&settlement.seq)
            {
                self.waits_alone(settlement, why, now);
            }
        }
        for settlement in &done {
            self.looks.settled(settlement.seq);
            if self.leases.is_current(settlement.lease) {
                let is_pending = stays_pending(settlement);
                self.keys.known.settled(settlement.seq, settlement.id, is_pending);
                if !is_pending {
                    self.reader.settled(settlement.seq);
                }
            }
        }
    }

    /// A batch is not known to be recorded.
    pub(crate) fn not_recorded(
        &mut self,
        settlements: Vec<Settlement>,
        error: &Error,
        now: Duration,
    ) {
        let is_known = matches!(&*settlements, [one] if self.settling.alone.knows(one.seq));
        let leases = &self.leases;
        let is_ours = |settlement: &Settlement| leases.is_current(settlement.lease);
        let refusal = Refusal::of(error);
        if refusal == Refusal::All {
            self.settling.failed(settlements, is_ours);
        } else if let Some(row) = self.settling.refused(settlements, is_ours) {
            self.waits_alone(row, error.report().into(), now);
        }
        let is_its_own = is_known && refusal != Refusal::All;
        if refusal != Refusal::Some && !is_its_own {
            self.database_failed(Work::Recording, error, now);
        } else if self.settling.may_fail_altogether() && !is_known {
            self.database_failed(Work::RefusedRows, error, now);
        }
        self.nothing_to_record();
    }

    fn waits_alone(&mut self, settlement: Settlement, why: Box<str>, now: Duration) {
        let (seq, id, random) = (settlement.seq, settlement.id, self.random());
        let error = why.clone();
        let pause = self.settling.alone.failed(settlement, why, now, random);
        self.reports.push(Report::NotRecorded { seq, id, pause, error });
    }
}
