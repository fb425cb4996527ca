//! What was put around the tables and can stand in a relay's way.

use posthaste_core::{Finding, Result, Severity};
use sqlx::Row;
use sqlx::postgres::PgRow;

use super::{LOOK, reading};
use crate::error::failed;
use crate::outbox::PostgresOutbox;
use crate::session::Session;

/// Tables with row level security: whether it binds this user.
const ROW_SECURITY: &str = "\
    select relname::text, row_security_active(oid), current_user::text from pg_class \
    where relrowsecurity and oid in (select to_regclass(name) from unnest(array['outbox_events', \
        'outbox_events_pending', 'outbox_events_processed', 'outbox_signal', 'outbox_relays', \
        'outbox_shards', 'outbox_migrations']) as name) \
    order by relname";

/// Tables whose changes are published and which have no replica identity: the server then refuses
/// updates and deletes. A table of the history is another's trouble than one that relays change always.
const WITHOUT_IDENTITY: &str = "\
    select published.oid::regclass::text, string_agg(distinct pubname::text, ', '), \
        published.oid in (select relid from pg_partition_tree(to_regclass('outbox_events_processed'))) \
    from pg_class published join pg_publication_tables shown \
        on to_regclass(format('%I.%I', shown.schemaname, shown.tablename)) in ( \
            select published.oid union select relid from pg_partition_ancestors(published.oid)) \
    join pg_publication using (pubname) \
    where (pubupdate or pubdelete) and relkind = 'r' \
        and (published.oid in (select to_regclass(name) from unnest(array['outbox_events_pending', \
                'outbox_signal', 'outbox_relays', 'outbox_shards']) as name) \
            or published.oid in (select relid from \
                pg_partition_tree(to_regclass('outbox_events_processed')) where isleaf)) \
        and relreplident <> 'f' \
        and not exists (select from pg_index where indrelid = published.oid and indisvalid \
            and case relreplident when 'd' then indisprimary \
                when 'i' then indisreplident else false end) \
    group by published.oid order by 3, 1";

const SUBSCRIPTIONS: &str = "\
    select distinct subname::text from pg_subscription_rel \
    join pg_subscription on pg_subscription.oid = srsubid \
    where srrelid = to_regclass('outbox_events') \
        or srrelid in (select relid from pg_partition_tree(to_regclass('outbox_events'))) \
    order by 1";

const SEQUENCE: &str = "\
    select seqcache, seqincrement, seqcycle \
    from pg_sequence where seqrelid = to_regclass('outbox_events_seq')";

/// Takes the right to read the sequence, which a relay need not have.
const PLACES: &str = "\
    select (select last_value from outbox_events_seq), (select max(seq) from outbox_events_pending)";

pub(super) async fn look_at_row_security(outbox: &PostgresOutbox) -> Result<Finding> {
    const ABOUT: &str = "row level security";
    let rows = ask(outbox, ROW_SECURITY).await?;
    let tables = |active: bool| -> sqlx::Result<Vec<String>> {
        let of = rows.iter().map(|row| Ok((row.try_get(0)?, row.try_get::<bool, _>(1)?)));
        let of: Vec<(String, bool)> = of.collect::<sqlx::Result<_>>()?;
        Ok(of.into_iter().filter(|(_, is)| *is == active).map(|(name, _)| name).collect())
    };
    let (binding, passed) =
        (tables(true).map_err(failed(LOOK))?, tables(false).map_err(failed(LOOK))?);
    let Some(row) = rows.first() else { return Ok(Finding::fine(ABOUT, "is off")) };
    if binding.is_empty() {
        let message = format!("is on for {}, and does not bind this user", passed.join(", "));
        return Ok(Finding::fine(ABOUT, message));
    }
    let user: String = row.try_get(2).map_err(failed(LOOK))?;
    let message = format!("hides rows of {} from this user", binding.join(", "));
    Ok(Finding::new(ABOUT, Severity::Error, message).with_hint(format!(
        "`alter table {} disable row level security`, for each of them, or `alter role {user} bypassrls`",
        binding[0]
    )))
}

pub(super) async fn look_at_identities(outbox: &PostgresOutbox) -> Result<Finding> {
    const ABOUT: &str = "replica identity";
    let rows = ask(outbox, WITHOUT_IDENTITY).await?;
    let read = |row: &PgRow| -> sqlx::Result<(String, String, bool)> {
        Ok((row.try_get(0)?, row.try_get(1)?, row.try_get(2)?))
    };
    let found: Vec<_> = rows.iter().map(read).collect::<sqlx::Result<_>>().map_err(failed(LOOK))?;
    let Some((first, publications, is_history)) = found.first() else {
        return Ok(Finding::fine(ABOUT, "no publication stands in the way"));
    };
    let tables: Vec<&str> = found.iter().map(|(table, ..)| table.as_str()).collect();
    let refused = if *is_history {
        "cleanup and what brings a delivered event back fail"
    } else {
        "nothing can be recorded"
    };
    let message = format!(
        "publication {publications} takes changes of {}, which has no replica identity: {refused}",
        tables.join(", ")
    );
    let identity = if first.trim_end_matches('"').ends_with("outbox_events_pending") {
        "using index outbox_events_pending_id_key"
    } else {
        "full"
    };
    let severity = if *is_history { Severity::Warning } else { Severity::Error };
    let others = if tables.len() > 1 { ", and so for each of them" } else { "" };
    Ok(Finding::new(ABOUT, severity, message)
        .with_hint(format!("`alter table {first} replica identity {identity}`{others}")))
}

pub(super) async fn look_at_subscriptions(outbox: &PostgresOutbox) -> Result<Finding> {
    const ABOUT: &str = "subscriptions";
    let rows = ask(outbox, SUBSCRIPTIONS).await?;
    let names: Vec<String> =
        rows.iter().map(|row| row.try_get(0)).collect::<sqlx::Result<_>>().map_err(failed(LOOK))?;
    if names.is_empty() {
        return Ok(Finding::fine(ABOUT, "none fills the outbox"));
    }
    let message = format!(
        "{} fills the outbox: its rows come late and out of order, and no place below them counts as read",
        names.join(", ")
    );
    Ok(Finding::new(ABOUT, Severity::Warning, message).with_hint(
        "at a cut-over: stop the writers at the publisher, wait until all is applied, drop the \
         subscription, set outbox_events_seq above every seq, then start the relay here",
    ))
}

/// What of the sequence's settings breaks the order within a key, and what to do.
pub(crate) async fn sequence_fault(
    session: &mut Session,
    operation: &'static str,
) -> Result<Option<(String, &'static str)>> {
    let statement = session.statement(SEQUENCE);
    let row = statement.fetch_optional(session.connection()).await.map_err(failed(operation))?;
    let Some(row) = row else {
        let message = "outbox_events_seq is not there";
        return Ok(Some((message.into(), "`posthaste migrate up` makes it again")));
    };
    let read = || -> sqlx::Result<(i64, i64, bool)> {
        Ok((row.try_get(0)?, row.try_get(1)?, row.try_get(2)?))
    };
    let (cache, increment, cycles) = read().map_err(failed(operation))?;
    if cache == 1 && increment == 1 && !cycles {
        return Ok(None);
    }
    let message = format!(
        "outbox_events_seq has cache {cache}, increment {increment}{}: later transactions get lower \
         numbers than earlier ones, which breaks the order within a key",
        if cycles { ", and begins anew at its end" } else { "" }
    );
    Ok(Some((message, "`alter sequence outbox_events_seq increment 1 cache 1 no cycle`")))
}

pub(super) async fn look_at_sequence(outbox: &PostgresOutbox) -> Result<Finding> {
    const ABOUT: &str = "sequence";
    let mut session = reading(outbox).await?;
    let fault = sequence_fault(&mut session, LOOK).await?;
    session.finish().await?;
    if let Some((fault, hint)) = fault {
        return Ok(Finding::new(ABOUT, Severity::Error, fault).with_hint(hint));
    }
    let rows = ask(outbox, PLACES).await?;
    let places = |row: &PgRow| -> sqlx::Result<(i64, Option<i64>)> {
        Ok((row.try_get(0)?, row.try_get(1)?))
    };
    let places = rows.first().map(places).transpose().map_err(failed(LOOK))?;
    if let Some((last, Some(highest))) = places
        && highest > last
    {
        let message = format!(
            "outbox_events_seq stands at {last}, and an event waits at {highest}: new events go before \
             it, or are refused"
        );
        return Ok(Finding::new(ABOUT, Severity::Warning, message)
            .with_hint(format!("`select setval('outbox_events_seq', {highest})`")));
    }
    Ok(Finding::fine(ABOUT, "numbers are given out one by one"))
}

async fn ask(outbox: &PostgresOutbox, sql: &'static str) -> Result<Vec<PgRow>> {
    let mut session = reading(outbox).await?;
    let rows =
        session.statement(sql).fetch_all(session.connection()).await.map_err(failed(LOOK))?;
    session.finish().await?;
    Ok(rows)
}
