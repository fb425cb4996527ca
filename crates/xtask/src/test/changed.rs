//! Which crates differ from another branch, for `cargo xtask test --changed`.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result};
use serde_json::Value;

use crate::{process, tidy, workspace_root};

/// The tests to run.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Selection {
    Everything,
    /// Those of crates that changed and of all that depend on them: crates by name, each with its own
    /// dependents among them.
    Crates(BTreeSet<String>),
}

impl Selection {
    /// As nextest takes it.
    pub(super) fn filter(&self) -> Option<String> {
        let Self::Crates(crates) = self else { return None };
        let names: Vec<String> = crates.iter().map(|name| format!("package(={name})")).collect();
        Some(if names.is_empty() { "none()".to_owned() } else { names.join(" + ") })
    }

    /// As `cargo test` takes it.
    pub(super) fn packages(&self) -> Vec<String> {
        match self {
            Self::Crates(crates) if !crates.is_empty() => {
                crates.iter().map(|name| format!("--package={name}")).collect()
            }
            _ => vec!["--workspace".to_owned()],
        }
    }
}

/// What read pages, examples, alert rules and units: crates that are tested against them.
const READERS: [&str; 3] = ["posthaste", "posthaste-cli", "xtask"];

/// What differs from where this branch left `base`, committed or not.
///
/// # Errors
/// When there is no such branch, or git or cargo cannot be asked.
pub(super) fn since(base: &str) -> Result<Selection> {
    let left = git(&["merge-base", "HEAD", base])?;
    let mut paths = git(&["diff", "--name-only", left.trim()])?;
    paths.push_str(&git(&["ls-files", "--others", "--exclude-standard"])?);
    let selection = select(paths.lines(), &Crates::read(&tidy::metadata()?)?);
    match &selection {
        Selection::Everything => println!("a file that all crates are built with changed"),
        Selection::Crates(crates) if crates.is_empty() => println!("nothing changed"),
        Selection::Crates(crates) => {
            println!("{}", crates.iter().map(String::as_str).collect::<Vec<_>>().join(", "));
        }
    }
    Ok(selection)
}

fn git(arguments: &[&str]) -> Result<String> {
    process::output(Command::new("git").args(arguments).current_dir(workspace_root()))
}

/// The crates of the workspace.
struct Crates {
    /// The folder of each, from the root, and its name.
    folders: Vec<(String, String)>,
    /// The crates that depend on one, in any way.
    dependents: BTreeMap<String, BTreeSet<String>>,
}

impl Crates {
    fn read(metadata: &Value) -> Result<Self> {
        let packages = metadata["packages"].as_array().context("cargo metadata has no packages")?;
        let mut crates = Self { folders: Vec::new(), dependents: BTreeMap::new() };
        for package in packages {
            let name = package["name"].as_str().context("a package has no name")?;
            let manifest =
                package["manifest_path"].as_str().context("a package has no manifest")?;
            let folder = Path::new(manifest).parent().unwrap_or(Path::new(""));
            let folder = folder.strip_prefix(workspace_root()).unwrap_or(folder);
            crates.folders.push((folder.display().to_string(), name.to_owned()));
            for dependency in package["dependencies"].as_array().into_iter().flatten() {
                if dependency["path"].is_string() {
                    let on = dependency["name"].as_str().context("a dependency has no name")?;
                    crates.dependents.entry(on.to_owned()).or_default().insert(name.to_owned());
                }
            }
        }
        Ok(crates)
    }

    /// Adds a crate and all that depend on it.
    fn add(&self, name: &str, to: &mut BTreeSet<String>) {
        if to.insert(name.to_owned()) {
            for dependent in self.dependents.get(name).into_iter().flatten() {
                self.add(dependent, to);
            }
        }
    }
}

fn select<'a>(paths: impl Iterator<Item = &'a str>, crates: &Crates) -> Selection {
    let mut selected = BTreeSet::new();
    for path in paths {
        let is_within =
            |folder: &str| path.strip_prefix(folder).is_some_and(|rest| rest.starts_with('/'));
        let owner = crates.folders.iter().find(|(folder, _)| is_within(folder));
        let is_read = ["docs/", "examples/", "monitoring/", "packaging/"];
        if let Some((_, name)) = owner {
            crates.add(name, &mut selected);
        } else if path.ends_with(".md") || is_read.iter().any(|folder| path.starts_with(folder)) {
            selected.extend(READERS.map(str::to_owned));
        } else {
            return Selection::Everything;
        }
    }
    Selection::Crates(selected)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn crates() -> Crates {
        let root = workspace_root();
        let package = |name: &str, folder: &str, on: &[&str]| {
            let on = on.iter().map(|on| serde_json::json!({ "name": on, "path": "there" }));
            serde_json::json!({
                "name": name,
                "manifest_path": root.join(folder).join("Cargo.toml"),
                "dependencies": on.collect::<Vec<_>>(),
            })
        };
        let packages = [
            package("core", "crates/core", &[]),
            package("store", "crates/store", &["core"]),
            package("program", "crates/program", &["store"]),
            package("other", "crates/other", &[]),
        ];
        Crates::read(&serde_json::json!({ "packages": packages })).unwrap()
    }

    fn selected(paths: &[&str]) -> Selection {
        select(paths.iter().copied(), &crates())
    }

    fn names(names: &[&str]) -> Selection {
        Selection::Crates(names.iter().map(|name| (*name).to_owned()).collect())
    }

    #[test]
    fn a_change_is_tested_in_its_crate_and_in_all_that_depend_on_it() {
        assert_eq!(selected(&["crates/program/src/main.rs"]), names(&["program"]));
        assert_eq!(selected(&["crates/core/src/lib.rs"]), names(&["core", "program", "store"]));
        assert_eq!(selected(&[]), names(&[]));
        assert_eq!(names(&["a", "b"]).filter().unwrap(), "package(=a) + package(=b)");
        assert_eq!(names(&[]).filter().unwrap(), "none()");
    }

    #[test]
    fn what_all_crates_are_built_with_is_tested_in_all() {
        assert_eq!(selected(&["crates/other/src/lib.rs", "Cargo.lock"]), Selection::Everything);
        assert_eq!(selected(&["docs/operating.md"]), names(&READERS));
    }
}
