//! The outbox is on the primary.

use posthaste_core::{Error, ErrorKind, Result};
use sqlx::Row;

use crate::error::failed;
use crate::session::Session;

/// Refuses a server in recovery: a standby's snapshots hide transactions that are still running on
/// the primary, so a reader there would pass over their events.
pub(crate) async fn refuse(session: &mut Session, operation: &'static str) -> Result<()> {
    let statement = session.statement("select pg_is_in_recovery()");
    let standby: bool = statement
        .fetch_one(session.connection())
        .await
        .and_then(|row| row.try_get(0))
        .map_err(failed(operation))?;
    if standby {
        return Err(Error::new(
            ErrorKind::Config,
            operation,
            "this server is a standby; give the address of the primary",
        ));
    }
    Ok(())
}
