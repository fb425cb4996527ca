//! What the database itself says about who recorded deliveries.
//!
//! Each relay logs in under a name of its own. Triggers note, in the transaction that records a
//! delivery, that name and the relay that owned the event's shard at that moment.

use posthaste_testkit::servers::PostgresServer;

use crate::rig::{RELAYS, relay_config};
use crate::support::{Database, RelayConfig};

const TRIGGERS: &str = "
    create table witness_relays (relay uuid primary key, login text not null);
    create table witness_slow (login text primary key);
    create table witness_settlements (id uuid not null, owner uuid, login text not null);

    create function witness_relay() returns trigger language plpgsql as $$
    begin
        insert into witness_relays values (new.relay, session_user) on conflict do nothing;
        perform pg_sleep(0.5) from witness_slow where login = session_user and tg_op = 'INSERT';
        return null;
    end $$;
    create trigger witness after insert or update on outbox_relays
        for each row execute function witness_relay();

    create function witness_settlement() returns trigger language plpgsql as $$
    begin
        insert into witness_settlements
        select new.id, shards.owner, session_user
          from outbox_shards as shards
         where shards.shard = outbox_shard(coalesce(new.partition_key, new.aggregate_id::text));
        return null;
    end $$;
    create trigger witness after insert on outbox_events_processed
        for each row execute function witness_settlement();";

/// The configurations of relays that the database can tell apart.
pub(crate) async fn configure(database: &Database, server: &PostgresServer) -> Vec<RelayConfig> {
    database.run(TRIGGERS).await;
    let mut configs = Vec::new();
    for relay in 0..RELAYS {
        database.run(&format!("create role {} superuser login", login(relay))).await;
        let url = server.url(&database.name).replacen("root@", &format!("{}@", login(relay)), 1);
        configs.push(RelayConfig { database_url: Some(url), ..relay_config() });
    }
    configs
}

fn login(relay: usize) -> String {
    format!("relay_{relay}")
}

/// Deliveries that were recorded, and how many of them by a relay that did not own the shard.
pub(crate) async fn settlements(database: &Database) -> (u64, u64) {
    let all = database.count("select count(*) from witness_settlements").await;
    let by_others = database
        .count(
            "select count(*) from witness_settlements as settled \
               left join witness_relays as owners on owners.relay = settled.owner \
              where owners.login is distinct from settled.login",
        )
        .await;
    (all, by_others)
}

/// Makes joining take half a second for this relay, so that it can be met at it.
pub(crate) async fn slow_down(database: &Database, relay: usize, is_slow: bool) {
    let login = login(relay);
    let change = if is_slow {
        format!("insert into witness_slow values ('{login}')")
    } else {
        format!("delete from witness_slow where login = '{login}'")
    };
    database.run(&change).await;
}

/// Whether this relay joins at this moment, slowly.
pub(crate) async fn is_joining(database: &Database, relay: usize) -> bool {
    database
        .count(&format!(
            "select count(*) from pg_stat_activity \
              where usename = '{}' and wait_event = 'PgSleep' \
                and query like '%outbox_relays%' and datname = current_database()",
            login(relay)
        ))
        .await
        > 0
}

/// How many shards this relay owns.
pub(crate) async fn shards_of(database: &Database, relay: usize) -> u64 {
    database
        .count(&format!(
            "select count(*) from outbox_shards join witness_relays on relay = owner \
              where login = '{}'",
            login(relay)
        ))
        .await
}
