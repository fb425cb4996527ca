-- Relays that share the work. One that does not renew its lease in time is taken for dead.
create table outbox_relays (
    relay       uuid primary key,
    name        text not null,
    joined_at   timestamptz not null default now(),
    lease_until timestamptz not null,
    leaving     boolean not null default false
);

-- Which relay delivers which keys. The generation rises whenever a shard is taken; a settlement names
-- the one under which its event was sent, and is refused when that is over.
create table outbox_shards (
    shard      smallint primary key check (shard between 0 and 63),
    owner      uuid,
    generation bigint not null default 0,
    taken_at   timestamptz
) with (fillfactor = 50);
insert into outbox_shards (shard) select generate_series(0, 63);

-- The shard of an order key; the one place that says so. A relay with a share of the keys has it computed
-- for every row that waits, so it must be quick. This hash is the one of hash partitions, and the same
-- in every version of PostgreSQL.
create function outbox_shard(key text) returns integer
    language sql immutable strict parallel safe
    as $$ select (hashtextextended(key collate "C", 0) & 63)::integer $$;

-- Once per transaction, as before, but told by the row's own transaction: a number that is stored
-- means another transaction when a dump is restored into another cluster.
create or replace function outbox_signal_bump() returns trigger language plpgsql
    security definer set search_path from current as $$
begin
    update outbox_signal set revision = revision + 1 where xmin <> pg_current_xact_id()::xid;
    return new;
end
$$;
alter table outbox_signal drop column bumped_by;
