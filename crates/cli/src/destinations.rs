//! The buses: from settings to destinations.

mod outputs;

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use posthaste_bus_kit::{EnvelopeFormat, Secret};
use posthaste_core::{
    BusCapabilities, Error, ErrorKind, EventBus, OutboxEvent, PublishResult, Result, RetryPolicy,
};
use posthaste_nats::{NatsAuth, NatsBus, NatsConfig, NatsTls};
use posthaste_ndjson::{NdjsonBus, NdjsonConfig, NdjsonTarget};
use posthaste_processor::Destination;
use posthaste_webhook::{WebhookBus, WebhookConfig, WebhookTls};
use rustix::fs::OFlags;
use tokio::sync::Notify;

use crate::config::{Config, DestinationSettings, Draft, Inputs, Problem, Problems, bounded};

/// Reads the configuration and asks the buses what they say of it: every problem at once.
///
/// # Errors
/// All problems that can be found without connecting to anything.
pub(crate) fn load(inputs: Inputs) -> Result<Config, Problems> {
    checked(inputs).finish()
}

/// As [`load`], with what is not there yet: see [`absences`].
///
/// # Errors
/// As [`load`].
pub(crate) fn load_strictly(inputs: Inputs) -> Result<Config, Problems> {
    let mut draft = checked(inputs);
    if let Some(config) = &draft.config {
        draft.problems.extend(absences(&config.destinations));
    }
    draft.finish()
}

fn checked(inputs: Inputs) -> Draft {
    let mut draft = inputs.draft();
    if let Some(config) = &draft.config {
        let found = problems(config, &draft.problems);
        draft.problems.extend(found);
    }
    draft
}

/// What is wrong with the destinations, found without connecting to anything, besides what is `known`.
pub(crate) fn problems(config: &Config, known: &[Problem]) -> Vec<Problem> {
    let mut problems = outputs::clashes(config);
    let refused: HashSet<&str> = known
        .iter()
        .filter_map(|problem| problem.path.strip_prefix("destinations.")?.split('.').next())
        .collect();
    for destination in &config.destinations {
        let is_known = refused.contains(&*destination.name);
        let files = unusable_files(destination);
        let seed = bad_seed(destination);
        // A bus would complain of what is refused already, in other words.
        if !is_known && files.is_empty() && seed.is_none() {
            problems.extend(refusals(destination));
        }
        problems.extend(files);
        problems.extend(seed);
    }
    problems
}

/// What will keep a destination waiting as things are now, and may be there when the relay starts.
fn absences(destinations: &[DestinationSettings]) -> Vec<Problem> {
    let absent = |destination: &DestinationSettings| {
        let path = (destination.kind == "file").then(|| destination.text("path")).flatten()?;
        let folder = Path::new(&path).parent().filter(|folder| !folder.as_os_str().is_empty())?;
        (!folder.is_dir()).then(|| {
            let why = format!("the folder {} is not there", folder.display());
            destination.problem("path", &why, "create it: posthaste creates files, not folders")
        })
    };
    destinations.iter().filter_map(absent).collect()
}

/// All that the bus itself refuses. It says one thing at a time: the next shows without that one.
fn refusals(destination: &DestinationSettings) -> Vec<Problem> {
    let mut problems: Vec<Problem> = Vec::new();
    let mut rest = destination.clone();
    while let Some((key, problem)) = refusal(&rest) {
        let is_known = problems.iter().any(|known| known.path == problem.path);
        // A default, or that there is none, is a consequence of what was taken away.
        if is_known || (problem.place.is_none() && !problems.is_empty()) {
            break;
        }
        rest = rest.without(key);
        problems.push(problem);
    }
    problems
}

/// What the bus itself refuses first, and the key it is about.
fn refusal(destination: &DestinationSettings) -> Option<(&'static str, Problem)> {
    let checked = match destination.kind.as_str() {
        "nats" => nats_config(destination).and_then(|config| config.validate()),
        "webhook" => webhook_config(destination).and_then(|config| config.validate()),
        "file" => ndjson_config(destination).validate(),
        _ => Ok(()),
    };
    let error = checked.err()?;
    let text = error.report();
    // Without the operation, which is "configure" and the type.
    let why =
        text.strip_prefix(error.operation()).map_or(&*text, |why| why.trim_start_matches(": "));
    let key = match (error.operation(), why) {
        ("read topic template", _) => "subject",
        ("read cloudevents source", _) => "cloudevents_source",
        (_, why) if why.starts_with("servers") => "url",
        (_, why) => destination.key_named_in(why),
    };
    // `user and password belong together` names both.
    let rest = why.strip_prefix(key).filter(|rest| !rest.starts_with(" and "));
    let why = rest.map_or(why, |rest| rest.trim_start_matches([':', ' ']));
    let help = "correct the value; `posthaste config reference` describes it";
    Some((key, destination.problem(key, why, help)))
}

/// Files that a client would miss again and again while it connects, and mention in a log only.
fn unusable_files(destination: &DestinationSettings) -> Vec<Problem> {
    const NEEDED: [(&str, &str); 4] = [
        ("tls_ca_file", "CERTIFICATE-----"),
        ("tls_cert_file", "CERTIFICATE-----"),
        ("tls_key_file", "PRIVATE KEY-----"),
        ("credentials_file", "NATS USER JWT-----"),
    ];
    let unusable = |(key, content): (&str, &str)| {
        let path = destination.text(key)?;
        let why = match bounded::read(Path::new(&path), bounded::CERTIFICATES_BYTES_MAX) {
            Ok(bytes) if String::from_utf8_lossy(&bytes).contains(content) => return None,
            Ok(_) => format!("{path} has no line -----BEGIN {content}"),
            Err(error) => format!("{path} cannot be read: {error}"),
        };
        Some(destination.problem(key, &why, "correct the path, or let posthaste's user read it"))
    };
    NEEDED.into_iter().filter_map(unusable).collect()
}

/// The client would fail with it at each attempt to connect.
fn bad_seed(destination: &DestinationSettings) -> Option<Problem> {
    let seed = (destination.kind == "nats").then(|| destination.text("nkey")).flatten()?;
    let error = nkeys::KeyPair::from_seed(&seed).err()?;
    let why = format!("is no NKey seed: {error}");
    Some(destination.problem("nkey", &why, "give the seed, which begins with SU"))
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
    refuse_closed_output(destinations)?;
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
            max_attempts: settings.max_attempts,
            retry_policy: settings.retry_policy,
        });
    }
    Ok(open)
}

/// The runtime opens what was closed at the start as /dev/null, for reading, too: whoever sends output
/// there on purpose opens it for writing.
fn refuse_closed_output(destinations: &[DestinationSettings]) -> Result<()> {
    const NULL: &str = "/dev/null";
    let Some(output) = destinations.iter().find(|destination| destination.kind == "stdout") else {
        return Ok(());
    };
    let stdout = std::io::stdout();
    let is_null = || {
        let (here, null) = (rustix::fs::fstat(&stdout).ok()?, rustix::fs::stat(NULL).ok()?);
        Some(here.st_rdev == null.st_rdev && here.st_rdev != 0)
    };
    let reads = || Some(rustix::fs::fcntl_getfl(&stdout).ok()?.contains(OFlags::RDWR));
    if is_null() == Some(true) && reads() == Some(true) {
        let why = format!(
            "destinations.{} writes to standard output, which is closed: events would be lost",
            output.name
        );
        return Err(Error::new(ErrorKind::Config, "open destinations", why));
    }
    Ok(())
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
    let (ca_files, cert_file, key_file) = tls_files(settings);
    Ok(NatsConfig {
        servers: text("url")
            .unwrap_or_default()
            .split(',')
            .map(|server| Secret::from(server.trim()))
            .collect(),
        subject: text("subject").unwrap_or(defaults.subject),
        allow_topic: text("allow_topic")
            .unwrap_or_default()
            .split(',')
            .map(|filter| filter.trim().to_owned())
            .filter(|filter| !filter.is_empty())
            .collect(),
        stream: text("stream"),
        auth: nats_auth(settings)?,
        tls: NatsTls {
            required: settings.flag("tls_required"),
            first: settings.flag("tls_first"),
            ca_files,
            cert_file,
            key_file,
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
    let (ca_files, cert_file, key_file) = tls_files(settings);
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
        tls: WebhookTls { ca_files, cert_file, key_file },
        allow_private_addresses: settings.flag("allow_private_addresses"),
        ..defaults
    })
}

/// Authorities, the client's certificate and its key.
fn tls_files(settings: &DestinationSettings) -> (Vec<PathBuf>, Option<PathBuf>, Option<PathBuf>) {
    let path = |key: &str| settings.text(key).map(PathBuf::from);
    (path("tls_ca_file").into_iter().collect(), path("tls_cert_file"), path("tls_key_file"))
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
    max_attempts: Option<u32>,
    retry_policy: RetryPolicy,
}

impl OpenDestination {
    /// For the processor.
    pub(crate) fn destination(&self) -> Destination {
        let destination = Destination::new(&self.name, Arc::clone(&self.bus))
            .dead_head(self.dead_head)
            .retry_policy(self.retry_policy);
        match self.max_attempts {
            Some(attempts) => destination.max_attempts(attempts),
            None => destination,
        }
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
