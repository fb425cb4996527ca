-- Events that wait and have what no writer can mean get what was meant: an id of their own, and a place
-- that is read. They keep their order.
update outbox_events set id = lower(hex(randomblob(4))) || '-' || lower(hex(randomblob(2))) || '-4'
    || substr(lower(hex(randomblob(2))), 2) || '-' || substr('89ab', 1 + (random() & 3), 1)
    || substr(lower(hex(randomblob(2))), 2) || '-' || lower(hex(randomblob(6)))
where processed_at is null and id in (
    '00000000-0000-0000-0000-000000000000', '00000000000000000000000000000000', zeroblob(16));
update outbox_events set seq = moved.seq
from (
    select seq as low, row_number() over (order by seq)
        + max((select max(seq) from outbox_events),
              (select seq from sqlite_sequence where name = 'outbox_events')) as seq
    from outbox_events where seq <= 0 and processed_at is null
) moved
where outbox_events.seq = moved.low;
update sqlite_sequence set seq = max(seq, (select coalesce(max(seq), 0) from outbox_events))
where name = 'outbox_events';

-- The triggers run in the writers' own SQLite, which may be older than ours: no function of theirs is
-- newer than what the table itself needs.

-- Refuses what no relay could ever deliver, or would be lost in silence: a `processed_at` that is no time
-- since 2000 is what languages write for none (year 1, 1970, 'None', 'null'), and such an event would count
-- as delivered. After the insert, since a place is not known before it. A place is far below the largest
-- number: from the last one on, SQLite could give no event a place any more. The limits are those of the
-- builder in Rust.
create trigger outbox_events_refused after insert on outbox_events
when new.seq <= 0 or new.seq > 4611686018427387904
    or (new.id = '00000000-0000-0000-0000-000000000000' or new.id = '00000000000000000000000000000000'
        or new.id = x'00000000000000000000000000000000')
    or (new.processed_at <> '' and not (typeof(new.processed_at) = 'text'
        and new.processed_at glob '[2-9][0-9][0-9][0-9]-[0-9][0-9]-[0-9][0-9]*'
        and julianday(substr(new.processed_at, 1, 10)) is not null))
    or (new.dead_at <> '' and not (typeof(new.dead_at) = 'text'
        and new.dead_at glob '[0-9][0-9][0-9][0-9]-[0-9][0-9]-[0-9][0-9]*'
        and julianday(substr(new.dead_at, 1, 10)) is not null))
    or length(cast(new.partition_key as blob)) > 512
    or length(cast(new.headers as blob)) > 65536
    or (new.headers <> '' and not json_valid(new.headers))
    or case when json_valid(new.headers) then case json_type(new.headers)
            when 'object' then false
            when 'null' then false
            when 'array' then json_array_length(new.headers) > 0
            when 'text' then case
                when json_valid(json_extract(new.headers, '$'))
                then json_type(json_extract(new.headers, '$')) <> 'object'
                else json_extract(new.headers, '$') <> '' end
            else true end
        end
begin
    select raise(abort, 'seq is drawn by the outbox, and above zero') where new.seq <= 0;
    select raise(abort, 'seq is drawn by the outbox, and no number above 2^62: the last one leaves no place to others')
    where new.seq > 4611686018427387904;
    select raise(abort, 'the id is nil, which every event would share that was given none')
    where (new.id = '00000000-0000-0000-0000-000000000000' or new.id = '00000000000000000000000000000000'
        or new.id = x'00000000000000000000000000000000');
    select raise(abort, 'processed_at is a time that was never set: such an event would count as delivered')
    where new.processed_at <> '' and not (typeof(new.processed_at) = 'text'
        and new.processed_at glob '[2-9][0-9][0-9][0-9]-[0-9][0-9]-[0-9][0-9]*'
        and julianday(substr(new.processed_at, 1, 10)) is not null);
    select raise(abort, 'dead_at is no time: such an event would count as a dead letter')
    where new.dead_at <> '' and not (typeof(new.dead_at) = 'text'
        and new.dead_at glob '[0-9][0-9][0-9][0-9]-[0-9][0-9]-[0-9][0-9]*'
        and julianday(substr(new.dead_at, 1, 10)) is not null);
    select raise(abort, 'partition_key has more than 512 bytes')
    where length(cast(new.partition_key as blob)) > 512;
    select raise(abort, 'headers hold more than 64 KiB') where length(cast(new.headers as blob)) > 65536;
    select raise(abort, 'headers must be one JSON object');
end;

-- Takes what a language writes for "not given" as not given: empty text, a time that was never set, an
-- object that was serialised twice.
create trigger outbox_events_as_meant after insert on outbox_events
when new.aggregate_type = '' or new.partition_key = '' or new.destination = '' or new.topic = ''
    or new.content_type = '' or new.error_message = '' or new.dead_reason = ''
    or new.retry_count < 0 or new.max_retries < 1
    or new.processed_at = '' or new.available_at = ''
    or new.dead_at < '2'
    or new.created_at < '1'
    or length(cast(new.error_message as blob)) > 2000
    or case when json_valid(new.headers) then json_type(new.headers) <> 'object'
        else new.headers = '' end
begin
    update outbox_events set
        aggregate_type = nullif(aggregate_type, ''),
        partition_key = nullif(partition_key, ''),
        destination = nullif(destination, ''),
        topic = nullif(topic, ''),
        content_type = nullif(content_type, ''),
        error_message = nullif(substr(error_message, 1, 2000), ''),
        dead_reason = nullif(dead_reason, ''),
        retry_count = max(retry_count, 0),
        -- One attempt is the least there is; the number 0 would say nothing that 1 does not.
        max_retries = case when max_retries < 1 then 3 else max_retries end,
        processed_at = nullif(processed_at, ''),
        available_at = nullif(available_at, ''),
        dead_at = case when dead_at < '2' then null else dead_at end,
        created_at = case when created_at < '1'
            then strftime('%Y-%m-%dT%H:%M:%fZ', 'now') else created_at end,
        headers = case when json_valid(headers) then case json_type(headers)
            when 'object' then headers
            when 'text' then nullif(json_extract(headers, '$'), '') end end
    where seq = new.seq;
end;

-- What the relay says of itself while it runs: destinations that it pauses, and why.
create table outbox_relays (
    relay text primary key,
    name text not null,
    said_at text not null,
    report text not null
);
