//! The revision that tells relays to read from the start.

use posthaste_core::Result;

use crate::error::failed;
use crate::outbox::PostgresOutbox;

/// At most once per transaction: the triggers of the table may have done it already.
pub(crate) const BUMP: &str = "\
    update outbox_signal set revision = revision + 1, bumped_by = pg_current_xact_id() \
    where bumped_by is distinct from pg_current_xact_id()";

pub(crate) async fn bump(outbox: &PostgresOutbox) -> Result<()> {
    const OPERATION: &str = "signal relays";
    let mut session = outbox.session(OPERATION).await?;
    let statement = session.statement(BUMP);
    statement.execute(session.connection()).await.map_err(failed(OPERATION))?;
    session.finish().await
}
