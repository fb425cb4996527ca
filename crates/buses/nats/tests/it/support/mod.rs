//! Streams for tests, and what each bus's tests use.

pub(crate) use posthaste_testkit::events::{bytes_event, error, event};

/// The configuration of a stream.
pub(crate) fn stream_config(
    name: &str,
    subjects: &[&str],
) -> async_nats::jetstream::stream::Config {
    async_nats::jetstream::stream::Config {
        name: name.to_owned(),
        subjects: subjects.iter().map(|subject| (*subject).to_owned()).collect(),
        ..Default::default()
    }
}
