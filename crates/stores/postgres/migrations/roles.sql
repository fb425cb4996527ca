-- Roles for an outbox in the current schema. Run this as a superuser, or as the owner of the tables with
-- the right to create roles, after `posthaste migrate up`; it can be run again. Logins become members:
-- `grant outbox_writer to orders_service`.

do $$
declare
    role text;
begin
    foreach role in array array['outbox_writer', 'outbox_relay', 'outbox_operator', 'outbox_migrator'] loop
        if not exists (select from pg_roles where rolname = role) then
            execute format('create role %I nologin', role);
        end if;
        execute format('grant usage on schema %I to %I', current_schema(), role);
    end loop;
end
$$;

-- Writers store events, and nothing else. `select (id)` is for ORMs, which say `returning id`.
grant insert (id, aggregate_id, event_type, event_data, aggregate_type, partition_key, destination, topic,
              headers, payload, content_type, available_at, max_retries)
    on outbox_events to outbox_writer;
grant select (id) on outbox_events to outbox_writer;
grant usage on sequence outbox_events_seq to outbox_writer;
-- Whoever may draw numbers may hold events back while a transaction stays open.
revoke usage on sequence outbox_events_seq from public;

-- Relays read what waits, record what came of it and share the keys. They neither store events nor change
-- the schema: set `database.migrate = false`. Days of the history are made and dropped by the migrator.
grant select on outbox_migrations, outbox_signal, outbox_events_processed, outbox_events_processed_default,
    outbox_events_seq to outbox_relay;
grant select, update, delete on outbox_events to outbox_relay;
grant select, update on outbox_events_pending to outbox_relay;
grant select, insert, update, delete on outbox_relays to outbox_relay;
grant select, update on outbox_shards to outbox_relay;

-- Operators look, retry and discard.
grant select on outbox_migrations, outbox_events_pending, outbox_events_processed,
    outbox_events_processed_default, outbox_events_seq,
    outbox_relays, outbox_shards to outbox_operator;
grant select, update, delete on outbox_events to outbox_operator;
grant select, update on outbox_signal to outbox_operator;

-- The migrator owns all of it: `migrate up` and `cleanup` run with this role.
do $$
declare
    part record;
begin
    execute format('grant create on schema %I to outbox_migrator', current_schema());
    for part in select c.oid::regclass as name from pg_class c
                 where c.relnamespace = current_schema()::regnamespace and c.relkind in ('r', 'p')
                   and c.oid in (select 'outbox_events'::regclass
                                 union all select relid from pg_partition_tree('outbox_events')
                                 union all values ('outbox_signal'::regclass), ('outbox_relays'),
                                     ('outbox_shards'), ('outbox_migrations')) loop
        execute format('alter table %s owner to outbox_migrator', part.name);
    end loop;
    alter sequence outbox_events_seq owner to outbox_migrator;
    alter function outbox_signal_bump() owner to outbox_migrator;
    alter function outbox_shard(text) owner to outbox_migrator;
    alter function outbox_event_as_meant() owner to outbox_migrator;
end
$$;
