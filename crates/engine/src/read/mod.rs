//! What is asked of the store, in which order, and what is done with the answers.

pub(crate) mod dead_letters;
pub(crate) mod gaps;
pub(crate) mod intake;
pub(crate) mod looks;
pub(crate) mod reader;
pub(crate) mod unknown_names;
