//! Dependencies point one way, and one TLS provider is in the tree.

use anyhow::{Context as _, Result};
use serde_json::Value;

use super::Violation;

const CORE: &str = "posthaste-core";
const ENGINE: &str = "posthaste-engine";
const TESTKIT: &str = "posthaste-testkit";
const CONFIG: &str = "posthaste-config";
const BUS_KIT: &str = "posthaste-bus-kit";

/// What a crate of ours may depend on among our own: (crate, normally, in its tests too).
/// A crate that is not listed sees everything: it is a composition root.
const DIRECTIONS: &[(&str, &[&str], &[&str])] = &[
    (CORE, &[], &[]),
    (ENGINE, &[CORE], &[]),
    ("posthaste-processor", &[CORE, ENGINE], &[TESTKIT]),
    ("posthaste-postgres", &[CORE], &[TESTKIT]),
    ("posthaste-sqlite", &[CORE], &[TESTKIT]),
    (CONFIG, &[], &[]),
    (BUS_KIT, &[CONFIG, CORE], &[TESTKIT]),
    (TESTKIT, &[CORE], &[]),
];
/// The folder whose crates are all alike: a broker each.
const BUSES: &str = "/crates/buses/";
/// What they may depend on.
const OF_A_BUS: Allowed = (&[CONFIG, CORE, BUS_KIT], &[TESTKIT]);
/// What sees everything.
const COMPOSITION_ROOTS: [&str; 4] = ["posthaste", "posthaste-cli", "posthaste-bench", "xtask"];

/// Clients of databases and brokers, which the inner layers never name.
const CLIENTS: [&str; 12] = [
    "async-nats",
    "diesel",
    "lapin",
    "rdkafka",
    "redis",
    "reqwest",
    "rumqttc-v5-next",
    "rusqlite",
    "sea-orm",
    "sqlx",
    "tokio-postgres",
    "hyper",
];
const CLIENTLESS: &[&str] = &[CORE, CONFIG, ENGINE, "posthaste-processor", BUS_KIT, TESTKIT];

/// TLS providers and stacks beside the chosen one.
const OTHER_TLS: [&str; 3] = ["ring", "openssl-sys", "native-tls"];

/// Checks what every crate of the workspace depends on.
///
/// # Errors
/// When the metadata is not what cargo writes.
pub(super) fn check_direction(metadata: &Value) -> Result<Vec<Violation>> {
    let packages = metadata["packages"].as_array().context("cargo metadata has no packages")?;
    let mut violations = Vec::new();
    for package in packages {
        let name = package["name"].as_str().context("a package has no name")?;
        let allowed = allowed(name, package["manifest_path"].as_str().unwrap_or_default());
        if !COMPOSITION_ROOTS.contains(&name) && allowed.is_none() {
            violations.push(Violation {
                place: name.to_owned(),
                what: "tidy does not know this crate".into(),
                remedy: "say what it may depend on, in crates/xtask/src/tidy/dependencies.rs",
            });
        }
        for dependency in package["dependencies"].as_array().into_iter().flatten() {
            let to = dependency["name"].as_str().context("a dependency has no name")?;
            let in_tests = dependency["kind"] == "dev";
            violations.extend(check_edge(name, allowed, to, in_tests));
        }
    }
    Ok(violations)
}

/// What a crate may depend on among our own, normally and in its tests.
type Allowed = (&'static [&'static str], &'static [&'static str]);

fn allowed(name: &str, manifest: &str) -> Option<Allowed> {
    let listed = DIRECTIONS.iter().find(|(known, ..)| *known == name);
    let by_name = listed.map(|(_, normally, tests_too)| (*normally, *tests_too));
    by_name.or_else(|| manifest.contains(BUSES).then_some(OF_A_BUS))
}

fn check_edge(from: &str, allowed: Option<Allowed>, to: &str, in_tests: bool) -> Option<Violation> {
    let violation = |what, remedy| Some(Violation { place: from.to_owned(), what, remedy });
    if CLIENTS.contains(&to) && CLIENTLESS.contains(&from) && !in_tests {
        return violation(
            format!("depends on {to}"),
            "put what needs it in a store, in a bus, or behind a contract of core",
        );
    }
    let (normally, tests_too) = allowed?;
    let ours = to == "posthaste" || to.starts_with("posthaste-");
    // A crate may depend on itself in its tests, to switch features on.
    if !ours || to == from || normally.contains(&to) || (in_tests && tests_too.contains(&to)) {
        return None;
    }
    violation(
        format!("depends on {to}"),
        "dependencies point towards core: move what is needed there, or pass it in",
    )
}

/// Checks the list of packages in the tree, one `name vVERSION` a line.
pub(super) fn check_tls(tree: &str) -> Vec<Violation> {
    OTHER_TLS
        .iter()
        .filter(|name| tree.lines().any(|line| line.split(' ').next() == Some(**name)))
        .map(|name| Violation {
            place: (*name).to_owned(),
            what: "is in the dependency tree; two TLS providers panic at the first connection"
                .into(),
            remedy: "find who wants it with `cargo tree --workspace -i NAME` and choose its \
                     aws-lc-rs feature",
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn violations_of(from: &str, to: &str, kind: Value) -> usize {
        let folder = if from.ends_with("-acme") { "crates/buses/acme" } else { "crates/other" };
        let metadata = json!({ "packages": [
            {
                "name": from,
                "manifest_path": format!("/posthaste/{folder}/Cargo.toml"),
                "dependencies": [{ "name": to, "kind": kind }],
            },
        ] });
        check_direction(&metadata).unwrap().len()
    }

    #[test]
    fn dependencies_point_towards_core() {
        for (from, to, kind, expected) in [
            (CORE, "serde", Value::Null, 0),
            (CORE, "posthaste-processor", Value::Null, 1),
            (CORE, TESTKIT, json!("dev"), 1),
            ("posthaste-processor", CORE, Value::Null, 0),
            ("posthaste-processor", TESTKIT, json!("dev"), 0),
            ("posthaste-processor", TESTKIT, Value::Null, 1),
            ("posthaste-postgres", "posthaste-sqlite", json!("dev"), 1),
            ("posthaste-acme", "posthaste", Value::Null, 1),
            ("posthaste-acme", BUS_KIT, Value::Null, 0),
            ("posthaste-acme", "posthaste-webhook", Value::Null, 1),
            ("posthaste-cli", "posthaste-postgres", Value::Null, 0),
            ("posthaste-new", CORE, Value::Null, 1),
        ] {
            assert_eq!(violations_of(from, to, kind.clone()), expected, "{from} -> {to} ({kind})");
        }
    }

    #[test]
    fn inner_layers_name_no_client() {
        for from in CLIENTLESS {
            assert_eq!(violations_of(from, "sqlx", Value::Null), 1, "{from}");
        }
        assert_eq!(violations_of("posthaste-postgres", "sqlx", Value::Null), 0);
    }

    #[test]
    fn a_second_tls_provider_is_found_by_its_whole_name() {
        let tree = "rustls v0.23.0\naws-lc-rs v1.0.0\nstring v1.0.0\n";
        assert!(check_tls(tree).is_empty());
        assert_eq!(check_tls(&format!("{tree}ring v0.17.0\n")).len(), 1);
    }
}
