//! How to reach the database.

use std::fmt;
use std::net::IpAddr;
use std::time::Duration;

use posthaste_core::Result;
use sqlx::ConnectOptions;
use sqlx::postgres::{PgConnectOptions, PgPoolOptions, PgSslMode};

use crate::address::{Address, process_environment};

/// How to reach the database, and how to use it. Its `Debug` never shows the URL's password.
#[derive(Clone)]
pub struct PostgresOptions {
    /// `postgres://user:password@host:port/database?sslmode=…`, in the forms that libpq reads. `None`
    /// takes the standard `PG*` variables, which also fill in what the URL leaves out. Where neither names a
    /// user, it is the one that this process runs as; one without a name is refused. Without an `sslmode`, TLS is used where the server offers it, except on this machine's loopback.
    ///
    /// Of several hosts (`host1,host2:5433`) the one that takes writes is used, also after a
    /// failover; of a single one that is made sure of with `target_session_attrs=read-write`.
    /// `schema` (or `currentSchema`) is the search path. A parameter that is not understood is
    /// refused, and so is one that asks for what cannot be done (`service`, `channel_binding=require`,
    /// `sslcrl` and others).
    pub url: Option<String>,
    /// Most connections of the pool. Default 8. One more is used for LISTEN, one for NOTIFY and one for
    /// `watch_interval`. A relay keeps up to three of the pool for itself, and leaves others at least one more
    /// than it keeps.
    pub max_connections: u32,
    /// Whether a pooler in transaction mode (`PgBouncer`, Supavisor) stands between. Nothing is
    /// then bound to a session: no named prepared statements, every operation in one explicit
    /// transaction, no LISTEN. Costs up to three round trips per operation. Default off.
    pub transaction_pooler: bool,
    /// Whether [`wait_for_events`](posthaste_core::OutboxRepository::wait_for_events) uses LISTEN.
    /// Default on. Where LISTEN fails, the relay goes on without it.
    pub listen: bool,
    /// How often the server looks, for a relay that
    /// [waits](posthaste_core::OutboxRepository::wait_for_events), whether somebody stores events and
    /// sends no NOTIFY, as plain SQL does. Default 10 ms, at least 1 ms: so late at most the relay begins
    /// to look for the commit. It takes a connection beside the pool, whose statements of a tenth of a
    /// second show in `pg_stat_activity`, and about a hundredth of one of the server's cores. `None`
    /// for never: then `poll_interval` is how late they are found.
    pub watch_interval: Option<Duration>,
    /// Whether a NOTIFY follows a commit that stored events. Default on.
    pub notify: bool,
    /// The longest wait for a connection. Default 5 s.
    pub connect_timeout: Duration,
    /// The longest time one statement may take; the server cancels it. Default 30 s. Migration,
    /// adoption and cleanup are exempt. Zero for no limit.
    pub statement_timeout: Duration,
    /// What `pg_stat_activity` shows. Default `posthaste`.
    pub application_name: String,
}

impl Default for PostgresOptions {
    fn default() -> Self {
        Self {
            url: None,
            max_connections: 8,
            transaction_pooler: false,
            listen: true,
            watch_interval: Some(Duration::from_millis(10)),
            notify: true,
            connect_timeout: Duration::from_secs(5),
            statement_timeout: Duration::from_secs(30),
            application_name: "posthaste".into(),
        }
    }
}

impl PostgresOptions {
    /// The defaults, at this URL.
    #[must_use]
    pub fn from_url(url: impl Into<String>) -> Self {
        Self { url: Some(url.into()), ..Self::default() }
    }

    /// Checks the URL and the `PG*` variables that fill it in, without connecting. Files they name must
    /// be readable.
    ///
    /// # Errors
    /// [`ErrorKind::Config`](posthaste_core::ErrorKind::Config), with the part that is wrong. Nothing
    /// of the URL but the names of its parameters is in the text.
    pub fn validate(&self) -> Result<()> {
        self.read_address().map(drop)
    }

    pub(crate) fn pool_options(&self) -> PgPoolOptions {
        PgPoolOptions::new()
            .max_connections(self.max_connections.max(1))
            .acquire_timeout(self.connect_timeout)
    }

    /// What the address says, and these settings with what it says of them.
    ///
    /// # Errors
    /// As [`validate`](Self::validate).
    pub(crate) fn read_address(&self) -> Result<(Self, Address)> {
        let mut settings = self.clone();
        let mut address = Address::read(self.url.as_deref(), &process_environment)?;
        settings.connect_timeout = address.connect_timeout.unwrap_or(self.connect_timeout);
        settings.transaction_pooler |= address.transaction_pooler;
        let all = std::mem::take(&mut address.servers);
        let all = all.into_iter().map(|server| settings.complete(server, address.names_ssl_mode));
        address.servers = all.collect();
        Ok((settings, address))
    }

    /// Adds what connections of ours need.
    fn complete(&self, options: PgConnectOptions, names_ssl_mode: bool) -> PgConnectOptions {
        let options = options.application_name(&self.application_name).disable_statement_logging();
        // Many servers offer TLS to everyone; to oneself it only costs time.
        let options = if is_loopback(options.get_host()) && !names_ssl_mode {
            options.ssl_mode(PgSslMode::Disable)
        } else {
            options
        };
        // Poolers refuse start-up parameters they do not know. We read no floats.
        let options = options.extra_float_digits(None);
        if self.transaction_pooler {
            return options.statement_cache_capacity(0);
        }
        let millis = self.statement_timeout.as_millis().to_string();
        options.options([
            ("statement_timeout", millis.as_str()),
            // A plan that was kept from when the outbox was empty reads the whole table when it
            // no longer is.
            ("plan_cache_mode", "force_custom_plan"),
        ])
    }
}

/// Whether connections are, or may turn out to be, encrypted.
pub(crate) fn may_use_tls(options: &PgConnectOptions) -> bool {
    options.get_socket().is_none() && !matches!(options.get_ssl_mode(), PgSslMode::Disable)
}

/// Whether the server is on this machine.
fn is_loopback(host: &str) -> bool {
    host == "localhost"
        || host.trim_matches(['[', ']']).parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

impl fmt::Debug for PostgresOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PostgresOptions")
            .field("url", &self.url.as_ref().map(|_| "(hidden)"))
            .field("max_connections", &self.max_connections)
            .field("transaction_pooler", &self.transaction_pooler)
            .field("listen", &self.listen)
            .field("watch_interval", &self.watch_interval)
            .field("notify", &self.notify)
            .field("connect_timeout", &self.connect_timeout)
            .field("statement_timeout", &self.statement_timeout)
            .field("application_name", &self.application_name)
            .finish()
    }
}

/// `host:port/database` of a connection, for errors and logs.
pub(crate) fn address(options: &PgConnectOptions) -> String {
    let host = options.get_socket().map_or_else(
        || options.get_host().to_owned(),
        |socket| socket.to_string_lossy().into_owned(),
    );
    let database = options.get_database().unwrap_or_else(|| options.get_username());
    format!("{host}:{}/{database}", options.get_port())
}

#[cfg(test)]
mod tests {
    use posthaste_core::ErrorKind;

    use super::*;

    #[test]
    fn tls_is_left_out_on_loopback_unless_asked_for() {
        let mode = |url: &str| {
            let (_, address) = PostgresOptions::from_url(url).read_address().unwrap();
            address.servers.into_iter().next().unwrap()
        };
        assert!(!may_use_tls(&mode("postgres://u@127.0.0.1/d")));
        assert!(!may_use_tls(&mode("postgres://u@localhost/d")));
        assert!(may_use_tls(&mode("postgres://u@localhost/d?sslmode=require")));
        assert!(may_use_tls(&mode("postgres://u@db.example.org/d")));
        assert!(!may_use_tls(&mode("postgres://u@db.example.org/d?sslmode=disable")));
    }

    #[test]
    fn password_shows_neither_in_debug_nor_in_errors() {
        let options = PostgresOptions::from_url("postgres://u:s3cret@db:5433/shop");
        assert!(!format!("{options:?}").contains("s3cret"));
        let (_, read) = options.read_address().unwrap();
        assert_eq!(address(&read.servers[0]), "db:5433/shop");
        for bad in ["postgres://u:s3cret@db:port/shop", "mysql://u:s3cret@db/shop", "s3cret"] {
            let error = PostgresOptions::from_url(bad).validate().unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Config);
            assert!(!error.report().contains("s3cret"), "{}", error.report());
        }
    }
}
