//! One error type for stores and buses: what went wrong, during what, and what to do about it.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

/// The result of an outbox operation.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What kind of thing went wrong. [`ErrorKind::status`] says what the relay does about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The server cannot be reached, or the connection broke.
    Unreachable,
    /// No answer within the limit; the operation may have taken effect.
    Timeout,
    /// The server refuses our credentials or our rights.
    Unauthorized,
    /// The server asks us to slow down, or is out of room for now.
    Throttled,
    /// The stream, topic, queue, path or table is not there.
    DestinationMissing,
    /// The event is over the destination's size limit.
    TooLarge,
    /// The event itself cannot be expressed at the destination (a malformed header, for one).
    Malformed,
    /// The destination looked at this event and refused it for good.
    Rejected,
    /// The destination failed on this event in a way that may pass.
    Failed,
    /// A setting is wrong.
    Config,
    /// The database's schema is not one this version understands.
    Schema,
    /// A stored row cannot be read as an event.
    Corrupt,
    /// What was asked for does not exist.
    NotFound,
    /// Another party holds what was asked for.
    Conflict,
    /// A defect of ours.
    Internal,
}

/// Whom an error says something about: what was met, not what is done about it. A bus reports it,
/// and the relay decides from what others met meanwhile; the table stands in ARCHITECTURE.md.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Subject {
    /// Nothing of the event was seen by anybody: no address, no connection, no TLS, not logged in. It
    /// cannot be the event's doing.
    Connection,
    /// The answer, or that there was none, is what a destination gives that is down, refuses our
    /// credentials or has no room: a 503, a time-out, a connection reset. That others are taken
    /// meanwhile refutes it.
    Destination,
    /// The path, topic or subject that this event chose for itself. It never speaks for events that
    /// go another way.
    Route,
    /// This event.
    Event,
}

/// What an error means for the event, or for the operation, that met it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ErrorStatus {
    /// It concerns this event and may pass: count an attempt, wait, try again.
    Transient,
    /// It concerns this event and will not pass: dead-letter it now.
    Permanent,
    /// It concerns the whole destination or database: pause it, count no attempt.
    Unavailable,
}

impl ErrorKind {
    /// Whom this kind says something about, where an adapter does not know better.
    ///
    /// A missing destination and refused credentials are an operator's to mend, not the event's
    /// fault.
    #[must_use]
    pub const fn subject(self) -> Subject {
        match self {
            Self::Unreachable => Subject::Connection,
            Self::Timeout
            | Self::Unauthorized
            | Self::Throttled
            | Self::DestinationMissing
            | Self::Config
            | Self::Schema
            | Self::Conflict
            | Self::Internal => Subject::Destination,
            Self::TooLarge
            | Self::Malformed
            | Self::Rejected
            | Self::Corrupt
            | Self::NotFound
            | Self::Failed => Subject::Event,
        }
    }

    /// Whether trying again is in vain until somebody changes something.
    #[must_use]
    pub const fn is_permanent(self) -> bool {
        matches!(
            self,
            Self::TooLarge | Self::Malformed | Self::Rejected | Self::Corrupt | Self::NotFound
        )
    }

    /// What is done about this kind where an adapter does not know better whom it is about.
    #[must_use]
    pub const fn status(self) -> ErrorStatus {
        self.status_about(self.subject())
    }

    const fn status_about(self, subject: Subject) -> ErrorStatus {
        match subject {
            Subject::Connection | Subject::Destination => ErrorStatus::Unavailable,
            Subject::Route | Subject::Event if self.is_permanent() => ErrorStatus::Permanent,
            Subject::Route | Subject::Event => ErrorStatus::Transient,
        }
    }

    /// All kinds.
    pub const ALL: [Self; 15] = [
        Self::Unreachable,
        Self::Timeout,
        Self::Unauthorized,
        Self::Throttled,
        Self::DestinationMissing,
        Self::TooLarge,
        Self::Malformed,
        Self::Rejected,
        Self::Failed,
        Self::Config,
        Self::Schema,
        Self::Corrupt,
        Self::NotFound,
        Self::Conflict,
        Self::Internal,
    ];

    /// The kind of this [name](Self::as_str).
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.as_str() == name)
    }

    /// A stable lower-case name, fit for a metric label and for the `dead_reason` column.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Unreachable => "unreachable",
            Self::Timeout => "timeout",
            Self::Unauthorized => "unauthorized",
            Self::Throttled => "throttled",
            Self::DestinationMissing => "destination_missing",
            Self::TooLarge => "too_large",
            Self::Malformed => "malformed",
            Self::Rejected => "rejected",
            Self::Failed => "failed",
            Self::Config => "config",
            Self::Schema => "schema",
            Self::Corrupt => "corrupt",
            Self::NotFound => "not_found",
            Self::Conflict => "conflict",
            Self::Internal => "internal",
        }
    }

    /// One line for the operator: what to look at first.
    #[must_use]
    pub const fn hint(self) -> &'static str {
        match self {
            Self::Unreachable => "check the address and that the server is up",
            Self::Timeout => "the server is slow or the network drops packets",
            Self::Unauthorized => "check the credentials and the rights of this user",
            Self::Throttled => {
                "the server is at a limit of its own; it is tried again, ever more rarely"
            }
            Self::DestinationMissing => {
                "create the stream, topic, queue or path, or correct its name"
            }
            Self::TooLarge => {
                "raise the destination's limit or store the body elsewhere and send a reference"
            }
            Self::Malformed => "correct the event's headers, type or payload at the writer",
            Self::Rejected => "the destination will not take this event; see its own log",
            Self::Failed => "the event is tried again by itself",
            Self::Config => "run `posthaste config check`",
            Self::Schema => "run `posthaste migrate status`",
            Self::Corrupt => "look at the row with `posthaste events show`",
            Self::NotFound => "check the id",
            Self::Conflict => "another session or process is in the way; see who, and try again",
            Self::Internal => "this is a defect of posthaste; please report it",
        }
    }
}

impl fmt::Display for ErrorKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The longest wait that a server can ask for, wherever: no answer stops a key for hours, and
/// one try in five minutes hurts nobody.
pub const RETRY_AFTER_MAX: Duration = Duration::from_secs(300);

/// Kind, operation, context and source of a failure.
///
/// `Display` gives one line with all but the source; walk [`std::error::Error::source`] for the
/// rest, or use [`Error::report`]. Clones share one.
#[derive(Debug, Clone)]
pub struct Error(Arc<Inner>);

#[derive(Debug, Clone)]
struct Inner {
    kind: ErrorKind,
    subject: Subject,
    operation: &'static str,
    message: String,
    context: Vec<(&'static str, String)>,
    retry_after: Option<Duration>,
    source: Option<Arc<dyn std::error::Error + Send + Sync>>,
}

impl Error {
    /// An error of `kind` in `operation` (a lower-case verb phrase: `fetch pending events`).
    pub fn new(kind: ErrorKind, operation: &'static str, message: impl Into<String>) -> Self {
        Self(Arc::new(Inner {
            kind,
            subject: kind.subject(),
            operation,
            message: message.into(),
            context: Vec::new(),
            retry_after: None,
            source: None,
        }))
    }

    /// Says whom it is about, where its kind alone would say another.
    ///
    /// For an adapter that knows better: a refused right that concerns one subject, for one.
    #[must_use]
    pub fn about(mut self, subject: Subject) -> Self {
        self.inner().subject = subject;
        self
    }

    /// Adds a name and a value that help to find the cause.
    #[must_use]
    pub fn with_context(mut self, name: &'static str, value: impl fmt::Display) -> Self {
        self.inner().context.push((name, value.to_string()));
        self
    }

    /// How long the server asked us to wait before the next try; more than
    /// [`RETRY_AFTER_MAX`] counts as that.
    #[must_use]
    pub fn with_retry_after(mut self, delay: Duration) -> Self {
        self.inner().retry_after = Some(delay.min(RETRY_AFTER_MAX));
        self
    }

    /// Adds the error beneath.
    #[must_use]
    pub fn with_source(
        mut self,
        source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> Self {
        self.inner().source = Some(Arc::from(source.into()));
        self
    }

    /// To change: what others share stays as it is.
    fn inner(&mut self) -> &mut Inner {
        Arc::make_mut(&mut self.0)
    }

    /// What kind of thing went wrong.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        self.0.kind
    }

    /// Whom it says something about.
    #[must_use]
    pub fn subject(&self) -> Subject {
        self.0.subject
    }

    /// What it means for the operation that met it, taken alone. What a relay does about a failed
    /// event depends on what other events meet, too.
    #[must_use]
    pub fn status(&self) -> ErrorStatus {
        self.0.kind.status_about(self.0.subject)
    }

    /// What was being done.
    #[must_use]
    pub fn operation(&self) -> &'static str {
        self.0.operation
    }

    /// How long the server asked us to wait, if it did.
    #[must_use]
    pub fn retry_after(&self) -> Option<Duration> {
        self.0.retry_after
    }

    /// The whole chain on one line, as stored in `error_message` and shown to operators.
    #[must_use]
    pub fn report(&self) -> String {
        let mut line = self.to_string();
        let mut source = std::error::Error::source(self);
        while let Some(error) = source {
            let text = error.to_string();
            // Many libraries repeat their source in their own text.
            if !text.is_empty() && !line.contains(&text) {
                line.push_str(": ");
                line.push_str(&text);
            }
            source = error.source();
        }
        line
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.0.operation, self.0.message)?;
        for (position, (name, value)) in self.0.context.iter().enumerate() {
            let separator = if position == 0 { " (" } else { ", " };
            write!(f, "{separator}{name}={value}")?;
        }
        if !self.0.context.is_empty() {
            f.write_str(")")?;
        }
        Ok(())
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match &self.0.source {
            Some(source) => Some(source.as_ref()),
            None => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn report_gives_operation_message_context_and_source_on_one_line() {
        let error = Error::new(ErrorKind::Unreachable, "publish", "no connection")
            .with_context("server", "nats://127.0.0.1:4222")
            .with_source(std::io::Error::other("refused"));
        assert_eq!(
            error.report(),
            "publish: no connection (server=nats://127.0.0.1:4222): refused"
        );
        assert_eq!(error.status(), ErrorStatus::Unavailable);
    }

    #[test]
    fn whom_it_is_about_decides_with_the_kind_what_it_means() {
        let error = |kind, subject| Error::new(kind, "publish", "no").about(subject).status();
        use ErrorKind::{Rejected, Unauthorized};
        assert_eq!(error(Unauthorized, Subject::Route), ErrorStatus::Transient);
        assert_eq!(error(Rejected, Subject::Route), ErrorStatus::Permanent);
        assert_eq!(error(Rejected, Subject::Destination), ErrorStatus::Unavailable);
    }

    #[test]
    fn a_server_can_ask_for_five_minutes_at_most() {
        let asked = |secs| {
            let delay = Duration::from_secs(secs);
            Error::new(ErrorKind::Throttled, "publish", "no").with_retry_after(delay).retry_after()
        };
        assert_eq!(asked(60), Some(Duration::from_secs(60)));
        assert_eq!(asked(3600), Some(RETRY_AFTER_MAX));
    }

    #[test]
    fn an_outage_is_never_an_event_error() {
        for kind in [
            ErrorKind::Unreachable,
            ErrorKind::Timeout,
            ErrorKind::Unauthorized,
            ErrorKind::Throttled,
            ErrorKind::DestinationMissing,
        ] {
            assert_eq!(kind.status(), ErrorStatus::Unavailable, "{kind}");
        }
    }
}
