//! An event that can never be delivered, on the key that is written most.

use crate::rig::Rig;
use crate::support::{Database, account_id, eventually, sized};

/// It becomes a dead letter and blocks its key, and no other one. Mended and retried, or discarded,
/// it lets the key go on in order.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn poison_on_the_hottest_key_holds_back_that_key_until_somebody_acts() {
    let rounds = sized(1, 2);
    let Some(mut rig) = Rig::start("poison on the hottest key").await else { return };
    rig.has_poison = true;
    let hot = account_id(0);
    let waiting = format!(
        "select count(*) from outbox_events where aggregate_id = '{hot}' and processed_at is null"
    );
    for _ in 0..rounds {
        for is_mended in [true, false] {
            let id = store_poison(&rig.database).await;
            rig.burst().await;
            eventually("a dead letter", async || is_dead(&rig.database, &id).await).await;
            rig.progress().await;
            eventually("a key that waits", async || rig.database.count(&waiting).await > 20).await;
            let url = rig.database.url();
            let mut change = vec!["--database-url", &url, "events"];
            if is_mended {
                let mend = format!("update outbox_events set topic = null where id = '{id}'");
                rig.database.run(&mend).await;
                change.extend(["retry", &id, "--yes"]);
            } else {
                change.extend(["discard", &id, "--yes"]);
            }
            rig.relays[0].cli.run(&change).succeeded();
            rig.recover().await;
            assert!(!is_dead(&rig.database, &id).await);
        }
    }
    let events = 2 * rounds;
    let done = format!("{events} events with a subject NATS refuses; retried or discarded");
    assert_eq!(rig.database.count(DEAD).await, 0);
    rig.finish(&done).await;
}

const DEAD: &str = "select count(*) from outbox_events where dead_at is not null";

/// Stores an event of the first account whose subject the broker refuses, and returns its id.
async fn store_poison(database: &Database) -> String {
    use sqlx::Row as _;
    let hot = account_id(0);
    let rows = database
        .rows(&format!(
            "with changed as ( \
                 update accounts set version = version + 1 where id = '{hot}' returning version) \
             insert into outbox_events (aggregate_id, event_type, event_data, topic) \
             select '{hot}', 'account.changed', jsonb_build_object('number', version), \
                    'not a subject' from changed \
             returning id::text"
        ))
        .await;
    rows[0].get(0)
}

async fn is_dead(database: &Database, id: &str) -> bool {
    database.count(&format!("{DEAD} and id = '{id}'")).await == 1
}
