//! What the planner may choose from, for the statements that read what is pending and record what came
//! of it.
//!
//! The statistics of an outbox are wrong most of the time: it was empty when `vacuum` came by, and is
//! full a second later. Of a table that it takes for empty, the planner reads all there is: it joined a
//! thousand outcomes with every event that waited, for ten seconds with a hundred thousand of them. So
//! it is left one way, along an index, which is the right one at any size: these statements name by an
//! index what they read. Then a plan can also be made once and kept, where planning takes longer than
//! reading a handful of events.

/// What is set for a relay's statements.
///
/// A sequential scan reads the whole table, a bitmap scan all that matches, to sort it. A nested loop would
/// compare each outcome with each event; where it is the only way, it is still taken. On most versions
/// what is "off" is taken for very expensive, and that would have the plan compiled.
const SETTINGS: [(&str, &str); 6] = [
    ("enable_seqscan", "off"),
    ("enable_bitmapscan", "off"),
    ("enable_nestloop", "off"),
    ("jit", "off"),
    // Rows that a policy hides would be events that never go, or go again and again: the server is to
    // refuse instead, and it says which table it is.
    ("row_security", "off"),
    // What somebody else holds is not waited for long: the rest is to go on meanwhile.
    ("lock_timeout", "500ms"),
];

/// The statements, in one message, that set it for what lasts as long as the connection. What was prepared
/// on it before would keep the plan it has.
#[must_use]
pub fn for_session() -> String {
    let settings = settings("set", false);
    format!("discard plans; set plan_cache_mode = force_generic_plan; {settings}")
}

/// And those for a transaction. A plan that is made there and kept would be kept for others, and of two
/// indexes that an empty table has, the cheaper may be the wrong one.
pub(crate) fn for_transaction() -> String {
    format!("set local plan_cache_mode = force_custom_plan; {}", settings("set local", true))
}

fn settings(set: &str, is_local: bool) -> String {
    let settings = SETTINGS.map(|(name, value)| format!("{set} {name} = '{value}'")).join("; ");
    format!("{settings}; {}", any_bytes(is_local))
}

/// A database that knows no encoding holds any bytes. Asked for UTF-8, the server would fail each statement
/// that meets others; so they come as they are, and the row that has them is told apart.
pub(crate) fn any_bytes(is_local: bool) -> String {
    format!(
        "select set_config('client_encoding', 'SQL_ASCII', {is_local}) \
         where current_setting('server_encoding') = 'SQL_ASCII'"
    )
}
