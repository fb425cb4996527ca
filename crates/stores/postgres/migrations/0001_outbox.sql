-- One number per event, in blocks of one: a cached block would hand a later transaction smaller
-- numbers than an earlier one and invert the order of a key.
create sequence outbox_events_seq as bigint cache 1;

-- Whoever may insert into the table must be able to draw its default. Drawing can waste numbers,
-- nothing else.
grant usage on sequence outbox_events_seq to public;

create table outbox_events (
    seq            bigint not null default nextval('outbox_events_seq'),
    id             uuid not null default gen_random_uuid(),
    aggregate_id   uuid not null,
    event_type     varchar(100) not null,
    event_data     jsonb not null,
    created_at     timestamptz default now(),
    processed_at   timestamptz,
    retry_count    integer default 0,
    max_retries    integer default 3,
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

-- Small and hot: whatever is not delivered. No index beyond these three, since each one taxes
-- every producer: unique (seq) also serves reading, because dead letters are rare. Vacuum has the
-- database's own settings: each round of it reads both indexes as a whole, and nothing here hangs on
-- it (ARCHITECTURE.md).
create table outbox_events_pending partition of outbox_events (
    constraint outbox_events_pending_seq_key unique (seq),
    constraint outbox_events_pending_id_key unique (id)
) for values in (true);
create index outbox_events_pending_dead on outbox_events_pending (seq) where dead_at is not null;

-- History: one partition a day (UTC), created ahead; `default` is the net beneath.
create table outbox_events_processed partition of outbox_events
    for values in (false) partition by range (processed_at);
create table outbox_events_processed_default partition of outbox_events_processed default;
create index outbox_events_processed_id on outbox_events_processed (id);

-- One row: changes whenever events that relays have passed may be pending again.
create table outbox_signal (
    only_row  boolean primary key default true check (only_row),
    revision  bigint not null default 0,
    bumped_by xid8
);
insert into outbox_signal default values;

-- Once per transaction, however many rows it changed. Runs with its owner's rights: an operator
-- who may mend events need not know of the signal.
create function outbox_signal_bump() returns trigger language plpgsql
    security definer set search_path from current as $$
begin
    update outbox_signal
       set revision = revision + 1, bumped_by = pg_current_xact_id()
     where bumped_by is distinct from pg_current_xact_id();
    return new;
end
$$;

-- None of these fires for `insert`, nor for the `update` that marks an event as delivered.
create trigger outbox_events_revived after update of dead_at on outbox_events_pending
    for each row when (old.dead_at is not null and new.dead_at is null)
    execute function outbox_signal_bump();
create trigger outbox_events_dead_removed after delete on outbox_events_pending
    for each row when (old.dead_at is not null)
    execute function outbox_signal_bump();
create trigger outbox_events_undelivered before update of processed_at on outbox_events_processed
    for each row when (new.processed_at is null)
    execute function outbox_signal_bump();
