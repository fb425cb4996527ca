//! NATS killed, and out of space.

use std::time::Duration;

use async_nats::jetstream::stream::{self, DiscardPolicy};
use posthaste_testkit::servers::{NatsServer, shared_nats};

use crate::rig::{RELAYS, Rig, relay_config};
use crate::support::{Database, Relay, Stream, eventually, sized};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_that_was_killed_costs_no_attempt() {
    let rounds = sized(2, 4);
    let down_for = sized(Duration::from_secs(1), Duration::from_secs(5));
    let Some(mut nats) = NatsServer::start_recent("").await else { return };
    let Some(database) = Database::create().await else { return };
    let stream = Stream::create_forgetful(&nats.url()).await;
    let mut rig = Rig::start_on("NATS killed", database, stream, &[relay_config()]).await;
    for _ in 0..rounds {
        rig.burst().await;
        nats.kill();
        rig.interrupt(RELAYS);
        tokio::time::sleep(down_for).await;
        nats.restart().await;
        rig.recover().await;
        rig.progress().await;
    }
    let seconds = down_for.as_secs();
    rig.finish(&format!("{rounds} times kill -9; down for {seconds} s")).await;
}

/// A stream that is at its limit refuses what it cannot keep, as a disk does; nothing is an event's
/// own fault then.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_without_space_costs_no_attempt_and_takes_all_when_it_has_some() {
    let rounds = sized(2, 3);
    let lasts = sized(Duration::from_secs(2), Duration::from_secs(10));
    let Some(nats) = shared_nats().await else { return };
    let Some(database) = Database::create().await else { return };
    let stream = Stream::named(&nats);
    let config = stream::Config {
        duplicate_window: Duration::from_millis(100),
        discard: DiscardPolicy::New,
        ..Default::default()
    };
    stream.make(config).await;
    let mut rig = Rig::start_on("broker full", database, stream, &[relay_config()]).await;
    rig.tap = None;
    for _ in 0..rounds {
        // Else what arrives meanwhile could be over the limit at once.
        for relay in &rig.relays {
            relay.freeze().await;
        }
        limit(&rig.stream, Some(sized(1_000, 8_000))).await;
        rig.relays.iter().for_each(Relay::thaw);
        rig.burst().await;
        for relay in &rig.relays {
            eventually("a relay that is told", async || {
                let answer = relay.get("/readyz").await;
                answer.is_some_and(|answer| answer.body.contains("destination default is paused"))
            })
            .await;
        }
        tokio::time::sleep(lasts).await;
        limit(&rig.stream, None).await;
        rig.recover().await;
        rig.progress().await;
    }
    let seconds = lasts.as_secs();
    rig.finish(&format!("{rounds} times no space for {seconds} s; then space again")).await;
}

/// Leaves room for so many messages more; `None` for no limit. Messages, not bytes: a limit in bytes
/// makes older servers remove messages they had acknowledged, whatever `discard` says.
async fn limit(stream: &Stream, more: Option<i64>) {
    let jetstream = stream.jetstream().await;
    let mut info = jetstream.get_stream(&stream.name).await.unwrap();
    let info = info.info().await.unwrap();
    let messages = i64::try_from(info.state.messages).unwrap();
    let max_messages = more.map_or(-1, |more| messages + more);
    let config = stream::Config { max_messages, ..info.config.clone() };
    let info = jetstream.update_stream(config).await.unwrap();
    assert_eq!(info.state.first_sequence, 1, "the broker has removed what it had acknowledged");
}
