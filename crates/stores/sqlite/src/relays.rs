//! What the relay says of itself: one takes the whole outbox, so there is one row at most.

use std::time::Duration;

use jiff::Timestamp;
use posthaste_core::{RelayView, Result};
use sqlx::Row;
use uuid::Uuid;

use crate::SqliteOutbox;
use crate::error::database;
use crate::time::{parse, to_text};

/// Of one that died nothing is left.
const FORGET_OTHERS: &str = "delete from outbox_relays where relay <> ?1";

const TELL: &str = "\
insert into outbox_relays (relay, name, said_at, report) values (?1, ?2, ?3, ?4)
on conflict (relay) do update set said_at = excluded.said_at, report = excluded.report";

const LEAVE: &str = "delete from outbox_relays where relay = ?1";

const LIST: &str = "select name, said_at, report from outbox_relays order by said_at desc";

pub(crate) async fn tell(
    outbox: &SqliteOutbox,
    relay: Uuid,
    name: &str,
    report: &str,
) -> Result<()> {
    const OPERATION: &str = "tell what a relay does";
    let fail = |error| database(OPERATION, error);
    let (relay, now) = (relay.to_string(), to_text(Timestamp::now()));
    let mut transaction = outbox.begin_write(OPERATION).await?;
    sqlx::query(FORGET_OTHERS).bind(&relay).execute(&mut *transaction).await.map_err(fail)?;
    let statement = sqlx::query(TELL).bind(&relay).bind(name).bind(now).bind(report);
    statement.execute(&mut *transaction).await.map_err(fail)?;
    transaction.commit().await.map_err(fail)
}

pub(crate) async fn leave(outbox: &SqliteOutbox, relay: Uuid) -> Result<()> {
    const OPERATION: &str = "take back what a relay said";
    let mut connection = outbox.writing(OPERATION).await?;
    let statement = sqlx::query(LEAVE).bind(relay.to_string());
    let left = statement.execute(&mut *connection).await;
    left.map(drop).map_err(|error| database(OPERATION, error))
}

pub(crate) async fn list(outbox: &SqliteOutbox) -> Result<Vec<RelayView>> {
    const OPERATION: &str = "list relays";
    let fail = |error| database(OPERATION, error);
    let mut connection = outbox.reader(OPERATION).await?;
    let rows = sqlx::query(LIST).fetch_all(&mut *connection).await.map_err(fail)?;
    let view = |row: &sqlx::sqlite::SqliteRow| {
        let text = |index: usize| row.try_get::<String, _>(index);
        let said_at = parse(&text(1)?);
        // Of a time that cannot be read nothing says that it is recent.
        let ago = said_at.map_or(Duration::MAX, |at| {
            Duration::try_from(Timestamp::now().duration_since(at)).unwrap_or_default()
        });
        Ok(RelayView::that_said(&text(0)?, ago, &text(2)?))
    };
    rows.iter().map(view).collect::<sqlx::Result<_>>().map_err(fail)
}
