//! How outcomes get into the store.

pub(crate) mod alone;
pub(crate) mod recording;
pub(crate) mod settling;
