//! From entries to values: every key known, every value of its type, every secret looked up.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use crate::environment::variable_of;
use crate::file::{Entries, Entry};
use crate::key::{DefaultValue, Key, Schema, section_of};
use crate::problem::Problem;
use crate::suggest::nearest;
use crate::value::{self, Origin, Raw, Value};
use crate::{Given, secrets};

/// A key with its value.
#[derive(Debug, Clone)]
pub struct Resolved {
    /// The dotted path.
    pub path: String,
    /// The value; a secret is resolved.
    pub value: Value,
    /// Where it came from.
    pub origin: Origin,
    /// As it may be shown; `None` where the key has no value.
    pub shown: Option<String>,
}

/// Every value by path, and the names of destinations and numbers of routes in their order.
#[derive(Debug, Default)]
pub struct Values {
    /// In the order of the reference.
    pub all: Vec<Resolved>,
    /// Destinations in order, with their type where it is known.
    pub destinations: Vec<(String, Option<String>)>,
    /// The routes, by their paths.
    pub routes: Vec<String>,
    /// Keys whose values are refused. They have their defaults here, where they have one.
    pub refused: BTreeSet<String>,
    /// Where each path is in `all`.
    places: HashMap<String, usize>,
}

impl Values {
    /// The value at `path`.
    pub fn get(&self, path: &str) -> Option<&Resolved> {
        self.places.get(path).map(|place| &self.all[*place])
    }

    /// What was given for these keys, and the defaults of the others. Their paths have `prefix` before
    /// them here.
    #[must_use]
    pub fn given(&self, prefix: &str, keys: &[Key]) -> Given {
        let mut given = Given::with_defaults(keys);
        for key in keys {
            if let Some(found) = self.get(&format!("{prefix}{}", key.path)) {
                given.add(key.path, found.value.clone(), found.origin == Origin::Default);
            }
        }
        given
    }

    fn add(&mut self, resolved: Resolved) {
        self.places.insert(resolved.path.clone(), self.all.len());
        self.all.push(resolved);
    }
}

/// Checks every entry and gives every key of the schema its value.
pub fn resolve(schema: &Schema, entries: &Entries, problems: &mut Vec<Problem>) -> Values {
    let mut entries = entries.clone();
    if destination_names(&entries).is_empty() {
        // Without any destination, events go to standard output.
        let raw = Raw::Untyped("stdout".into());
        let entry = Entry { raw, origin: Origin::Default, position: 0 };
        entries.insert("destinations.default.type".into(), entry);
    }
    let mut values = Values {
        destinations: destination_names(&entries),
        routes: route_paths(&entries),
        ..Values::default()
    };
    let mut known = BTreeMap::new();
    for key in schema.fixed_keys() {
        known.insert(key.path.to_owned(), key);
        take(&mut values, &entries, key.path, key, problems);
    }
    for (name, kind) in values.destinations.clone() {
        for key in schema.destination_keys(kind.as_deref()) {
            let path = format!("destinations.{name}.{}", key.path);
            take(&mut values, &entries, &path, key, problems);
            known.insert(path, key);
        }
    }
    for route in values.routes.clone() {
        for key in schema.route {
            let path = format!("{route}.{}", key.path.trim_start_matches("routes[]."));
            take(&mut values, &entries, &path, key, problems);
            known.insert(path, key);
        }
    }
    refuse_unknown(schema, &entries, &known, &values, problems);
    values
}

/// Reports the values that are refused of a file whose syntax is not right: what is missing in it, or
/// under another name or section, may be so because of that. So may a value in a line that is refused.
pub fn refuse_values(schema: &Schema, entries: &Entries, problems: &mut Vec<Problem>) {
    let mut found = Vec::new();
    let resolved = resolve(schema, entries, &mut found);
    let line = |problem: &Problem| {
        problem.place.as_deref()?.rsplit_once(':').map(|(line, _)| line.to_owned())
    };
    let refused: Vec<_> = problems.iter().filter_map(line).collect();
    found.retain(|problem| {
        problem.place.is_some()
            && resolved.refused.contains(&problem.path)
            && line(problem).is_none_or(|line| !refused.contains(&line))
    });
    problems.extend(found);
}

/// Puts the value of one key.
fn take(
    values: &mut Values,
    entries: &Entries,
    path: &str,
    key: &Key,
    problems: &mut Vec<Problem>,
) {
    let default = |text: &str| Entry {
        raw: Raw::Untyped(text.to_owned()),
        origin: Origin::Default,
        position: 0,
    };
    let entry = match (entries.get(path), key.default) {
        (Some(entry), _) => entry.clone(),
        (None, DefaultValue::Value(text)) => default(text),
        (None, DefaultValue::Absent(_)) => {
            values.add(Resolved {
                path: path.to_owned(),
                value: Value::None,
                origin: Origin::Default,
                shown: None,
            });
            return;
        }
        (None, DefaultValue::Required) => {
            let variable = variable_of(path);
            problems.push(Problem {
                path: path.to_owned(),
                place: None,
                message: format!("{path} is missing"),
                help: format!("set it to {}, in the file or by {variable}", key.kind.describe()),
            });
            return;
        }
    };
    let shown = match &entry.raw {
        Raw::Untyped(text) | Raw::Text(text) if key.kind.is_secret() => {
            secrets::shown(text, key.kind)
        }
        Raw::Untyped(text) | Raw::Text(text) => text.clone(),
        Raw::Integer(number) => number.to_string(),
        Raw::Number(number) => number.to_string(),
        Raw::Bool(value) => value.to_string(),
        Raw::Section | Raw::Other(_) => String::new(),
    };
    match read(&entry.raw, key) {
        Ok(value) => values.add(Resolved {
            path: path.to_owned(),
            value,
            origin: entry.origin,
            shown: Some(shown),
        }),
        Err((why, help)) => {
            problems.push(Problem {
                path: path.to_owned(),
                place: Some(entry.origin.to_string()),
                message: format!("{path} {why}"),
                help,
            });
            values.refused.insert(path.to_owned());
            // What else is wrong is looked for with the default in its place.
            if let DefaultValue::Value(text) = key.default
                && let Ok(value) = read(&default(text).raw, key)
            {
                let path = path.to_owned();
                values.add(Resolved { path, value, origin: Origin::Default, shown: None });
            }
        }
    }
}

fn read(raw: &Raw, key: &Key) -> Result<Value, value::Refusal> {
    match raw {
        Raw::Untyped(text) | Raw::Text(text) if key.kind.is_secret() => {
            let secret = secrets::resolve(text, key.kind)?;
            value::read(&Raw::Text(secret), key.kind)
        }
        _ => value::read(raw, key.kind),
    }
}

/// The names under `destinations`, in the order of the file (then those only in the environment,
/// by name); one named `default` comes first, since the first takes what no route claims.
fn destination_names(entries: &Entries) -> Vec<(String, Option<String>)> {
    let mut positions: BTreeMap<&str, usize> = BTreeMap::new();
    for (path, entry) in entries {
        let Some(rest) = path.strip_prefix("destinations.") else { continue };
        // A value where a table belongs is refused as unknown.
        let name = match rest.split_once('.') {
            Some((name, _)) => name,
            None if entry.raw == Raw::Section => rest,
            None => continue,
        };
        let position = positions.entry(name).or_insert(usize::MAX);
        *position = (*position).min(entry.position);
    }
    let mut names: Vec<(&str, usize)> = positions.into_iter().collect();
    names.sort_by_key(|(name, position)| (*name != "default", *position));
    let type_of = |name: &str| match &entries.get(&format!("destinations.{name}.type"))?.raw {
        Raw::Untyped(text) | Raw::Text(text) => Some(text.trim().to_ascii_lowercase()),
        _ => None,
    };
    names.into_iter().map(|(name, _)| (name.to_owned(), type_of(name))).collect()
}

/// `routes[0]`, `routes[1]` and so on, in the order of their numbers.
fn route_paths(entries: &Entries) -> Vec<String> {
    let mut numbers = BTreeSet::new();
    for path in entries.keys() {
        let number = path.strip_prefix("routes[").and_then(|rest| rest.split_once(']'));
        if let Some(number) = number.and_then(|(number, _)| number.parse::<usize>().ok()) {
            numbers.insert(number);
        }
    }
    numbers.into_iter().map(|number| format!("routes[{number}]")).collect()
}

/// Reports what is in no table of the schema, each once: not the children of an unknown table.
fn refuse_unknown(
    schema: &Schema,
    entries: &Entries,
    known: &BTreeMap<String, &Key>,
    values: &Values,
    problems: &mut Vec<Problem>,
) {
    let mut sections: BTreeSet<String> =
        schema.sections.iter().map(|section| section.name.to_owned()).collect();
    sections.extend(["destinations".to_owned(), "routes".to_owned()]);
    sections.extend(values.destinations.iter().map(|(name, _)| format!("destinations.{name}")));
    sections.extend(values.routes.iter().cloned());
    let mut refused: Vec<&str> = Vec::new();
    for (path, entry) in entries {
        let below = |parent: &str| {
            path.strip_prefix(parent).is_some_and(|rest| rest.starts_with(['.', '[']))
        };
        if refused.iter().any(|parent| below(parent)) {
            continue;
        }
        let is_section = entry.raw == Raw::Section;
        if known.contains_key(path) {
            if is_section {
                // Refused already for its type; its children are not named.
                refused.push(path);
            }
            continue;
        }
        if is_section && sections.contains(path) {
            continue;
        }
        refused.push(path);
        let (message, help) = if sections.contains(path) {
            let header = if path == "routes" { "[[routes]]".into() } else { format!("[{path}]") };
            (format!("{path} is a section, not a value"), format!("write {header} on its own line"))
        } else if let Some(types) = other_types_with(schema, path) {
            if has_no_known_type(schema, path, values) {
                continue;
            }
            let wanted = path.rsplit('.').next().unwrap_or_default();
            let has = path.rsplit_once('.').and_then(|(section, _)| {
                let section = section.strip_prefix("destinations.")?;
                values.destinations.iter().find(|(name, _)| name == section)?.1.clone()
            });
            (
                format!(
                    "{path}: a destination of type {} has no {wanted}",
                    has.unwrap_or_default()
                ),
                format!("remove it; only these types have it: {}", types.join(", ")),
            )
        } else if path.starts_with("routes.") {
            // Once for all of them.
            refused.push("routes");
            let message = format!("{path}: routes are a list, of which each has a table");
            (message, "write [[routes]], with two brackets".into())
        } else {
            unknown(path, known, &sections)
        };
        problems.push(Problem {
            path: path.clone(),
            place: Some(entry.origin.to_string()),
            message,
            help,
        });
    }
}

/// Whether nobody can tell yet if the destination of `path` has that key.
fn has_no_known_type(schema: &Schema, path: &str, values: &Values) -> bool {
    let name = path.strip_prefix("destinations.").and_then(|rest| rest.split_once('.'));
    let has = name.and_then(|(name, _)| {
        let found = values.destinations.iter().find(|(known, _)| known == name);
        found.and_then(|(_, kind)| kind.as_deref())
    });
    has.is_none_or(|has| schema.kind(has).is_none())
}

/// The types of destination that have the key at the end of `path`.
fn other_types_with(schema: &Schema, path: &str) -> Option<Vec<&'static str>> {
    let (_, key) = path.strip_prefix("destinations.")?.split_once('.')?;
    let types: Vec<&str> = schema
        .kinds
        .iter()
        .filter(|known| known.keys.iter().any(|own| own.path == key))
        .map(|known| known.name)
        .collect();
    (!types.is_empty()).then_some(types)
}

fn unknown(
    path: &str,
    known: &BTreeMap<String, &Key>,
    sections: &BTreeSet<String>,
) -> (String, String) {
    // Within its own section first: batch_sice in [relay] means relay.batch_size.
    let siblings = known
        .keys()
        .chain(sections)
        .map(String::as_str)
        .filter(|candidate| section_of(candidate) == section_of(path));
    let near = nearest(path, siblings)
        .or_else(|| nearest(path, known.keys().chain(sections).map(String::as_str)));
    let message = match near {
        Some(near) => format!("unknown key {path}; did you mean {near}?"),
        None => format!("unknown key {path}"),
    };
    (message, "correct or remove it; `posthaste config reference` lists all keys".into())
}
