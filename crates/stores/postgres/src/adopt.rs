//! Taking over a flat `outbox_events` that a hand-written outbox left.

use posthaste_core::{Error, ErrorKind, Result};
use sqlx::{AssertSqlSafe, Row};

use crate::error::failed;
use crate::migrations::{Found, apply, begin_locked, find};
use crate::outbox::PostgresOutbox;
use crate::session::Session;

const ADOPT: &str = "adopt the table";

/// Where the flat table remains, untouched, for its owner to compare and drop.
const KEPT_AS: &str = "outbox_events_flat";

/// The contract's columns and the types they may have there.
const CONTRACT: [(&str, &[&str]); 9] = [
    ("id", &["uuid"]),
    ("aggregate_id", &["uuid"]),
    ("event_type", &["character varying", "text"]),
    ("event_data", &["jsonb", "json"]),
    ("created_at", &["timestamp with time zone"]),
    ("processed_at", &["timestamp with time zone"]),
    ("retry_count", &["integer", "smallint"]),
    ("max_retries", &["integer", "smallint"]),
    ("error_message", &["text", "character varying"]),
];

/// What is found at the name: kind (`r` for a plain table) and columns.
const SHAPE: &str = "\
    select c.relkind::text, \
        coalesce(array_agg(a.attname::text order by a.attnum) \
            filter (where a.attnum > 0 and not a.attisdropped), '{}'), \
        coalesce(array_agg(format_type(a.atttypid, null) order by a.attnum) \
            filter (where a.attnum > 0 and not a.attisdropped), '{}') \
    from pg_class c left join pg_attribute a on a.attrelid = c.oid \
    where c.oid = to_regclass('outbox_events') group by c.oid, c.relkind";

/// What would go on pointing at the flat table: views, foreign keys, triggers of the user's.
const DEPENDENTS: &str = "\
    select coalesce(string_agg(name, ', ' order by name), '') from ( \
        select 'view ' || v.ev_class::regclass::text as name \
        from pg_depend d join pg_rewrite v on v.oid = d.objid \
        where d.classid = 'pg_rewrite'::regclass and d.refobjid = to_regclass('outbox_events') \
        union select 'foreign key ' || conname from pg_constraint \
        where contype = 'f' and to_regclass('outbox_events') in (conrelid, confrelid) \
        union select 'trigger ' || tgname from pg_trigger \
        where tgrelid = to_regclass('outbox_events') and not tgisinternal) dependents";

/// Indexes and constraints of the flat table keep their names, which ours may need; so they are
/// renamed along. A name is cut to what PostgreSQL allows.
const MAKE_ROOM: &str = "\
do $$
declare
    other record;
begin
    alter table outbox_events rename to outbox_events_flat;
    for other in select i.indexrelid::regclass as name, c.relname from pg_index i
                   join pg_class c on c.oid = i.indexrelid
                  where i.indrelid = 'outbox_events_flat'::regclass loop
        execute format('alter index %s rename to %I', other.name, left('flat_' || other.relname, 63));
    end loop;
end
$$";

/// Whoever could use the flat table can use the new one.
const GRANTS: &str = "\
do $$
declare
    entry record;
begin
    for entry in select a.privilege_type, a.is_grantable,
                        case when a.grantee = 0 then 'public' else quote_ident(r.rolname) end as role
                   from pg_class c cross join aclexplode(c.relacl) a
                   left join pg_roles r on r.oid = a.grantee
                  where c.oid = 'outbox_events_flat'::regclass loop
        execute format('grant %s on outbox_events to %s%s', entry.privilege_type, entry.role,
                       case when entry.is_grantable then ' with grant option' else '' end);
    end loop;
    execute (select format('alter table outbox_events owner to %I', r.rolname)
               from pg_class c join pg_roles r on r.oid = c.relowner
              where c.oid = 'outbox_events_flat'::regclass);
end
$$";

/// What was waiting, in the order in which it was created; what had used up its retries is dead.
const COPY_WAITING: &str = "\
    insert into outbox_events (id, aggregate_id, event_type, event_data, created_at, retry_count, \
        max_retries, error_message, dead_at, dead_reason) \
    select id, aggregate_id, event_type, event_data::jsonb, created_at, retry_count, \
        max_retries, error_message, \
        case when dead then now() end, case when dead then 'retries_exhausted' end \
    from (select *, retry_count >= max_retries and retry_count > 0 as dead \
          from outbox_events_flat) flat \
    where processed_at is null order by created_at, id";

const COPY_DELIVERED: &str = "\
    insert into outbox_events (id, aggregate_id, event_type, event_data, created_at, retry_count, \
        max_retries, error_message, processed_at) \
    select id, aggregate_id, event_type, event_data::jsonb, created_at, retry_count, \
        max_retries, error_message, processed_at \
    from outbox_events_flat where processed_at is not null order by processed_at, created_at, id";

const COUNT_DEAD: &str = "\
    select count(*) from outbox_events where processed_at is null and dead_at is not null";

/// What [`PostgresOutbox::adopt_table`] did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AdoptReport {
    /// Events that wait for delivery.
    pub pending: u64,
    /// Events whose retries were used up: now dead letters.
    pub dead: u64,
    /// Delivered events, now in the history.
    pub delivered: u64,
    /// The name of the old table, which is kept as it was. Drop it when nothing misses it.
    pub kept_as: &'static str,
}

impl PostgresOutbox {
    /// Takes over a flat table `outbox_events` that has the contract's columns and no others.
    ///
    /// In one transaction, it renames that table, creates ours, and copies every event: what waits
    /// gets its place in the order of `(created_at, id)`, what had used up its `max_retries`
    /// becomes a dead letter, what was delivered goes to the history. Rights are carried over.
    /// Writers and readers of the table wait until it is done: remove old delivered events first.
    ///
    /// # Errors
    /// `Schema`, naming what is in the way, where the table is missing, is ours already, has
    /// another shape, or has views, foreign keys or triggers. Nothing is changed then.
    pub async fn adopt_table(&self) -> Result<AdoptReport> {
        adopt(self).await.map_err(|error| self.locate(error))
    }
}

async fn adopt(outbox: &PostgresOutbox) -> Result<AdoptReport> {
    let mut session = begin_locked(outbox, ADOPT).await?;
    match find(&mut session, ADOPT).await? {
        Found::Foreign => {}
        Found::Nothing => return Err(refuse(ADOPT, "there is no table outbox_events".into())),
        Found::Version(_) => {
            return Err(refuse(ADOPT, "the table is posthaste's already".into()));
        }
    }
    if let Some(why) = misfit(&mut session, ADOPT).await? {
        return Err(refuse(ADOPT, why));
    }
    let run = async |session: &mut Session, sql: &'static str| {
        let done = sqlx::raw_sql(AssertSqlSafe(sql)).execute(session.connection()).await;
        done.map(|done| done.rows_affected()).map_err(failed(ADOPT))
    };
    run(&mut session, "lock table outbox_events in access exclusive mode").await?;
    run(&mut session, MAKE_ROOM).await?;
    apply(&mut session, 0, ADOPT).await?;
    run(&mut session, GRANTS).await?;
    let waiting = run(&mut session, COPY_WAITING).await?;
    let delivered = run(&mut session, COPY_DELIVERED).await?;
    let statement = session.statement(COUNT_DEAD);
    let row = statement.fetch_one(session.connection()).await.map_err(failed(ADOPT))?;
    let dead = row.try_get::<i64, _>(0).map_err(failed(ADOPT))?.cast_unsigned();
    session.finish().await?;
    Ok(AdoptReport { pending: waiting - dead, dead, delivered, kept_as: KEPT_AS })
}

/// The error for a database with a table of our name that is not ours.
pub(crate) async fn explain(session: &mut Session, operation: &'static str) -> Result<Error> {
    let why = misfit(session, operation).await?.unwrap_or_else(|| {
        "there is a table outbox_events that posthaste did not make; \
         run `posthaste migrate adopt` to take it over"
            .into()
    });
    Ok(refuse(operation, why))
}

fn refuse(operation: &'static str, why: String) -> Error {
    Error::new(ErrorKind::Schema, operation, why)
}

/// Why the table cannot be adopted, if it cannot.
async fn misfit(session: &mut Session, operation: &'static str) -> Result<Option<String>> {
    let statement = session.statement(SHAPE);
    let row = statement.fetch_one(session.connection()).await.map_err(failed(operation))?;
    let kind: String = row.try_get(0).map_err(failed(operation))?;
    let names: Vec<String> = row.try_get(1).map_err(failed(operation))?;
    let types: Vec<String> = row.try_get(2).map_err(failed(operation))?;
    if kind != "r" {
        return Ok(Some("outbox_events is not a plain table".into()));
    }
    let mut faults = column_faults(&names, &types);
    let statement = session.statement(DEPENDENTS);
    let row = statement.fetch_one(session.connection()).await.map_err(failed(operation))?;
    let dependents: String = row.try_get(0).map_err(failed(operation))?;
    if !dependents.is_empty() {
        faults.push(format!("it has dependents that must go first: {dependents}"));
    }
    if faults.is_empty() {
        return Ok(None);
    }
    Ok(Some(format!("the table outbox_events has an unknown shape: {}", faults.join("; "))))
}

fn column_faults(names: &[String], types: &[String]) -> Vec<String> {
    let mut faults = Vec::new();
    for (wanted, allowed) in CONTRACT {
        match names.iter().position(|name| name == wanted) {
            None => faults.push(format!("column {wanted} is missing")),
            Some(place) => {
                let found = types.get(place).map_or("", String::as_str);
                if !allowed.contains(&found) {
                    faults.push(format!("column {wanted} is {found}, not {}", allowed[0]));
                }
            }
        }
    }
    for name in names {
        if CONTRACT.iter().all(|(known, _)| known != name) {
            faults.push(format!("column {name} is unknown"));
        }
    }
    faults
}
