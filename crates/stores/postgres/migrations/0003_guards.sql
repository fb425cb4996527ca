-- A function that runs with its owner's rights must find nothing that its caller can plant. The body
-- names the signal beside the function itself, whatever the search path and whatever schema the table
-- of the trigger is in; so it also goes on working when the schema is given another name.
create or replace function outbox_signal_bump() returns trigger language plpgsql
    security definer set search_path = pg_catalog, pg_temp as $$
begin
    execute (select format('update %I.outbox_signal set revision = revision + 1 '
                           'where xmin <> pg_current_xact_id()::xid', n.nspname)
               from pg_trigger t
               join pg_proc p on p.oid = t.tgfoid
               join pg_namespace n on n.oid = p.pronamespace
              where t.tgrelid = tg_relid and t.tgname = tg_name);
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
