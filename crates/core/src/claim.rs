//! The right to deliver from an outbox that takes one relay at a time.

use std::any::Any;
use std::fmt;

/// The right to deliver from an outbox, given back when it is dropped.
///
/// Where several relays may share an outbox there is nothing to hold, and `Claim::default()` is all.
#[must_use]
#[derive(Default)]
pub struct Claim(Option<Box<dyn Any + Send + Sync>>);

impl Claim {
    /// A right that lasts for as long as `guard` is not dropped.
    pub fn new(guard: impl Any + Send + Sync) -> Self {
        Self(Some(Box::new(guard)))
    }
}

impl fmt::Debug for Claim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Claim").field(&self.0.is_some()).finish()
    }
}
