//! Taking over a flat `outbox_events` that a hand-written outbox left.

use posthaste_core::{Error, ErrorKind, Result};
use sqlx::{AssertSqlSafe, Row};

use crate::error::failed;
use crate::history::CREATE_AHEAD;
use crate::integrity::EXPECTED;
use crate::locks::patiently;
use crate::migrations::{Found, begin_locked, execute, find, make_whole};
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
    ("retry_count", &["integer", "smallint", "bigint"]),
    ("max_retries", &["integer", "smallint", "bigint"]),
    ("error_message", &["text", "character varying"]),
];

/// Columns of ours that a table may have as well: one that an ORM made from its model of our table.
fn is_optional(name: &str, kind: &str) -> bool {
    let contract = CONTRACT.iter().any(|(known, _)| *known == name);
    let ours = EXPECTED.iter().find(|(known, _)| *known == name);
    !contract && ours.is_some_and(|(_, kinds)| kinds.contains(&kind))
}

/// What is found at the name: kind (`r` for a plain table) and columns.
const SHAPE: &str = "\
    select c.relkind::text, \
        coalesce(array_agg(a.attname::text order by a.attnum) \
            filter (where a.attnum > 0 and not a.attisdropped), '{}'), \
        coalesce(array_agg(replace(format_type(a.atttypid, null), '\"', '') order by a.attnum) \
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

/// What was waiting, in the order of its places where it has such, else in that in which it was created;
/// what had used up its retries is dead. `more` are the columns beyond the contract's.
fn copy_waiting(more: &[&str]) -> String {
    let has = |name| more.contains(&name);
    let order = if has("seq") { "seq" } else { "created_at, id" };
    let dead = if has("dead_at") { "dead or dead_at is not null" } else { "dead" };
    let reason = if has("dead_reason") {
        "coalesce(dead_reason, 'retries_exhausted')"
    } else {
        "'retries_exhausted'"
    };
    let more = list(more, &["seq", "dead_at", "dead_reason"]);
    format!(
        "insert into outbox_events (id, aggregate_id, event_type, event_data, created_at, \
            retry_count, max_retries, error_message{more}, dead_at, dead_reason) \
        select id, aggregate_id, event_type, event_data::jsonb, created_at, retry_count, \
            max_retries, error_message{more}, \
            case when {dead} then now() end, case when {dead} then {reason} end \
        from (select *, retry_count >= max_retries and retry_count > 0 as dead \
              from outbox_events_flat) flat \
        where processed_at is null order by {order}"
    )
}

/// What was delivered. Times that were never set are refused before.
fn copy_delivered(more: &[&str]) -> String {
    let more = list(more, &["seq"]);
    format!(
        "insert into outbox_events (id, aggregate_id, event_type, event_data, created_at, \
            retry_count, max_retries, error_message, processed_at{more}) \
        select id, aggregate_id, event_type, event_data::jsonb, created_at, retry_count, \
            max_retries, error_message, processed_at{more} \
        from outbox_events_flat where processed_at is not null order by processed_at, created_at, id"
    )
}

fn list(columns: &[&str], without: &[&str]) -> String {
    let columns = columns.iter().filter(|column| !without.contains(column));
    columns.map(|column| format!(", {column}")).collect()
}

/// Rows that our table would refuse, by the first id of each kind.
const ODD_ROWS: &str = "\
    select format('%s rows have %s, the first is %s', count(*), what, min(id::text)) from ( \
        select id, 'an event_type of over 100 characters' as what from outbox_events \
        where length(event_type) > 100 \
        union all select id, 'an id that other rows have, too' from outbox_events \
        where id in (select id from outbox_events group by id having count(*) > 1) \
        union all select id, 'no id, aggregate_id, event_type or event_data' from outbox_events \
        where id is null or aggregate_id is null or event_type is null or event_data is null \
        union all select id, 'the nil id' from outbox_events \
        where id = '00000000-0000-0000-0000-000000000000' and processed_at is null \
        union all select id, 'a processed_at that is a time which was never set (set it to null where \
            the event was never sent, to now() where it was)' from outbox_events \
        where processed_at < '2000-01-01 00:00:00+00' or processed_at = 'infinity' \
        union all select id, 'a NUL character in event_data' from outbox_events \
        where pg_typeof(event_data)::text = 'json' and event_data::text ~ '(^|[^\\\\])(\\\\\\\\)*\\\\u0000' \
    ) odd group by what";

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
    /// Takes over a flat table `outbox_events` that has the contract's columns, maybe others of ours, and
    /// none that we do not know.
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
        let adopted = patiently(self, ADOPT, || adopt(self)).await;
        adopted.map_err(|error| self.locate(error))
    }
}

async fn adopt(outbox: &PostgresOutbox) -> Result<AdoptReport> {
    let mut session = begin_locked(outbox, ADOPT).await?;
    match find(&mut session, ADOPT).await? {
        Found::Foreign => {}
        Found::Nothing => return Err(refuse(ADOPT, "there is no table outbox_events".into())),
        Found::Version(_) | Found::Unrecorded(_) => {
            return Err(refuse(ADOPT, "the table is posthaste's already".into()));
        }
    }
    let shape = Shape::read(&mut session, ADOPT).await?;
    if let Some(why) = misfit(&mut session, &shape, ADOPT).await? {
        return Err(refuse(ADOPT, why));
    }
    let run = async |session: &mut Session, sql: String| {
        let done = sqlx::raw_sql(AssertSqlSafe(sql)).execute(session.connection()).await;
        done.map(|done| done.rows_affected()).map_err(failed(ADOPT))
    };
    execute(&mut session, "lock table outbox_events in access exclusive mode", ADOPT).await?;
    refuse_odd_rows(&mut session).await?;
    execute(&mut session, MAKE_ROOM, ADOPT).await?;
    // Not the steps: something of ours may be left of the time before another tool took our table away.
    make_whole(&mut session, ADOPT).await?;
    execute(&mut session, CREATE_AHEAD, ADOPT).await?;
    execute(&mut session, GRANTS, ADOPT).await?;
    let more = shape.more();
    let waiting = run(&mut session, copy_waiting(&more)).await?;
    let delivered = run(&mut session, copy_delivered(&more)).await?;
    let statement = session.statement(COUNT_DEAD);
    let row = statement.fetch_one(session.connection()).await.map_err(failed(ADOPT))?;
    let dead = row.try_get::<i64, _>(0).map_err(failed(ADOPT))?.cast_unsigned();
    session.finish().await?;
    Ok(AdoptReport { pending: waiting - dead, dead, delivered, kept_as: KEPT_AS })
}

async fn refuse_odd_rows(session: &mut Session) -> Result<()> {
    let statement = session.statement(ODD_ROWS);
    let rows = statement.fetch_all(session.connection()).await.map_err(failed(ADOPT))?;
    let odd: Vec<String> =
        rows.iter().map(|row| row.try_get(0)).collect::<Result<_, _>>().map_err(failed(ADOPT))?;
    if odd.is_empty() {
        return Ok(());
    }
    let why = format!(
        "outbox_events holds rows that must be mended or deleted first: {}",
        odd.join("; ")
    );
    Err(refuse(ADOPT, why))
}

/// The error for a database with a table of our name that is not ours.
pub(crate) async fn explain(session: &mut Session, operation: &'static str) -> Result<Error> {
    let shape = Shape::read(session, operation).await?;
    let why = misfit(session, &shape, operation).await?.unwrap_or_else(|| {
        "there is a table outbox_events that posthaste did not make; \
         run `posthaste migrate adopt` to take it over"
            .into()
    });
    Ok(refuse(operation, why))
}

fn refuse(operation: &'static str, why: String) -> Error {
    Error::new(ErrorKind::Schema, operation, why)
}

/// The kind of a table, and its columns with their types.
struct Shape {
    kind: String,
    names: Vec<String>,
    types: Vec<String>,
}

impl Shape {
    async fn read(session: &mut Session, operation: &'static str) -> Result<Self> {
        let statement = session.statement(SHAPE);
        let row = statement.fetch_one(session.connection()).await.map_err(failed(operation))?;
        let read =
            || Ok(Self { kind: row.try_get(0)?, names: row.try_get(1)?, types: row.try_get(2)? });
        read().map_err(failed(operation))
    }

    /// Columns of ours beyond the contract's.
    fn more(&self) -> Vec<&str> {
        let columns = self.names.iter().zip(&self.types);
        let more = columns.filter(|(name, kind)| is_optional(name, kind));
        more.map(|(name, _)| name.as_str()).collect()
    }
}

/// Why the table cannot be adopted, if it cannot.
async fn misfit(
    session: &mut Session,
    shape: &Shape,
    operation: &'static str,
) -> Result<Option<String>> {
    if shape.kind != "r" {
        return Ok(Some("outbox_events is not a plain table".into()));
    }
    let mut faults = column_faults(&shape.names, &shape.types);
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
    for (name, kind) in names.iter().zip(types) {
        if CONTRACT.iter().all(|(known, _)| known != name) && !is_optional(name, kind) {
            faults.push(format!("column {name} ({kind}) is unknown"));
        }
    }
    faults
}
