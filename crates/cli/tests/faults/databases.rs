//! PostgreSQL killed, and its connections terminated.

use std::time::{Duration, Instant};

use posthaste_testkit::servers::PostgresServer;

use crate::rig::{RELAYS, Rig};
use crate::support::sized;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_whose_processes_were_all_killed_is_waited_for() {
    let rounds = sized(2, 4);
    let down_for = sized(Duration::from_secs(1), Duration::from_secs(5));
    let Some(mut server) = PostgresServer::start(&[]).await else { return };
    let Some(mut rig) = Rig::start_at("PostgreSQL killed", &server).await else { return };
    for _ in 0..rounds {
        rig.burst().await;
        server.kill_all();
        rig.interrupt(RELAYS);
        tokio::time::sleep(down_for).await;
        server.restart().await;
        rig.recover().await;
        rig.progress().await;
    }
    let seconds = down_for.as_secs();
    rig.finish(&format!("{rounds} times kill -9 of all its processes; down for {seconds} s")).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_of_relays_that_the_database_terminates_are_replaced() {
    let lasts = sized(Duration::from_secs(4), Duration::from_secs(30));
    let Some(server) = PostgresServer::start(&[]).await else { return };
    let Some(mut rig) = Rig::start_at("connections terminated", &server).await else { return };
    let begun = Instant::now();
    let (mut terminated, mut rounds) = (0, 0);
    while begun.elapsed() < lasts {
        if rounds % 20 == 0 {
            rig.burst().await;
        }
        rounds += 1;
        terminated += rig
            .database
            .count(
                "select count(*) filter (where pg_terminate_backend(pid)) from ( \
                     select pid from pg_stat_activity where application_name = 'posthaste' \
                      order by random() limit 2) as chosen",
            )
            .await;
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    rig.interrupt(RELAYS);
    rig.recover().await;
    assert!(terminated > 0);
    rig.finish(&format!("pg_terminate_backend of {terminated} connections of relays")).await;
}
