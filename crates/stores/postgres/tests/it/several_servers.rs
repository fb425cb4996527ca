//! An address with several hosts: the one that takes writes is used, at the start and after a failover.

use std::time::{Duration, Instant};

use posthaste_core::{ErrorKind, OutboxEvent, OutboxMigrations, OutboxRepository};
use posthaste_postgres::{PostgresOptions, PostgresOutbox};
use posthaste_testkit::servers::{PostgresServer, free_port};
use serde_json::json;
use sqlx::Connection as _;
use uuid::Uuid;

fn event(number: u32) -> OutboxEvent {
    OutboxEvent::new(Uuid::now_v7(), "t", &json!({ "n": number })).unwrap()
}

#[tokio::test]
async fn the_host_that_takes_writes_is_found_and_found_again_after_a_failover() {
    let Some(mut primary) = PostgresServer::start(&[]).await else { return };
    let standby = primary.standby().await;
    let nobody = free_port();
    let url = format!(
        "postgres://root@127.0.0.1:{nobody},127.0.0.1:{},127.0.0.1:{}/postgres",
        standby.port(),
        primary.port(),
    );
    let options = PostgresOptions {
        connect_timeout: Duration::from_secs(2),
        ..PostgresOptions::from_url(url)
    };
    let outbox = PostgresOutbox::connect(&options).await.unwrap();
    outbox.migrate().await.unwrap();
    outbox.store(&[event(1)]).await.unwrap();
    wait_until_replayed(&standby).await;

    primary.kill();
    promote(&standby).await;
    let deadline = Instant::now() + Duration::from_secs(60);
    while let Err(error) = outbox.store(&[event(2)]).await {
        assert!(Instant::now() < deadline, "{}", error.report());
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let backlog = outbox.backlog(0).await.unwrap();
    assert_eq!(backlog.ready, 2, "both are on the server that was the standby");
}

#[tokio::test]
async fn a_single_host_that_takes_no_writes_is_refused_where_writes_are_asked_for() {
    let Some(primary) = PostgresServer::start(&[]).await else { return };
    let standby = primary.standby().await;
    let url = format!("{}?target_session_attrs=read-write", standby.url("postgres"));
    let error = PostgresOutbox::connect(&PostgresOptions::from_url(url)).await.unwrap_err();
    // It may be promoted any time.
    assert_eq!(error.kind(), ErrorKind::Unreachable);
    assert!(error.report().contains("takes no writes"), "{}", error.report());
}

async fn wait_until_replayed(standby: &PostgresServer) {
    let mut connection = sqlx::PgConnection::connect(&standby.url("postgres")).await.unwrap();
    let stored = "select count(*) from outbox_events";
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        // The table itself comes by replication, too.
        let seen = sqlx::query_scalar::<_, i64>(stored).persistent(false);
        if seen.fetch_one(&mut connection).await.unwrap_or_default() == 1 {
            return;
        }
        assert!(Instant::now() < deadline, "the standby does not follow");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

async fn promote(standby: &PostgresServer) {
    let mut connection = sqlx::PgConnection::connect(&standby.url("postgres")).await.unwrap();
    let promoted = sqlx::query_scalar::<_, bool>("select pg_promote()");
    assert!(promoted.fetch_one(&mut connection).await.unwrap());
}
