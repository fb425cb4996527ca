-- Removes the outbox, with every event in it: what waits is never delivered.
drop table if exists outbox_events, outbox_signal, outbox_relays, outbox_shards, outbox_migrations;
drop function if exists outbox_signal_bump();
drop function if exists outbox_event_as_meant();
drop function if exists outbox_shard(text);
drop sequence if exists outbox_events_seq;
