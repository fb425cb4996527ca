//! From values to the settings that each part takes.

use std::num::NonZeroU32;
use std::path::PathBuf;
use std::time::Duration;

use posthaste_core::RetryPolicy;
use posthaste_processor::{DeadHeadPolicy, Pattern, ProcessorSettings, Route};

use super::resolve::Values;
use super::value::{Origin, Value};
use super::{Config, Database, Problem, database};

/// One destination.
#[derive(Debug)]
pub(crate) struct DestinationSettings {
    /// Its name.
    pub(crate) name: String,
    /// The value of `type`.
    pub(crate) kind: String,
    /// Where `type` was given.
    pub(crate) place: Option<String>,
    /// What happens to a key whose head is dead.
    pub(crate) dead_head: DeadHeadPolicy,
    /// Its other keys, by the last part of their path.
    keys: Vec<(String, Value)>,
}

impl DestinationSettings {
    /// The text of a key.
    pub(crate) fn text(&self, key: &str) -> Option<String> {
        match self.get(key) {
            Value::Text(text) => Some(text.clone()),
            _ => None,
        }
    }

    /// The duration of a key.
    pub(crate) fn duration(&self, key: &str) -> Option<Duration> {
        match self.get(key) {
            Value::Duration(duration) => Some(*duration),
            _ => None,
        }
    }

    /// The whole number of a key.
    pub(crate) fn count(&self, key: &str) -> Option<usize> {
        match self.get(key) {
            Value::Integer(number) => usize::try_from(*number).ok(),
            _ => None,
        }
    }

    /// Whether a key says `true`.
    pub(crate) fn flag(&self, key: &str) -> bool {
        matches!(self.get(key), Value::Bool(true))
    }

    fn get(&self, key: &str) -> &Value {
        self.keys.iter().find(|(name, _)| name == key).map_or(&Value::None, |(_, value)| value)
    }
}

/// Where the ops listener listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Listen {
    /// Nowhere.
    Off,
    /// At `HOST:PORT`.
    At(String),
}

/// The section `ops`.
#[derive(Debug)]
pub(crate) struct OpsSettings {
    /// See `ops.listen`.
    pub(crate) listen: Listen,
    /// Whether someone gave `ops.listen`.
    pub(crate) listen_was_given: bool,
    /// See `ops.stall_after`.
    pub(crate) stall_after: Duration,
}

/// How logs are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// The section `log`.
#[derive(Debug)]
pub(crate) struct LogSettings {
    /// The least severe level.
    pub(crate) level: String,
    /// The form.
    pub(crate) format: LogFormat,
}

/// Reads the values by path; a value that was refused reads as nothing, since its problem keeps
/// the configuration from being used.
struct Reader<'a>(&'a Values);

impl Reader<'_> {
    fn value(&self, path: &str) -> &Value {
        self.0.get(path).map_or(&Value::None, |resolved| &resolved.value)
    }

    fn text(&self, path: &str) -> Option<String> {
        match self.value(path) {
            Value::Text(text) => Some(text.clone()),
            _ => None,
        }
    }

    fn integer(&self, path: &str) -> Option<i64> {
        match self.value(path) {
            Value::Integer(number) => Some(*number),
            _ => None,
        }
    }

    fn duration(&self, path: &str) -> Option<Duration> {
        match self.value(path) {
            Value::Duration(duration) => Some(*duration),
            _ => None,
        }
    }

    fn flag(&self, path: &str) -> bool {
        matches!(self.value(path), Value::Bool(true))
    }
}

/// Builds the settings and checks what concerns more than one key.
pub(crate) fn build(
    file: Option<PathBuf>,
    values: Values,
    problems: &mut Vec<Problem>,
) -> Option<Config> {
    let read = Reader(&values);
    let database = database_of(&values, problems);
    let relay = relay_of(&read);
    if problems.is_empty() {
        for (field, why) in relay.problems() {
            let path = format!("relay.{field}");
            let origin = values.get(&path).map(|resolved| resolved.origin.to_string());
            problems.push(Problem {
                place: origin,
                message: format!("{path} {why}"),
                help: "correct the value".into(),
                path,
            });
        }
    }
    let destinations = destinations_of(&values, problems);
    let routes = routes_of(&values, problems);
    let ops = OpsSettings {
        listen: match read.text("ops.listen").as_deref() {
            None | Some("off") => Listen::Off,
            Some(address) => Listen::At(address.to_owned()),
        },
        listen_was_given: values
            .get("ops.listen")
            .is_some_and(|resolved| resolved.origin != Origin::Default),
        stall_after: read.duration("ops.stall_after").unwrap_or_default(),
    };
    let log = LogSettings {
        level: read.text("log.level").unwrap_or_default(),
        format: match read.text("log.format").as_deref() {
            Some("json") => LogFormat::Json,
            _ => LogFormat::Text,
        },
    };
    Some(Config {
        file,
        database: database?,
        migrate: read.flag("database.migrate"),
        max_connections: read
            .integer("database.max_connections")
            .and_then(|count| u32::try_from(count).ok())
            .unwrap_or_default(),
        watch_interval: read.duration("database.watch_interval"),
        transaction_pooler: read.flag("database.transaction_pooler"),
        relay,
        destinations,
        routes,
        ops,
        log,
        values: values.all,
    })
}

fn database_of(values: &Values, problems: &mut Vec<Problem>) -> Option<Database> {
    let resolved = values.get("database.url")?;
    let Value::Text(text) = &resolved.value else {
        return Some(Database::Sqlite { path: database::DEFAULT_FILE.into() });
    };
    match database::parse(text) {
        Ok(database) => Some(database),
        Err((why, help)) => {
            problems.push(Problem {
                path: "database.url".into(),
                place: Some(resolved.origin.to_string()),
                message: format!("database.url {why}"),
                help,
            });
            None
        }
    }
}

fn relay_of(read: &Reader<'_>) -> ProcessorSettings {
    let count = |path| read.integer(path).and_then(|count| usize::try_from(count).ok());
    let number = |path| match read.value(path) {
        Value::Number(number) => *number,
        _ => 1.0,
    };
    ProcessorSettings {
        batch_size: count("relay.batch_size").unwrap_or_default(),
        poll_interval: read.duration("relay.poll_interval").unwrap_or_default(),
        max_concurrent_events: count("relay.max_concurrent_events").unwrap_or_default(),
        lease_ttl: read.duration("relay.lease_ttl").unwrap_or_default(),
        retry_policy: RetryPolicy {
            base_delay: read.duration("relay.retry.base_delay").unwrap_or_default(),
            max_delay: read.duration("relay.retry.max_delay").unwrap_or_default(),
            backoff_multiplier: number("relay.retry.backoff_multiplier"),
            jitter: read.flag("relay.retry.jitter"),
        },
        rate_limit_events_per_second: read
            .integer("relay.rate_limit_events_per_second")
            .and_then(|rate| u32::try_from(rate).ok())
            .and_then(NonZeroU32::new),
        buffer_bytes_max: count("relay.buffer_bytes_max").unwrap_or_default(),
        shutdown_timeout: read.duration("relay.shutdown_timeout").unwrap_or_default(),
        retention: read.duration("relay.retention"),
    }
}

fn destinations_of(values: &Values, problems: &mut Vec<Problem>) -> Vec<DestinationSettings> {
    let mut destinations = Vec::new();
    for (name, kind) in &values.destinations {
        let prefix = format!("destinations.{name}.");
        let well_named = !name.is_empty()
            && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_' || c == '-');
        if !well_named {
            problems.push(Problem {
                path: prefix.trim_end_matches('.').to_owned(),
                place: None,
                message: format!("{name:?} cannot name a destination"),
                help: "use letters, digits, _ and -".into(),
            });
        }
        let keys: Vec<(String, Value)> = values
            .all
            .iter()
            .filter_map(|resolved| {
                let key = resolved.path.strip_prefix(&prefix)?;
                Some((key.to_owned(), resolved.value.clone()))
            })
            .collect();
        let dead_head =
            keys.iter().find(|(key, _)| key == "dead_head").and_then(|(_, value)| policy(value));
        destinations.push(DestinationSettings {
            name: name.clone(),
            kind: kind.clone().unwrap_or_default(),
            place: values.get(&format!("{prefix}type")).map(|resolved| resolved.origin.to_string()),
            dead_head: dead_head.unwrap_or_default(),
            keys,
        });
    }
    destinations
}

/// What a key `dead_head` says; `None` where it is not given.
fn policy(value: &Value) -> Option<DeadHeadPolicy> {
    match value {
        Value::Text(text) if text == "skip" => Some(DeadHeadPolicy::Skip),
        Value::Text(_) => Some(DeadHeadPolicy::Block),
        _ => None,
    }
}

fn routes_of(values: &Values, problems: &mut Vec<Problem>) -> Vec<Route> {
    let mut routes = Vec::new();
    for route in &values.routes {
        let text = |key: &str| match values.get(&format!("{route}.{key}")) {
            Some(resolved) => match &resolved.value {
                Value::Text(text) => Some((text.clone(), resolved.origin.to_string())),
                _ => None,
            },
            None => None,
        };
        let (Some((pattern, _)), Some((destination, origin))) =
            (text("event_type"), text("destination"))
        else {
            continue;
        };
        if !values.destinations.iter().any(|(name, _)| *name == destination) {
            let names: Vec<&str> =
                values.destinations.iter().map(|(name, _)| name.as_str()).collect();
            problems.push(Problem {
                path: format!("{route}.destination"),
                place: Some(origin),
                message: format!("{route}.destination names {destination:?}, which is not there"),
                help: format!(
                    "add [destinations.{destination}] or name one of: {}",
                    names.join(", ")
                ),
            });
        }
        let dead_head = values.get(&format!("{route}.dead_head"));
        routes.push(Route {
            event_type: Pattern::new(pattern),
            destination,
            dead_head: dead_head.and_then(|resolved| policy(&resolved.value)),
        });
    }
    routes
}
