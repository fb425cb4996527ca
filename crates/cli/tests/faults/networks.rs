//! The network between relays and their servers: cut, silent one way, answers lost.

use std::time::Duration;

use posthaste_testkit::servers::{Direction, NatsServer, PostgresServer, Proxy, shared_nats};

use crate::rig::{RELAYS, Rig, relay_config};
use crate::support::{Database, RelayConfig, Stream, sized};

/// Longer than a lease: a relay that cannot renew it is made up for by the others.
fn silence() -> Duration {
    sized(Duration::from_secs(4), Duration::from_secs(8))
}

/// A rig whose relays reach PostgreSQL through a proxy each.
async fn before_database(name: &str, server: &PostgresServer) -> Option<(Rig, Vec<Proxy>)> {
    let nats = shared_nats().await?;
    let database = Database::create_at(server).await;
    let stream = Stream::create_forgetful(&nats).await;
    let proxies = start_proxies(&format!("127.0.0.1:{}", server.port())).await;
    let configs: Vec<RelayConfig> = proxies
        .iter()
        .map(|proxy| {
            let (own, through) = (server.port().to_string(), proxy.port().to_string());
            let database_url = Some(database.url().replacen(&own, &through, 1));
            RelayConfig { database_url, ..relay_config() }
        })
        .collect();
    Some((Rig::start_on(name, database, stream, &configs).await, proxies))
}

/// A rig whose relays reach NATS through a proxy each.
async fn before_broker(name: &str, nats: &NatsServer) -> Option<(Rig, Vec<Proxy>)> {
    let database = Database::create().await?;
    let stream = Stream::create_forgetful(&nats.url()).await;
    let proxies = start_proxies(&nats.address()).await;
    let configs: Vec<RelayConfig> = proxies
        .iter()
        .map(|proxy| {
            let broker_url = Some(format!("nats://{}", proxy.address()));
            RelayConfig { broker_url, ..relay_config() }
        })
        .collect();
    Some((Rig::start_on(name, database, stream, &configs).await, proxies))
}

async fn start_proxies(server: &str) -> Vec<Proxy> {
    let mut proxies = Vec::new();
    for _ in 0..RELAYS {
        proxies.push(Proxy::start(server).await);
    }
    proxies
}

/// One relay's proxy in even rounds, all of them in odd ones.
fn some(proxies: &[Proxy], round: usize) -> &[Proxy] {
    if round.is_multiple_of(2) { &proxies[round / 2 % RELAYS..][..1] } else { proxies }
}

async fn cut_and_refuse(mut rig: Rig, proxies: &[Proxy]) {
    let rounds = sized(4, 8);
    for round in 0..rounds {
        let some = some(proxies, round);
        rig.burst().await;
        rig.interrupt(some.len());
        for proxy in some {
            proxy.refuse();
            proxy.cut();
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
        some.iter().for_each(Proxy::pass);
        rig.recover().await;
        rig.progress().await;
    }
    rig.finish(&format!("{rounds} times cut and refused for 0.5 s; of one relay or of all")).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_to_the_database_that_are_cut_are_made_again() {
    let Some(server) = PostgresServer::start(&[]).await else { return };
    let rig = before_database("database connections cut", &server).await;
    let Some((rig, proxies)) = rig else { return };
    cut_and_refuse(rig, &proxies).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_that_falls_silent_one_way_is_waited_for() {
    let rounds = sized(2, 4);
    let Some(server) = PostgresServer::start(&[]).await else { return };
    let rig = before_database("database silent one way", &server).await;
    let Some((mut rig, proxies)) = rig else { return };
    for round in 0..rounds {
        let some = some(&proxies, round);
        rig.burst().await;
        rig.interrupt(some.len());
        let direction = if round % 4 < 2 { Direction::ToClient } else { Direction::ToServer };
        some.iter().for_each(|proxy| proxy.hold(direction));
        tokio::time::sleep(silence()).await;
        if some.len() < RELAYS {
            rig.recover().await;
        }
        some.iter().for_each(Proxy::pass);
        rig.recover().await;
        rig.progress().await;
    }
    let seconds = silence().as_secs();
    rig.finish(&format!("{rounds} times questions or answers held for {seconds} s")).await;
}

/// What the relay recorded may be recorded, and what it asked for done: it cannot know.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answers_of_the_database_that_are_lost_are_asked_for_again() {
    let rounds = sized(4, 8);
    let Some(server) = PostgresServer::start(&[]).await else { return };
    let rig = before_database("database answers lost", &server).await;
    let Some((mut rig, proxies)) = rig else { return };
    for round in 0..rounds {
        let some = some(&proxies, round);
        rig.burst().await;
        rig.interrupt(some.len());
        some.iter().for_each(|proxy| proxy.lose(Direction::ToClient));
        tokio::time::sleep(Duration::from_millis(300)).await;
        some.iter().for_each(Proxy::pass);
        rig.recover().await;
        rig.progress().await;
    }
    rig.finish(&format!("{rounds} times answers lost for 0.3 s; then reset")).await;
}

/// JetStream has the events, and the relay cannot know: they arrive again, and count no attempt.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn acknowledgements_that_are_lost_repeat_events_and_blame_none() {
    let rounds = sized(2, 4);
    let Some(nats) = NatsServer::start_recent("").await else { return };
    let rig = before_broker("acknowledgements lost", &nats).await;
    let Some((mut rig, proxies)) = rig else { return };
    for round in 0..rounds {
        let some = some(&proxies, round);
        rig.burst().await;
        some.iter().for_each(|proxy| proxy.lose(Direction::ToClient));
        tokio::time::sleep(silence()).await;
        some.iter().for_each(Proxy::pass);
        // What was in flight is sent again, and probes of the silent server once in a second.
        rig.interrupt(2 * some.len());
        rig.recover().await;
        rig.progress().await;
    }
    let seconds = silence().as_secs();
    rig.finish(&format!("{rounds} times for {seconds} s; of one relay or of all; then reset"))
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_to_the_broker_that_are_cut_are_made_again() {
    let Some(nats) = NatsServer::start_recent("").await else { return };
    let rig = before_broker("broker connections cut", &nats).await;
    let Some((rig, proxies)) = rig else { return };
    cut_and_refuse(rig, &proxies).await;
}
