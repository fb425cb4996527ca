//! Which rights a relay needs, which it lacks, and who should have which.

use posthaste_core::{Error, ErrorKind, Result};
use sqlx::Row;

use crate::error::failed;
use crate::outbox::PostgresOutbox;
use crate::session::Session;

/// SQL that makes roles for writers, relays, operators and the migrator, with what each needs and no
/// more. The page `docs/roles.md` shows it.
pub const ROLES_SQL: &str = include_str!("../migrations/roles.sql");

/// What a relay does with which table, and which of these rights the session's user lacks. What is not
/// there is another question's.
const MISSING: &str = "\
    select privilege || ' on ' || name from ( \
        select privilege, name, case \
            when to_regclass(name) is null then true \
            else has_table_privilege(to_regclass(name), privilege) end as granted \
        from (values \
            ('outbox_migrations', '{select}'::text[]), \
            ('outbox_events', '{select,update,delete}'), \
            ('outbox_events_pending', '{select,update}'), \
            ('outbox_signal', '{select}'), \
            ('outbox_relays', '{select,insert,update,delete}'), \
            ('outbox_shards', '{select,update}') \
        ) as wanted (name, privileges) cross join unnest(privileges) as privilege \
        union all \
        select 'select', 'sequence outbox_events_seq', \
            to_regclass('outbox_events_seq') is null \
                or has_sequence_privilege(to_regclass('outbox_events_seq'), 'select') \
        union all \
        select 'execute', 'function outbox_shard(text)', \
            to_regprocedure('outbox_shard(text)') is null \
                or has_function_privilege(to_regprocedure('outbox_shard(text)'), 'execute') \
        union all \
        select 'usage', 'schema ' || nspname, false from pg_namespace \
        where to_regclass('outbox_events') is null and not has_schema_privilege(oid, 'usage') \
            and exists (select from pg_class where relnamespace = pg_namespace.oid \
                and relname = 'outbox_events_pending') \
    ) needed where not granted";

pub(crate) async fn missing(session: &mut Session, operation: &'static str) -> Result<Vec<String>> {
    let statement = session.statement(MISSING);
    let rows = statement.fetch_all(session.connection()).await.map_err(failed(operation))?;
    rows.iter().map(|row| row.try_get(0)).collect::<Result<_, _>>().map_err(failed(operation))
}

/// `select, update on outbox_shards; usage on schema shop`, for people.
pub(crate) fn by_object(missing: &[String]) -> String {
    let mut objects: Vec<(&str, Vec<&str>)> = Vec::new();
    for (privilege, object) in missing.iter().filter_map(|right| right.split_once(" on ")) {
        match objects.iter_mut().find(|(known, _)| *known == object) {
            Some((_, privileges)) => privileges.push(privilege),
            None => objects.push((object, vec![privilege])),
        }
    }
    let texts = objects.iter().map(|(object, rights)| format!("{} on {object}", rights.join(", ")));
    texts.collect::<Vec<_>>().join("; ")
}

/// Refuses a user that could not do all of a relay's work.
pub(crate) async fn check(session: &mut Session, operation: &'static str) -> Result<()> {
    let missing = missing(session, operation).await?;
    if missing.is_empty() {
        return Ok(());
    }
    let message = format!(
        "this user lacks rights that a relay needs: {}; `posthaste migrate sql --roles` has the grants",
        by_object(&missing)
    );
    Err(Error::new(ErrorKind::Unauthorized, operation, message))
}

impl PostgresOutbox {
    /// The rights that a relay needs and the user of this connection lacks, as `delete on outbox_events`.
    /// Empty where it may do all of a relay's work; what only the tables' owner does, days of the history
    /// for one, is not asked for.
    ///
    /// # Errors
    /// Those of the connection.
    pub async fn missing_rights(&self) -> Result<Vec<String>> {
        const OPERATION: &str = "look at the rights";
        self.bounded(OPERATION, async {
            let mut session = self.session(OPERATION).await?;
            let missing = missing(&mut session, OPERATION).await?;
            session.finish().await?;
            Ok(missing)
        })
        .await
    }
}
