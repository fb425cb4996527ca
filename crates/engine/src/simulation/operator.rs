//! What somebody changes in the database of the simulation by hand.

use std::time::Duration;

use posthaste_core::Seq;
use rand::RngExt;

use super::world::{FAR_OFF, Row, RowState, World};

impl World {
    pub(super) fn revive(&mut self) {
        for row in self.rows.values_mut().filter(|row| row.state == RowState::Dead) {
            row.state = RowState::Pending;
            row.event = row.event.clone().revived();
            row.available_at = Duration::ZERO;
            row.corrupt = false;
        }
        self.revision += 1;
    }

    /// Somebody changes a row that waits in SQL, past every trigger: nobody is told.
    pub(super) fn edit(&mut self) {
        let waits =
            |row: &Row| row.committed && matches!(row.state, RowState::Pending | RowState::Dead);
        let places: Vec<Seq> =
            self.rows.iter().filter(|(_, row)| waits(row)).map(|(seq, _)| *seq).collect();
        if places.is_empty() {
            return;
        }
        let place = places[self.random.random_range(0..places.len())];
        let how = self.random.random_range(0..3);
        let row = self.rows.get_mut(&place).expect("a row");
        match (how, row.state) {
            (0, _) => row.state = RowState::Discarded,
            (1, RowState::Dead) => {
                row.state = RowState::Pending;
                row.event = row.event.clone().revived();
            }
            _ => row.available_at = Duration::ZERO,
        }
    }

    /// What was put off for long is due after all, and nobody is told.
    pub(super) fn release(&mut self) {
        for row in self.rows.values_mut().filter(|row| row.state == RowState::Pending) {
            if row.available_at > self.now + FAR_OFF / 2 {
                row.available_at = Duration::ZERO;
            }
        }
    }
}
