//! Names that events gave as their destination and that are not configured, for operators.
//!
//! Their events wait in the store, and rounds of looks (`looks`) see each of these again. A name that
//! whole rounds have not met any more is not told any longer: its events went elsewhere, or are gone.

use std::collections::BTreeMap;

/// Names that are told. Writers can make up as many as they like.
const NAMES_MAX: usize = 100;
/// In one round the head of a key may be under way, and not be met.
const ROUNDS_MAX: u8 = 2;

#[derive(Debug, Default)]
pub(crate) struct UnknownNames {
    /// Each with the rounds that have not met it.
    names: BTreeMap<Box<str>, u8>,
    /// Whether all heads that waited at the beginning of this round are looked at in it.
    round_is_whole: bool,
}

impl UnknownNames {
    /// An event that waits names it. Returns whether that is new.
    pub(crate) fn met(&mut self, name: &str) -> bool {
        if let Some(rounds) = self.names.get_mut(name) {
            *rounds = 0;
            return false;
        }
        self.names.len() < NAMES_MAX && self.names.insert(name.into(), 0).is_none()
    }

    /// The round ends before all were looked at.
    pub(crate) const fn round_is_cut(&mut self) {
        self.round_is_whole = false;
    }

    /// Another round begins. Returns the names that are gone.
    pub(crate) fn next_round(&mut self) -> Vec<Box<str>> {
        if !std::mem::replace(&mut self.round_is_whole, true) {
            return Vec::new();
        }
        let gone = self.names.extract_if(.., |_, rounds| {
            let is_gone = *rounds >= ROUNDS_MAX;
            *rounds += 1;
            is_gone
        });
        gone.map(|(name, _)| name).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_gone_that_two_whole_rounds_have_not_met() {
        let mut names = UnknownNames::default();
        assert!(names.met("old") && names.met("new") && !names.met("old"));
        for _ in 0..3 {
            assert!(names.next_round().is_empty());
            names.round_is_cut();
        }
        for _ in 0..3 {
            assert!(names.next_round().is_empty());
            assert!(!names.met("new"));
        }
        assert_eq!(names.next_round(), ["old".into()]);
        assert!(names.met("old"), "it may come again");
    }

    #[test]
    fn a_hundred_names_are_told() {
        let mut names = UnknownNames::default();
        assert!((0..NAMES_MAX).all(|n| names.met(&n.to_string())));
        assert!(!names.met("one more"));
    }
}
