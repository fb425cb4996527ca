//! A database of one test's own, dropped when the test ends, however it ends.

use posthaste_testkit::servers::{postgres_url, skip_test};
use sqlx::{AssertSqlSafe, Connection as _, PgConnection};
use uuid::Uuid;

/// A new database with nothing in it.
pub(crate) struct TestDatabase {
    pub(crate) name: String,
    /// The address of a database that is there already.
    server: String,
}

impl TestDatabase {
    /// On the shared server; `None` (after saying so) where there is none.
    pub(crate) async fn create() -> Option<Self> {
        let server = postgres_url();
        match PgConnection::connect(&server).await {
            Ok(connection) => Some(Self::create_on(connection, server).await),
            Err(error) => {
                skip_test(&format!("no PostgreSQL: {error}"));
                None
            }
        }
    }

    /// On another server, that of the address of a database.
    pub(crate) async fn create_at(server: String) -> Self {
        let connection = PgConnection::connect(&server).await.unwrap();
        Self::create_on(connection, server).await
    }

    async fn create_on(mut connection: PgConnection, server: String) -> Self {
        let name = format!("posthaste_test_{}", Uuid::now_v7().simple());
        let create = AssertSqlSafe(format!("create database {name}"));
        sqlx::raw_sql(create).execute(&mut connection).await.unwrap();
        connection.close().await.unwrap();
        Self { name, server }
    }

    pub(crate) fn url(&self) -> String {
        let (base, options) = self.server.split_once('?').unwrap_or((&self.server, ""));
        let (base, _) = base.rsplit_once('/').expect("the address of a database");
        let separator = if options.is_empty() { "" } else { "?" };
        format!("{base}/{}{separator}{options}", self.name)
    }

    pub(crate) async fn connection(&self) -> PgConnection {
        PgConnection::connect(&self.url()).await.unwrap()
    }

    /// What a query of one number finds.
    pub(crate) async fn count(&self, sql: &str) -> u64 {
        let mut connection = self.connection().await;
        let count = sqlx::query_scalar::<_, i64>(AssertSqlSafe(sql.to_owned()));
        let count = count.fetch_one(&mut connection).await.unwrap();
        connection.close().await.unwrap();
        count.try_into().unwrap()
    }

    /// Runs SQL the way any program would.
    pub(crate) async fn run(&self, sql: &str) {
        let mut connection = self.connection().await;
        sqlx::raw_sql(AssertSqlSafe(sql.to_owned())).execute(&mut connection).await.unwrap();
        connection.close().await.unwrap();
    }
}

impl TestDatabase {
    /// From a `drop`: what a test leaves in the whole server.
    pub(crate) fn run_at_the_end(&self, sql: String) {
        run_apart(&self.url(), sql);
    }
}

impl Drop for TestDatabase {
    fn drop(&mut self) {
        run_apart(&self.server, format!("drop database if exists {} with (force)", self.name));
    }
}

/// Runs SQL where nothing can be awaited, whatever comes of it.
fn run_apart(url: &str, sql: String) {
    let url = url.to_owned();
    // A thread of its own: `drop` cannot wait within the test's runtime.
    let ran = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        runtime.unwrap().block_on(async {
            if let Ok(mut connection) = PgConnection::connect(&url).await {
                let _ = sqlx::raw_sql(AssertSqlSafe(sql)).execute(&mut connection).await;
            }
        });
    });
    let _ = ran.join();
}
