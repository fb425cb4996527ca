//! What relays say of themselves, in their rows.

use std::time::Duration;

use posthaste_core::{RelayView, Result};
use sqlx::Row;
use uuid::Uuid;

use crate::error::failed;
use crate::outbox::PostgresOutbox;

const TELL: &str = "update outbox_relays set report = $2::jsonb where relay = $1";

const LIST: &str = "\
    select name, greatest(extract(epoch from lease_until - now()), 0)::float8, \
        (select count(*) from outbox_shards where owner = relay), report::text, \
        greatest(extract(epoch from now() - joined_at), 0)::float8 \
    from outbox_relays order by name, relay";

/// All that is asked here, to be tried beforehand.
pub(crate) const STATEMENTS: &[&str] = &[TELL, LIST];

pub(crate) async fn tell(outbox: &PostgresOutbox, relay: Uuid, report: &str) -> Result<()> {
    const WHAT: &str = "tell what a relay does";
    let mut session = outbox.session(WHAT).await?;
    let statement = session.statement(TELL).bind(relay).bind(report);
    statement.execute(session.connection()).await.map_err(failed(WHAT))?;
    session.finish().await
}

pub(crate) async fn list(outbox: &PostgresOutbox) -> Result<Vec<RelayView>> {
    const WHAT: &str = "list relays";
    let mut session = outbox.session(WHAT).await?;
    let statement = session.statement(LIST);
    let rows = statement.fetch_all(session.connection()).await.map_err(failed(WHAT))?;
    session.finish().await?;
    let read = |row: &sqlx::postgres::PgRow| -> sqlx::Result<RelayView> {
        let name: Option<String> = row.try_get(0)?;
        let lease_left = Duration::try_from_secs_f64(row.try_get(1)?).unwrap_or_default();
        let shards = usize::try_from(row.try_get::<i64, _>(2)?).unwrap_or_default();
        let report: Option<String> = row.try_get(3)?;
        let name = name.unwrap_or_default();
        let joined_ago = Duration::try_from_secs_f64(row.try_get(4)?).unwrap_or_default();
        let view = RelayView::new(&name, lease_left, shards, report.as_deref());
        Ok(view.that_joined(joined_ago))
    };
    rows.iter().map(read).collect::<sqlx::Result<_>>().map_err(failed(WHAT))
}
