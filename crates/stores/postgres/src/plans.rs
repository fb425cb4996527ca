//! What the planner may choose from, for the statements that a relay repeats without end.
//!
//! The statistics of an outbox are wrong most of the time: it was empty when `vacuum` came by, and is
//! full a second later. Of a table that it takes for empty, the planner reads all there is: it joined a
//! thousand outcomes with every event that waited, for ten seconds with a hundred thousand of them. So
//! it is left one way, along an index, which is the right one at any size: those statements read few
//! rows, and name them by what an index has. Then a plan can also be made once and kept, where planning
//! takes longer than reading a handful of events.

/// Sequential and bitmap scans read whole tables. A nested loop would compare each outcome with each
/// event; where it is the only way, it is still taken. And what is "disabled" is so by a cost, at which
/// the server would compile a plan that takes less time than compiling.
const SETTINGS: [(&str, &str); 5] = [
    ("plan_cache_mode", "force_generic_plan"),
    ("enable_seqscan", "off"),
    ("enable_bitmapscan", "off"),
    ("enable_nestloop", "off"),
    ("jit", "off"),
];

/// How long the settings hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PlanScope {
    /// For as long as the connection lasts.
    Session,
    /// For the transaction that has begun.
    Transaction,
}

/// The statements that set it, in one message.
#[must_use]
pub fn along_indexes(scope: PlanScope) -> String {
    let (set, forget) = match scope {
        // What a statement was prepared with before would hold on.
        PlanScope::Session => ("set", Some("discard plans".to_owned())),
        // Behind a pooler, nothing was.
        PlanScope::Transaction => ("set local", None),
    };
    let settings = SETTINGS.map(|(name, value)| format!("{set} {name} = {value}"));
    forget.into_iter().chain(settings).collect::<Vec<_>>().join("; ")
}
