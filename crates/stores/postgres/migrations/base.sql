-- Makes again what is missing of steps 1 and 2, and leaves alone what is there. The step after them can
-- be repeated as it is.
do $$
begin
    if to_regclass('outbox_events_seq') is null then
        create sequence outbox_events_seq as bigint cache 1;
        grant usage on sequence outbox_events_seq to public;
    end if;
end
$$;

create table if not exists outbox_events (
    seq            bigint not null,
    id             uuid not null,
    aggregate_id   uuid not null,
    event_type     varchar(100) not null,
    event_data     jsonb not null,
    created_at     timestamptz,
    processed_at   timestamptz,
    retry_count    integer,
    max_retries    integer,
    error_message  text,
    aggregate_type varchar(255),
    partition_key  text,
    destination    varchar(255),
    topic          varchar(255),
    headers        jsonb,
    payload        bytea,
    content_type   varchar(255),
    available_at   timestamptz,
    dead_at        timestamptz,
    dead_reason    varchar(40)
) partition by list ((processed_at is null));
alter table outbox_events
    alter column seq set default nextval('outbox_events_seq'),
    alter column id set default gen_random_uuid(),
    alter column created_at set default now(),
    alter column retry_count set default 0,
    alter column max_retries set default 3;

create table if not exists outbox_events_pending partition of outbox_events for values in (true);
create table if not exists outbox_events_processed partition of outbox_events
    for values in (false) partition by range (processed_at);
create table if not exists outbox_events_processed_default partition of outbox_events_processed default;
-- One that was detached is put back with all that is in it.
do $$
declare
    lost record;
begin
    for lost in select * from (values
            ('outbox_events_pending', 'outbox_events', 'for values in (true)'),
            ('outbox_events_processed', 'outbox_events', 'for values in (false)'),
            ('outbox_events_processed_default', 'outbox_events_processed', 'default')) as wanted (part, whole, bound)
        where not exists (select from pg_inherits
                           where inhrelid = to_regclass(part) and inhparent = to_regclass(whole)) loop
        execute format('alter table %I attach partition %I %s', lost.whole, lost.part, lost.bound);
    end loop;
end
$$;
do $$
begin
    if to_regclass('outbox_events_pending_seq_key') is null then
        alter table outbox_events_pending add constraint outbox_events_pending_seq_key unique (seq);
    end if;
    if to_regclass('outbox_events_pending_id_key') is null then
        alter table outbox_events_pending add constraint outbox_events_pending_id_key unique (id);
    end if;
end
$$;
create index if not exists outbox_events_pending_dead on outbox_events_pending (seq) where dead_at is not null;
create index if not exists outbox_events_processed_id on outbox_events_processed (id);

-- A sequence that was made anew must not give the places of events that wait to later ones.
select setval('outbox_events_seq', max(seq)) from outbox_events_pending
having max(seq) > (select case when is_called then last_value else 0 end from outbox_events_seq);

create table if not exists outbox_signal (
    only_row boolean primary key default true check (only_row),
    revision bigint not null default 0
);
insert into outbox_signal default values on conflict do nothing;

create table if not exists outbox_relays (
    relay       uuid primary key,
    name        text not null,
    joined_at   timestamptz not null default now(),
    lease_until timestamptz not null,
    leaving     boolean not null default false
);
create table if not exists outbox_shards (
    shard      smallint primary key check (shard between 0 and 63),
    owner      uuid,
    generation bigint not null default 0,
    taken_at   timestamptz
) with (fillfactor = 50);
insert into outbox_shards (shard) select generate_series(0, 63) on conflict do nothing;

-- The bodies of both functions are those of the step after this.
do $$
begin
    if to_regprocedure('outbox_signal_bump()') is null then
        create function outbox_signal_bump() returns trigger language plpgsql
            as 'begin raise exception ''the outbox is being mended''; end';
    end if;
end
$$;
create or replace trigger outbox_events_revived after update of dead_at on outbox_events_pending
    for each row when (old.dead_at is not null and new.dead_at is null)
    execute function outbox_signal_bump();
create or replace trigger outbox_events_dead_removed after delete on outbox_events_pending
    for each row when (old.dead_at is not null)
    execute function outbox_signal_bump();
create or replace trigger outbox_events_undelivered before update of processed_at on outbox_events_processed
    for each row when (new.processed_at is null)
    execute function outbox_signal_bump();
