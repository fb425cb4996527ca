//! What the planner may choose from, for the statements that read what is pending and record what came
//! of it.
//!
//! The statistics of an outbox are wrong most of the time: it was empty when `vacuum` came by, and is
//! full a second later. Of a table that it takes for empty, the planner reads all there is: it joined a
//! thousand outcomes with every event that waited, for ten seconds with a hundred thousand of them. So
//! it is left one way, along an index, which is the right one at any size: these statements name by an
//! index what they read. Then a plan can also be made once and kept, where planning takes longer than
//! reading a handful of events.

/// A sequential scan reads the whole table, a bitmap scan all that matches, to sort it. A nested loop would
/// compare each outcome with each event; where it is the only way, it is still taken. On most versions
/// what is "off" is taken for very expensive, and that would have the plan compiled.
const ALONG_INDEXES: [(&str, &str); 4] = [
    ("enable_seqscan", "off"),
    ("enable_bitmapscan", "off"),
    ("enable_nestloop", "off"),
    ("jit", "off"),
];

/// The statements, in one message, that set it for what lasts as long as the connection. What was prepared
/// on it before would keep the plan it has.
#[must_use]
pub fn for_session() -> String {
    format!("discard plans; set plan_cache_mode = force_generic_plan; {}", settings("set"))
}

/// And those for a transaction. A plan that is made there and kept would be kept for others, and of two
/// indexes that an empty table has, the cheaper may be the wrong one.
pub(crate) fn for_transaction() -> String {
    format!("set local plan_cache_mode = force_custom_plan; {}", settings("set local"))
}

fn settings(set: &str) -> String {
    ALONG_INDEXES.map(|(name, value)| format!("{set} {name} = {value}")).join("; ")
}
