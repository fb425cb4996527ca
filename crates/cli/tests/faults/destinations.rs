//! One of two destinations down for long.

use std::time::{Duration, Instant};

use posthaste_testkit::servers::{NatsServer, shared_nats};

use crate::rig::{RELAYS, Rig, plan, relay_config};
use crate::support::{Database, Plan, RelayConfig, Stream, eventually, sized};

/// No event loses an attempt, all are delivered when it is back, and the other destination gets its
/// events as before.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_outage_of_one_destination_costs_no_attempt_and_leaves_the_other_alone() {
    let down_for = sized(Duration::from_secs(8), Duration::from_secs(120));
    let Some(shared) = shared_nats().await else { return };
    let Some(mut nats) = NatsServer::start("").await else { return };
    let Some(database) = Database::create().await else { return };
    let stream = Stream::create_forgetful(&nats.url()).await;
    let other = Stream::create_forgetful(&shared).await;
    let more = format!(
        "[destinations.other]\ntype = \"nats\"\nurl = \"{}\"\nstream = \"{}\"\nsubject = \"{}\"\n\
         [[routes]]\nevent_type = \"other.*\"\ndestination = \"other\"\n",
        other.url,
        other.name,
        other.subject(),
    );
    let config = RelayConfig { more, ..relay_config() };
    // Not as fast as they can: then what the other gets is what is written, down or not.
    let plan = Plan {
        event_types: ["account.changed", "other.changed"],
        pause: Duration::from_millis(20),
        ..plan()
    };
    let name = "one of two destinations down";
    let mut rig = Rig::start_with(name, database, stream, &[config], plan).await;

    let jetstream = other.jetstream().await;
    let before = Rate::begin(other.messages(&jetstream).await);
    tokio::time::sleep(down_for / 4).await;
    let before = before.end(other.messages(&jetstream).await);
    rig.burst().await;
    nats.kill();
    rig.interrupt(RELAYS);
    let during = Rate::begin(other.messages(&jetstream).await);
    tokio::time::sleep(down_for).await;
    let during = during.end(other.messages(&jetstream).await);
    let waiting = |event_type: &str| {
        format!(
            "select count(*) from outbox_events \
              where processed_at is null and event_type = '{event_type}'"
        )
    };
    let held = rig.database.count(&waiting("account.changed")).await;
    assert!(held > 0, "nothing was written for the destination that is down");
    // Soon after it was written, not some day: writers go on all the time.
    let most = held / 4 + 200;
    eventually("the other's events, as they come", async || {
        rig.database.count(&waiting("other.changed")).await < most
    })
    .await;
    assert_eq!(rig.database.blamed().await, 0);
    nats.restart().await;
    rig.recover().await;
    assert_eq!(rig.database.blamed().await, 0, "every retry_count as it was");
    rig.add("waiting at its end", held);
    rig.add("events/s of the other before", format!("{before:.0}"));
    rig.add("events/s of the other meanwhile", format!("{during:.0}"));
    rig.add("ratio", format!("{:.2}", during / before));
    let seconds = down_for.as_secs();
    rig.finish_with(
        &format!("NATS killed; down for {seconds} s; every attempt untouched"),
        &[&other],
    )
    .await;
}

/// Events in a second.
struct Rate {
    messages: u64,
    begun: Instant,
}

impl Rate {
    fn begin(messages: u64) -> Self {
        Self { messages, begun: Instant::now() }
    }

    fn end(self, messages: u64) -> f64 {
        (messages - self.messages) as f64 / self.begun.elapsed().as_secs_f64()
    }
}
