//! What tests of examples and documents need around them.

use std::path::{Path, PathBuf};

use anyhow::{Result, bail};
use sqlx::{Connection as _, PgConnection};

const POSTGRES_URL: &str = "POSTHASTE_TEST_POSTGRES_URL";
const REQUIRE: &str = "POSTHASTE_TEST_REQUIRE_SERVICES";

/// A database of one test's own.
pub(crate) struct TestDatabase {
    server: String,
    name: String,
    url: String,
}

impl TestDatabase {
    /// `None`, with the reason printed, where there is no PostgreSQL.
    pub(crate) async fn create() -> Result<Option<Self>> {
        let server = std::env::var(POSTGRES_URL)
            .unwrap_or_else(|_| "postgres://root@127.0.0.1:5432/test".to_owned());
        let mut connection = match PgConnection::connect(&server).await {
            Ok(connection) => connection,
            Err(error) => {
                skip(&format!("no PostgreSQL ({error})"))?;
                return Ok(None);
            }
        };
        let name = format!("posthaste_test_{}", uuid::Uuid::now_v7().simple());
        sqlx::raw_sql(sqlx::AssertSqlSafe(format!("create database {name}")))
            .execute(&mut connection)
            .await?;
        let (base, options) = server.split_once('?').unwrap_or((&server, ""));
        let (base, _) = base.rsplit_once('/').unwrap_or((base, ""));
        let url = format!("{base}/{name}{}{options}", if options.is_empty() { "" } else { "?" });
        Ok(Some(Self { server, name, url }))
    }

    /// Where it is.
    pub(crate) fn url(&self) -> &str {
        &self.url
    }

    /// Removes it, whoever is still connected.
    pub(crate) async fn drop(self) -> Result<()> {
        let mut connection = PgConnection::connect(&self.server).await?;
        let statement = format!("drop database {} with (force)", self.name);
        sqlx::raw_sql(sqlx::AssertSqlSafe(statement)).execute(&mut connection).await?;
        Ok(())
    }
}

/// The interpreter that has SQLAlchemy; `None`, with the reason printed, where there is none.
pub(crate) fn python() -> Result<Option<PathBuf>> {
    let test = std::env::current_exe()?;
    let interpreter = test
        .ancestors()
        .map(|folder| folder.join("python-venv/bin/python"))
        .find(|interpreter| interpreter.exists());
    if interpreter.is_none() {
        skip("no Python environment; `cargo xtask test` makes one")?;
    }
    Ok(interpreter)
}

/// The root of the workspace.
pub(crate) fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// Says why a test is skipped; where services are required, fails instead.
fn skip(why: &str) -> Result<()> {
    if std::env::var(REQUIRE).is_ok_and(|value| value == "1") {
        bail!("{why}, and {REQUIRE}=1");
    }
    eprintln!("skipped: {why}");
    Ok(())
}
