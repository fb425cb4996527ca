//! The two databases, as a program sees them that is not ours.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Result;
use posthaste::postgres::{PostgresOptions, PostgresOutbox};
use posthaste::sqlite::SqliteOutbox;
use posthaste::{OutboxMigrations as _, OutboxRepository};
use sqlx::{AssertSqlSafe, Connection as _, PgConnection, Row as _, SqliteConnection};
use uuid::Uuid;

use super::rows::Dialect;

/// Where seeds find an outbox of their own.
pub(crate) enum Place {
    /// A schema of this database.
    Postgres { url: String },
    /// A file of this folder.
    Sqlite { folder: PathBuf },
}

/// One seed's outbox: for a relay, and for plain SQL.
pub(crate) struct Database {
    pub(crate) dialect: Dialect,
    pub(crate) repository: Arc<dyn OutboxRepository>,
    address: Address,
}

enum Address {
    Postgres { url: String, schema: String, outbox: PostgresOutbox },
    Sqlite { url: String, outbox: SqliteOutbox },
}

/// A connection for plain SQL.
pub(crate) enum Plain {
    Postgres(PgConnection),
    Sqlite(SqliteConnection),
}

/// A row as it stands in the table.
#[derive(Debug, Clone)]
pub(crate) struct Stored {
    /// `None` where it is no id.
    pub(crate) id: Option<Uuid>,
    pub(crate) key: String,
    pub(crate) event_type: String,
    pub(crate) destination: String,
    pub(crate) delivered: bool,
    pub(crate) dead: bool,
    /// Its time has not come.
    pub(crate) scheduled: bool,
    pub(crate) dead_reason: Option<String>,
    pub(crate) error: Option<String>,
    /// All of it, for a report.
    pub(crate) text: String,
}

/// Text comes as bytes: what stands there need not be text. The key is as a relay compares it: one that
/// spells an aggregate's id, small and with hyphens, is that aggregate's.
const POSTGRES_ROWS: &str = "\
    select convert_to(id::text, 'UTF8') as id, \
        convert_to(coalesce(nullif(partition_key, ''), aggregate_id::text), 'UTF8') as key, \
        convert_to(event_type, 'UTF8') as event_type, \
        convert_to(coalesce(destination, ''), 'UTF8') as destination, \
        processed_at is not null as delivered, dead_at is not null as dead, \
        coalesce(available_at > now(), false) as scheduled, \
        convert_to(dead_reason, 'UTF8') as dead_reason, \
        convert_to(error_message, 'UTF8') as error_message, \
        convert_to(left(to_jsonb(e)::text, 1500), 'UTF8') as text \
    from outbox_events e order by seq";

const SQLITE_ROWS: &str = "\
    select cast(iif(typeof(id) = 'blob', hex(id), id) as blob) as id, \
        cast(iif(partition_key <> '', partition_key, \
            iif(length(order_key) = 32, substr(order_key, 1, 8) || '-' || substr(order_key, 9, 4) \
                || '-' || substr(order_key, 13, 4) || '-' || substr(order_key, 17, 4) || '-' \
                || substr(order_key, 21), order_key)) as blob) as key, \
        cast(event_type as blob) as event_type, \
        cast(coalesce(destination, '') as blob) as destination, \
        processed_at is not null as delivered, dead_at is not null as dead, \
        coalesce(julianday(available_at) > julianday('now'), false) as scheduled, \
        cast(dead_reason as blob) as dead_reason, cast(error_message as blob) as error_message, \
        cast(substr(concat_ws(' | ', seq, quote(id), quote(aggregate_id), quote(event_type), \
            'key', quote(partition_key), 'destination', quote(destination), 'topic', quote(topic), \
            'headers', quote(headers), 'data', substr(quote(event_data), 1, 200), \
            'payload', substr(quote(payload), 1, 100), quote(content_type), \
            'created', quote(created_at), 'available', quote(available_at), \
            'processed', quote(processed_at), 'dead', quote(dead_at), quote(dead_reason), \
            'count', quote(retry_count), quote(max_retries), quote(error_message)), 1, 1500) \
            as blob) as text \
    from outbox_events order by seq";

impl Place {
    pub(crate) const fn name(&self) -> &'static str {
        match self {
            Self::Postgres { .. } => "postgres",
            Self::Sqlite { .. } => "sqlite",
        }
    }

    pub(crate) async fn create(&self, seed: u64) -> Result<Database> {
        match self {
            Self::Postgres { url } => {
                let schema = format!("seed_{seed}");
                let mut connection = PgConnection::connect(url).await?;
                let create = format!("create schema {schema}");
                sqlx::raw_sql(AssertSqlSafe(create)).execute(&mut connection).await?;
                connection.close().await?;
                let sign = if url.contains('?') { '&' } else { '?' };
                let options = PostgresOptions {
                    max_connections: 4,
                    ..PostgresOptions::from_url(format!("{url}{sign}schema={schema}"))
                };
                let outbox = PostgresOutbox::connect(&options).await?;
                outbox.migrate().await?;
                Ok(Database {
                    dialect: Dialect::Postgres,
                    repository: Arc::new(outbox.clone()),
                    address: Address::Postgres { url: url.clone(), schema, outbox },
                })
            }
            Self::Sqlite { folder } => {
                let path = folder.join(format!("seed-{seed}.db"));
                let outbox = SqliteOutbox::open(&path).await?;
                outbox.migrate().await?;
                let url = format!("sqlite://{}", path.display());
                Ok(Database {
                    dialect: Dialect::Sqlite,
                    repository: Arc::new(outbox.clone()),
                    address: Address::Sqlite { url, outbox },
                })
            }
        }
    }
}

impl Database {
    pub(crate) async fn plain(&self) -> Result<Plain> {
        match &self.address {
            Address::Postgres { url, schema, .. } => {
                let mut connection = PgConnection::connect(url).await?;
                let settings = format!(
                    "set search_path to {schema}; set statement_timeout to '5s'; \
                     set client_min_messages to warning"
                );
                sqlx::raw_sql(AssertSqlSafe(settings)).execute(&mut connection).await?;
                Ok(Plain::Postgres(connection))
            }
            Address::Sqlite { url, .. } => {
                let mut connection = SqliteConnection::connect(url).await?;
                sqlx::raw_sql("pragma busy_timeout = 5000").execute(&mut connection).await?;
                Ok(Plain::Sqlite(connection))
            }
        }
    }

    pub(crate) async fn remove(self) -> Result<()> {
        match self.address {
            Address::Postgres { url, schema, outbox } => {
                outbox.pool().close().await;
                let mut connection = PgConnection::connect(&url).await?;
                let drop = format!("drop schema {schema} cascade");
                sqlx::raw_sql(AssertSqlSafe(drop)).execute(&mut connection).await?;
                connection.close().await?;
            }
            Address::Sqlite { outbox, .. } => {
                let path = outbox.path().to_owned();
                outbox.close().await;
                std::fs::remove_file(path)?;
            }
        }
        Ok(())
    }
}

impl Plain {
    /// Runs SQL, however odd. An error is the database's right.
    pub(crate) async fn run(&mut self, sql: &str) -> Result<(), sqlx::Error> {
        let sql = AssertSqlSafe(sql.to_owned());
        match self {
            Self::Postgres(connection) => sqlx::raw_sql(sql).execute(connection).await.map(drop),
            Self::Sqlite(connection) => sqlx::raw_sql(sql).execute(connection).await.map(drop),
        }
    }

    pub(crate) async fn rows(&mut self) -> Result<Vec<Stored>> {
        macro_rules! read {
            ($connection:expr, $sql:expr) => {{
                let rows = sqlx::query($sql).fetch_all($connection).await?;
                rows.iter()
                    .map(|row| {
                        let text = |column| {
                            let bytes: Option<Vec<u8>> = row.try_get(column)?;
                            let lossy =
                                |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
                            Ok::<_, sqlx::Error>(bytes.map(lossy))
                        };
                        Ok(Stored {
                            id: Uuid::try_parse(&text("id")?.unwrap_or_default()).ok(),
                            key: text("key")?.unwrap_or_default(),
                            event_type: text("event_type")?.unwrap_or_default(),
                            destination: text("destination")?.unwrap_or_default(),
                            delivered: row.try_get("delivered")?,
                            dead: row.try_get("dead")?,
                            scheduled: row.try_get("scheduled")?,
                            dead_reason: text("dead_reason")?,
                            error: text("error_message")?,
                            text: text("text")?.unwrap_or_default(),
                        })
                    })
                    .collect()
            }};
        }
        match self {
            Self::Postgres(connection) => read!(connection, POSTGRES_ROWS),
            Self::Sqlite(connection) => read!(connection, SQLITE_ROWS),
        }
    }
}
