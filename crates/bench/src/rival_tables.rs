//! The rivals' own tables, with the same events in them.

use anyhow::{Context as _, Result};
use sqlx::postgres::PgConnection;

use crate::bed::{copy, run};
use crate::child;
use crate::workload::{EVENT_TYPE, Event, Workload};

/// For [`store`]: into a flat table.
pub(crate) const INSERT_FLAT: &str = "\
    insert into outbox_events (id, aggregate_id, event_type, event_data) \
    select id, key, $1, data::jsonb \
    from unnest($2::uuid[], $3::uuid[], $4::text[]) as event (id, key, data)";

/// For [`store`]: into PgQ's queue.
pub(crate) const INSERT_QUEUE: &str = "\
    select count(pgq.insert_event('events', $1, data, id::text, key::text, null, null)) \
    from unnest($2::uuid[], $3::uuid[], $4::text[]) as event (id, key, data)";

/// For [`store`]: as `outbox-postgres` does, and with the key in the payload.
pub(crate) const INSERT_OUTBOX_CORE: &str = "\
    insert into outbox_events (id, event_type, payload) \
    select id, $1, jsonb_build_object('key', key, 'data', data::jsonb) \
    from unnest($2::uuid[], $3::uuid[], $4::text[]) as event (id, key, data)";

/// For [`store`]: where Debezium looks.
pub(crate) const INSERT_DEBEZIUM: &str = "\
    insert into outboxevent (id, aggregatetype, aggregateid, type, payload) \
    select id, 'account', key::text, $1, data::jsonb \
    from unnest($2::uuid[], $3::uuid[], $4::text[]) as event (id, key, data)";

pub(crate) async fn fill_queue(
    connection: &mut PgConnection,
    workload: &Workload,
    tick: usize,
) -> Result<()> {
    run(connection, "create extension pgq".to_owned()).await?;
    run(connection, "select pgq.create_queue('events')".to_owned()).await?;
    run(connection, "select pgq.register_consumer('events', 'relay')".to_owned()).await?;
    let mut events = workload.events().peekable();
    while events.peek().is_some() {
        store(connection, INSERT_QUEUE, events.by_ref().take(tick)).await?;
        run(connection, "select pgq.ticker('events')".to_owned()).await?;
    }
    run(connection, "vacuum (freeze, analyze)".to_owned()).await
}

/// Stores events with one statement, which is given their type, and arrays of their identifiers, keys
/// and data.
pub(crate) async fn store(
    connection: &mut PgConnection,
    statement: &'static str,
    events: impl Iterator<Item = Event>,
) -> Result<()> {
    let (mut ids, mut keys, mut data) = (Vec::new(), Vec::new(), Vec::new());
    for event in events {
        ids.push(event.id);
        keys.push(event.key);
        data.push(event.data);
    }
    let statement = sqlx::query(statement).bind(EVENT_TYPE).bind(ids).bind(keys).bind(data);
    statement.execute(connection).await?;
    Ok(())
}

/// The key goes into the payload, since the table has no column for it.
pub(crate) async fn fill_outbox_core(
    connection: &mut PgConnection,
    url: &str,
    workload: &Workload,
) -> Result<()> {
    prepare(&["outbox-core", url]).await?;
    // Nobody listens yet, and a statement for each row would only make this slow.
    run(connection, "alter table outbox_events disable trigger user".to_owned()).await?;
    let statement = "copy outbox_events (id, event_type, payload) from stdin";
    let lines = workload.events().map(|event| {
        let (id, key, data) = (event.id, event.key, event.data);
        format!("{id}\t{EVENT_TYPE}\t{{\"key\":\"{key}\",\"data\":{data}}}\n")
    });
    copy(connection, statement, lines).await?;
    run(connection, "alter table outbox_events enable trigger user".to_owned()).await?;
    run(connection, "vacuum (freeze, analyze) outbox_events".to_owned()).await
}

/// Key and identifier go into the payload, since a message has but a number in its partition; a key's
/// events go into one partition, as its producers are told to choose it.
pub(crate) async fn fill_gears(
    connection: &mut PgConnection,
    url: &str,
    workload: &Workload,
    partitions: u16,
) -> Result<()> {
    prepare(&["cf-gears", url, &partitions.to_string()]).await?;
    run(connection, "create temporary table events (key uuid, body text)".to_owned()).await?;
    let lines = workload.events().map(|event| {
        let (id, key, data) = (event.id, event.key, event.data);
        format!("{key}\t{{\"id\":\"{id}\",\"key\":\"{key}\",\"data\":{data}}}\n")
    });
    copy(connection, "copy events from stdin", lines).await?;
    // The statement of its `enqueue`, for all at once. The table's order is that of the events, and
    // a body's number is its event's.
    let bodies = format!(
        "insert into toolkit_outbox_body (payload, payload_type) \
         select convert_to(body, 'UTF8'), '{EVENT_TYPE}' from events"
    );
    run(connection, bodies).await?;
    let incoming = format!(
        "insert into toolkit_outbox_incoming (partition_id, body_id) \
         select partition.id, event.number \
         from (select row_number() over () as number, key from events) event \
         join toolkit_outbox_partitions partition \
             on partition.partition = abs(uuid_hash(event.key)::bigint) % {partitions} \
         order by event.number"
    );
    run(connection, incoming).await?;
    run(connection, "drop table events".to_owned()).await?;
    run(connection, "vacuum (freeze, analyze)".to_owned()).await
}

/// Lets a rival make its tables.
async fn prepare(arguments: &[&str]) -> Result<()> {
    let mut command = child::rivals()?;
    command.arg("prepare").args(arguments);
    let status = command.status().await.with_context(|| format!("start {command:?}"))?;
    anyhow::ensure!(status.success(), "{command:?} failed ({status})");
    Ok(())
}
