//! The sections with fixed names: what can be given, with its type, its default and what it means.

use std::num::NonZeroU32;
use std::time::Duration;

use posthaste_config::value::Value;
use posthaste_config::{FromValue, Secret, ValueKind, settings};
use posthaste_core::RetryPolicy;
use posthaste_processor::{ProcessorSettings, UnknownDestination};

use super::schema::{ANY_COUNT, duration};

settings! {
    /// The outbox that is read. The address is taken from the first of these that is given:
    /// `--database-url`, `POSTHASTE_DATABASE_URL`, `database.url` in the file, `DATABASE_URL`,
    /// the standard `PG*` variables. Where none is given and no destination is configured, it
    /// is the SQLite file `posthaste.db` in the working directory; with destinations, that must
    /// be named as well.
    pub(crate) struct DatabaseSettings in "database." {
        /// `postgres://USER@HOST/DATABASE`, or `sqlite:PATH`. The name of a driver, as in
        /// `postgresql+psycopg://`, is ignored. libpq's forms are read: a socket as
        /// `?host=/FOLDER`; several hosts with commas between, of which the one that takes
        /// writes is used, also after a failover; `sslmode`, `sslrootcert` (`system`, too),
        /// `sslcert`, `sslkey`, `connect_timeout`, `target_session_attrs`, `options`; and
        /// `schema` or `currentSchema`, the search path. A parameter that is not known is
        /// refused, and so is one that asks for what posthaste cannot do: `service`,
        /// `sslpassword`, `channel_binding=require`, `sslcrl` and others. The same holds for
        /// the `PG*` variables, which fill in what the URL leaves out; where neither names a
        /// user, it is the one that posthaste runs as, as with libpq, and a process without a
        /// name there is refused. Away from this machine, say `sslmode=verify-full`: without it
        /// nobody proves who the server is.
        pub(crate) url: Option<Secret> =
            ValueKind::SecretUrl.optional("`sqlite:posthaste.db`, where the environment names no database and no destination is configured"),
        /// Whether `run` creates or upgrades the schema before it starts. Set it to `false`
        /// where the relay's user may not change the schema, and run `posthaste migrate up` (or
        /// the output of `posthaste migrate sql`) as the owner.
        pub(crate) migrate: bool =
            ValueKind::Bool.or("true"),
        /// The most connections to PostgreSQL that are shared; up to three more hear of new
        /// events and tell of them. The relay needs few; more do not make it faster. Without
        /// effect on SQLite.
        pub(crate) max_connections: u32 =
            ValueKind::Integer { min: 2, max: 1_000 }.or("8"),
        /// How often PostgreSQL looks, for a relay that waits, whether somebody stored events
        /// and sent no NOTIFY, as plain SQL does. It takes a connection and about a hundredth
        /// of one of the server's cores; a longer interval takes less. When `off`, such events
        /// are found after `relay.poll_interval` at the latest. Without effect on SQLite.
        pub(crate) watch_interval: Option<Duration> =
            ValueKind::Duration { min_ms: 1, none: Some("off") }.or("10ms"),
        /// Set it to `true` when PostgreSQL is reached through a pooler in transaction mode
        /// (PgBouncer, Supavisor). Prepared statements are then not kept between transactions;
        /// without it such a pooler gives errors about prepared statements.
        pub(crate) transaction_pooler: bool =
            ValueKind::Bool.or("false"),
    }
}

settings! {
    /// How events are delivered.
    pub(crate) struct RelaySettings in "relay." {
        /// The most events fetched by one query.
        pub(crate) batch_size: usize =
            ValueKind::Integer { min: 1, max: 100_000 }.or("1000"),
        /// The longest wait between two looks at an idle outbox when no wake-up comes: the
        /// worst latency where nothing tells of new events (see `database.watch_interval`).
        pub(crate) poll_interval: Duration =
            ValueKind::POSITIVE_DURATION.or("100ms"),
        /// The most events published and not yet acknowledged, over all destinations. It bounds
        /// the repeated deliveries after a crash, too.
        pub(crate) max_concurrent_events: usize =
            ValueKind::Integer { min: 1, max: ANY_COUNT }.or("1000"),
        /// Where several relays share an outbox: how long one counts as alive after it last
        /// told the database so. When it dies, the others take over within this time and a
        /// quarter.
        pub(crate) lease_ttl: Duration =
            duration(1_000).or("5s"),
        /// The most events published in a second, over all destinations.
        pub(crate) rate_limit_events_per_second: Option<NonZeroU32> =
            ValueKind::Integer { min: 1, max: u32::MAX as i64 }.optional("no limit"),
        /// The most payload held in memory. A single larger event may exceed it alone.
        pub(crate) buffer_bytes_max: usize =
            ValueKind::Bytes.or("64MiB"),
        /// How long a stop waits for acknowledgements. What is unacknowledged then stays
        /// pending and is sent again at the next start. Keep it below the grace period of your
        /// process supervisor.
        pub(crate) shutdown_timeout: Duration =
            duration(0).or("30s"),
        /// How long failures count no attempt that nothing proves to be their events' own,
        /// because nothing else is there to send or others fail as well. An outage of a quiet
        /// destination that is shorter costs no attempt; a lone event that cannot be delivered
        /// is tried for so long before its first attempt counts. `run --once` and `run --drain`
        /// have no patience.
        pub(crate) outage_patience: Duration =
            duration(0).or("2m"),
        /// What happens to events whose `destination` column names one that is not configured
        /// here: `hold` keeps them, and their keys, until a relay knows the name, since writers
        /// may be deployed first; with `dead` they are dead letters at once.
        pub(crate) unknown_destination: String =
            ValueKind::Choice(&["hold", "dead"]).or("hold"),
        /// Delivered events older than this are removed. Pending and dead ones never are. With
        /// `0s` none is kept: an event is deleted in the moment its delivery is recorded. That
        /// is faster, and leaves no delivered event to list or show.
        pub(crate) retention: Option<Duration> =
            ValueKind::Duration { min_ms: 0, none: Some("forever") }.or("30d"),
    }
}

settings! {
    /// When an event that failed is tried again. An outage of a whole destination is not a
    /// failure of an event and counts no attempt.
    pub(crate) struct RetrySettings in "relay.retry." {
        /// How many failed attempts make a dead letter, whatever the event's row says. A
        /// destination may say otherwise.
        pub(crate) max_attempts: Option<u32> =
            ValueKind::Integer { min: 1, max: ANY_COUNT }.optional("the `max_retries` of each event, 3 unless its writer says otherwise"),
        /// The delay before the first retry.
        pub(crate) base_delay: Duration =
            ValueKind::POSITIVE_DURATION.or("1s"),
        /// The longest delay between two attempts.
        pub(crate) max_delay: Duration =
            ValueKind::POSITIVE_DURATION.or("60s"),
        /// The factor from one delay to the next; at least 1.
        pub(crate) backoff_multiplier: f64 =
            ValueKind::Number.or("2.0"),
        /// Draw each delay from its upper half, so that events that failed together do not come
        /// back together.
        pub(crate) jitter: bool =
            ValueKind::Bool.or("true"),
    }
}

settings! {
    /// The listener for health checks and metrics: `/livez`, `/readyz` and `/metrics`. It has
    /// no authentication: bind it to an address that only your own systems reach.
    pub(crate) struct OpsSettings in "ops." {
        /// Where it listens, for 64 connections at a time. `run --once` and `run --drain`
        /// listen only where this key is given.
        pub(crate) listen: Listen =
            ValueKind::Listen.or("127.0.0.1:9464"),
        /// `/readyz` fails when events wait and none was acknowledged for this long. Too short
        /// a time makes a slow broker look like a broken relay.
        pub(crate) stall_after: Duration =
            ValueKind::POSITIVE_DURATION.or("1m"),
    }
}

settings! {
    /// Logs go to standard error, data to standard output. `RUST_LOG` overrules the level.
    /// Where standard error is not read, lines are dropped and counted
    /// (`outbox_log_lines_dropped_total`), and nothing else waits for it.
    pub(crate) struct LogSettings in "log." {
        /// The least severe messages to write. `trace` can write the text of statements.
        pub(crate) level: String =
            ValueKind::Choice(&["error", "warn", "info", "debug", "trace"]).or("info"),
        /// `json` writes one object a line.
        pub(crate) format: LogFormat =
            ValueKind::Choice(&["text", "json"]).or("text"),
    }
}

impl RelaySettings {
    /// What the processor takes of them.
    pub(crate) fn processor(&self, retry: &RetrySettings) -> ProcessorSettings {
        ProcessorSettings {
            batch_size: self.batch_size,
            poll_interval: self.poll_interval,
            max_concurrent_events: self.max_concurrent_events,
            lease_ttl: self.lease_ttl,
            retry_policy: RetryPolicy {
                base_delay: retry.base_delay,
                max_delay: retry.max_delay,
                backoff_multiplier: retry.backoff_multiplier,
                jitter: retry.jitter,
            },
            outage_patience: self.outage_patience,
            unknown_destination: match self.unknown_destination.as_str() {
                "dead" => UnknownDestination::Dead,
                _ => UnknownDestination::Hold,
            },
            rate_limit_events_per_second: self.rate_limit_events_per_second,
            buffer_bytes_max: self.buffer_bytes_max,
            shutdown_timeout: self.shutdown_timeout,
            retention: self.retention,
        }
    }
}

/// Where the ops listener listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Listen {
    /// Nowhere.
    Off,
    /// At `HOST:PORT`.
    At(String),
}

impl FromValue for Listen {
    fn from_value(value: &Value) -> Option<Self> {
        let text = String::from_value(value)?;
        Some(if text == "off" { Self::Off } else { Self::At(text) })
    }
}

/// How logs are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

impl FromValue for LogFormat {
    fn from_value(value: &Value) -> Option<Self> {
        match String::from_value(value)?.as_str() {
            "text" => Some(Self::Text),
            "json" => Some(Self::Json),
            _ => None,
        }
    }
}
