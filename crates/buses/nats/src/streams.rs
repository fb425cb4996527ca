//! Which streams store what, where none is configured: an acknowledgement counts if its stream covers
//! the subject. Any program that listens to a subject can answer what is published there.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use super::connection::Connection;
use super::pipelining::{info_subject, is_not_found};
use super::subject::is_covered;

/// How long an answer of the server is good for, and how long where it speaks against a stream.
const AGE_MAX: Duration = Duration::from_secs(60);
const DOUBT_AGE_MAX: Duration = Duration::from_secs(1);
/// The most streams that are remembered: their names are told by whoever answers.
const STREAMS_MAX: usize = 1_000;

#[derive(Debug, Default)]
pub(super) struct Streams(Mutex<HashMap<Box<str>, Known>>);

#[derive(Debug)]
struct Known {
    /// None where there is no such stream; `None` where the server does not tell us.
    filters: Option<Arc<[String]>>,
    at: Instant,
}

impl Streams {
    /// Whether `stream` stores `subject`; `None` where the server must be asked.
    pub(super) fn stores(&self, stream: &str, subject: &str) -> Option<bool> {
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Known { filters, at } = known.get(stream)?;
        let is_stored = filters.as_ref().is_none_or(|filters| is_covered(filters, subject));
        let age_max = if is_stored { AGE_MAX } else { DOUBT_AGE_MAX };
        (at.elapsed() < age_max).then_some(is_stored)
    }

    /// Asks the server. One that does not answer a relay without the right to ask is taken for a yes.
    pub(super) async fn ask(&self, connection: &Connection, stream: &str, wait: Duration) {
        let question = connection.jetstream.get_stream(stream);
        let filters = match connection.answer(&info_subject(stream), wait, question).await {
            Some(Ok(found)) => Some(found.cached_info().config.subjects.clone().into()),
            Some(Err(error)) if is_not_found(&error) => Some(Arc::new([]) as Arc<[String]>),
            Some(Err(_)) | None => None,
        };
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= STREAMS_MAX {
            known.clear();
        }
        known.insert(stream.into(), Known { filters, at: Instant::now() });
    }
}
