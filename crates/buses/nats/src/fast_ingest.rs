//! Fast-ingest batches: many messages, few acknowledgements, and a failure that hits only a suffix.
//!
//! Since version 2.14 a NATS server takes them for streams that allow them (`allow_batched`). The
//! messages of a batch are numbered. The server stores each as it comes, until one is missing or
//! refused: from there on it stores none, and its last answer says how many it has stored. So several
//! events of one key can be on their way at once, and whatever is lost on the way (the connection, the
//! stream's leader, a message of which the client still holds the successors) none overtakes another.
//!
//! Source: ADR-50 of the NATS project ("fast ingest"); the answers in the tests are those of
//! nats-server 2.15.1.

use async_nats::jetstream::{self, ErrorCode};
use async_nats::{Client, Message, StatusCode};
use bytes::Bytes;
use serde::Deserialize;
use tokio::sync::watch;
use tokio::time::{Instant, timeout_at};

use super::acknowledgement::Outcome;
use super::pace::Pace;
use super::slots::Outbound;

/// The server acknowledges at least every so many messages of a batch, besides the end.
const ACKNOWLEDGED_EVERY: usize = 100;

/// What a message of a batch does, as a number in its reply subject.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Operation {
    Start = 0,
    Append = 1,
    /// The last message.
    Commit = 2,
    /// Ends the batch, is not stored itself.
    End = 3,
}

/// What became of a batch.
#[derive(Debug)]
pub(super) struct Sent {
    /// So many are stored, from the first on.
    pub(super) stored: usize,
    pub(super) then: Then,
}

/// What became of the first message that is not stored. None after it is stored either.
#[derive(Debug)]
pub(super) enum Then {
    /// There is none.
    AllStored,
    Failed(Outcome),
    /// The connection broke.
    Lost,
    /// The server takes no batches for this stream; nothing is stored.
    NoBatches,
}

/// Publishes messages, one at least, as one batch and waits for what becomes of them. While that takes
/// longer, `stored` is told from time to time how many are stored by then.
pub(super) async fn publish(
    client: &Client,
    messages: Vec<Outbound>,
    losses: &mut watch::Receiver<u64>,
    refusals: watch::Receiver<u64>,
    deadline: Instant,
    stored: &mut (dyn FnMut(usize) + Send),
) -> Sent {
    let mut progress = Progress::new(messages.len());
    let lost = tokio::select! {
        biased;
        _ = timeout_at(deadline, exchange(client, messages, &mut progress, refusals, stored)) => false,
        _ = losses.changed() => true,
    };
    progress.end(lost)
}

/// Sends all and takes the answers in, until the last.
async fn exchange(
    client: &Client,
    messages: Vec<Outbound>,
    progress: &mut Progress,
    mut refusals: watch::Receiver<u64>,
    stored: &mut (dyn FnMut(usize) + Send),
) -> Option<()> {
    let inbox = client.new_inbox();
    let reply = |position: usize, operation: Operation| {
        let operation = operation as u8;
        format!("{inbox}.{ACKNOWLEDGED_EVERY}.fail.{position}.{operation}.$FI")
    };
    let mut answers = client.subscribe(format!("{inbox}.>")).await.ok()?;
    let first = messages.first()?.subject.clone();
    let last = messages.len();
    for (position, message) in (1..).zip(messages) {
        let operation = match position {
            _ if position == last => Operation::Commit,
            1 => Operation::Start,
            _ => Operation::Append,
        };
        let Outbound { subject, headers, body } = message;
        let reply = reply(position, operation);
        let sent = client.publish_with_reply_and_headers(subject, reply, headers, body).await;
        if let Err(error) = sent {
            progress.failed(position, Outcome::from(error));
            progress.needs_end = position > 1;
            progress.is_over = position == 1;
            break;
        }
    }
    let (mut pace, mut told) = (Pace::new(), 0);
    while !progress.is_over {
        if std::mem::take(&mut progress.needs_end) {
            let position = progress.failed_position()?;
            let reply = reply(position, Operation::End);
            client.publish_with_reply(first.clone(), reply, Bytes::new()).await.ok()?;
        }
        let known = progress.stored;
        tokio::select! {
            biased;
            answer = pace.wait(&mut answers, || stored(known)) => progress.take(&answer?),
            // Nobody answers what is refused for lack of rights. If that was the last, the server
            // waits for it.
            _ = refusals.changed() => progress.refused(last, false, Outcome::NoAnswer),
        }
        if progress.stored > told {
            told = progress.stored;
            pace.begin();
        }
    }
    Some(())
}

/// What the answers say so far.
struct Progress {
    messages: usize,
    stored: usize,
    /// The first that failed, counted from 1.
    failure: Option<(usize, Outcome)>,
    no_batches: bool,
    /// The server waits for more, and there is no more to come.
    needs_end: bool,
    /// No answer follows that says more.
    is_over: bool,
}

/// All that the server answers to messages of a batch.
#[derive(Deserialize)]
struct Answer {
    #[serde(rename = "type")]
    kind: Option<Kind>,
    /// The message that is answered, or up to which all are stored.
    #[serde(default)]
    seq: usize,
    /// The message that is missing.
    #[serde(default)]
    last_seq: usize,
    /// The last answer's: how many are stored.
    count: Option<usize>,
    error: Option<jetstream::Error>,
}

#[derive(Deserialize, Clone, Copy, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
enum Kind {
    Ack,
    Gap,
    Err,
}

impl Progress {
    const fn new(messages: usize) -> Self {
        Self {
            messages,
            stored: 0,
            failure: None,
            no_batches: false,
            needs_end: false,
            is_over: false,
        }
    }

    fn failed_position(&self) -> Option<usize> {
        self.failure.as_ref().map(|(position, _)| *position)
    }

    fn failed(&mut self, position: usize, outcome: Outcome) {
        if self.failed_position().is_none_or(|known| position < known) {
            self.failure = Some((position, outcome));
        }
    }

    fn take(&mut self, message: &Message) {
        // The subject is ours: `….POSITION.OPERATION.$FI`.
        let mut tokens = message.subject.as_str().rsplit('.').skip(1);
        let mut number = || tokens.next().and_then(|token| token.parse::<usize>().ok());
        let (Some(operation), Some(position)) = (number(), number()) else { return };
        let is_end = operation == Operation::End as usize;
        if message.status == Some(StatusCode::NO_RESPONDERS) {
            self.refused(position, is_end, Outcome::NoStream);
            return;
        }
        let Ok(answer) = serde_json::from_slice::<Answer>(&message.payload) else { return };
        match (answer.kind, answer.error, answer.count) {
            (Some(Kind::Ack), _, _) => self.stored = self.stored.max(answer.seq),
            // It may have been refused for lack of rights, which nobody answers.
            (Some(Kind::Gap), _, _) => self.failed(answer.last_seq, Outcome::NoAnswer),
            (Some(Kind::Err), Some(error), _) => self.failed(answer.seq, Outcome::from(&error)),
            (None, Some(error), _) => match error.error_code() {
                ErrorCode::BATCH_PUBLISH_UNKNOWN_BATCH_ID if position > 1 || is_end => {
                    // What comes behind a failure, or behind a change of the stream's leader.
                    self.is_over |= position == self.messages || is_end;
                }
                ErrorCode::BATCH_PUBLISH_DISABLED
                | ErrorCode::BATCH_PUBLISH_INVALID_PATTERN
                | ErrorCode::BATCH_PUBLISH_INVALID_BATCH_ID
                | ErrorCode::BATCH_PUBLISH_TOO_MANY_INFLIGHT
                    if position == 1 =>
                {
                    (self.no_batches, self.is_over) = (true, true);
                }
                _ => self.refused(position, is_end, Outcome::from(&error)),
            },
            (None, None, Some(count)) => (self.stored, self.is_over) = (count, true),
            _ => {}
        }
    }

    /// A message was refused by what comes before the batch, which therefore still waits for it. The
    /// next message shows it that one is missing; behind the last there is none.
    fn refused(&mut self, position: usize, is_end: bool, outcome: Outcome) {
        if is_end {
            self.is_over = true;
            return;
        }
        self.failed(position, outcome);
        self.is_over |= position == 1;
        self.needs_end |= position == self.messages && position > 1;
    }

    fn end(self, lost: bool) -> Sent {
        let stored = self.stored.min(self.messages);
        let then = match self.failure {
            _ if self.no_batches => Then::NoBatches,
            _ if stored == self.messages => Then::AllStored,
            _ if lost => Then::Lost,
            Some((position, outcome)) if position == stored + 1 && self.is_over => {
                Then::Failed(outcome)
            }
            _ => Then::Failed(Outcome::NoAnswer),
        };
        Sent { stored, then }
    }
}

#[cfg(test)]
mod tests {
    use posthaste_core::ErrorKind;

    use super::*;

    /// An answer to a message of the batch, as the server sends it.
    fn answer(position: usize, operation: Operation, payload: &'static str) -> Message {
        let subject = format!("_INBOX.x.100.fail.{position}.{}.$FI", operation as u8);
        Message {
            subject: subject.into(),
            reply: None,
            payload: Bytes::from_static(payload.as_bytes()),
            headers: None,
            status: payload.is_empty().then_some(StatusCode::NO_RESPONDERS),
            description: None,
            length: 0,
        }
    }

    const START: &str = r#"{"type":"ack","seq":0,"msgs":100}"#;
    const UNKNOWN: &str = r#"{"error":{"code":400,"err_code":10208,"description":"batch publish ID unknown"},"stream":"S","seq":0}"#;

    fn after(messages: usize, answers: &[(usize, Operation, &'static str)]) -> Progress {
        let mut progress = Progress::new(messages);
        for (position, operation, payload) in answers {
            progress.take(&answer(*position, *operation, payload));
        }
        progress
    }

    fn kind(then: &Then) -> Option<ErrorKind> {
        match then {
            Then::Failed(Outcome::Failed(error)) => Some(error.kind()),
            _ => None,
        }
    }

    #[test]
    fn the_last_answer_says_how_many_are_stored() {
        let all = r#"{"stream":"S","seq":3,"batch":"b","count":3}"#;
        let progress = after(3, &[(1, Operation::Start, START), (3, Operation::Commit, all)]);
        assert!(progress.is_over);
        let Sent { stored, then } = progress.end(false);
        assert!((stored, matches!(then, Then::AllStored)) == (3, true));
    }

    #[test]
    fn what_is_refused_hits_all_behind_it() {
        let full = r#"{"type":"err","seq":3,"error":{"code":503,"err_code":10077,"description":"maximum messages exceeded"}}"#;
        let two = r#"{"stream":"S","seq":2,"batch":"b","count":2}"#;
        let answers = [
            (1, Operation::Start, START),
            (3, Operation::Append, full),
            (3, Operation::Append, two),
        ];
        let progress = after(4, &answers);
        assert!(progress.is_over);
        let sent = progress.end(false);
        assert_eq!((sent.stored, kind(&sent.then)), (2, Some(ErrorKind::Throttled)));
    }

    #[test]
    fn what_was_refused_before_it_reached_the_batch_is_why_one_is_missing() {
        let large = r#"{"error":{"code":400,"err_code":10054,"description":"message size exceeds maximum allowed"},"stream":"S","seq":0}"#;
        let gap = r#"{"type":"gap","last_seq":2,"seq":3}"#;
        let one = r#"{"stream":"S","seq":1,"batch":"b","count":1}"#;
        let answers = [
            (1, Operation::Start, START),
            (2, Operation::Append, large),
            (3, Operation::Commit, gap),
            (3, Operation::Commit, one),
        ];
        let sent = after(3, &answers).end(false);
        assert_eq!((sent.stored, kind(&sent.then)), (1, Some(ErrorKind::TooLarge)));

        // The last: nothing behind it tells the server.
        let progress = after(3, &[(1, Operation::Start, START), (3, Operation::Commit, large)]);
        assert!(progress.needs_end && !progress.is_over);

        // The first: the batch never began.
        let answers = [(1, Operation::Start, large), (2, Operation::Append, UNKNOWN)];
        let progress = after(3, &answers);
        assert!(progress.is_over);
        let sent = progress.end(false);
        assert_eq!((sent.stored, kind(&sent.then)), (0, Some(ErrorKind::TooLarge)));
    }

    #[test]
    fn a_subject_without_a_stream_may_be_known_before_the_batch_began() {
        let gap = r#"{"type":"gap","last_seq":2,"seq":3}"#;
        let one = r#"{"stream":"S","seq":1,"batch":"b","count":1}"#;
        let answers = [
            (2, Operation::Append, ""),
            (1, Operation::Start, START),
            (3, Operation::Commit, gap),
            (3, Operation::Commit, one),
        ];
        let sent = after(3, &answers).end(false);
        assert!((sent.stored, matches!(sent.then, Then::Failed(Outcome::NoStream))) == (1, true));
    }

    #[test]
    fn an_abandoned_batch_has_stored_what_was_acknowledged_at_least() {
        let hundred = r#"{"type":"ack","seq":100,"msgs":100}"#;
        let answers = [
            (1, Operation::Start, START),
            (100, Operation::Append, hundred),
            (150, Operation::Append, UNKNOWN),
            (200, Operation::Commit, UNKNOWN),
        ];
        let progress = after(200, &answers);
        assert!(progress.is_over);
        let sent = progress.end(false);
        let unknown = matches!(sent.then, Then::Failed(Outcome::NoAnswer));
        assert!((sent.stored, unknown) == (100, true), "{sent:?}");
        let lost = after(200, &answers[..2]).end(true);
        assert!((lost.stored, matches!(lost.then, Then::Lost)) == (100, true));
    }

    #[test]
    fn a_stream_that_takes_no_batches_says_so_at_once() {
        let disabled = r#"{"error":{"code":400,"err_code":10205,"description":"batch publish is disabled"},"stream":"S","seq":0}"#;
        let progress = after(3, &[(1, Operation::Start, disabled)]);
        assert!(progress.is_over && matches!(progress.end(false).then, Then::NoBatches));
    }
}
