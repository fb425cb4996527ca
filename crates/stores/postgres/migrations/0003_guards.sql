-- What this step does to tables that are in use takes moments, and needs them to itself meanwhile: all
-- of them from the root on, as writers take their locks.
lock table outbox_events in access exclusive mode;

-- A function that runs with its owner's rights must find nothing that its caller can plant. The body
-- names the signal beside the function itself, whatever the search path and whatever schema the table
-- of the trigger is in; so it also goes on working when the schema is given another name.
create or replace function outbox_signal_bump() returns trigger language plpgsql
    security definer set search_path = pg_catalog, pg_temp as $$
declare
    done constant text := pg_current_xact_id() || ' ' || tg_relid;
begin
    -- Once per transaction, since a statement that is put together each time is dear. A savepoint that
    -- is rolled back takes the mark along.
    if current_setting('posthaste.signalled', true) is distinct from done then
        execute (select format('update %I.outbox_signal set revision = revision + 1 '
                               'where xmin <> pg_current_xact_id()::xid', n.nspname)
                   from pg_trigger t
                   join pg_proc p on p.oid = t.tgfoid
                   join pg_namespace n on n.oid = p.pronamespace
                  where t.tgrelid = tg_relid and t.tgname = tg_name);
        perform set_config('posthaste.signalled', done, true);
    end if;
    return new;
end
$$;
-- A trigger that exists fires for everybody. Only to make one takes this right.
revoke execute on function outbox_signal_bump() from public;

-- As before, but every part is named: what somebody else puts into a schema of the search path, with
-- types that fit better, is not called.
create or replace function outbox_shard(key text) returns integer
    language sql immutable strict parallel safe
    as $$ select (pg_catalog.hashtextextended(key collate pg_catalog."C", 0::bigint)
                  operator(pg_catalog.&) 63::bigint)::integer $$;

-- What no writer can mean. A place at or below zero is never read, and a nil id is the same for all
-- events whose writer forgot to make one: consumers and brokers drop the second as a repeat. Events
-- that wait and have one get a proper one; `not valid`, so that nothing is read for it.
update outbox_events_pending event set seq = given.seq
  from (select id, nextval('outbox_events_seq') as seq
          from (select id from outbox_events_pending where seq <= 0 order by seq) low) given
 where event.id = given.id;
update outbox_events_pending set id = gen_random_uuid() where id = '00000000-0000-0000-0000-000000000000';
alter table outbox_events_pending
    drop constraint if exists outbox_events_seq_is_positive,
    add constraint outbox_events_seq_is_positive check (seq > 0) not valid,
    drop constraint if exists outbox_events_id_is_given,
    add constraint outbox_events_id_is_given
        check (id <> '00000000-0000-0000-0000-000000000000') not valid;

-- A time that was never set is year 1 in some languages. A new event with such a `processed_at` would
-- count as delivered.
alter table outbox_events_processed
    drop constraint if exists outbox_events_processed_at_is_real,
    add constraint outbox_events_processed_at_is_real check (
        processed_at >= '2000-01-01 00:00:00+00' and processed_at < 'infinity') not valid;

-- Takes what a language writes for "not given" as not given, and refuses what no relay could ever
-- deliver. Called for such rows only. The limits are those of the builder in Rust.
create or replace function outbox_event_as_meant() returns trigger language plpgsql
    set search_path = pg_catalog, pg_temp as $$
begin
    new.aggregate_type := nullif(new.aggregate_type, '');
    new.partition_key := nullif(new.partition_key, '');
    new.destination := nullif(new.destination, '');
    new.topic := nullif(new.topic, '');
    new.content_type := nullif(new.content_type, '');
    new.error_message := nullif(left(new.error_message, 2000), '');
    new.dead_reason := nullif(new.dead_reason, '');
    if new.retry_count < 0 then
        new.retry_count := 0;
    end if;
    -- One attempt is the least there is; the number 0 would say nothing that 1 does not.
    if new.max_retries < 1 then
        new.max_retries := 3;
    end if;
    if new.created_at < '2000-01-01 00:00:00+00' or new.created_at >= '9999-01-01 00:00:00+00' then
        new.created_at := now();
    end if;
    if new.dead_at < '2000-01-01 00:00:00+00' then
        new.dead_at := null;
    end if;
    if octet_length(new.partition_key) > 512 then
        raise exception 'partition_key has % bytes, and 512 is the limit', octet_length(new.partition_key)
            using errcode = 'check_violation', table = 'outbox_events', column = 'partition_key';
    end if;
    -- An object that was serialised twice, by the program and by its driver.
    if jsonb_typeof(new.headers) = 'string' and new.headers #>> '{}' ~ '^\s*\{' then
        begin
            new.headers := (new.headers #>> '{}')::jsonb;
        exception when invalid_text_representation then
            null;
        end;
    end if;
    -- An empty map, or none, as some languages write it.
    if new.headers in ('null', '[]', '""') then
        new.headers := null;
    end if;
    if jsonb_typeof(new.headers) <> 'object' then
        raise exception 'headers must be one JSON object, not %', jsonb_typeof(new.headers)
            using errcode = 'check_violation', table = 'outbox_events', column = 'headers';
    end if;
    if (select sum(octet_length(key) + octet_length(value)) from jsonb_each_text(new.headers)) > 16384 then
        raise exception 'headers hold more than 16 KiB'
            using errcode = 'check_violation', table = 'outbox_events', column = 'headers';
    end if;
    return new;
end
$$;
create or replace trigger outbox_events_as_meant before insert on outbox_events_pending
    for each row when (
        new.aggregate_type = '' or new.partition_key = '' or new.destination = '' or new.topic = ''
        or new.content_type = '' or new.error_message = '' or new.dead_reason = ''
        or new.retry_count < 0 or new.max_retries < 1
        or new.created_at < '2000-01-01 00:00:00+00' or new.created_at >= '9999-01-01 00:00:00+00'
        or new.dead_at < '2000-01-01 00:00:00+00'
        or octet_length(new.partition_key) > 512 or octet_length(new.error_message) > 2000
        or jsonb_typeof(new.headers) <> 'object' or pg_column_size(new.headers) > 16384)
    execute function outbox_event_as_meant();

-- So that a publication may have these tables: without a replica identity the server refuses to update
-- and delete what is published. Days of the history get theirs where they are made.
alter table outbox_events_pending replica identity using index outbox_events_pending_id_key;
do $$
declare
    part regclass;
begin
    for part in select inhrelid::regclass from pg_inherits
                 where inhparent = 'outbox_events_processed'::regclass loop
        execute format('alter table %s replica identity full', part);
    end loop;
end
$$;

-- What a relay says of itself while it runs: destinations that it pauses, and why.
alter table outbox_relays add column if not exists report jsonb;
-- How long its lease lasts: the relays of an outbox need not agree on that.
alter table outbox_relays add column if not exists lease_ttl interval;
