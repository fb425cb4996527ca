//! Every configuration key, declared once.
//!
//! Parsing, environment names, suggestions, the reference and redaction all read these tables; a
//! key that is not here does not exist.

use posthaste_config::{DefaultValue, Key, Schema, Section, ValueKind};

use crate::kinds;

const ANY_COUNT: i64 = 1_000_000;
const DEAD_HEADS: &[&str] = &["block", "skip"];
const LOG_LEVELS: &[&str] = &["error", "warn", "info", "debug", "trace"];

const fn key(path: &'static str, kind: ValueKind, default: DefaultValue, doc: &'static str) -> Key {
    Key { path, kind, default, doc }
}

const fn duration(min_ms: u64) -> ValueKind {
    ValueKind::Duration { min_ms, none: None }
}

/// All sections with fixed names, in the order of the reference.
pub(crate) const SECTIONS: &[Section] = &[
    Section {
        name: "database",
        doc: "The outbox that is read. The address is taken from the first of these that is \
              given: `--database-url`, `POSTHASTE_DATABASE_URL`, `database.url` in the file, \
              `DATABASE_URL`, the standard `PG*` variables. Where none is given and no \
              destination is configured, it is the SQLite file `posthaste.db` in the working \
              directory; with destinations, that must be named as well.",
        keys: &[
            key(
                "database.url",
                ValueKind::SecretUrl,
                DefaultValue::Absent(
                    "`sqlite:posthaste.db`, where the environment names no database and no \
                     destination is configured",
                ),
                "`postgres://USER@HOST/DATABASE`, or `sqlite:PATH`. The name of a driver, as in \
                 `postgresql+psycopg://`, is ignored. libpq's forms are read: a socket as \
                 `?host=/FOLDER`; several hosts with commas between, of which the one that takes writes \
                 is used, also after a failover; `sslmode`, `sslrootcert` (`system`, too), `sslcert`, \
                 `sslkey`, `connect_timeout`, `target_session_attrs`, `options`; and `schema` or \
                 `currentSchema`, the search path. A parameter that is not known is refused, and so is \
                 one that asks for what posthaste cannot do: `service`, `sslpassword`, \
                 `channel_binding=require`, `sslcrl` and others. The same holds for the `PG*` variables, \
                 which fill in what the URL leaves out; where neither names a user, it is the one that \
                 posthaste runs as, as with libpq, and a process without a name there is refused. Away from this machine, say \
                 `sslmode=verify-full`: without it nobody proves who the server is.",
            ),
            key(
                "database.migrate",
                ValueKind::Bool,
                DefaultValue::Value("true"),
                "Whether `run` creates or upgrades the schema before it starts. Set it to `false` \
                 where the relay's user may not change the schema, and run `posthaste migrate up` \
                 (or the output of `posthaste migrate sql`) as the owner.",
            ),
            key(
                "database.max_connections",
                ValueKind::Integer { min: 2, max: 1_000 },
                DefaultValue::Value("8"),
                "The most connections to PostgreSQL that are shared; up to three more hear of new events \
                 and tell of them. The relay needs few; more do not make it faster. Without effect on \
                 SQLite.",
            ),
            key(
                "database.watch_interval",
                ValueKind::Duration { min_ms: 1, none: Some("off") },
                DefaultValue::Value("10ms"),
                "How often PostgreSQL looks, for a relay that waits, whether somebody stored events and \
                 sent no NOTIFY, as plain SQL does. It takes a connection and about a hundredth of \
                 one of the server's cores; a longer interval takes less. When `off`, such events are \
                 found after `relay.poll_interval` at the latest. Without effect on SQLite.",
            ),
            key(
                "database.transaction_pooler",
                ValueKind::Bool,
                DefaultValue::Value("false"),
                "Set it to `true` when PostgreSQL is reached through a pooler in transaction mode \
                 (PgBouncer, Supavisor). Prepared statements are then not kept between \
                 transactions; without it such a pooler gives errors about prepared statements.",
            ),
        ],
    },
    Section {
        name: "relay",
        doc: "How events are delivered.",
        keys: &[
            key(
                "relay.batch_size",
                ValueKind::Integer { min: 1, max: 100_000 },
                DefaultValue::Value("1000"),
                "The most events fetched by one query.",
            ),
            key(
                "relay.poll_interval",
                duration(1),
                DefaultValue::Value("100ms"),
                "The longest wait between two looks at an idle outbox when no wake-up comes: the worst \
                 latency where nothing tells of new events (see `database.watch_interval`).",
            ),
            key(
                "relay.max_concurrent_events",
                ValueKind::Integer { min: 1, max: ANY_COUNT },
                DefaultValue::Value("1000"),
                "The most events published and not yet acknowledged, over all destinations. It \
                 bounds the repeated deliveries after a crash, too.",
            ),
            key(
                "relay.lease_ttl",
                duration(1_000),
                DefaultValue::Value("5s"),
                "Where several relays share an outbox: how long one counts as alive after it last told \
                 the database so. When it dies, the others take over within this time and a quarter.",
            ),
            key(
                "relay.rate_limit_events_per_second",
                ValueKind::Integer { min: 1, max: u32::MAX as i64 },
                DefaultValue::Absent("no limit"),
                "The most events published in a second, over all destinations.",
            ),
            key(
                "relay.buffer_bytes_max",
                ValueKind::Bytes,
                DefaultValue::Value("64MiB"),
                "The most payload held in memory. A single larger event may exceed it alone.",
            ),
            key(
                "relay.shutdown_timeout",
                duration(0),
                DefaultValue::Value("30s"),
                "How long a stop waits for acknowledgements. What is unacknowledged then stays \
                 pending and is sent again at the next start. Keep it below the grace period of \
                 your process supervisor.",
            ),
            key(
                "relay.outage_patience",
                duration(0),
                DefaultValue::Value("2m"),
                "How long failures count no attempt that nothing proves to be their events' own, because \
                 nothing else is there to send or others fail as well. An outage of a quiet \
                 destination that is shorter costs no attempt; a lone event that cannot be delivered \
                 is tried for so long before its first attempt counts. `run --once` and `run --drain` \
                 have no patience.",
            ),
            key(
                "relay.unknown_destination",
                ValueKind::Choice(&["hold", "dead"]),
                DefaultValue::Value("hold"),
                "What happens to events whose `destination` column names one that is not configured \
                 here: `hold` keeps them, and their keys, until a relay knows the name, since writers \
                 may be deployed first; with `dead` they are dead letters at once.",
            ),
            key(
                "relay.retention",
                ValueKind::Duration { min_ms: 0, none: Some("forever") },
                DefaultValue::Value("30d"),
                "Delivered events older than this are removed. Pending and dead ones never are. \
                 With `0s` none is kept: an event is deleted in the moment its delivery is \
                 recorded. That is faster, and leaves no delivered event to list or show.",
            ),
        ],
    },
    Section {
        name: "relay.retry",
        doc: "When an event that failed is tried again. An outage of a whole destination is not \
              a failure of an event and counts no attempt.",
        keys: &[
            key(
                "relay.retry.max_attempts",
                ValueKind::Integer { min: 1, max: ANY_COUNT },
                DefaultValue::Absent(
                    "the `max_retries` of each event, 3 unless its writer says otherwise",
                ),
                "How many failed attempts make a dead letter, whatever the event's row says. A \
                 destination may say otherwise.",
            ),
            key(
                "relay.retry.base_delay",
                duration(1),
                DefaultValue::Value("1s"),
                "The delay before the first retry.",
            ),
            key(
                "relay.retry.max_delay",
                duration(1),
                DefaultValue::Value("60s"),
                "The longest delay between two attempts.",
            ),
            key(
                "relay.retry.backoff_multiplier",
                ValueKind::Number,
                DefaultValue::Value("2.0"),
                "The factor from one delay to the next; at least 1.",
            ),
            key(
                "relay.retry.jitter",
                ValueKind::Bool,
                DefaultValue::Value("true"),
                "Draw each delay from its upper half, so that events that failed together do not \
                 come back together.",
            ),
        ],
    },
    Section {
        name: "ops",
        doc: "The listener for health checks and metrics: `/livez`, `/readyz` and `/metrics`. It \
              has no authentication: bind it to an address that only your own systems reach.",
        keys: &[
            key(
                "ops.listen",
                ValueKind::Listen,
                DefaultValue::Value("127.0.0.1:9464"),
                "Where it listens, for 64 connections at a time. `run --once` and `run --drain` listen only \
                 where this key is given.",
            ),
            key(
                "ops.stall_after",
                duration(1),
                DefaultValue::Value("1m"),
                "`/readyz` fails when events wait and none was acknowledged for this long. Too \
                 short a time makes a slow broker look like a broken relay.",
            ),
        ],
    },
    Section {
        name: "log",
        doc: "Logs go to standard error, data to standard output. `RUST_LOG` overrules the level. Where \
              standard error is not read, lines are dropped and counted \
              (`outbox_log_lines_dropped_total`), and nothing else waits for it.",
        keys: &[
            key(
                "log.level",
                ValueKind::Choice(LOG_LEVELS),
                DefaultValue::Value("info"),
                "The least severe messages to write. `trace` can write the text of statements.",
            ),
            key(
                "log.format",
                ValueKind::Choice(&["text", "json"]),
                DefaultValue::Value("text"),
                "`json` writes one object a line.",
            ),
        ],
    },
];

/// The keys of each `[[routes]]`, with whole paths.
pub(crate) const ROUTE_KEYS: &[Key] = &[
    key(
        "routes[].event_type",
        ValueKind::Text,
        DefaultValue::Required,
        "Which event types; `*` stands for any run of characters: `order.*`.",
    ),
    key(
        "routes[].destination",
        ValueKind::Text,
        DefaultValue::Required,
        "The name of the destination that they go to.",
    ),
    key(
        "routes[].dead_head",
        ValueKind::Choice(DEAD_HEADS),
        DefaultValue::Absent("what the destination says"),
        "What happens to the later events of a key whose first one came this way and is a dead \
         letter: `block` or `skip`, as for a destination.",
    ),
];

/// The keys that every destination has.
pub(crate) const DESTINATION_KEYS: &[Key] = &[
    key(
        "type",
        ValueKind::Choice(&kinds::NAMES),
        DefaultValue::Required,
        "What kind of destination it is.",
    ),
    key(
        "dead_head",
        ValueKind::Choice(DEAD_HEADS),
        DefaultValue::Value("block"),
        "What happens to the later events of a key whose first one is a dead letter: `block` \
         keeps them waiting until someone retries or discards it, which keeps the key's order; \
         `skip` goes on without it. A route may say otherwise for what goes its way.",
    ),
    key(
        "max_attempts",
        ValueKind::Integer { min: 1, max: ANY_COUNT },
        DefaultValue::Absent("what `relay.retry.max_attempts` says"),
        "How many failed attempts make a dead letter here, whatever the event's row says.",
    ),
    key(
        "base_delay",
        duration(1),
        DefaultValue::Absent("what `relay.retry.base_delay` says"),
        "The delay before the first retry.",
    ),
    key(
        "max_delay",
        duration(1),
        DefaultValue::Absent("what `relay.retry.max_delay` says"),
        "The longest delay between two attempts.",
    ),
];

/// All that a configuration of this program can hold.
pub(crate) const SCHEMA: Schema = Schema {
    sections: SECTIONS,
    destination: DESTINATION_KEYS,
    kinds: &kinds::SECTIONS,
    route: ROUTE_KEYS,
};
