//! `posthaste migrate`.

use posthaste_core::Migration;
use serde_json::json;

use crate::arguments::{MigrateCommand, MigrateSqlArgs, SqlDialect, SqlFormat};
use crate::config::{Config, Database};
use crate::exit::{Hint, UsageError};
use crate::output::{self, Output, table, write_text};
use crate::store::{self, Missing, Store};

/// Creates, upgrades, shows or writes out the schema.
pub(crate) async fn run(
    command: MigrateCommand,
    config: &Config,
    output: Output,
) -> anyhow::Result<()> {
    match command {
        MigrateCommand::Up => up(&*store::open(config, Missing::Create).await?, output).await,
        MigrateCommand::Status => status(config, output).await,
        MigrateCommand::Sql(args) => write_text(&sql(args, config)?),
        MigrateCommand::Adopt { yes } => adopt(yes, config, output).await,
    }
}

async fn up(store: &dyn Store, output: Output) -> anyhow::Result<()> {
    let applied = store.migrate().await?;
    let status = store.migration_status().await?;
    output.write(&json!({ "applied": list(&applied), "current": status.current }), || {
        let mut lines: Vec<String> = applied
            .iter()
            .map(|migration| format!("applied {} ({})", migration.version, migration.name))
            .collect();
        lines.push(format!("the schema has version {}", status.current));
        lines.join("\n")
    })
}

async fn status(config: &Config, output: Output) -> anyhow::Result<()> {
    let status = store::open(config, Missing::Refuse).await?.migration_status().await?;
    let result = json!({
        "current": status.current,
        "wanted": status.wanted,
        "pending": list(&status.pending),
    });
    output.write(&result, || {
        let mut table = table(["version", "step", "state"]);
        for migration in &status.pending {
            table.add_row([
                migration.version.to_string(),
                migration.name.to_owned(),
                "to be applied".to_owned(),
            ]);
        }
        let summary = format!(
            "the database has version {}, this program wants {}",
            status.current, status.wanted
        );
        if status.pending.is_empty() { summary } else { format!("{summary}\n{table}") }
    })?;
    if status.is_newer_than_program() {
        store::require_schema(&status)?;
    }
    Ok(())
}

/// What a run with these arguments writes. Connects to nothing.
fn sql(args: MigrateSqlArgs, config: &Config) -> anyhow::Result<String> {
    let plain = match dialect(args, config)? {
        SqlDialect::Postgres => postgres_sql(args)?,
        SqlDialect::Sqlite => return sqlite_sql(args),
    };
    Ok(match args.format {
        SqlFormat::Plain => plain,
        SqlFormat::Statements => posthaste_postgres::statement_per_line(&plain),
    })
}

/// A guess would put another database's SQL into a file of migrations.
fn dialect(args: MigrateSqlArgs, config: &Config) -> anyhow::Result<SqlDialect> {
    if let Some(dialect) = args.dialect {
        return Ok(dialect);
    }
    let is_named =
        config.values.iter().any(|value| value.path == "database.url" && value.shown.is_some());
    match config.database {
        Database::Postgres { .. } => Ok(SqlDialect::Postgres),
        Database::Sqlite { .. } if is_named => Ok(SqlDialect::Sqlite),
        Database::Sqlite { .. } => Err(UsageError(
            "no database is named, and so it is not known whose SQL is wanted; give --dialect \
             postgres or --dialect sqlite"
                .into(),
        )
        .into()),
    }
}

fn postgres_sql(args: MigrateSqlArgs) -> anyhow::Result<String> {
    if args.roles {
        return Ok(posthaste_postgres::ROLES_SQL.to_owned());
    }
    if !args.down {
        return refuse_beyond(posthaste_postgres::SCHEMA_VERSION, args.from)
            .map(|()| posthaste_postgres::migration_sql(args.from));
    }
    posthaste_postgres::rollback_sql(args.from).ok_or_else(|| {
        UsageError(format!(
            "there is no way back to version {}; there is one to 2 (--from 2), and to nothing \
             (without --from)",
            args.from
        ))
        .into()
    })
}

/// SQL for a version that is not there yet would look as if nothing were to be done.
fn refuse_beyond(latest: u32, from: u32) -> anyhow::Result<()> {
    if from <= latest {
        return Ok(());
    }
    let why = format!("--from {from}: this program knows versions up to {latest}");
    Err(UsageError(why).into())
}

fn sqlite_sql(args: MigrateSqlArgs) -> anyhow::Result<String> {
    if args.roles || args.down || args.format == SqlFormat::Statements {
        return Err(UsageError(
            "--roles, --down and --format statements are for PostgreSQL; an outbox in SQLite is a \
             file, with the file's rights"
                .into(),
        )
        .into());
    }
    let (sql, version) = (posthaste_sqlite::migration_sql(), posthaste_sqlite::SCHEMA_VERSION);
    let title = "-- posthaste's schema for SQLite";
    if args.from == 0 {
        return Ok(format!("{title}, version {version}. Run it once.\n\n{sql}"));
    }
    refuse_beyond(version, args.from)?;
    if args.from == version {
        return Ok(format!("{title}: version {version} is the latest, nothing is to be done.\n"));
    }
    Err(UsageError(format!("SQLite's migrations are written from version 0 only; run `posthaste migrate up` to go from version {} to {version}", args.from)).into())
}

async fn adopt(yes: bool, config: &Config, output: Output) -> anyhow::Result<()> {
    if let Database::Sqlite { .. } = config.database {
        return Err(Hint {
            message: "only tables in PostgreSQL can be adopted".into(),
            hint: "on SQLite, run `posthaste migrate up` beside the old table's file and copy the \
                   rows"
                .into(),
        }
        .into());
    }
    let store = store::open(config, Missing::Refuse).await?;
    if !yes && !confirm_adoption()? {
        return Err(anyhow::anyhow!("nothing was changed"));
    }
    let report = store.adopt().await?;
    output.write(&report, || {
        format!(
            "adopted {} pending, {} dead and {} delivered events; the old table is kept as {}",
            report.pending, report.dead, report.delivered, report.kept_as
        )
    })
}

/// What writers and owners of the table will notice.
fn confirm_adoption() -> anyhow::Result<bool> {
    const EFFECTS: &str = "\
outbox_events becomes posthaste's, the old table is kept as outbox_events_flat. Afterwards
- `on conflict (id)` fails: no unique index can span what waits and the history. Writers say
  `on conflict do nothing` instead, which sees events that wait;
- nothing can refer to the table by a foreign key;
- a relay removes delivered events that are older than relay.retention (30 days by default) from it.
Writers wait while rows are copied.";
    if !output::can_ask() {
        return Err(UsageError(
            "adopt asks whether to change the table, and there is no terminal to ask on; give --yes \
             when writers need no `on conflict (id)`"
                .into(),
        )
        .into());
    }
    output::ask(&format!("{EFFECTS}\nAdopt it?"))
}

fn list(migrations: &[Migration]) -> Vec<serde_json::Value> {
    migrations
        .iter()
        .map(|migration| json!({ "version": migration.version, "name": migration.name }))
        .collect()
}
