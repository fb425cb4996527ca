//! What an answer proves, and against whom.
//!
//! A bus says what it met and whom that is about ([`posthaste_core::Subject`]); whether it is an outage
//! or the event's own fault, the relay decides from what other events meet. So the one thing that a bus
//! must get right is to say of a place that one event chose nothing about the places of others.

use posthaste_core::Subject;

/// Whom the refusal of an address, a topic or a path is about: the route where events have their own
/// (`per_event`, as in [`Topic`](crate::Topic)), the destination where all go there.
#[must_use]
pub const fn of_address(per_event: bool) -> Subject {
    if per_event { Subject::Route } else { Subject::Destination }
}
