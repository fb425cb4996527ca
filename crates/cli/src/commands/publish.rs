//! `posthaste publish`: one event.

use std::io::Read as _;
use std::path::Path;

use anyhow::Context as _;
use jiff::Timestamp;
use posthaste_core::{OutboxEvent, Payload};
use serde_json::json;

use super::bulk;
use crate::arguments::{BodyArgs, PublishArgs};
use crate::config::Config;
use crate::exit::UsageError;
use crate::output::Output;
use crate::store;

/// Stores one event, or every line of a file.
pub(crate) async fn run(args: PublishArgs, config: &Config, output: Output) -> anyhow::Result<()> {
    if let Some(file) = &args.from {
        let store = store::open_to_store(config).await?;
        return bulk::run(file, args.skip, &*store, output).await;
    }
    // The event is checked before the database is asked.
    let event = event_of(args)?;
    store::open_to_store(config).await?.store(std::slice::from_ref(&event)).await?;
    let result = json!({
        "stored": 1,
        "id": event.id().to_string(),
        "type": event.event_type(),
        "key": event.order_key().to_string(),
    });
    output.write(&result, || format!("stored {} ({})", event.id(), event.event_type()))
}

fn event_of(args: PublishArgs) -> anyhow::Result<OutboxEvent> {
    // clap requires both unless --from is given.
    let (Some(event_type), Some(aggregate_id)) = (args.event_type, args.aggregate_id) else {
        return Err(UsageError("TYPE and --aggregate-id are required".into()).into());
    };
    let body = body_of(args.body)?;
    let payload = match &args.content_type {
        Some(content_type) => Payload::bytes(body, content_type)?,
        None => Payload::json_text(body)?,
    };
    let mut builder = OutboxEvent::builder(aggregate_id, event_type).payload(payload);
    if let Some(id) = args.id {
        builder = builder.id(id);
    }
    if let Some(aggregate_type) = args.aggregate_type {
        builder = builder.aggregate_type(aggregate_type);
    }
    if let Some(key) = args.key {
        builder = builder.order_key(key);
    }
    if let Some(destination) = args.destination {
        builder = builder.destination(destination);
    }
    if let Some(topic) = args.topic {
        builder = builder.topic(topic);
    }
    for (name, value) in args.headers {
        builder = builder.header(name, value);
    }
    let delayed = args.delay.map(|delay| Timestamp::now().checked_add(delay)).transpose()?;
    if let Some(time) = args.available_at.or(delayed) {
        builder = builder.available_at(time);
    }
    if let Some(max_retries) = args.max_retries {
        builder = builder.max_retries(max_retries);
    }
    Ok(builder.build()?)
}

fn body_of(args: BodyArgs) -> anyhow::Result<Vec<u8>> {
    match (args.data, args.file, args.dash) {
        (Some(data), _, _) if data != "-" => Ok(data.into_bytes()),
        (_, Some(file), _) if file != Path::new("-") => {
            std::fs::read(&file).with_context(|| format!("cannot read {}", file.display()))
        }
        (None, None, None) => Err(UsageError(
            "give the body with --data JSON, -f FILE, or - for standard input".into(),
        )
        .into()),
        _ => {
            let mut body = Vec::new();
            std::io::stdin().lock().read_to_end(&mut body).context("cannot read standard input")?;
            Ok(body)
        }
    }
}
