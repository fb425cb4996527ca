//! The revision that tells relays to read from the start.

/// At most once per transaction: the triggers of the table may have done it already.
pub(crate) const BUMP: &str = "\
    update outbox_signal set revision = revision + 1 where xmin <> pg_current_xact_id()::xid";
