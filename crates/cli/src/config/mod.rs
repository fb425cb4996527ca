//! The configuration: one file, the environment, the command line; checked as a whole.

pub(crate) mod database;
mod reference;
pub(crate) mod schema;
mod sections;
mod settings;

use std::path::{Path, PathBuf};
use std::time::Duration;

use posthaste_config::{environment, file, resolve, trust, value};
use posthaste_processor::{ProcessorSettings, Route};

pub(crate) use database::Database;
pub(crate) use posthaste_config::resolve::Resolved;
pub(crate) use posthaste_config::{Problem, Problems, secrets, units};
pub(crate) use reference::reference;
use schema::SCHEMA;
pub(crate) use sections::{Listen, LogFormat};
pub(crate) use settings::DestinationSettings;

/// The file that is read when none is named.
pub(crate) const DEFAULT_FILE: &str = "posthaste.toml";

/// A configuration without a fault.
#[derive(Debug)]
pub(crate) struct Config {
    /// The file that was read, if any.
    pub(crate) file: Option<PathBuf>,
    /// Whether nobody named that file: it was there.
    pub(crate) file_was_found: bool,
    /// The outbox.
    pub(crate) database: Database,
    /// See `database.migrate`.
    pub(crate) migrate: bool,
    /// See `database.max_connections`.
    pub(crate) max_connections: u32,
    /// See `database.watch_interval`; `None` for off.
    pub(crate) watch_interval: Option<Duration>,
    /// See `database.transaction_pooler`.
    pub(crate) transaction_pooler: bool,
    /// The sections `relay` and `relay.retry`.
    pub(crate) relay: ProcessorSettings,
    /// Where events go; the first takes what no route sends elsewhere.
    pub(crate) destinations: Vec<DestinationSettings>,
    /// The routes, in order.
    pub(crate) routes: Vec<Route>,
    /// The section `ops`.
    pub(crate) ops: sections::OpsSettings,
    /// Whether someone gave `ops.listen`.
    pub(crate) listen_was_given: bool,
    /// The section `log`.
    pub(crate) log: sections::LogSettings,
    /// Every value with its origin, in the order of the reference.
    pub(crate) values: Vec<Resolved>,
}

/// What a configuration is made from.
#[derive(Debug, Default)]
pub(crate) struct Inputs {
    /// The file that was named or found.
    pub(crate) file: Option<PathBuf>,
    /// Whether nobody named it: it was there.
    pub(crate) file_was_found: bool,
    /// `--database-url`.
    pub(crate) database_url: Option<String>,
    /// The environment.
    pub(crate) environment: Vec<(String, String)>,
}

impl Inputs {
    /// The inputs of this process. Without a named file, `posthaste.toml` is read where it exists.
    pub(crate) fn of_process(file: Option<PathBuf>, database_url: Option<String>) -> Self {
        // An empty variable is one that nobody set.
        let file = file.filter(|file| !file.as_os_str().is_empty());
        let environment = std::env::vars_os()
            .filter_map(|(name, value)| {
                Some((name.into_string().ok()?, value.to_string_lossy().into_owned()))
            })
            .collect();
        let default = || Path::new(DEFAULT_FILE).exists().then(|| DEFAULT_FILE.into());
        let found = if file.is_none() { default() } else { None };
        Self { file_was_found: found.is_some(), file: file.or(found), database_url, environment }
    }

    /// Reads and checks everything but what only a bus knows of its settings.
    ///
    /// # Errors
    /// Every problem that was found.
    pub(crate) fn load(self) -> Result<Config, Problems> {
        self.draft().finish()
    }

    /// Reads everything, as far as it can be read: whoever mends a file learns of all that is wrong at
    /// once. What cannot be told from a consequence of another mistake is left for later.
    pub(crate) fn draft(self) -> Draft {
        let (mut entries, mut problems) = self.read_file();
        let is_whole = problems.is_empty();
        environment::overlay(&SCHEMA, &mut entries, &self.environment, &mut problems);
        if let Some(url) = self.database_url {
            let origin = value::Origin::Option("--database-url");
            let entry = file::Entry { raw: value::Raw::Untyped(url), origin, position: 0 };
            entries.insert("database.url".into(), entry);
        }
        if !is_whole {
            resolve::refuse_values(&SCHEMA, &entries, &mut problems);
            return Draft { config: None, problems };
        }
        let values = resolve::resolve(&SCHEMA, &entries, &mut problems);
        let config = settings::build(self.file, self.file_was_found, values, &mut problems);
        Draft { config, problems }
    }

    /// What the file has, and what keeps it from being read as it was meant.
    fn read_file(&self) -> (file::Entries, Vec<Problem>) {
        let Some(path) = &self.file else { return (file::Entries::new(), Vec::new()) };
        let distrusted = if self.file_was_found { trust::check(path).err() } else { None };
        match distrusted {
            Some(problem) => (file::Entries::new(), vec![problem]),
            None => file::read(path),
        }
    }
}

/// A configuration that may have faults.
#[derive(Debug)]
pub(crate) struct Draft {
    /// With defaults where a value was refused; `None` where the file as a whole cannot be read.
    pub(crate) config: Option<Config>,
    /// What is wrong.
    pub(crate) problems: Vec<Problem>,
}

impl Draft {
    /// The configuration, where it has no fault.
    ///
    /// # Errors
    /// Every problem that was found.
    pub(crate) fn finish(self) -> Result<Config, Problems> {
        match self.config {
            Some(config) if self.problems.is_empty() => Ok(config),
            _ => Err(Problems(self.problems)),
        }
    }
}

#[cfg(test)]
mod tests;
