//! What is on its way to the destinations, and what goes next.

pub(crate) mod dispatch;
pub(crate) mod in_flight;
pub(crate) mod window;
