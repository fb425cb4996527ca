//! Whether the outbox is here, whole, and can be written.

use posthaste_core::{Finding, Result, Severity};
use sqlx::Row;

use super::{LOOK, reading};
use crate::error::failed;
use crate::integrity;
use crate::migrations::{self, Found, WANTED};
use crate::outbox::PostgresOutbox;
use crate::session::Session;

/// Who set that transactions only read, beside what a standby is.
const WRITES: &str = "\
    select pg_is_in_recovery(), setting::bool, source, current_database()::text, current_user::text \
    from pg_settings where name = 'default_transaction_read_only'";

/// Where this connection looks, what of that exists, and where outboxes are.
const WHEREABOUTS: &str = "\
    select current_setting('search_path'), current_schemas(false)::text[], current_user::text, \
        coalesce(array_agg(nspname::text order by nspname) \
            filter (where has_schema_privilege(nspname::text, 'usage')), '{}'), \
        coalesce(array_agg(nspname::text order by nspname) \
            filter (where not has_schema_privilege(nspname::text, 'usage')), '{}') \
    from pg_class join pg_namespace on pg_namespace.oid = relnamespace \
    where relname = 'outbox_events_pending'";

/// What no migration of ours leaves so.
const ODD: &str = "\
    select format('table %s is unlogged: a crash of the server empties it', relname) \
    from pg_class where relpersistence = 'u' and relkind in ('r', 'p') \
        and (oid in (select to_regclass(name) from unnest(array['outbox_events_pending', \
            'outbox_signal', 'outbox_relays', 'outbox_shards']) as name) \
            or oid in (select relid from pg_partition_tree(to_regclass('outbox_events')))) \
    union all \
    select format('trigger %s on %s is disabled', tgname, tgrelid::regclass) from pg_trigger \
    where tgenabled = 'D' and not tgisinternal and tgname like 'outbox%' \
        and tgrelid in (to_regclass('outbox_events_pending'), to_regclass('outbox_events_processed'))";

/// What was found of the schema.
pub(super) struct Schema {
    pub(super) finding: Finding,
    /// Whether there is an outbox to look at.
    pub(super) is_there: bool,
    /// Whether it has another version than this program's: most statements of a relay fail for that.
    pub(super) is_of_another_version: bool,
}

pub(super) async fn look(outbox: &PostgresOutbox) -> Result<Schema> {
    const ABOUT: &str = "schema";
    let mut session = reading(outbox).await?;
    let found = migrations::find(&mut session, LOOK).await?;
    let error = |message: String| Finding::new(ABOUT, Severity::Error, message);
    let (finding, is_there) = match found {
        Found::Nothing => (whereabouts(&mut session).await?, false),
        Found::Foreign => {
            let why = crate::adopt::explain(&mut session, LOOK).await?;
            (error(why.report()).with_hint("see docs/migrating.md"), false)
        }
        Found::Unrecorded(_) => {
            let message = "the outbox's tables are here, and the rows of outbox_migrations are not";
            (error(message.into()).with_hint("`posthaste migrate up` takes them over"), true)
        }
        Found::Version(version) if version < WANTED => {
            let message = format!("the schema is version {version}, and {WANTED} is needed");
            (error(message).with_hint("run `posthaste migrate up`"), true)
        }
        Found::Version(version) if version > WANTED => {
            let message =
                format!("the schema is version {version}, and this program knows {WANTED}");
            (error(message).with_hint("use a posthaste that is at least as new"), true)
        }
        Found::Version(version) => (whole(&mut session, version).await?, true),
    };
    session.finish().await?;
    let is_of_another_version = matches!(found, Found::Version(version) if version != WANTED);
    Ok(Schema { finding, is_there, is_of_another_version })
}

async fn whole(session: &mut Session, version: u32) -> Result<Finding> {
    const ABOUT: &str = "schema";
    let faults = integrity::column_faults(session, LOOK).await?;
    let missing = integrity::missing(session, LOOK).await?;
    let odd = session.statement(ODD).fetch_all(session.connection()).await.map_err(failed(LOOK))?;
    let odd: Vec<String> =
        odd.iter().map(|row| row.try_get(0)).collect::<sqlx::Result<_>>().map_err(failed(LOOK))?;
    let is_needed = !faults.is_empty() || missing.iter().any(|missing| missing.is_needed);
    let severity = if is_needed { Severity::Error } else { Severity::Warning };
    if !missing.is_empty() {
        let what: Vec<String> = missing.into_iter().map(|missing| missing.what).collect();
        let message = format!("missing are {}", what.join(", "));
        return Ok(Finding::new(ABOUT, severity, message)
            .with_hint("`posthaste migrate up` makes them again"));
    }
    if !faults.is_empty() {
        let message = format!("the table outbox_events was altered: {}", faults.join("; "));
        return Ok(Finding::new(ABOUT, severity, message).with_hint(
            "undo it with `alter table outbox_events alter column … type …`, and keep the tool that \
             did it away from tables outbox_*",
        ));
    }
    if !odd.is_empty() {
        return Ok(Finding::new(ABOUT, severity, odd.join("; "))
            .with_hint("`alter table … set logged`, `alter table … enable trigger …`"));
    }
    Ok(Finding::fine(ABOUT, format!("version {version}, and all there")))
}

/// Schemas of this database with an outbox, whether this user may use them or not.
pub(crate) async fn schemas_with_an_outbox(session: &mut Session) -> Result<Vec<String>> {
    let Whereabouts { elsewhere, locked, .. } = find_outboxes(session).await?;
    Ok(elsewhere.into_iter().chain(locked).collect())
}

/// Where the outbox is, as far as can be told.
async fn whereabouts(session: &mut Session) -> Result<Finding> {
    find_outboxes(session).await.map(Whereabouts::into_finding)
}

async fn find_outboxes(session: &mut Session) -> Result<Whereabouts> {
    let row = session.statement(WHEREABOUTS).fetch_one(session.connection()).await;
    let read = |row: sqlx::postgres::PgRow| {
        Ok(Whereabouts {
            path: row.try_get(0)?,
            schemas: row.try_get(1)?,
            user: row.try_get(2)?,
            elsewhere: row.try_get(3)?,
            locked: row.try_get(4)?,
        })
    };
    row.and_then(read).map_err(failed(LOOK))
}

struct Whereabouts {
    /// The search path as it is set, and what of it exists and may be used.
    path: String,
    schemas: Vec<String>,
    user: String,
    /// Schemas with an outbox that may be used, and others.
    elsewhere: Vec<String>,
    locked: Vec<String>,
}

impl Whereabouts {
    fn into_finding(self) -> Finding {
        let Self { path, schemas, user, elsewhere, locked } = self;
        let looked = if schemas.is_empty() {
            format!("no schema of the search_path ({path}) exists, or may be used")
        } else {
            format!("there is no outbox in this database's schema {}", schemas.join(", "))
        };
        let (found, hint) = match (elsewhere.as_slice(), locked.as_slice()) {
            ([schema, ..], _) => (
                format!("; there is one in {}", elsewhere.join(", ")),
                format!("name it in the address: `?schema={schema}`"),
            ),
            ([], [schema, ..]) => (
                format!("; there is one in {}, which this user may not use", locked.join(", ")),
                format!(
                    "`grant usage on schema {schema} to {user}`; `posthaste migrate sql --roles` has \
                         all grants"
                ),
            ),
            ([], []) if schemas.is_empty() => (
                String::new(),
                "correct schema= in the address, or `create schema` and run `posthaste migrate up`"
                    .into(),
            ),
            ([], []) => {
                (String::new(), "run `posthaste migrate up`, or check --database-url".into())
            }
        };
        Finding::new("schema", Severity::Error, format!("{looked}{found}")).with_hint(hint)
    }
}

pub(super) async fn look_at_writes(outbox: &PostgresOutbox) -> Result<Finding> {
    const ABOUT: &str = "writes";
    let mut session = reading(outbox).await?;
    let row = session.statement(WRITES).fetch_one(session.connection()).await;
    let read = |row: sqlx::postgres::PgRow| {
        let (standby, read_only): (bool, bool) = (row.try_get(0)?, row.try_get(1)?);
        let source: String = row.try_get(2)?;
        let (database, user): (String, String) = (row.try_get(3)?, row.try_get(4)?);
        Ok((standby, read_only, source, database, user))
    };
    let (standby, read_only, source, database, user) = row.and_then(read).map_err(failed(LOOK))?;
    session.finish().await?;
    if standby {
        return Ok(Finding::new(ABOUT, Severity::Error, "this server is a standby")
            .with_hint("give the address of the primary"));
    }
    if !read_only {
        return Ok(Finding::fine(ABOUT, "the database takes writes"));
    }
    let setting = "reset default_transaction_read_only";
    let hint = match &*source {
        "database" => format!("`alter database {database} {setting}`"),
        "user" => format!("`alter role {user} {setting}`"),
        "database user" => format!("`alter role {user} in database {database} {setting}`"),
        "client" => "take it out of the options in the address".into(),
        _ => "take it out of postgresql.conf, or `alter system`".into(),
    };
    let message =
        format!("the database takes no writes: default_transaction_read_only is on ({source})");
    Ok(Finding::new(ABOUT, Severity::Error, message).with_hint(hint))
}
