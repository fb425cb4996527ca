//! All that a configuration can hold, put together: sections, and the keys that every destination and every
//! route has.

use posthaste_config::{DefaultValue, Key, Schema, Section, ValueKind};

use super::sections::{DatabaseSettings, LogSettings, OpsSettings, RelaySettings, RetrySettings};
use crate::kinds;

pub(super) const ANY_COUNT: i64 = 1_000_000;
const DEAD_HEADS: &[&str] = &["block", "skip"];

const fn key(path: &'static str, kind: ValueKind, default: DefaultValue, doc: &'static str) -> Key {
    Key { path, kind, default, doc }
}

pub(super) const fn duration(min_ms: u64) -> ValueKind {
    ValueKind::Duration { min_ms, none: None }
}

/// All sections with fixed names, in the order of the reference.
pub(crate) const SECTIONS: &[Section] = &[
    Section::of::<DatabaseSettings>("database"),
    Section::of::<RelaySettings>("relay"),
    Section::of::<RetrySettings>("relay.retry"),
    Section::of::<OpsSettings>("ops"),
    Section::of::<LogSettings>("log"),
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
