//! What an answer says, and of whom: the event, its key, the destination.

pub(crate) mod outage;
pub(crate) mod outcomes;
pub(crate) mod suspicion;
