//! `posthaste migrate`.

use posthaste_core::Migration;
use serde_json::json;

use crate::arguments::MigrateCommand;
use crate::config::{Config, Database};
use crate::exit::Hint;
use crate::output::{Output, table, write_text};
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
        MigrateCommand::Sql => write_text(&store::migration_sql(config).await?),
        MigrateCommand::Adopt => adopt(config, output).await,
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

async fn adopt(config: &Config, output: Output) -> anyhow::Result<()> {
    if let Database::Sqlite { .. } = config.database {
        return Err(Hint {
            message: "only tables in PostgreSQL can be adopted".into(),
            hint: "on SQLite, run `posthaste migrate up` beside the old table's file and copy the \
                   rows"
                .into(),
        }
        .into());
    }
    let report = store::open(config, Missing::Refuse).await?.adopt().await?;
    output.write(&report, || {
        format!(
            "adopted {} pending, {} dead and {} delivered events; the old table is kept as {}",
            report.pending, report.dead, report.delivered, report.kept_as
        )
    })
}

fn list(migrations: &[Migration]) -> Vec<serde_json::Value> {
    migrations
        .iter()
        .map(|migration| json!({ "version": migration.version, "name": migration.name }))
        .collect()
}
