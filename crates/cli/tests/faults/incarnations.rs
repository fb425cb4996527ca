//! Another database at the address of the one before: a standby that was behind, a backup; or the same
//! one, which counts from the beginning.

use std::collections::HashSet;
use std::time::Duration;

use posthaste_testkit::servers::{Dump, DumpFormat, PostgresServer, free_port};
use sqlx::{AssertSqlSafe, Connection as _, PgConnection};
use uuid::Uuid;

use crate::rig::{RELAYS, Rig};
use crate::support::{Database, eventually, sized};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_standby_that_was_behind_takes_over_and_all_that_it_has_is_delivered_in_order() {
    let rounds = sized(1, 5);
    let Some(mut primary) = PostgresServer::start(&[]).await else { return };
    let Some(mut rig) = Rig::start_at("failover to a lagging standby", &primary).await else {
        return;
    };
    for _ in 0..rounds {
        let mut standby = primary.standby().await;
        rig.progress().await;
        standby.kill();
        // What it never hears of.
        rig.burst().await;
        rig.progress().await;
        let address = primary.port();
        let had = crash(&mut primary, &mut rig).await;
        // In recovery at first: relays meet a server that only reads.
        standby.restart_at(address).await;
        let pending = rig.database.pending().await;
        tokio::time::sleep(Duration::from_millis(500)).await;
        rig.replace(had, pending);
        standby.promote();
        rig.recover().await;
        rig.progress().await;
        primary = standby;
    }
    rig.finish(&format!("{rounds} times promoted after the primary died with what it lacked"))
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backup_that_is_restored_mid_run_is_delivered_in_order() {
    let rounds = sized(1, 5);
    let Some(mut server) = PostgresServer::start(&[]).await else { return };
    let Some(mut rig) = Rig::start_at("restored from a backup", &server).await else { return };
    for _ in 0..rounds {
        let Some(mut other) = PostgresServer::start(&[]).await else { return };
        let Some(dump) = Dump::take(&rig.database.url(), DumpFormat::Custom).await else { return };
        // What it does not hold.
        rig.burst().await;
        rig.progress().await;
        let address = server.port();
        let had = crash(&mut server, &mut rig).await;
        let restored = Database::of_dump(&other, &dump).await;
        let pending = restored.pending().await;
        let rename = format!("alter database {} rename to {}", restored.name, rig.database.name);
        let mut admin = PgConnection::connect(&other.url("postgres")).await.unwrap();
        sqlx::raw_sql(AssertSqlSafe(rename)).execute(&mut admin).await.unwrap();
        rig.replace(had, pending);
        other.restart_at(address).await;
        rig.recover().await;
        rig.progress().await;
        server = other;
    }
    rig.finish(&format!(
        "{rounds} times another server with a dump at the address of the lost one"
    ))
    .await;
}

/// Kills the server under everybody, and returns the events that it had.
async fn crash(server: &mut PostgresServer, rig: &mut Rig) -> HashSet<Uuid> {
    server.kill_all();
    rig.interrupt(RELAYS);
    // Elsewhere, where nobody looks.
    server.restart_at(free_port()).await;
    let mut connection = PgConnection::connect(&server.url(&rig.database.name)).await.unwrap();
    let had: Vec<Uuid> = sqlx::query_scalar("select id from outbox_events")
        .fetch_all(&mut connection)
        .await
        .unwrap();
    server.kill();
    had.into_iter().collect()
}

/// Every number is drawn for the second time, while what had it first is history.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sequence_that_begins_anew_hides_nothing() {
    let rounds = sized(2, 4);
    let Some(mut rig) = Rig::start("sequence begun anew").await else { return };
    for _ in 0..rounds {
        rig.burst().await;
        let mut connection = rig.database.connection().await;
        let mut transaction = connection.begin().await.unwrap();
        // Writers change accounts before they store events: none of them is half done now.
        let lock = "lock table accounts in exclusive mode";
        sqlx::raw_sql(lock).execute(&mut *transaction).await.unwrap();
        eventually("an empty outbox", async || rig.database.pending().await == 0).await;
        let restart = "alter sequence outbox_events_seq restart";
        sqlx::raw_sql(restart).execute(&mut *transaction).await.unwrap();
        transaction.commit().await.unwrap();
        connection.close().await.unwrap();
        rig.progress().await;
        rig.recover().await;
    }
    rig.finish(&format!("{rounds} times restarted at 1 while nothing waited")).await;
}
