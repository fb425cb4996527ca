//! The stores: which one the address means, and what the commands ask of any of them.

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use posthaste_core::{
    Error, ErrorKind, Finding, MigrationStatus, OutboxAdmin, OutboxMigrations, OutboxRepository,
    Result, Severity,
};
use posthaste_postgres::{PostgresOptions, PostgresOutbox};
use posthaste_sqlite::SqliteOutbox;

use crate::config::{Config, Database};
use crate::exit::Hint;

/// What adopting a table did.
#[derive(Debug, serde::Serialize)]
pub(crate) struct Adopted {
    /// Events that wait.
    pub(crate) pending: u64,
    /// Dead letters.
    pub(crate) dead: u64,
    /// Delivered events.
    pub(crate) delivered: u64,
    /// The name of the old table, which is kept.
    pub(crate) kept_as: &'static str,
}

/// All that the commands ask of a store.
#[async_trait]
pub(crate) trait Store: OutboxRepository + OutboxAdmin + OutboxMigrations {
    /// Closes what a file is closed by. Default: nothing, since a server sees to its own.
    async fn close_file(&self) {}

    /// Turns a table of the owner's into an outbox, and says what was done.
    ///
    /// # Errors
    /// The store's; `Config` where it cannot do this.
    async fn adopt(&self) -> Result<Adopted>;
}

#[async_trait]
impl Store for PostgresOutbox {
    async fn adopt(&self) -> Result<Adopted> {
        let report = self.adopt_table().await?;
        Ok(Adopted {
            pending: report.pending,
            dead: report.dead,
            delivered: report.delivered,
            kept_as: report.kept_as,
        })
    }
}

#[async_trait]
impl Store for SqliteOutbox {
    async fn close_file(&self) {
        self.close().await;
    }

    async fn adopt(&self) -> Result<Adopted> {
        Err(Error::new(
            ErrorKind::Config,
            "adopt a table",
            "only tables in PostgreSQL can be adopted; copy the rows instead",
        ))
    }
}

/// Whether a SQLite file that is not there may be created.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Missing {
    /// Create it.
    Create,
    /// Refuse: a mistyped path must not become an empty outbox.
    Refuse,
}

/// What this process opened last, to be closed at its end.
static OPENED: Mutex<Option<Arc<dyn Store>>> = Mutex::new(None);
/// Whatever still uses it then.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);

/// Closes what was opened: then what was committed to a SQLite file is in the file itself, and whoever
/// copies that alone has it.
pub(crate) async fn close() {
    let opened = OPENED.lock().unwrap_or_else(PoisonError::into_inner).take();
    if let Some(store) = opened {
        // Without this, SQLite finds all that it needs at the next opening.
        let _ = tokio::time::timeout(CLOSE_TIMEOUT, store.close_file()).await;
    }
}

/// Opens the outbox of the configuration, whatever its schema.
///
/// # Errors
/// The store's; a [`Hint`] where a SQLite file is missing and may not be created.
pub(crate) async fn open(config: &Config, missing: Missing) -> anyhow::Result<Arc<dyn Store>> {
    let store = open_file_or_server(config, missing).await?;
    *OPENED.lock().unwrap_or_else(PoisonError::into_inner) = Some(Arc::clone(&store));
    Ok(store)
}

async fn open_file_or_server(config: &Config, missing: Missing) -> anyhow::Result<Arc<dyn Store>> {
    match &config.database {
        Database::Postgres { url } => {
            let options = PostgresOptions {
                url: url.clone(),
                max_connections: config.max_connections,
                watch_interval: config.watch_interval,
                transaction_pooler: config.transaction_pooler,
                ..PostgresOptions::default()
            };
            Ok(Arc::new(PostgresOutbox::connect(&options).await?))
        }
        Database::Sqlite { path } => {
            if missing == Missing::Refuse && !path.exists() {
                return Err(no_file(path).into());
            }
            Ok(Arc::new(SqliteOutbox::open(path).await?))
        }
    }
}

/// Opens the outbox and makes sure that its schema is one this version understands.
///
/// # Errors
/// As [`open`]; a [`Hint`] where the schema is missing or old; `Schema` where it is newer.
pub(crate) async fn open_ready(config: &Config) -> anyhow::Result<Arc<dyn Store>> {
    let store = open(config, Missing::Refuse).await?;
    require_schema_of(&*store, &store.migration_status().await?, config).await?;
    Ok(store)
}

/// Opens the outbox to store events. A writer needs not be allowed to read which version the schema has:
/// what it then lacks, the server says of what is stored.
///
/// # Errors
/// As [`open_ready`].
pub(crate) async fn open_to_store(config: &Config) -> anyhow::Result<Arc<dyn Store>> {
    let store = open(config, Missing::Refuse).await?;
    match store.migration_status().await {
        Ok(status) => require_schema_of(&*store, &status, config).await?,
        Err(error) if error.kind() == ErrorKind::Unauthorized => {}
        Err(error) => return Err(error.into()),
    }
    Ok(store)
}

/// Refuses a schema that is missing, old or newer.
///
/// # Errors
/// A [`Hint`] that says which; of one that is missing, also where there is one.
pub(crate) async fn require_schema_of(
    store: &dyn Store,
    status: &MigrationStatus,
    config: &Config,
) -> Result<(), Hint> {
    let Err(hint) = require_schema(status) else { return Ok(()) };
    if status.current > 0 {
        return Err(hint.at(config));
    }
    let found = store.diagnose().await;
    let found = found.into_iter().find(|it| &*it.about == "schema" && it.severity > Severity::Fine);
    Err(match found {
        Some(Finding { message, hint: Some(hint), .. }) => Hint { message, hint }.at(config),
        _ => hint.at(config),
    })
}

/// Refuses a schema that is missing, old or newer.
///
/// # Errors
/// A [`Hint`] that says which.
pub(crate) fn require_schema(status: &MigrationStatus) -> Result<(), Hint> {
    let MigrationStatus { current, wanted, .. } = status;
    let refuse = |message: String, hint: &str| Err(Hint { message, hint: hint.to_owned() });
    if status.is_newer_than_program() {
        return refuse(
            format!(
                "the database's schema has version {current}, and this program knows only up to \
                 {wanted}"
            ),
            "use a posthaste that is at least as new as the one that migrated the database",
        );
    }
    if *current == 0 {
        return refuse(
            "there is no outbox in this database".into(),
            "run `posthaste migrate up`, or check --database-url",
        );
    }
    if current < wanted {
        return refuse(
            format!("the database's schema has version {current}, and {wanted} is needed"),
            "run `posthaste migrate up`",
        );
    }
    Ok(())
}

fn no_file(path: &Path) -> Hint {
    Hint {
        message: format!("there is no outbox: {} does not exist", path.display()),
        hint: "run `posthaste migrate up` to create it, or name another with --database-url".into(),
    }
}
