-- Back to version 2. The functions stay as they are, and so do replica identities: those of version 2
-- work with them, and the former ones let any login run code as their owner.
lock table outbox_events in access exclusive mode;
drop trigger if exists outbox_events_as_meant on outbox_events_pending;
drop function if exists outbox_event_as_meant();
alter table outbox_events_pending drop constraint if exists outbox_events_seq_is_positive;
alter table outbox_events_pending drop constraint if exists outbox_events_id_is_given;
alter table outbox_events_processed drop constraint if exists outbox_events_processed_at_is_real;
alter table outbox_relays drop column if exists report, drop column if exists lease_ttl;
delete from outbox_migrations where version = 3;
