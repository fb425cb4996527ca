//! Confirms before starting what publishing would need.

use async_nats::jetstream::Context;
use async_nats::jetstream::context::{
    GetStreamByNameErrorKind, GetStreamErrorKind, RequestError, RequestErrorKind,
};
use async_nats::jetstream::stream::{Config, StorageType};
use posthaste_bus_kit::TopicTemplate;
use posthaste_core::{Error, ErrorKind, Result, Subject};

use super::acknowledgement::meaning;
use super::subject::covers;

const OPERATION: &str = "check nats";

/// Confirms that JetStream is enabled and a stream takes what `template` makes.
pub(super) async fn check(
    jetstream: &Context,
    stream: Option<&str>,
    template: &TopicTemplate,
) -> Result<()> {
    match stream {
        Some(stream) => check_stream(jetstream, stream, template).await,
        None if template.is_literal() => check_subject(jetstream, template).await,
        // No stream named and no subject known: all that can be asked is whether JetStream is on.
        None => match jetstream.stream_by_subject(">").await {
            Ok(_) => Ok(()),
            Err(error) => match error.kind() {
                GetStreamByNameErrorKind::NotFound => Err(missing("there is no stream yet")),
                _ => Err(unanswered(error)),
            },
        },
    }
}

async fn check_stream(jetstream: &Context, stream: &str, template: &TopicTemplate) -> Result<()> {
    let config = &find(jetstream, stream).await?;
    warn_about(config);
    if config.no_ack {
        return Err(
            missing("the stream never acknowledges (no_ack)").with_context("stream", stream)
        );
    }
    // A mirror or a sourcing stream lists no subjects of its own: it takes no publish.
    if !config.subjects.iter().any(|filter| covers(filter, template)) {
        return Err(missing("the stream does not cover the subject")
            .with_context("stream", stream)
            .with_context("subject", template)
            .with_context("stream subjects", config.subjects.join(" ")));
    }
    Ok(())
}

async fn check_subject(jetstream: &Context, template: &TopicTemplate) -> Result<()> {
    match jetstream.stream_by_subject(template.literal_prefix()).await {
        Ok(_) => Ok(()),
        Err(error) => match error.kind() {
            GetStreamByNameErrorKind::NotFound => {
                Err(missing("no stream covers the subject; create a stream that covers it")
                    .with_context("subject", template))
            }
            _ => Err(unanswered(error)),
        },
    }
}

fn warn_about(config: &Config) {
    if config.storage == StorageType::Memory {
        tracing::warn!(
            stream = config.name,
            "the stream is in memory: acknowledged events do not survive a restart of the server"
        );
    }
}

fn missing(message: &str) -> Error {
    Error::new(ErrorKind::DestinationMissing, OPERATION, message)
}

/// The configuration of a stream.
///
/// # Errors
/// That there is none, or why nobody says.
pub(super) async fn find(jetstream: &Context, stream: &str) -> Result<Config> {
    let found = jetstream.get_stream(stream).await.map_err(|error| match error.kind() {
        GetStreamErrorKind::JetStream(answer) if answer.code() == 404 => no_such_stream(stream),
        GetStreamErrorKind::JetStream(answer) => {
            let (kind, message) = meaning(&answer);
            Error::new(kind, OPERATION, message).with_context("stream", stream).with_source(answer)
        }
        _ => unanswered(error).with_context("stream", stream),
    });
    Ok(found?.cached_info().config.clone())
}

/// Of a stream that the server's list does not have.
pub(super) fn no_such_stream(stream: &str) -> Error {
    missing("the stream does not exist").with_context("stream", stream)
}

/// The error of a question JetStream did not answer.
pub(super) fn unanswered(error: impl std::error::Error + Send + Sync + 'static) -> Error {
    let (kind, message) = match request_error(&error) {
        Some(RequestErrorKind::NoResponders) => {
            (ErrorKind::DestinationMissing, "JetStream is not enabled on the server")
        }
        Some(RequestErrorKind::TimedOut) => (ErrorKind::Timeout, "JetStream does not answer"),
        _ => (ErrorKind::Unreachable, "JetStream cannot be asked"),
    };
    Error::new(kind, OPERATION, message).about(Subject::Destination).with_source(error)
}

/// What went wrong with the request beneath. The layers above it share its type and say `Other`.
fn request_error(error: &(dyn std::error::Error + 'static)) -> Option<RequestErrorKind> {
    let mut source = Some(error);
    while let Some(error) = source {
        let kind = error.downcast_ref::<RequestError>().map(RequestError::kind);
        if kind.is_some_and(|kind| kind != RequestErrorKind::Other) {
            return kind;
        }
        source = error.source();
    }
    None
}
