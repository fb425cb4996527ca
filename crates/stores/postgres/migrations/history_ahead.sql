-- Creates the history partitions of today and the seven days after it, where they are missing.
-- Attaching a table of its own, instead of `create table ... partition of`, leaves running
-- settlements alone. Whatever fails is a warning: the default partition takes the events of that day.
do $$
declare
    history constant regclass := 'outbox_events_processed'::regclass;
    place constant text := (select n.nspname from pg_class c join pg_namespace n on n.oid = c.relnamespace
                             where c.oid = history);
    today constant date := (now() at time zone 'UTC')::date;
    day date;
    part text;
begin
    for day in select today + ahead from generate_series(0, 7) as ahead loop
        part := 'outbox_events_processed_' || to_char(day, '"y"YYYY"m"MM"d"DD');
        continue when exists (select from pg_inherits i join pg_class c on c.oid = i.inhrelid
                               where i.inhparent = history and c.relname = part);
        begin
            execute format('create table %I.%I (like %s including defaults including constraints '
                           'including generated)', place, part, history);
            execute format('alter table %I.%I replica identity full', place, part);
            execute format('alter table %s attach partition %I.%I for values from (%L) to (%L)',
                           history, place, part, day || ' 00:00:00+00', (day + 1) || ' 00:00:00+00');
        exception
            when check_violation then
                raise warning 'outbox: % is not created, the default partition holds rows of that day', part;
            when lock_not_available then
                raise warning 'outbox: % is not created now, the history is locked', part;
            when duplicate_table then
                raise warning 'outbox: a table % exists that is not part of the history', part;
            when insufficient_privilege then
                raise warning 'outbox: % is not created, this user may not (%); run `posthaste migrate up` '
                              'as the owner of the tables', part, sqlerrm;
            when others then
                raise warning 'outbox: % is not created: % (SQLSTATE %)', part, sqlerrm, sqlstate;
        end;
    end loop;
end
$$;
