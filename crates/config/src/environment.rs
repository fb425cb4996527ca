//! Environment variables as configuration: `POSTHASTE_RELAY__BATCH_SIZE` is `relay.batch_size`.

use crate::file::{Entries, Entry};
use crate::key::{Key, Schema};
use crate::problem::Problem;
use crate::suggest::nearest;
use crate::value::{Origin, Raw};

/// What all of our variables begin with.
const PREFIX: &str = "POSTHASTE_";
/// The variable for `database.url` that needs no double underscore.
pub const DATABASE_URL: &str = "POSTHASTE_DATABASE_URL";
/// Those that choose the database when nothing else does.
const LIBPQ: [&str; 4] = ["PGHOST", "PGHOSTADDR", "PGDATABASE", "PGSERVICE"];

/// The variable that gives the key at `path`.
pub fn variable_of(path: &str) -> String {
    let path = path.replace('[', ".").replace(']', "");
    format!("{PREFIX}{}", path.replace('.', "__").replace('-', "_").to_uppercase())
}

/// Adds what the environment gives to what the file gave; the environment wins.
///
/// A name with a double underscore must be one of ours. So must one with single underscores that
/// means a key of ours; others that begin alike are somebody else's (Kubernetes sets `POSTHASTE_PORT`
/// for a service named posthaste, and `POSTHASTE_RELAY_PORT` for one named posthaste-relay).
pub fn overlay(
    schema: &Schema,
    entries: &mut Entries,
    environment: &[(String, String)],
    problems: &mut Vec<Problem>,
) {
    let mut database_url = None;
    for (name, value) in environment {
        if name == DATABASE_URL {
            database_url = Some(value);
        }
        let Some(rest) = name.strip_prefix(PREFIX) else { continue };
        if !rest.contains("__") {
            if let Some(meant) = meant_by(schema, name, rest) {
                problems.push(single_underscore(name, &meant));
            }
            continue;
        }
        match path_of(schema, rest, entries) {
            Ok(path) => insert(entries, path, name, value),
            Err(path) => problems.push(unknown(schema, name, &path)),
        }
    }
    if let Some(url) = database_url.filter(|url| !url.is_empty()) {
        insert(entries, "database.url".into(), DATABASE_URL, url);
    }
    if entries.contains_key("database.url") {
        return;
    }
    let given =
        |wanted: &str| environment.iter().find(|(name, value)| name == wanted && !value.is_empty());
    if let Some((name, url)) = given("DATABASE_URL") {
        insert(entries, "database.url".into(), name, url);
    } else if LIBPQ.iter().any(|name| given(name).is_some()) {
        // An address without parts: the PostgreSQL client reads the rest from PG* itself.
        insert(entries, "database.url".into(), "PG*", "postgres://");
    }
}

fn insert(entries: &mut Entries, path: String, name: &str, value: &str) {
    let position = entries.get(&path).map_or(usize::MAX, |entry| entry.position);
    let origin = Origin::Environment(name.to_owned());
    entries.insert(path, Entry { raw: Raw::Untyped(value.to_owned()), origin, position });
}

/// The path that the rest of a variable's name stands for; as an error where there is none.
fn path_of(schema: &Schema, rest: &str, entries: &Entries) -> Result<String, String> {
    let lower = rest.to_lowercase();
    let parts: Vec<&str> = lower.split("__").collect();
    match parts.as_slice() {
        ["destinations", name, key] if !name.is_empty() => {
            // The file's spelling of the name counts: a variable cannot hold `-` or lower case.
            let in_file = entries.keys().find_map(|path| {
                let known = path.strip_prefix("destinations.")?;
                (!known.contains('.') && known.to_lowercase().replace('-', "_") == *name)
                    .then_some(known)
            });
            // Whether this type has the key is checked together with the file's keys.
            Ok(format!("destinations.{}.{key}", in_file.unwrap_or(name)))
        }
        ["routes", index, key] if index.parse::<u16>().is_ok() => {
            Ok(format!("routes[{index}].{key}"))
        }
        _ => {
            let path = parts.join(".");
            if schema.fixed_keys().any(|key| key.path == path) { Ok(path) } else { Err(path) }
        }
    }
}

/// The variable that was meant by one without a double underscore, where it was one of ours.
fn meant_by(schema: &Schema, name: &str, rest: &str) -> Option<String> {
    if name == DATABASE_URL || is_of_kubernetes(rest) {
        return None;
    }
    if strsim::jaro_winkler(name, DATABASE_URL) > 0.95 {
        return Some(DATABASE_URL.to_owned());
    }
    let plain = |name: &str| name.replace('_', "");
    let known: Vec<String> = schema.fixed_keys().map(|key| variable_of(key.path)).collect();
    if let Some(variable) = known.iter().find(|variable| plain(variable) == plain(name)) {
        return Some(variable.clone());
    }
    // POSTHASTE_DESTINATIONS_MAIN_BUS_TYPE: the name of the destination may have any underscores.
    let inner = |section: &str, keys: &mut dyn Iterator<Item = &'static str>| {
        let rest = rest.strip_prefix(section)?;
        let ending =
            |key: &str| Some((rest.strip_suffix(&format!("_{}", key.to_uppercase()))?, key.len()));
        let (name, length) = keys.filter_map(ending).max_by_key(|(_, length)| *length)?;
        let key = &rest[rest.len() - length..];
        (!name.is_empty())
            .then(|| format!("{PREFIX}{}__{name}__{key}", section.trim_end_matches('_')))
    };
    inner("DESTINATIONS_", &mut schema.all_destination_keys())
        .or_else(|| inner("ROUTES_", &mut schema.route.iter().filter_map(last_part)))
        .or_else(|| {
            // A misspelt key of a section of ours. Nearer than usual: it may be somebody else's.
            let section = schema.sections.iter().map(|section| section.name.to_uppercase());
            let ours = section.map(|section| section.replace('.', "_") + "_");
            ours.into_iter().find(|section| rest.starts_with(section.as_str()))?;
            nearest(name, known.iter().map(String::as_str))
                .filter(|near| strsim::jaro_winkler(&plain(near), &plain(name)) > 0.95)
                .map(str::to_owned)
        })
}

fn last_part(key: &Key) -> Option<&'static str> {
    key.path.rsplit('.').next()
}

/// Whether Kubernetes makes such names for the services of a namespace.
fn is_of_kubernetes(rest: &str) -> bool {
    rest == "PORT"
        || rest.ends_with("_PORT")
        || rest.contains("SERVICE_HOST")
        || rest.contains("SERVICE_PORT")
        || rest.contains("PORT_")
}

fn single_underscore(name: &str, meant: &str) -> Problem {
    Problem {
        path: String::new(),
        place: None,
        message: format!("unknown variable {name}; did you mean {meant}?"),
        help: if meant == DATABASE_URL {
            "correct its name, or unset it".into()
        } else {
            "the parts of a path are joined by two underscores".into()
        },
    }
}

fn unknown(schema: &Schema, name: &str, path: &str) -> Problem {
    let near = nearest(path, schema.fixed_keys().map(|key| key.path));
    let message = match near {
        Some(near) => {
            format!("unknown variable {name}; did you mean {}?", variable_of(near))
        }
        None => format!("unknown variable {name}"),
    };
    Problem {
        path: path.to_owned(),
        place: None,
        message,
        help: "unset it, or correct its name; `posthaste config reference` lists all".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Section, ValueKind};

    const fn key(path: &'static str) -> Key {
        Key::new(path, ValueKind::Text.optional("none"), "")
    }

    const SCHEMA: Schema = Schema {
        sections: &[
            Section { name: "database", doc: "", keys: &[key("database.url")] },
            Section {
                name: "relay",
                doc: "",
                keys: &[key("relay.batch_size"), key("relay.poll_interval")],
            },
            Section { name: "log", doc: "", keys: &[key("log.level")] },
        ],
        destination: &[key("type")],
        kinds: &[],
        route: &[key("routes[].event_type"), key("routes[].destination")],
    };

    fn overlaid(variables: &[(&str, &str)]) -> (Entries, Vec<Problem>) {
        let (mut entries, _) = crate::file::parse("f", "[destinations.Main-Bus]\n");
        let mut problems = Vec::new();
        let variables: Vec<(String, String)> =
            variables.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect();
        overlay(&SCHEMA, &mut entries, &variables, &mut problems);
        (entries, problems)
    }

    #[test]
    fn every_fixed_key_can_be_given_by_its_variable() {
        for key in SCHEMA.fixed_keys() {
            let variable = variable_of(key.path);
            let (entries, problems) = overlaid(&[(&variable, "x")]);
            assert!(problems.is_empty(), "{variable}");
            assert!(entries.contains_key(key.path), "{variable}");
        }
    }

    #[test]
    fn destinations_and_routes_can_be_given_by_variables() {
        let (entries, problems) = overlaid(&[
            ("POSTHASTE_DESTINATIONS__MAIN_BUS__TYPE", "nats"),
            ("POSTHASTE_DESTINATIONS__OTHER__TYPE", "stdout"),
            ("POSTHASTE_ROUTES__0__EVENT_TYPE", "*"),
        ]);
        assert!(problems.is_empty(), "{problems:?}");
        for path in
            ["destinations.Main-Bus.type", "destinations.other.type", "routes[0].event_type"]
        {
            assert!(entries.contains_key(path), "{path}");
        }
    }

    #[test]
    fn a_misspelt_variable_is_refused_and_somebody_elses_is_not() {
        let (_, problems) = overlaid(&[
            ("POSTHASTE_RELAY__BATCHSIZE", "5"),
            ("POSTHASTE_PORT", "tcp://10.0.0.1:9464"),
            ("POSTHASTE_SERVICE_HOST", "10.0.0.1"),
            ("POSTHASTE_PORT_9464_TCP_ADDR", "10.0.0.1"),
            ("POSTHASTE_RELAY_PORT", "tcp://10.0.0.1:9464"),
            ("POSTHASTE_TEST_POSTGRES_URL", "postgres://h/d"),
        ]);
        assert_eq!(problems.len(), 1, "{problems:?}");
        assert!(problems[0].message.contains("did you mean POSTHASTE_RELAY__BATCH_SIZE?"));
    }

    #[test]
    fn a_variable_with_single_underscores_is_refused_with_the_name_that_was_meant() {
        for (given, meant) in [
            ("POSTHASTE_LOG_LEVEL", "POSTHASTE_LOG__LEVEL"),
            ("POSTHASTE_RELAY_BATCH_SIZE", "POSTHASTE_RELAY__BATCH_SIZE"),
            ("POSTHASTE_RELAY_BATCHSIZE", "POSTHASTE_RELAY__BATCH_SIZE"),
            ("POSTHASTE_RELAY_BACH_SIZE", "POSTHASTE_RELAY__BATCH_SIZE"),
            ("POSTHASTE_DESTINATIONS_MAIN_BUS_TYPE", "POSTHASTE_DESTINATIONS__MAIN_BUS__TYPE"),
            ("POSTHASTE_ROUTES_0_EVENT_TYPE", "POSTHASTE_ROUTES__0__EVENT_TYPE"),
        ] {
            let (_, problems) = overlaid(&[(given, "5")]);
            let expected = format!("{given}; did you mean {meant}?");
            assert!(problems.len() == 1 && problems[0].message.contains(&expected), "{problems:?}");
        }
    }

    #[test]
    fn our_own_database_variable_wins_over_the_common_ones() {
        let url = |variables: &[(&str, &str)]| {
            overlaid(variables).0.get("database.url").map(|entry| entry.raw.clone())
        };
        let (ours, common, host) =
            (("POSTHASTE_DATABASE_URL", "a"), ("DATABASE_URL", "b"), ("PGHOST", "c"));
        assert_eq!(url(&[common, host, ours]), Some(Raw::Untyped("a".into())));
        assert_eq!(url(&[host, common]), Some(Raw::Untyped("b".into())));
        assert_eq!(url(&[host]), Some(Raw::Untyped("postgres://".into())));
        // It is refused, and not passed over for SQLite.
        assert_eq!(url(&[("PGSERVICE", "shop")]), Some(Raw::Untyped("postgres://".into())));
        assert_eq!(url(&[("PGUSER", "u"), ("DATABASE_URL", "")]), None);
    }
}
