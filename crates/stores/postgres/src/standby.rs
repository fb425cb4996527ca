//! The outbox is on the primary, and can be written.

use posthaste_core::{Error, ErrorKind, Result};
use sqlx::Row;

use crate::error::failed;
use crate::session::Session;

/// Refuses a server in recovery: a standby's snapshots hide transactions that are still running on
/// the primary, so a reader there would pass over their events.
pub(crate) async fn refuse(session: &mut Session, operation: &'static str) -> Result<()> {
    let statement = session.statement(
        "select pg_is_in_recovery(), current_setting('default_transaction_read_only')::bool",
    );
    let (standby, read_only): (bool, bool) = statement
        .fetch_one(session.connection())
        .await
        .and_then(|row| Ok((row.try_get(0)?, row.try_get(1)?)))
        .map_err(failed(operation))?;
    if standby {
        return Err(Error::new(
            ErrorKind::Config,
            operation,
            "this server is a standby; give the address of the primary",
        ));
    }
    if read_only {
        // As an upgrade or a full disk may have it for a while.
        return Err(Error::new(
            ErrorKind::Unreachable,
            operation,
            "the database takes no writes: default_transaction_read_only is on; switch it off, for this \
             database or role, or name the server that takes writes",
        ));
    }
    Ok(())
}
