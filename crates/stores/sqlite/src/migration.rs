//! The schema and its versions.

use async_trait::async_trait;
use posthaste_core::{Error, ErrorKind, Migration, MigrationStatus, OutboxMigrations, Result};
use sqlx::SqliteConnection;

use crate::SqliteOutbox;
use crate::error::database;
use crate::{integrity, row};

/// A migration and its SQL. A released one is never changed; the next change is a new file.
pub(crate) struct Step {
    migration: Migration,
    pub(crate) sql: &'static str,
}

pub(crate) const STEPS: &[Step] = &[
    Step {
        migration: Migration { version: 1, name: "outbox" },
        sql: include_str!("../migrations/0001_outbox.sql"),
    },
    Step {
        migration: Migration { version: 2, name: "as meant" },
        sql: include_str!("../migrations/0002_as_meant.sql"),
    },
];

/// The version of the schema that [`migration_sql`] leads to.
pub const SCHEMA_VERSION: u32 = STEPS[STEPS.len() - 1].migration.version;

const BOOKKEEPING: &str = "\
create table if not exists outbox_migrations (
    version integer primary key,
    name text not null,
    applied_at text not null default (strftime('%Y-%m-%dT%H:%M:%fZ', 'now'))
);
";

pub(crate) const OPERATION: &str = "migrate outbox";

#[async_trait]
impl OutboxMigrations for SqliteOutbox {
    async fn migration_status(&self) -> Result<MigrationStatus> {
        let mut connection = self.reader("read migration status").await?;
        Ok(status(current_version(&mut connection).await?))
    }

    async fn migrate(&self) -> Result<Vec<Migration>> {
        let fail = |error| database(OPERATION, error);
        let mut applied = Vec::new();
        // Looks before it locks: what is up to date waits for nobody's write lock.
        let status = self.migration_status().await?;
        if status.current == status.wanted {
            self.mend().await?;
            return Ok(applied);
        }
        for step in STEPS {
            // `immediate` waits for another process that migrates; what it did is then seen.
            let mut transaction = self.begin_write(OPERATION).await?;
            let current = current_version(&mut transaction).await?;
            refuse_unknown(&mut transaction, current).await?;
            if step.migration.version > current {
                apply(step, &mut transaction).await?;
                transaction.commit().await.map_err(fail)?;
                applied.push(step.migration.clone());
            }
        }
        self.mend().await?;
        Ok(applied)
    }

    fn migration_sql(&self) -> String {
        migration_sql()
    }
}

/// All migrations as SQL, for those who apply it themselves: one transaction, to be run once.
#[must_use]
pub fn migration_sql() -> String {
    let mut sql = String::from("begin immediate;\n\n");
    sql.push_str(BOOKKEEPING);
    for Step { migration: Migration { version, name }, sql: step } in STEPS {
        sql.push_str(&format!(
            "\n-- {version}: {name}\n\n{step}\n\
             insert into outbox_migrations (version, name) values ({version}, '{name}');\n"
        ));
    }
    sql.push_str("\ncommit;\n");
    sql
}

impl SqliteOutbox {
    /// That the schema is exactly the one this version was built for.
    pub(crate) async fn check_schema(&self) -> Result<()> {
        const OPERATION: &str = "check database";
        let fail = |error| database(OPERATION, error).with_context("path", self.path().display());
        let mut connection = self.reader(OPERATION).await?;
        let status = status(current_version(&mut connection).await?);
        if status.is_newer_than_program() {
            return Err(newer(OPERATION, status.current));
        }
        if let Some(next) = status.pending.first() {
            let message = if status.current == 0 {
                "there is no outbox in this database; run its migrations"
            } else {
                "the outbox is older than this program; run its migrations"
            };
            return Err(Error::new(ErrorKind::Schema, OPERATION, message)
                .with_context("path", self.path().display())
                .with_context("next", next.version));
        }
        // The bookkeeping may be right and the table not: somebody altered it.
        let whole = integrity::check(&mut connection, OPERATION).await;
        whole.map_err(|error| error.with_context("path", self.path().display()))?;
        let mut columns = sqlx::QueryBuilder::<sqlx::Sqlite>::new("select ");
        columns
            .push(row::COLUMNS)
            .push(", order_key, (select revision from outbox_signal) from outbox_events limit 0");
        columns.build().persistent(false).execute(&mut *connection).await.map_err(fail)?;
        Ok(())
    }
}

fn status(current: u32) -> MigrationStatus {
    let steps = STEPS.iter().map(|step| &step.migration);
    MigrationStatus {
        current,
        wanted: steps.clone().map(|migration| migration.version).max().unwrap_or(0),
        pending: steps.filter(|migration| migration.version > current).cloned().collect(),
        elsewhere: Vec::new(),
    }
}

async fn apply(step: &Step, connection: &mut SqliteConnection) -> Result<()> {
    let fail = |error| database(OPERATION, error).with_context("version", step.migration.version);
    sqlx::raw_sql(BOOKKEEPING).execute(&mut *connection).await.map_err(fail)?;
    sqlx::raw_sql(step.sql).execute(&mut *connection).await.map_err(fail)?;
    sqlx::query("insert into outbox_migrations (version, name) values (?1, ?2)")
        .bind(step.migration.version)
        .bind(step.migration.name)
        .execute(connection)
        .await
        .map_err(fail)?;
    Ok(())
}

/// 0 where there is no outbox.
async fn current_version(connection: &mut SqliteConnection) -> Result<u32> {
    const OPERATION: &str = "read migration status";
    let fail = |error| database(OPERATION, error);
    if !has_table(connection, "outbox_migrations").await? {
        return Ok(0);
    }
    let version: Option<i64> = sqlx::query_scalar("select max(version) from outbox_migrations")
        .fetch_one(connection)
        .await
        .map_err(fail)?;
    u32::try_from(version.unwrap_or(0)).map_err(|error| {
        Error::new(ErrorKind::Schema, OPERATION, "outbox_migrations holds an impossible version")
            .with_source(error)
    })
}

/// Neither a later version's schema nor a table of somebody else's is touched.
async fn refuse_unknown(connection: &mut SqliteConnection, current: u32) -> Result<()> {
    if status(current).is_newer_than_program() {
        return Err(newer(OPERATION, current));
    }
    if current == 0 && has_table(connection, "outbox_events").await? {
        return Err(Error::new(
            ErrorKind::Schema,
            OPERATION,
            "there is a table outbox_events that posthaste did not make; rename it, migrate, and \
             insert its pending rows into the new table",
        ));
    }
    Ok(())
}

fn newer(operation: &'static str, current: u32) -> Error {
    Error::new(
        ErrorKind::Schema,
        operation,
        "the database was migrated by a later version of posthaste; use that version",
    )
    .with_context("database_version", current)
    .with_context("program_version", status(0).wanted)
}

async fn has_table(connection: &mut SqliteConnection, name: &'static str) -> Result<bool> {
    sqlx::query_scalar("select count(*) > 0 from sqlite_master where type = 'table' and name = ?1")
        .bind(name)
        .fetch_one(connection)
        .await
        .map_err(|error| database("read migration status", error))
}
