create table outbox_events (
    -- autoincrement: a place is never used anew, not even after the last event was removed.
    seq integer primary key autoincrement,
    id text not null unique default (
        lower(hex(randomblob(4))) || '-' || lower(hex(randomblob(2))) || '-4'
        || substr(lower(hex(randomblob(2))), 2) || '-' || substr('89ab', 1 + (random() & 3), 1)
        || substr(lower(hex(randomblob(2))), 2) || '-' || lower(hex(randomblob(6)))
    ),
    aggregate_id text not null,
    event_type text not null check (length(event_type) between 1 and 100),
    event_data text not null check (json_valid(event_data)),
    created_at text default (strftime('%Y-%m-%dT%H:%M:%fZ', 'now')),
    processed_at text,
    retry_count integer default 0,
    max_retries integer default 3,
    error_message text,
    aggregate_type text,
    -- Orders the event instead of aggregate_id.
    partition_key text,
    destination text,
    topic text,
    -- One JSON object of strings.
    headers text,
    -- Bytes to deliver instead of event_data.
    payload blob,
    content_type text,
    -- Not delivered before: the writer's delay, or the next attempt.
    available_at text,
    dead_at text,
    dead_reason text,
    -- One spelling of the key, whether writers store UUIDs as text, as hex or as 16 bytes.
    order_key text generated always as (
        coalesce(nullif(partition_key, ''), case typeof(aggregate_id)
            when 'blob' then lower(hex(aggregate_id))
            else lower(replace(aggregate_id, '-', ''))
        end)
    ) virtual
);

create index outbox_events_pending on outbox_events (seq)
    where processed_at is null and dead_at is null;
create index outbox_events_pending_key on outbox_events (order_key, seq)
    where processed_at is null and dead_at is null;
create index outbox_events_dead on outbox_events (seq)
    where processed_at is null and dead_at is not null;
create index outbox_events_processed on outbox_events (processed_at)
    where processed_at is not null;

-- Relays read it with each watermark: a new revision makes them read from the start.
create table outbox_signal (
    id integer primary key check (id = 1),
    revision integer not null
);
insert into outbox_signal (id, revision) values (1, 0);

create trigger outbox_events_revived
after update of processed_at, dead_at on outbox_events
when (old.processed_at is null and old.dead_at is not null
        and (new.processed_at is not null or new.dead_at is null))
    or (old.processed_at is not null and new.processed_at is null)
begin
    update outbox_signal set revision = revision + 1;
end;

create trigger outbox_events_dead_discarded
after delete on outbox_events
when old.processed_at is null and old.dead_at is not null
begin
    update outbox_signal set revision = revision + 1;
end;
