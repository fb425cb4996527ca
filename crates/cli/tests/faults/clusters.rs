//! A cluster of NATS servers that loses the leader of a replicated stream.

use std::time::{Duration, Instant};

use async_nats::jetstream::stream;
use posthaste_testkit::servers::NatsCluster;

use crate::rig::{RELAYS, Rig, relay_config};
use crate::support::{Database, RelayConfig, Stream, eventually, sized};

const SERVERS: usize = 3;

/// What becomes of the server that leads the stream.
#[derive(Debug, Clone, Copy)]
enum Fate {
    Killed,
    Frozen,
    CutOff,
}

/// The others elect another leader; until then nothing is an event's own fault.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_whose_leader_is_lost_costs_no_attempt_and_keeps_what_it_acknowledged() {
    let rounds = sized(1, 3);
    // Longer than a leader without followers takes to notice.
    let lasts = sized(Duration::from_secs(6), Duration::from_secs(15));
    let Some(mut cluster) = NatsCluster::start_recent(SERVERS).await else { return };
    let Some(database) = Database::create().await else { return };
    let stream = Stream::named(&cluster.urls(0));
    create_replicated(&stream).await;
    // Each relay begins at a server of its own, so that one of them is at the leader.
    let configs: Vec<RelayConfig> = (0..RELAYS)
        .map(|relay| RelayConfig { broker_url: Some(cluster.urls(relay)), ..relay_config() })
        .collect();
    let mut rig = Rig::start_on("leader of a cluster lost", database, stream, &configs).await;
    // What is asked for again while there is no leader is stored once, and arrives several times.
    rig.tap = None;
    for _ in 0..rounds {
        for fate in [Fate::Killed, Fate::Frozen, Fate::CutOff] {
            rig.burst().await;
            let leader = wait_for_leader(&rig.stream).await;
            match fate {
                Fate::Killed => cluster.servers()[leader].kill(),
                Fate::Frozen => cluster.servers()[leader].freeze(),
                Fate::CutOff => cluster.cut_off(leader),
            }
            rig.interrupt(RELAYS);
            tokio::time::sleep(lasts).await;
            match fate {
                Fate::Killed => cluster.servers()[leader].restart().await,
                Fate::Frozen => cluster.servers()[leader].thaw(),
                Fate::CutOff => cluster.heal(),
            }
            rig.recover().await;
            wait_for_leader(&rig.stream).await;
            rig.progress().await;
        }
    }
    let (faults, seconds) = (rounds * 3, lasts.as_secs());
    rig.add("servers", SERVERS);
    rig.finish(&format!(
        "{faults} times the leader of three is killed or frozen or cut off for {seconds} s"
    ))
    .await;
}

/// As soon as the servers agree on who decides.
async fn create_replicated(stream: &Stream) {
    let jetstream = stream.jetstream().await;
    let config = stream::Config {
        name: stream.name.clone(),
        subjects: vec![format!("{}.>", stream.name)],
        num_replicas: SERVERS,
        allow_batch_publish: true,
        ..Default::default()
    };
    let begun = Instant::now();
    while let Err(error) = jetstream.create_stream(config.clone()).await {
        assert!(begun.elapsed() < Duration::from_secs(60), "{error}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// The number of the server that leads, once all others follow it.
async fn wait_for_leader(stream: &Stream) -> usize {
    let mut leader = None;
    eventually("a leader with followers", async || {
        let Ok(client) = crate::support::connect(&stream.url).await else { return false };
        let jetstream = async_nats::jetstream::new(client);
        let Ok(found) = jetstream.get_stream(&stream.name).await else { return false };
        let Some(cluster) = &found.cached_info().cluster else { return false };
        leader = cluster.leader.as_ref().and_then(|name| name.strip_prefix("server")?.parse().ok());
        let following = cluster.replicas.iter().filter(|replica| replica.current).count();
        leader.is_some() && following == SERVERS - 1
    })
    .await;
    leader.unwrap()
}
