//! Files that events must not be written to, because something else is: told by what a path leads to,
//! whatever it is called.

use std::collections::HashMap;
use std::ffi::OsString;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use posthaste_bus_kit::Output;

use crate::config::{Config, Database, Problem};

/// What tells one output from another. A file has two: its path without links and `..`, which it has
/// before it is there, and its number, which all of its names share.
#[derive(Debug, PartialEq, Eq, Hash)]
enum Identity {
    StandardOutput,
    Path(PathBuf),
    Inode { device: u64, number: u64 },
}

/// Two destinations that write to one place would mix their lines, and one would lose the other's on a
/// rotation. One that writes into the outbox destroys it.
pub(super) fn clashes(config: &Config) -> Vec<Problem> {
    let mut problems = Vec::new();
    let mut taken: HashMap<Identity, String> = HashMap::new();
    for (path, what) in reserved(config) {
        taken.extend(identities(&path).into_iter().map(|identity| (identity, what.clone())));
    }
    for destination in &config.destinations {
        let settings = destination.settings.as_ref();
        let (key, identities, output) = match settings.and_then(|settings| settings.output()) {
            None => continue,
            Some(Output::File { key, path }) => {
                (key, identities(&path), path.display().to_string())
            }
            Some(Output::Stdout) => {
                ("type", vec![Identity::StandardOutput], "standard output".to_owned())
            }
        };
        if let Some(other) = identities.iter().find_map(|identity| taken.get(identity)) {
            let why = format!("{other} {output} already");
            problems.push(destination.problem(key, &why, "give each an output of its own"));
        } else {
            let what = format!("{} writes to", destination.name);
            taken.extend(identities.into_iter().map(|identity| (identity, what.clone())));
        }
    }
    problems
}

/// Files that are in use, and what for.
fn reserved(config: &Config) -> Vec<(PathBuf, String)> {
    let mut reserved = Vec::new();
    if let Some(file) = &config.file {
        reserved.push((file.clone(), "the configuration is read from".to_owned()));
    }
    if let Database::Sqlite { path } = &config.database {
        // The files beside it are named after the file itself, not after a link to it.
        let path = resolved(path);
        for ending in ["", "-wal", "-shm", "-journal", ".relay-lock"] {
            let mut name = OsString::from(&path);
            name.push(ending);
            reserved.push((name.into(), "the outbox has".to_owned()));
        }
    }
    reserved
}

fn identities(path: &Path) -> Vec<Identity> {
    let inode = std::fs::metadata(path)
        .ok()
        .map(|found| Identity::Inode { device: found.dev(), number: found.ino() });
    std::iter::once(Identity::Path(resolved(path))).chain(inode).collect()
}

/// Where a path leads. Of what is not there yet, the folder is followed.
fn resolved(path: &Path) -> PathBuf {
    let in_folder = || {
        let folder = path.parent()?;
        let folder = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
        Some(folder.canonicalize().ok()?.join(path.file_name()?))
    };
    let absolute = || std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    path.canonicalize().ok().or_else(in_folder).unwrap_or_else(absolute)
}
