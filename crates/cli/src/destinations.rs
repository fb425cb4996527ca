//! The buses: from settings to destinations.

use std::sync::Arc;

use async_trait::async_trait;
use posthaste_buses::nats::{NatsAuth, NatsBus, NatsConfig, NatsTls};
use posthaste_buses::ndjson::{NdjsonBus, NdjsonConfig, NdjsonTarget};
use posthaste_buses::webhook::{WebhookBus, WebhookConfig};
use posthaste_buses::{EnvelopeFormat, Secret};
use posthaste_core::{
    BusCapabilities, Error, ErrorKind, EventBus, OutboxEvent, PublishResult, Result,
};
use posthaste_processor::Destination;
use tokio::sync::Notify;

use crate::config::{DestinationSettings, Problem};

/// What is wrong with the destinations, found without connecting to anything.
pub(crate) fn problems(destinations: &[DestinationSettings]) -> Vec<Problem> {
    let mut problems = Vec::new();
    let mut outputs = destinations.iter().filter(|destination| destination.kind == "stdout");
    if let (Some(_), Some(second)) = (outputs.next(), outputs.next()) {
        problems.push(problem(second, "is the second that writes to standard output".into()));
    }
    for destination in destinations {
        let checked = match destination.kind.as_str() {
            "nats" => nats_config(destination).and_then(|config| config.validate()),
            "webhook" => webhook_config(destination).and_then(|config| config.validate()),
            "file" => ndjson_config(destination).validate(),
            _ => Ok(()),
        };
        if let Err(error) = checked {
            problems.push(problem(destination, error.report()));
        }
    }
    problems
}

fn problem(destination: &DestinationSettings, why: String) -> Problem {
    let path = format!("destinations.{}", destination.name);
    Problem {
        place: destination.place.clone(),
        message: format!("{path}: {why}"),
        help: "see `posthaste config reference` for the keys of its type".into(),
        path,
    }
}

/// Makes the buses. They connect by themselves: one whose other side is down is no error.
///
/// `output_closed` is notified when the reader of standard output goes away.
///
/// # Errors
/// The bus's, for a wrong setting.
pub(crate) async fn open(
    destinations: &[DestinationSettings],
    output_closed: &Arc<Notify>,
) -> Result<Vec<OpenDestination>> {
    let mut open = Vec::new();
    for settings in destinations {
        let bus: Arc<dyn EventBus> = match settings.kind.as_str() {
            "nats" => Arc::new(NatsBus::connect(nats_config(settings)?).await?),
            "webhook" => Arc::new(WebhookBus::open(&webhook_config(settings)?)?),
            "file" => Arc::new(NdjsonBus::open(&ndjson_config(settings))?),
            _ => Arc::new(StandardOutput {
                bus: NdjsonBus::open(&ndjson_config(settings))?,
                closed: Arc::clone(output_closed),
            }),
        };
        open.push(OpenDestination {
            name: settings.name.clone(),
            bus,
            dead_head: settings.dead_head,
        });
    }
    Ok(open)
}

fn ndjson_config(settings: &DestinationSettings) -> NdjsonConfig {
    NdjsonConfig::new(match settings.text("path") {
        Some(path) => NdjsonTarget::File(path.into()),
        None => NdjsonTarget::Stdout,
    })
}

fn nats_config(settings: &DestinationSettings) -> Result<NatsConfig> {
    let text = |key: &str| settings.text(key);
    let defaults = NatsConfig::default();
    Ok(NatsConfig {
        servers: text("url")
            .unwrap_or_default()
            .split(',')
            .map(|server| Secret::from(server.trim()))
            .collect(),
        subject: text("subject").unwrap_or(defaults.subject),
        stream: text("stream"),
        auth: nats_auth(settings)?,
        tls: NatsTls {
            required: settings.flag("tls_required"),
            first: settings.flag("tls_first"),
            ca_files: text("tls_ca_file").map(Into::into).into_iter().collect(),
            cert_file: text("tls_cert_file").map(Into::into),
            key_file: text("tls_key_file").map(Into::into),
        },
        envelope: envelope(settings)?,
        cloudevents_source: text("cloudevents_source").unwrap_or(defaults.cloudevents_source),
        ack_timeout: settings.duration("ack_timeout").unwrap_or(defaults.ack_timeout),
        connect_timeout: settings.duration("connect_timeout").unwrap_or(defaults.connect_timeout),
        max_ack_inflight: settings.count("max_ack_inflight").unwrap_or(defaults.max_ack_inflight),
        client_name: defaults.client_name,
    })
}

fn nats_auth(settings: &DestinationSettings) -> Result<NatsAuth> {
    let text = |key: &str| settings.text(key);
    let given: Vec<&str> = ["user", "token", "nkey", "credentials_file"]
        .into_iter()
        .filter(|key| text(key).is_some())
        .collect();
    let refuse = |why: String| Err(Error::new(ErrorKind::Config, "configure nats", why));
    if given.len() > 1 {
        return refuse(format!("{} exclude each other; keep one", given.join(" and ")));
    }
    if text("user").is_some() != text("password").is_some() {
        return refuse("user and password belong together".into());
    }
    if let (Some(user), Some(password)) = (text("user"), text("password")) {
        return Ok(NatsAuth::UserPassword { user, password: password.into() });
    }
    if let Some(token) = text("token") {
        return Ok(NatsAuth::Token(token.into()));
    }
    if let Some(seed) = text("nkey") {
        return Ok(NatsAuth::Nkey(seed.into()));
    }
    Ok(match text("credentials_file") {
        Some(path) => NatsAuth::CredentialsFile(path.into()),
        None => NatsAuth::None,
    })
}

fn webhook_config(settings: &DestinationSettings) -> Result<WebhookConfig> {
    let text = |key: &str| settings.text(key);
    let defaults = WebhookConfig::new(text("url").unwrap_or_default());
    let secrets = text("secret").unwrap_or_default();
    Ok(WebhookConfig {
        secrets: secrets
            .split(',')
            .map(str::trim)
            .filter(|secret| !secret.is_empty())
            .map(Secret::from)
            .collect(),
        headers: headers(&text("headers").unwrap_or_default())?,
        envelope: envelope(settings)?,
        cloudevents_source: text("cloudevents_source").unwrap_or(defaults.cloudevents_source),
        timeout: settings.duration("timeout").unwrap_or(defaults.timeout),
        max_concurrent_requests: settings
            .count("max_concurrent_requests")
            .unwrap_or(defaults.max_concurrent_requests),
        allow_private_addresses: settings.flag("allow_private_addresses"),
        ..defaults
    })
}

/// Headers, one `Name: value` a line.
fn headers(text: &str) -> Result<Vec<(String, Secret)>> {
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
    lines
        .enumerate()
        .map(|(position, line)| match line.split_once(':') {
            Some((name, value)) => Ok((name.trim().to_owned(), Secret::from(value.trim()))),
            // The line is not repeated: it may hold a secret.
            None => Err(Error::new(
                ErrorKind::Config,
                "configure webhook",
                format!("headers: line {} is not of the form Name: value", position + 1),
            )),
        })
        .collect()
}

fn envelope(settings: &DestinationSettings) -> Result<EnvelopeFormat> {
    settings.text("envelope").unwrap_or_default().parse()
}

/// A bus with what the configuration says of it.
pub(crate) struct OpenDestination {
    /// Its name.
    pub(crate) name: String,
    /// The bus.
    pub(crate) bus: Arc<dyn EventBus>,
    dead_head: posthaste_processor::DeadHeadPolicy,
}

impl OpenDestination {
    /// For the processor.
    pub(crate) fn destination(&self) -> Destination {
        Destination::new(&self.name, Arc::clone(&self.bus)).dead_head(self.dead_head)
    }
}

/// Standard output, which ends with its reader: a pipe that was closed never opens again, and a
/// relay that waited for it would wait for ever.
struct StandardOutput {
    bus: NdjsonBus,
    closed: Arc<Notify>,
}

#[async_trait]
impl EventBus for StandardOutput {
    fn capabilities(&self) -> BusCapabilities {
        self.bus.capabilities()
    }

    async fn publish(&self, events: &[OutboxEvent]) -> Vec<PublishResult> {
        let results = self.bus.publish(events).await;
        let is_closed = |error: &Error| {
            error.kind() == ErrorKind::Unreachable && error.to_string().contains("Broken pipe")
        };
        if results.iter().any(|result| result.as_ref().is_err_and(is_closed)) {
            self.closed.notify_one();
        }
        results
    }

    async fn check(&self) -> Result<()> {
        self.bus.check().await
    }

    async fn close(&self) -> Result<()> {
        self.bus.close().await
    }
}
