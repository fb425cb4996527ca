//! Environment variables as configuration: `POSTHASTE_RELAY__BATCH_SIZE` is `relay.batch_size`.

use super::file::{Entries, Entry};
use super::problem::Problem;
use super::schema;
use super::suggest::nearest;
use super::value::{Origin, Raw};

/// What all of our variables begin with.
const PREFIX: &str = "POSTHASTE_";
/// The variable for `database.url` that needs no double underscore.
pub(crate) const DATABASE_URL: &str = "POSTHASTE_DATABASE_URL";
/// Those that choose the database when nothing else does.
const LIBPQ: [&str; 3] = ["PGHOST", "PGHOSTADDR", "PGDATABASE"];

/// The variable that gives the key at `path`.
pub(crate) fn variable_of(path: &str) -> String {
    let path = path.replace('[', ".").replace(']', "");
    format!("{PREFIX}{}", path.replace('.', "__").replace('-', "_").to_uppercase())
}

/// Adds what the environment gives to what the file gave; the environment wins.
///
/// Only names with a double underscore are checked: others that begin alike are often somebody
/// else's (Kubernetes sets `POSTHASTE_PORT` for a service named posthaste).
pub(crate) fn overlay(
    entries: &mut Entries,
    environment: &[(String, String)],
    problems: &mut Vec<Problem>,
) {
    let mut database_url = None;
    for (name, value) in environment {
        if name == DATABASE_URL {
            database_url = Some(value);
        }
        let Some(rest) = name.strip_prefix(PREFIX).filter(|rest| rest.contains("__")) else {
            continue;
        };
        match path_of(rest, entries) {
            Ok(path) => insert(entries, path, name, value),
            Err(path) => problems.push(unknown(name, &path)),
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
fn path_of(rest: &str, entries: &Entries) -> Result<String, String> {
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
            if schema::fixed_keys().any(|key| key.path == path) { Ok(path) } else { Err(path) }
        }
    }
}

fn unknown(name: &str, path: &str) -> Problem {
    let near = nearest(path, schema::fixed_keys().map(|key| key.path));
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

    fn overlaid(variables: &[(&str, &str)]) -> (Entries, Vec<Problem>) {
        let mut entries = super::super::file::parse("f", "[destinations.Main-Bus]\n").unwrap();
        let mut problems = Vec::new();
        let variables: Vec<(String, String)> =
            variables.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect();
        overlay(&mut entries, &variables, &mut problems);
        (entries, problems)
    }

    #[test]
    fn every_fixed_key_can_be_given_by_its_variable() {
        for key in schema::fixed_keys() {
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
        ]);
        assert_eq!(problems.len(), 1, "{problems:?}");
        assert!(problems[0].message.contains("did you mean POSTHASTE_RELAY__BATCH_SIZE?"));
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
        assert_eq!(url(&[("PGUSER", "u"), ("DATABASE_URL", "")]), None);
    }
}
