//! From values to the settings that each part takes.

use std::collections::HashSet;
use std::path::PathBuf;
use std::time::Duration;

use posthaste_bus_kit::{BusDestination, BusKind};
use posthaste_config::resolve::{Resolved, Values};
use posthaste_config::units::format_duration;
use posthaste_config::value::{Origin, Value};
use posthaste_config::{Given, Secret, Settings};
use posthaste_core::RetryPolicy;
use posthaste_processor::{DeadHeadPolicy, Pattern, Route};

use super::schema::{DESTINATION_KEYS, SCHEMA};
use super::sections::{DatabaseSettings, LogSettings, OpsSettings, RelaySettings, RetrySettings};
use super::{Config, Database, Problem, database};
use crate::kinds;

/// One destination.
#[derive(Debug)]
pub(crate) struct DestinationSettings {
    /// Its name.
    pub(crate) name: String,
    /// The kind of broker that `type` names, where there is one.
    pub(crate) kind: Option<&'static BusKind>,
    /// What was given for the kind's own keys.
    pub(crate) given: Given,
    /// The same, read; `None` where a value is missing or refused.
    pub(crate) settings: Option<BusDestination>,
    /// What happens to a key whose head is dead.
    pub(crate) dead_head: DeadHeadPolicy,
    /// How many failed attempts make a dead letter; `None` leaves it to each event.
    pub(crate) max_attempts: Option<u32>,
    /// When an event that failed here is tried again.
    pub(crate) retry_policy: RetryPolicy,
    /// All its keys.
    keys: Vec<DestinationKey>,
}

/// A key of a destination.
#[derive(Debug)]
struct DestinationKey {
    /// The last part of its path.
    name: &'static str,
    value: Value,
    origin: Origin,
}

impl DestinationSettings {
    /// The name of its kind.
    pub(crate) fn kind_name(&self) -> &'static str {
        self.kind.map_or("", BusKind::name)
    }

    fn key(&self, name: &str) -> Option<&DestinationKey> {
        self.keys.iter().find(|key| key.name == name)
    }

    /// A problem with what a key says, or with what it does not.
    pub(crate) fn problem(&self, key: &str, why: &str, help: impl Into<String>) -> Problem {
        let given = |key| self.key(key).filter(|key| key.origin != Origin::Default);
        let path = format!("destinations.{}.{key}", self.name);
        Problem {
            // Where the key has its default, the table is the place to look.
            place: given(key).or_else(|| given("type")).map(|key| key.origin.to_string()),
            message: format!("{path}: {why}"),
            help: help.into(),
            path,
        }
    }
}

/// The sections with fixed names.
struct Sections {
    database: DatabaseSettings,
    relay: RelaySettings,
    retry: RetrySettings,
    ops: OpsSettings,
    log: LogSettings,
}

impl Sections {
    fn read(values: &Values) -> Option<Self> {
        fn section<S: Settings>(values: &Values) -> Option<S> {
            S::read(&values.given("", S::KEYS))
        }
        Some(Self {
            database: section(values)?,
            relay: section(values)?,
            retry: section(values)?,
            ops: section(values)?,
            log: section(values)?,
        })
    }
}

/// Builds the settings and checks what concerns more than one key. `None` where a section has a key without
/// a value that it can take, which none has: there are defaults.
pub(crate) fn build(
    file: Option<PathBuf>,
    file_was_found: bool,
    values: Values,
    problems: &mut Vec<Problem>,
) -> Option<Config> {
    let sections = Sections::read(&values)?;
    let database = database_of(&values, sections.database.url.as_ref(), problems);
    let relay = sections.relay.processor(&sections.retry);
    for (field, why) in relay.problems() {
        let path = format!("relay.{field}");
        // What is compared with the default of a value that is refused says nothing.
        let is_told = values.refused.iter().any(|refused| {
            *refused == path || why.contains(refused.rsplit('.').next().unwrap_or_default())
        });
        if !is_told {
            let origin = values.get(&path).map(|resolved| resolved.origin.to_string());
            problems.push(Problem {
                place: origin,
                message: format!("{path} {why}"),
                help: "correct the value".into(),
                path,
            });
        }
    }
    let attempts = sections.retry.max_attempts;
    let destinations = destinations_of(&values, &relay.retry_policy, attempts, problems);
    let routes = routes_of(&values, problems);
    let listen_was_given =
        values.get("ops.listen").is_some_and(|resolved| resolved.origin != Origin::Default);
    Some(Config {
        file,
        file_was_found,
        database,
        migrate: sections.database.migrate,
        max_connections: sections.database.max_connections,
        watch_interval: sections.database.watch_interval,
        transaction_pooler: sections.database.transaction_pooler,
        relay,
        destinations,
        routes,
        ops: sections.ops,
        listen_was_given,
        log: sections.log,
        values: values.all,
    })
}

/// Whether somebody configured destinations. Then a new, empty file that is taken for the outbox because
/// a variable is missing would look like a relay that works.
fn has_destinations(values: &Values) -> bool {
    values.destinations.iter().any(|(name, _)| {
        let kind = values.get(&format!("destinations.{name}.type"));
        kind.is_some_and(|kind| kind.origin != Origin::Default)
    })
}

/// A database that is refused is one without a file here, with which no other setting can clash.
fn database_of(values: &Values, url: Option<&Secret>, problems: &mut Vec<Problem>) -> Database {
    const REFUSED: Database = Database::Postgres { url: None };
    let Some(resolved) = values.get("database.url") else { return REFUSED };
    let Some(url) = url else {
        if has_destinations(values) {
            problems.push(Problem {
                path: "database.url".into(),
                place: None,
                message: "no database is named, and destinations are configured".into(),
                help: format!(
                    "set database.url in the file, or DATABASE_URL; for a SQLite file here write \
                     database.url = \"sqlite:{}\"",
                    database::DEFAULT_FILE
                ),
            });
            return REFUSED;
        }
        return Database::Sqlite { path: database::DEFAULT_FILE.into() };
    };
    match database::parse(url.expose()) {
        Ok(database) => database,
        Err((why, help)) => {
            problems.push(Problem {
                path: "database.url".into(),
                place: Some(resolved.origin.to_string()),
                message: format!("database.url {why}"),
                help,
            });
            REFUSED
        }
    }
}

fn destinations_of(
    values: &Values,
    retry_policy: &RetryPolicy,
    max_attempts: Option<u32>,
    problems: &mut Vec<Problem>,
) -> Vec<DestinationSettings> {
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
        let keys: Vec<DestinationKey> = SCHEMA
            .destination_keys(kind.as_deref())
            .filter_map(|key| {
                let Resolved { value, origin, .. } =
                    values.get(&format!("{prefix}{}", key.path))?;
                let (value, origin) = (value.clone(), origin.clone());
                Some(DestinationKey { name: key.path, value, origin })
            })
            .collect();
        let kind = kind.as_deref().and_then(kinds::named);
        let own_keys = kind.map_or(&[][..], |kind| kind.section().keys);
        let given = values.given(&prefix, own_keys);
        let common = values.given(&prefix, DESTINATION_KEYS);
        let dead_head = keys.iter().find(|key| key.name == "dead_head");
        let own = |key: &str| common.get::<Option<Duration>>(key).flatten();
        let settings = DestinationSettings {
            name: name.clone(),
            kind,
            settings: kind.and_then(|kind| kind.read(&given)),
            given,
            dead_head: dead_head.and_then(|key| policy(&key.value)).unwrap_or_default(),
            max_attempts: common.get::<Option<u32>>("max_attempts").flatten().or(max_attempts),
            retry_policy: RetryPolicy {
                base_delay: own("base_delay").unwrap_or(retry_policy.base_delay),
                max_delay: own("max_delay").unwrap_or(retry_policy.max_delay),
                ..*retry_policy
            },
            keys,
        };
        let RetryPolicy { base_delay, max_delay, .. } = settings.retry_policy;
        let given = own("base_delay").or_else(|| own("max_delay")).is_some();
        if given && base_delay > max_delay {
            let key = if own("max_delay").is_some() { "max_delay" } else { "base_delay" };
            let (base, max) = (format_duration(base_delay), format_duration(max_delay));
            let why = format!("base_delay is {base} here, and max_delay {max}");
            problems.push(settings.problem(key, &why, "give both, or another one"));
        }
        destinations.push(settings);
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
    let names: HashSet<&str> = values.destinations.iter().map(|(name, _)| name.as_str()).collect();
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
        if !names.contains(destination.as_str()) {
            let names: Vec<&str> =
                values.destinations.iter().map(|(name, _)| name.as_str()).take(20).collect();
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
