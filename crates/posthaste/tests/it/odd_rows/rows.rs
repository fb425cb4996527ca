//! What is stored and edited, made from a seed.

use rand::rngs::SmallRng;
use rand::{RngExt as _, SeedableRng as _};
use uuid::Uuid;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Dialect {
    Postgres,
    Sqlite,
}

/// The type of rows that are as every writer means them, and that no edit touches.
pub(crate) const PLAIN: &str = "plain.row";
/// The key of rows that tell whether anything stops the rest.
pub(crate) const ALIVE: &str = "alive";

/// Named keys; the bus has an answer for each.
pub(crate) const KEYS: [&str; 10] = ["k0", "k1", "k2", "k3", "k4", "k5", "k6", "k7", "k8", "k9"];
const AGGREGATES: [&str; 3] = [
    "'a0000000-0000-4000-8000-000000000001'",
    "'a0000000-0000-4000-8000-000000000002'",
    "'A0000000-0000-4000-8000-00000000000F'",
];

/// Makes SQL of a seed.
pub(crate) struct Writer {
    random: SmallRng,
    dialect: Dialect,
}

/// What happens next.
pub(crate) enum Step {
    /// A row that must be delivered, or be dead for what the bus answers, of this id.
    Plain {
        id: Uuid,
        sql: String,
    },
    /// An odd row or edit.
    Odd(String),
    /// Locks that are held for so many milliseconds, and then let go.
    Lock {
        sql: String,
        milliseconds: u64,
    },
    Pause {
        milliseconds: u64,
    },
}

impl Writer {
    pub(crate) fn new(seed: u64, dialect: Dialect) -> Self {
        Self { random: SmallRng::seed_from_u64(seed), dialect }
    }

    pub(crate) fn random(&mut self) -> &mut SmallRng {
        &mut self.random
    }

    pub(crate) fn next(&mut self) -> Step {
        match self.random.random_range(0..100) {
            0..30 => {
                let key = self.pick(&KEYS).to_owned();
                self.plain(&key)
            }
            30..62 => Step::Odd(self.odd_row()),
            62..86 => Step::Odd(self.edit()),
            86..92 => {
                Step::Lock { sql: self.lock(), milliseconds: self.random.random_range(20..300) }
            }
            _ => Step::Pause { milliseconds: self.random.random_range(1..60) },
        }
    }

    /// A row as every writer means it.
    pub(crate) fn plain(&mut self, key: &str) -> Step {
        let id = Uuid::from_u128(self.random.random::<u128>() | 1);
        let aggregate = self.pick(&AGGREGATES);
        let sql = format!(
            "insert into outbox_events (id, aggregate_id, event_type, event_data, partition_key) \
             values ('{id}', {aggregate}, '{PLAIN}', '{{\"n\":1}}', '{key}')"
        );
        Step::Plain { id, sql }
    }

    fn pick<'a>(&mut self, from: &[&'a str]) -> &'a str {
        from[self.random.random_range(0..from.len())]
    }

    fn odd_row(&mut self) -> String {
        let mut columns = vec!["aggregate_id", "event_type", "event_data"];
        let mut values = vec![
            self.pick(&AGGREGATES).to_owned(),
            "'odd.row'".to_owned(),
            "'{\"odd\":true}'".to_owned(),
        ];
        if self.random.random_bool(0.5) {
            columns.push("partition_key");
            values.push(format!("'{}'", self.pick(&KEYS)));
        }
        for _ in 0..self.random.random_range(1..4) {
            let (column, value) = self.odd_value();
            match columns.iter().position(|other| *other == column) {
                Some(there) => values[there] = value,
                None => {
                    columns.push(column);
                    values.push(value);
                }
            }
        }
        format!("insert into outbox_events ({}) values ({})", columns.join(", "), values.join(", "))
    }

    fn edit(&mut self) -> String {
        let rows = self.random.random_range(1..6);
        // No `random()` of the database's: a seed is to do the same again.
        let which = self.random.random_range(1..97);
        let some = format!(
            "seq in (select seq from outbox_events where processed_at is null \
             and event_type <> '{PLAIN}' order by seq * {which} % 97 limit {rows})"
        );
        match self.random.random_range(0..10) {
            0 => format!("delete from outbox_events where {some}"),
            1 => format!("update outbox_events set available_at = null where {some}"),
            2 => format!(
                "update outbox_events set dead_at = null, dead_reason = null, retry_count = 0 \
                 where dead_at is not null and {some}"
            ),
            3 => format!(
                "update outbox_events set partition_key = '{}' where {some}",
                self.pick(&KEYS)
            ),
            _ => {
                let (column, value) = self.odd_value();
                format!("update outbox_events set {column} = {value} where {some}")
            }
        }
    }

    fn lock(&mut self) -> String {
        match self.dialect {
            Dialect::Sqlite => {
                let kind = self.pick(&["immediate", "exclusive"]);
                format!("begin {kind}")
            }
            Dialect::Postgres => match self.random.random_range(0..6) {
                0 => "begin; lock table outbox_events in share mode".to_owned(),
                1 => "begin; lock table outbox_events in access exclusive mode".to_owned(),
                _ => {
                    let rows = self.random.random_range(1..5);
                    let which = self.random.random_range(1..97);
                    let strength = self.pick(&["update", "no key update", "share", "key share"]);
                    format!(
                        "begin; select 1 from outbox_events where processed_at is null \
                         order by seq * {which} % 97 limit {rows} for {strength}"
                    )
                }
            },
        }
    }

    /// A column, and what few writers put into it.
    fn odd_value(&mut self) -> (&'static str, String) {
        let table = match self.random.random_range(0..4) {
            0 => match self.dialect {
                Dialect::Postgres => POSTGRES_VALUES,
                Dialect::Sqlite => SQLITE_VALUES,
            },
            _ => VALUES,
        };
        let (column, values) = table[self.random.random_range(0..table.len())];
        (column, self.pick(values).to_owned())
    }
}

type Values = &'static [(&'static str, &'static [&'static str])];

/// Of every database.
const VALUES: Values = &[
    (
        "id",
        &[
            "'00000000-0000-0000-0000-000000000000'",
            "'B0000000-0000-4000-8000-00000000000A'",
            "'b00000000000400080000000000000bb'",
            "null",
        ],
    ),
    ("aggregate_id", &["'00000000-0000-0000-0000-000000000000'", "'no uuid'", "''", "null"]),
    ("event_type", &["''", "' '", "'a b'", "'a.*'", "'Ä'", "'a\nb'", "'$SYS.x'", "null"]),
    (
        "event_data",
        &[
            "'null'",
            "'\"text\"'",
            "'[]'",
            "'{'",
            "''",
            "'{\"a\":1,\"a\":2}'",
            "'{\"a\":\"\\u0000\"}'",
            "'[\"\\ud800\"]'",
            "'[1e300]'",
            "'[1e1000]'",
            "null",
        ],
    ),
    (
        "partition_key",
        &[
            "''",
            "' '",
            "'k\n1'",
            "'Müller'",
            "'k1'",
            "null",
            "'a0000000-0000-4000-8000-000000000001'",
        ],
    ),
    ("destination", &["''", "'default'", "'Default'", "'nowhere'", "' '", "null"]),
    ("topic", &["''", "'a b'", "'..'", "'>'", "null"]),
    (
        "headers",
        &[
            "'{}'",
            "'null'",
            "'[]'",
            "'\"text\"'",
            "'{\"a\":null}'",
            "'{\"a\":[1]}'",
            "'{\"a b\":\"c\"}'",
            "'{\"\":\"c\"}'",
            "'{\"a\":\"line\\nbreak\"}'",
            "'{\"ph-id\":\"x\",\"content-type\":\"text/plain\"}'",
            "'{\"ü\":\"ü\"}'",
            "null",
        ],
    ),
    ("content_type", &["''", "'nonsense'", "'text/plain'", "null"]),
    ("created_at", &["null", "'0001-01-01'", "'9999-12-31'", "'2020-01-01'"]),
    ("available_at", &["null", "'0001-01-01'", "'9999-12-31'", "'2020-01-01'"]),
    ("processed_at", &["'0001-01-01'", "'2020-01-01'", "'9999-12-31'"]),
    ("dead_at", &["'0001-01-01'", "'2020-01-01'", "'9999-12-31'"]),
    ("dead_reason", &["''", "'made up'", "null"]),
    ("retry_count", &["null", "-1", "3", "2147483647", "-2147483648"]),
    ("max_retries", &["null", "0", "-1", "1", "2147483647", "-2147483648"]),
    ("error_message", &["''", "'made up'", "null"]),
];

const POSTGRES_VALUES: Values = &[
    (
        "event_data",
        &[
            "to_jsonb(repeat('x', 200000))",
            "('[' || repeat('[', 3000) || repeat(']', 3000) || ']')::jsonb",
            "jsonb_build_object(repeat('k', 3000), 1)",
            "'[1e100000]'",
        ],
    ),
    ("event_type", &["repeat('x', 100)", "repeat('x', 101)", "chr(1)"]),
    ("partition_key", &["repeat('k', 512)", "repeat('k', 513)", "repeat('k', 9000)", "chr(7)"]),
    (
        "headers",
        &[
            "jsonb_build_object('a', repeat('x', 17000))",
            "jsonb_build_object(repeat('a', 200), 'x')",
        ],
    ),
    ("payload", &["''", "'\\xff00'", "decode(repeat('00', 100000), 'hex')"]),
    ("created_at", &["'infinity'", "'-infinity'", "'4713-01-01 BC'", "'294276-01-01'"]),
    (
        "available_at",
        &[
            "'infinity'",
            "'-infinity'",
            "'294276-01-01'",
            "now() + interval '300 milliseconds'",
            "now() + interval '1 hour'",
        ],
    ),
    ("processed_at", &["'infinity'", "'-infinity'", "now()"]),
    ("dead_at", &["'infinity'", "'-infinity'", "now()"]),
];

const SQLITE_VALUES: Values = &[
    ("id", &["x'b0000000000040008000000000000bbb'", "x'00'", "7", "'no uuid'", "''"]),
    ("aggregate_id", &["x'a0000000000040008000000000000001'", "x''", "7", "1.5"]),
    ("event_type", &["7", "x'ff'", "printf('%.101c', 'x')"]),
    ("event_data", &["7", "x'7b7d'", "'{a:1}'", "json_array(printf('%.200000c', 'x'))", "1.5"]),
    ("partition_key", &["7", "x'ff'", "printf('%.600c', 'k')", "'a' || char(0) || 'b'", "1.5"]),
    ("destination", &["7", "x'00'"]),
    ("headers", &["7", "x'7b7d'", "'{'", "''", "json_object('a', printf('%.17000c', 'x'))"]),
    ("payload", &["x''", "x'ff00'", "'text'", "7"]),
    ("created_at", &["7", "'nonsense'", "1e308", "x'00'", "''", "'2020-01-01 00:00:00+02:00'"]),
    (
        "available_at",
        &[
            "7",
            "'nonsense'",
            "''",
            "x'00'",
            "1e308",
            "strftime('%Y-%m-%dT%H:%M:%fZ', 'now', '+0.3 seconds')",
            "datetime('now', '+1 hour')",
            "unixepoch() + 3600",
        ],
    ),
    ("processed_at", &["7", "''", "0"]),
    ("dead_at", &["7", "''", "0"]),
    ("retry_count", &["'x'", "1.5", "9223372036854775807", "-9223372036854775808", "x'01'"]),
    ("max_retries", &["'x'", "1.5", "9223372036854775807", "-9223372036854775808", "''"]),
    ("error_message", &["x'ff'", "7"]),
];
